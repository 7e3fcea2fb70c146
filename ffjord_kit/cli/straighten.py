"""The command that straightens a run."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from rich.table import Table

from ffjord_kit import metrics
from ffjord_kit.cli.options import PLAIN, Widths
from ffjord_kit.cli.sources import held_out_of, rows_like, source_of
from ffjord_kit.estimator import FFJORD
from ffjord_kit.estimator.few_steps import STEP_COUNTS, STEP_METHODS, few_step_sample_errors, few_step_score_errors
from ffjord_kit.runs import Run, RunError

LOOKED_AT = 2_000


@click.command()
@click.argument("run", type=click.Path())
@click.argument("source", metavar="[DATA]", required=False)
@click.option("--out", type=click.Path(), required=True, help="Folder to keep the straightened run in.")
@click.option(
    "--pairs", type=click.IntRange(min=2), default=20_000, show_default=True, help="Pairs to draw of the run."
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=4_000, show_default=True, help="Steps of training on them."
)
@click.option("--learning-rate", type=float, default=8e-3, show_default=True, help="Peak learning rate.")
@click.option(
    "--hidden", type=Widths(), help="Widths of a new network; one, as 32, is fastest (default: the run's goes on)."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Seed of the pairs and of the training.")
@click.option("--force", is_flag=True, help="Replace a run that is in the folder.")
def straighten(
    run: str,
    source: str | None,
    out: str,
    pairs: int,
    steps: int,
    learning_rate: float,
    hidden: tuple[int, ...] | None,
    seed: int | None,
    force: bool,
) -> None:
    """Train a RUN on a table again on its own pairs (reflow), so that a few steps suffice; compare both.

    Log-likelihoods are of DATA, a set or a file, or else of the rows that the run held out.
    """
    _check_room(Path(run), Path(out), force)
    opened, model = Run.open(run), FFJORD.load(run)
    fitted = source_of(opened) if "source" in opened.config["data"] else None  # a run made in Python names no data
    judged = held_out_of(model, fitted) if source is None else rows_like(opened, source).pair
    judged = tuple(part if part is None else part[:LOOKED_AT] for part in judged)
    x, context = (None, judged[1]) if fitted is None else (fitted.x, fitted.context)
    fresh = model.straighten(
        x, context=context, pairs=pairs, steps=steps, learning_rate=learning_rate, hidden=hidden, random_state=seed,
        source=run,
    )  # fmt: skip
    fresh.save(out, force=force)
    _report(model, fresh, *judged)
    click.echo(f"run: {out}")


def _check_room(run: Path, out: Path, force: bool) -> None:
    """Refuse, before any work, a folder that is the run itself or that the new run cannot have."""
    if out.resolve() == run.resolve():
        raise RunError(f"{out} is the run to straighten, which stays as it is: choose another folder")
    content = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if content and not (force and "config.json" in content):
        raise RunError(f"{out} is not empty: choose another folder, or pass --force to replace a run in it")


def _report(old: FFJORD, new: FFJORD, x: np.ndarray | None, context: np.ndarray | None) -> None:
    """Both models, side by side: likelihood of the rows, and the error of samples by a few steps."""
    table = Table(box=None, pad_edge=False)
    for title in ("", "before", "straightened"):
        table.add_column(title)
    if x is not None:
        both = [model.evaluate(x, context=context) for model in (old, new)]
        means = [metrics.mean_and_standard_error(result.log_prob) for result in both]
        table.add_row(f"log-likelihood of {len(both[0].log_prob)} rows", *(f"{m:.4f} ± {e:.4f}" for m, e in means))
        change, error = metrics.mean_and_standard_error(both[1].log_prob - both[0].log_prob)
        table.add_row("  its change, row by row", "", f"{change:+.4f} ± {error:.4f}")
        solver = (model.solver_error(x, context=context) for model in (old, new))
        table.add_row("  the solver's error", *(f"{error:.1e}" for error in solver))
        table.add_row(f"evaluations at {old.tolerance:g}", *(str(result.nfe) for result in both))
        errors = [
            few_step_score_errors(model, x, result.log_prob, context=context)
            for model, result in zip((old, new), both, strict=True)
        ]
        for steps in STEP_COUNTS:
            row = (f"{e[steps]:.4f}" for e in errors)
            table.add_row(f"error of log-likelihoods, {steps} rk4 step{'s' * (steps > 1)}", *row)
    n = LOOKED_AT if context is None else len(context)
    errors = [few_step_sample_errors(model, n=n, context=context) for model in (old, new)]
    for method in STEP_METHODS:
        for steps in STEP_COUNTS:
            row = (f"{e[method, steps]:.4f}" for e in errors)
            table.add_row(f"error of samples, {steps} {method} step{'s' * (steps > 1)}", *row)
    PLAIN.print(table)
    click.echo("errors, against a converged solve: of log-likelihoods, nats, the mean of their sizes; of samples, in")
    click.echo("standard deviations, the root mean square")
