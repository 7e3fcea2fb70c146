"""The command `explain`: why rows are outliers, and what would mend them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from ffjord_kit import datasets, plots
from ffjord_kit.cli.checks import parse_bounds
from ffjord_kit.cli.output import CONSOLE, plain_table, print_rows
from ffjord_kit.cli.sources import LoadedData, complete_rows, find_fitted, load_for_run, open_run
from ffjord_kit.diagnostics import Correction, Corrections
from ffjord_kit.estimator import DensityModel
from ffjord_kit.progress import progress

PANELS = 6
MARGIN = 0.05  # of the range of a picture
CAUTION = "This is what the run takes for an ordinary row; it does not say what causes what."


def explain(
    run: str,
    source: str,
    allow: str | None,
    stable: float,
    threshold: float | None,
    quantile: float,
    bounds: str | None,
    rows: int,
    out: str | None,
    picture: str | None,
    random_state: int,
    force: bool,
) -> None:
    """Find the smallest stable changes that mend outliers, print them, and write and draw them.

    Args:
        run: Run folder.
        source: Rows.
        allow: Columns that may change, separated by commas; None for all real ones.
        stable: Distance, in scales of the columns, within which every change must mend.
        threshold: Log-density that a row must have, nats; None for a quantile of that of the fit's rows.
        quantile: That quantile.
        bounds: Bounds of columns, as a=0..5,b=1..2, or None.
        rows: Largest number of rows to explain, the least likely first.
        out: File for the corrections, or None.
        picture: PNG file for two columns, or None.
        random_state: Seed of all draws.
        force: Whether to replace existing files.

    Raises:
        ValueError: If the data do not suit the run, a column is not there, or no row can be mended.
    """
    opened, model = open_run(run), DensityModel.load(run)
    model.domain.require_table("explain", "score their outliers, and look at their pictures")
    if model.domain.curved:
        click.echo(f"real columns may change, but not {model.domain.curved}")
    data, numbers = _least_likely(model, complete_rows(load_for_run(opened, source), "explain"), rows)
    fitted = find_fitted(opened)
    fitted = None if fitted is None else complete_rows(fitted.drawn(random_state), "explain", "rows of the fit")
    if fitted is None:
        click.echo("the data of the fit are gone: draws of the run stand in for them")
    with progress("outliers") as on_progress:
        found = model.explain(
            data.x, allow=None if allow is None else allow.split(","), stable=stable, context=data.context,
            reference=fitted and fitted.x, reference_context=fitted and fitted.context, threshold=threshold,
            quantile=quantile, bounds=parse_bounds(bounds), random_state=random_state, on_progress=on_progress,
        )  # fmt: skip
    outliers = [item for item in found if not item.passed]
    _refuse_hopeless(outliers, found, numbers)
    _print(outliers, found, numbers, stable, model)
    if out is not None:
        _write(found, numbers, model, out)
    if picture is not None:
        _draw(model, data, outliers, found, numbers, Path(picture))


def _least_likely(model: DensityModel, data: LoadedData, rows: int) -> tuple[LoadedData, np.ndarray]:
    """Return the least likely rows, and their numbers."""
    with progress(f"{len(data.x)} rows") as on_progress:
        scored = model.evaluate(data.x, context=data.context, on_progress=on_progress)
    least = data.take(np.argsort(scored.log_prob)[:rows])
    return least, least.row_numbers


def _write(found: Corrections, numbers: np.ndarray, model: DensityModel, out: str) -> None:
    """Write the corrections as a table: whole numbers of rows, and dates as dates."""
    table = found.table() | {"row": numbers}
    ends = ("", " from", " to")
    cells = {name + end: write for name, write in model.domain.cells.items() for end in ends if name + end in table}
    rows = np.stack(list(table.values()), axis=1)
    datasets.write_chunks(out, [rows], list(table), rows=len(rows), whole=["row"], cells=cells)
    click.echo(f"corrections of {len(found)} rows in {out}")


def _refuse_hopeless(outliers: Sequence[Correction], found: Corrections, numbers: np.ndarray) -> None:
    """Refuse a threshold that no outlier can reach."""
    if outliers and not any(item.found for item in outliers):
        nearest = min(outliers, key=lambda item: item.missing)
        raise ValueError(
            f"no change of {', '.join(nearest.names)} within the bounds lifts a row to {found.threshold:.4g} nats; row "
            f"{numbers[nearest.row]} comes closest and misses by {nearest.missing:.3g}: lower --threshold or --stable, "
            "or allow more"
        )


def _print(
    outliers: Sequence[Correction], found: Corrections, numbers: np.ndarray, stable: float, model: DensityModel
) -> None:
    """Print the corrections, and what they hold."""
    threshold = f"{found.threshold:.4f} nats; {len(outliers)} of {len(found)} rows are below"
    if not outliers:
        return print_rows([("threshold", f"{threshold}: nothing to mend")])
    table = plain_table("row", "log p", "after", "size", "what mends it")
    written = {name: partial(_cell, write) for name, write in model.domain.cells.items()}
    for item in outliers:
        before, after = (f"{found.threshold + value:.2f}" for value in (item.before, item.after))
        shown = (after, f"{item.size:.3f}") if item.found else ("", "")
        table.add_row(str(numbers[item.row]), before, *shown, item.in_words(written=written))
    CONSOLE.print(table, soft_wrap=True)
    mended = [item for item in outliers if item.found]
    worst = max(mended, key=lambda item: item.certificate.share)
    print_rows([
        ("threshold", threshold),
        ("row", "number of the row in the data, from 0 on"),
        ("size", "sum of the changes, in scales of the columns (about a standard deviation)"),
        ("stable", f"within {stable:g} scales of the corrected row; {max(mended, key=_failing).stability}"),
        ("boxes", str(worst.certificate)),
        ("caution", CAUTION),
    ])  # fmt: skip
    return None


def _cell(write: Callable[[np.ndarray], np.ndarray], value: float) -> str:
    """Return how a number of a column is written."""
    return str(write(np.array([value]))[0])


def _failing(item: Correction) -> float:
    return item.stability.share


def _draw(
    model: DensityModel,
    data: LoadedData,
    outliers: Sequence[Correction],
    found: Corrections,
    numbers: np.ndarray,
    path: Path,
) -> None:
    """Draw the first corrected rows over their two columns."""
    shown = [item for item in outliers if item.found][:PANELS]
    if not shown or len(shown[0].names) != 2:
        given = ", ".join(found[0].names)
        raise ValueError(f"--picture is for two columns and a corrected row; got {given}: pass --allow with two")
    columns = [data.columns.index(name) for name in shown[0].names]

    def log_prob(item: Correction) -> Any:
        def at(points: np.ndarray) -> np.ndarray:
            rows = np.repeat(data.x[[item.row]], len(points), axis=0)
            rows[:, columns] = points
            context = None if data.context is None else data.context[[item.row]]
            return model.evaluate(rows, context=context).log_prob

        return at

    panels = [
        plots.CorrectedRow(
            f"row {numbers[item.row]}", log_prob(item), item.original, item.corrected, item.lower, item.upper
        )
        for item in shown
    ]
    ends = np.stack([item.ends for item in shown])
    low, high = ends[:, 0].min(0), ends[:, 1].max(0)
    low, high = low - MARGIN * (high - low), high + MARGIN * (high - low)
    names = (shown[0].names[0], shown[0].names[1])
    bounds = ((float(low[0]), float(high[0])), (float(low[1]), float(high[1])))
    click.echo(f"picture: {plots.save(plots.corrections(panels, found.threshold, names, bounds=bounds), path)}")
