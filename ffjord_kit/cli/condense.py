"""The command `condense`: a narrower network for a run, and what it loses and saves."""

from __future__ import annotations

import time

import click
import numpy as np

from ffjord_kit import metrics
from ffjord_kit.cli.output import CONSOLE, plain_table, with_error
from ffjord_kit.cli.sources import LoadedData, held_out, load_fitted, load_for_run, open_run
from ffjord_kit.estimator import DensityModel

COMPARED_ROWS = 1_000


def condense(run: str, source: str | None, out: str, loss: float, steps: int, force: bool) -> None:
    """Merge like neurons of a run on a table, and keep the narrower network as a new run.

    Args:
        run: Run folder.
        source: Rows of the fit; None for those that the run names.
        out: Folder of the new run.
        loss: Largest mean increase of the negative log-likelihood, nats.
        steps: Steps of imitation of each width that is tried.
        force: Whether to replace an existing run.

    Raises:
        ValueError: If the data are not the rows of the fit, or no narrower network keeps the loss.
    """
    opened, model = open_run(run), DensityModel.load(run).reporting_by("continuous")
    data = load_fitted(opened) if source is None else load_for_run(opened, source)
    new = model.condense(data.x, context=data.context, sample_weight=data.weight, loss=loss, steps=steps)
    new.save(out, force=force)
    _print_comparison(model, new, held_out(model, data).take(slice(COMPARED_ROWS)))
    click.echo(f"run: {out}")


def _print_comparison(old: DensityModel, new: DensityModel, rows: LoadedData) -> None:
    """Print widths, log-likelihoods of held-out rows, and seconds side by side."""
    before, after = _timed(old, rows), _timed(new, rows)
    table = plain_table(f"{len(rows.x)} held-out rows", "before", "after")
    table.add_row("widths", *(",".join(map(str, model.config.fields.hidden or ())) for model in (old, new)))
    table.add_row(
        "log-likelihood, nats", *(with_error(log_prob, weight=rows.weight) for log_prob, _ in (before, after))
    )
    change, error = metrics.mean_and_standard_error(after[0] - before[0], rows.weight)
    table.add_row("  change, row by row", "", f"{change:+.4f} ± {error:.4f}")
    table.add_row("s for 10,000 rows", *(f"{seconds:.2f}" for _, seconds in (before, after)))
    CONSOLE.print(table)


def _timed(model: DensityModel, rows: LoadedData) -> tuple[np.ndarray, float]:
    """Return the log-densities of rows, and the seconds that 10,000 of them would take."""
    begun = time.perf_counter()
    log_prob = model.evaluate(rows.x, context=rows.context).log_prob
    return log_prob, (time.perf_counter() - begun) * 10_000 / len(rows.x)
