"""The command `reflow`: straighten the paths of a run, and compare it before and after."""

from __future__ import annotations

from collections.abc import Iterator

import click
import numpy as np

from ffjord_kit import metrics
from ffjord_kit.cli.output import CONSOLE, plain_table, with_error
from ffjord_kit.cli.sources import LoadedData, find_fitted, held_out, load_fitted, load_for_run, open_run
from ffjord_kit.estimator import DensityModel
from ffjord_kit.estimator.model import STEP_COUNTS, STEP_METHODS
from ffjord_kit.run import Run

COMPARED_ROWS = 2_000
GONE = "pass rows to compare on as DATA"

Row = tuple[str, ...]


def reflow(
    run: str,
    source: str | None,
    out: str,
    pairs: int,
    steps: int,
    learning_rate: float,
    hidden: tuple[int, ...] | None,
    random_state: int | None,
    force: bool,
) -> None:
    """Train the network of a run again on pairs that the run draws, and keep the result as a new run.

    Args:
        run: Run folder.
        source: Data for the comparison; None for the rows that the run held out.
        out: Folder of the new run.
        pairs: Number of pairs.
        steps: Number of training steps.
        learning_rate: Peak learning rate.
        hidden: Widths of a new network; None to train the run's own.
        random_state: Seed of the pairs and of the training; None for a random one.
        force: Whether to replace an existing run.

    Raises:
        ValueError: If the data do not suit the run.
    """
    opened, model = open_run(run), DensityModel.load(run).reporting_by("continuous")
    named = source is None and "source" in opened.config["data"]  # a run from Python names no data
    fitted = load_fitted(opened, GONE) if named else find_fitted(opened)
    compared = _compared_rows(opened, model, fitted, source)
    contexts = fitted if fitted is not None else compared
    result = model.reflow(
        None if fitted is None else fitted.x,
        context=None if contexts is None else contexts.context,
        sample_weight=None if fitted is None else fitted.weight,
        pairs=pairs, steps=steps, learning_rate=learning_rate, hidden=hidden, random_state=random_state, source=run,
    )  # fmt: skip
    result.save(out, force=force)
    _print_comparison(model, result, compared)
    click.echo(f"run: {out}")


def _compared_rows(run: Run, model: DensityModel, fitted: LoadedData | None, source: str | None) -> LoadedData | None:
    """Return the rows to compare on: those of a source, or else those held out; None if the run names no data."""
    if source is None and fitted is None:
        return None
    rows = held_out(model, fitted) if source is None and fitted is not None else load_for_run(run, source or "")
    return rows.take(slice(COMPARED_ROWS))


def _print_comparison(old: DensityModel, new: DensityModel, rows: LoadedData | None) -> None:
    """Print both models side by side."""
    table = plain_table("", "before", "after reflow")
    for row in [*([] if rows is None else _likelihoods(old, new, rows)), *_sample_errors(old, new, rows)]:
        table.add_row(*row)
    CONSOLE.print(table)
    click.echo("Errors are against a converged solve: mean absolute errors of log-likelihoods in nats, and root mean")
    click.echo("square errors of samples in standard deviations.")


def _likelihoods(old: DensityModel, new: DensityModel, rows: LoadedData) -> Iterator[Row]:
    """Yield the log-likelihoods of both, their cost, and their errors by a few steps."""
    models, x, context = (old, new), rows.x, rows.context
    results = [model.evaluate(x, context=context) for model in models]
    yield f"log-likelihood of {len(x)} rows", *(with_error(result.log_prob, weight=rows.weight) for result in results)
    change, error = metrics.mean_and_standard_error(results[1].log_prob - results[0].log_prob, rows.weight)
    yield "  change, row by row", "", f"{change:+.4f} ± {error:.4f}"
    yield "  solver's error", *(f"{model.solver_error(x, context=context):.1e}" for model in models)
    yield f"evaluations at {old.config.fields.tolerance:g}", *(str(result.nfe) for result in results)
    errors = [
        model.few_step_score_errors(x, result.log_prob, context=context)
        for model, result in zip(models, results, strict=True)
    ]
    for steps in STEP_COUNTS:
        yield f"error of log-likelihoods, {_count(steps, 'rk4')}", *(f"{each[steps]:.4f}" for each in errors)


def _sample_errors(old: DensityModel, new: DensityModel, rows: LoadedData | None) -> Iterator[Row]:
    """Yield the errors of samples of both by a few steps."""
    context: np.ndarray | None = None if rows is None else rows.context
    n = COMPARED_ROWS if context is None else len(context)
    errors = [model.few_step_sample_errors(n=n, context=context) for model in (old, new)]
    for method in STEP_METHODS:
        for steps in STEP_COUNTS:
            yield f"error of samples, {_count(steps, method)}", *(f"{each[method, steps]:.4f}" for each in errors)


def _count(steps: int, method: str) -> str:
    return f"{steps} {method} step{'s' * (steps > 1)}"
