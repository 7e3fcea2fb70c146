"""The command `sample`: draw from a run into a file."""

from __future__ import annotations

import click
import numpy as np

from ffjord_kit import datasets
from ffjord_kit.cli.checks import check_replaceable
from ffjord_kit.cli.output import image_files, write_images
from ffjord_kit.cli.sources import open_run, parse_context
from ffjord_kit.estimator import DensityModel

ROWS, IMAGES = 1000, 64  # default numbers of samples


def sample(
    run: str,
    n_samples: int | None,
    out: str,
    context: str | None,
    random_state: int | None,
    steps: int | None,
    guidance: float,
    force: bool,
) -> None:
    """Draw samples from a run into a file; images into an NPZ file and a PNG sheet.

    Args:
        run: Run folder.
        n_samples: Number of samples; None for a default.
        out: File.
        context: Values, a file of rows, or classes; None for a run without context.
        random_state: Seed of the noise; None for a random one.
        steps: Number of fixed midpoint steps; None for a converged solve.
        guidance: Strength of the context, 1 for that of the data.
        force: Whether to replace existing files.

    Raises:
        ValueError: If the file exists or cannot be written, or the context does not suit the run.
    """
    opened = open_run(run)
    is_images = opened.config.get("images") is not None
    n_samples = n_samples or (IMAGES if is_images else ROWS)
    paths = image_files(out) if is_images else [out]
    for path in paths:
        check_replaceable(path, force=force)
    if not is_images:
        datasets.check_writable(out)
    model = DensityModel.load(run)
    model.check_draws(n_samples)
    contexts = parse_context(opened, context, n_samples)
    x = model.sample(n_samples, context=contexts, random_state=random_state, steps=steps, guidance=guidance)
    _write(paths, x, contexts, model)
    click.echo(f"{n_samples} samples in {' and '.join(paths)}")


def _write(paths: list[str], x: np.ndarray, contexts: np.ndarray | None, model: DensityModel) -> None:
    """Write samples to the files."""
    if model.is_image:
        write_images(paths, x.reshape(-1, *model.event_shape), contexts)
    else:
        datasets.write(paths[0], x, model.record["columns"])
