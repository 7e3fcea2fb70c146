"""The command `discretize`: a density in few exact steps for a run, and a comparison with its continuous flow."""

from __future__ import annotations

import time
from typing import cast

import click
import numpy as np

from ffjord_kit import metrics
from ffjord_kit.cli.output import CONSOLE, plain_table, print_rows, with_error
from ffjord_kit.cli.sources import LoadedData, held_out, load_fitted, load_for_run, open_run
from ffjord_kit.estimator import DensityModel
from ffjord_kit.estimator.discretize import SteppedNote

COMPARED_ROWS = 1_000


def discretize(
    run: str, source: str | None, out: str, steps: int | None, method: str | None, max_seconds: float, force: bool
) -> None:
    """Train few explicit steps of a run by exact likelihood, and keep the result as a new run.

    Args:
        run: Run folder.
        source: Rows of the fit; None for those that the run names.
        out: Folder of the new run.
        steps: Number of steps; None to choose it.
        method: Scheme of the steps; None to choose it.
        max_seconds: Seconds of training.
        force: Whether to replace an existing run.

    Raises:
        ValueError: If the data are not the rows of the fit, or an option cannot be used.
    """
    opened, model = open_run(run), DensityModel.load(run)
    data = load_fitted(opened) if source is None else load_for_run(opened, source)
    new = model.discretize(
        data.x, context=data.context, sample_weight=data.weight, steps=steps, method=method, max_seconds=max_seconds
    )
    new.save(out, force=force)
    note = cast(SteppedNote, new.note)
    _print_comparison(new, held_out(new, data).take(slice(COMPARED_ROWS)))
    print_rows([
        ("steps", str(note)), ("receipt", str(note.receipt)),
        ("reports by default", "the steps" if note.density == "steps" else "the continuous flow"),
    ])  # fmt: skip
    click.echo(f"run: {out}")


def _print_comparison(model: DensityModel, rows: LoadedData) -> None:
    """Print both densities of held-out rows, and what they cost."""
    results = {word: _timed(model, word, rows) for word in ("continuous", "steps")}
    table = plain_table(f"{len(rows.x)} held-out rows", "continuous", "few steps")
    table.add_row(
        "log-likelihood, nats", *(with_error(log_prob, weight=rows.weight) for log_prob, _ in results.values())
    )
    change, error = metrics.mean_and_standard_error(results["steps"][0] - results["continuous"][0], rows.weight)
    table.add_row("  change, row by row", "", f"{change:+.4f} ± {error:.4f}")
    table.add_row("s for 10,000 rows", *(f"{seconds:.2f}" for _, seconds in results.values()))
    CONSOLE.print(table)


def _timed(model: DensityModel, density: str, rows: LoadedData) -> tuple[np.ndarray, float]:
    """Return the log-densities of rows, and the seconds that 10,000 of them would take."""
    begun = time.perf_counter()
    log_prob = model.reporting_by(density).evaluate(rows.x, context=rows.context).log_prob
    return log_prob, (time.perf_counter() - begun) * 10_000 / len(rows.x)
