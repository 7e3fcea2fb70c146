"""The command `impute`: fill the missing cells of a table by draws, given the observed ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import numpy as np

from ffjord_kit import datasets
from ffjord_kit.cli.sources import load_for_run, open_run
from ffjord_kit.datasets.writing import TEXT_BYTES
from ffjord_kit.diagnostics.grid import Grid
from ffjord_kit.estimator import DensityModel
from ffjord_kit.progress import OnProgress, progress

NUMBERS = ("draw", "row")  # the first two columns of several fillings


def impute(run: str, source: str, out: str, draws: int, random_state: int | None, force: bool) -> None:
    """Fill the missing cells of a table, and write it.

    Args:
        run: Run folder, of a fit with subsets.
        source: Table.
        out: File; of one filling the table as it is, of several with the numbers of the filling and the row before.
        draws: Number of fillings.
        random_state: Seed of the noise; None for a random one.
        force: Whether to replace an existing file.

    Raises:
        ValueError: If the run answers no questions, the file cannot be written, or the table does not suit the run.
    """
    opened, model = open_run(run), DensityModel.load(run)
    data = load_for_run(opened, source, keep_empty=True)
    columns = (*(NUMBERS if draws > 1 else ()), *model.record["columns"])
    datasets.check_disk(out, draws * len(data.x), [TEXT_BYTES] * len(columns))
    with progress(f"{draws} fillings") as on_progress:
        tables = model.fillings(data.x, draws, random_state)
        chunks = _numbered(tables, draws, on_progress)
        datasets.write_chunks(
            out, chunks, columns, rows=draws * len(data.x), whole=_whole(model, draws), cells=model.domain.cells
        )
    missing = np.isnan(data.x)
    click.echo(
        f"{missing.sum()} missing cells in {missing.any(1).sum()} of {len(data.x)} rows, filled {draws} "
        f"time{'s' * (draws > 1)}: {out}"
    )


def _numbered(tables: Iterator[np.ndarray], draws: int, on_progress: OnProgress) -> Iterator[np.ndarray]:
    """Yield fillings, and, where there are several, the numbers of the filling and of the row in front."""
    for number, table in enumerate(tables):
        on_progress(number, draws)
        rows = np.arange(len(table), dtype=np.float64)
        yield table if draws == 1 else np.column_stack([np.full(len(table), float(number)), rows, table])
    on_progress(draws, draws)


def _whole(model: DensityModel, draws: int) -> list[str]:
    """Return the columns of whole numbers."""
    columns: list[Any] = model.record["columns"]
    decimals = Grid.from_record(model.record["grid"], len(columns)).decimals
    whole = [name for name, digits in zip(columns, decimals, strict=True) if digits == 0]
    return [*(NUMBERS if draws > 1 else ()), *whole]
