"""The command `sample`: draw from a run into a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
import numpy as np

from ffjord_kit import datasets
from ffjord_kit.cli.checks import check_replaceable, parse_values
from ffjord_kit.cli.output import image_files, write_images
from ffjord_kit.cli.sources import load_model, open_run, parse_context
from ffjord_kit.columns.base import ColumnType
from ffjord_kit.columns.categories import Category
from ffjord_kit.columns.types import read_types
from ffjord_kit.datasets.writing import TEXT_BYTES
from ffjord_kit.diagnostics.grid import Grid
from ffjord_kit.estimator import DensityModel
from ffjord_kit.progress import OnProgress, progress

ROWS, IMAGES = 1000, 64  # default numbers of samples
GRID_BYTES = 2  # of a number on a grid in text, decimals aside


def sample(
    run: str,
    n_samples: int | None,
    out: str,
    context: str | None,
    given: str | None,
    random_state: int | None,
    steps: int | None,
    density: str,
    guidance: float,
    force: bool,
) -> None:
    """Draw samples from a run into a file; images into an NPZ file and a PNG sheet.

    Args:
        run: Run folder.
        n_samples: Number of samples; None for a default.
        out: File.
        context: Values, also by name, a file of rows, or classes; None for a run without context.
        given: Values of columns, as a=0,b=1.5, of a run that answers questions; None for none.
        random_state: Seed of the noise; None for a random one.
        steps: Number of fixed midpoint steps of the continuous flow; None for exact draws.
        density: Word of DENSITIES that is drawn from, or "auto" for the one that reports.
        guidance: Strength of the context, 1 for that of the data.
        force: Whether to replace existing files.

    Raises:
        ValueError: If the file exists, cannot be written or exceeds the disk, or the context does not suit the run.
    """
    opened = open_run(run)
    is_images = opened.config.get("images") is not None
    n_samples = n_samples or (IMAGES if is_images else ROWS)
    paths = image_files(out) if is_images else [out]
    for path in paths:
        check_replaceable(path, force=force)
    if not is_images:
        datasets.check_writable(out)
    if density == "steps" and steps is not None:
        raise ValueError("--steps are of the continuous flow, and --density steps draws exactly: leave one of them out")
    model = load_model(run, density)
    contexts = parse_context(opened, context, n_samples)
    question = model.given(parse_values(given, "--given")) if given else None
    contexts = contexts if question is None else question.context(1)
    draws: dict[str, Any] = {
        "context": contexts, "random_state": random_state, "steps": steps, "guidance": guidance,
    }  # fmt: skip
    if is_images:
        x = model.sample(n_samples, **draws)
        write_images(paths, x.reshape(-1, *model.event_shape), contexts)
    else:
        _write(out, model, n_samples, draws, model.record["columns"] if question is None else question.columns)
    click.echo(f"{n_samples} samples in {' and '.join(paths)}")


def _write(out: str, model: DensityModel, n_samples: int, draws: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Write rows of some columns as they are drawn, so that a table may be larger than the memory."""
    known = model.record["columns"]
    places, all_decimals = [known.index(name) for name in columns], Grid.from_record(model.record["grid"], len(known))
    decimals = [all_decimals.decimals[place] for place in places]
    widths = [TEXT_BYTES if digits is None else GRID_BYTES + digits for digits in decimals]
    datasets.check_disk(out, n_samples, widths)
    whole = [name for name, digits in zip(columns, decimals, strict=True) if digits == 0]
    cells = model.domain.cells
    whole += [own[0] for own, kind in read_types(model.record.get("types")).items() if _has_whole_levels(kind)]
    with progress(f"{n_samples} rows") as on_progress:
        rows = (chunk[:, places] for chunk in model.sample_chunks(n_samples, **draws))
        chunks = _told(rows, n_samples, on_progress)
        datasets.write_chunks(out, chunks, columns, rows=n_samples, whole=whole, cells=cells)


def _has_whole_levels(kind: ColumnType) -> bool:
    """Say whether a column is a category of whole numbers."""
    return (
        isinstance(kind, Category) and kind.is_numeric and all(float(level).is_integer() for level in kind.levels or ())
    )


def _told(chunks: Iterator[np.ndarray], rows: int, on_progress: OnProgress) -> Iterator[np.ndarray]:
    """Yield chunks, and report the rows done."""
    done = 0
    on_progress(done, rows)
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        on_progress(done, rows)
