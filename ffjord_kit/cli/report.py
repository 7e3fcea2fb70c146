"""The command `report`: a run on one page, in one file."""

from __future__ import annotations

from pathlib import Path

import click

from ffjord_kit.cli.checks import check_replaceable
from ffjord_kit.cli.info import facts
from ffjord_kit.cli.sources import (
    LoadedData,
    complete_rows,
    find_fitted,
    held_out,
    load_fitted,
    load_for_run,
    open_run,
    parse_context,
)
from ffjord_kit.estimator import DensityModel
from ffjord_kit.report import write_report
from ffjord_kit.run import Run

GONE = "pass rows that it has not seen as DATA"


def report(run: str, source: str | None, out: str, context: str | None, random_state: int, force: bool) -> None:
    """Write a report of a run.

    Args:
        run: Run folder.
        source: Data that the run has not seen; None for the rows that it held out.
        out: HTML file.
        context: Values or classes of the draws; None for the median of the data, or all classes.
        random_state: Seed of all draws.
        force: Whether to replace an existing file.

    Raises:
        ValueError: If the file exists or is no .html, or the data or the context do not suit the run.
    """
    check_replaceable(out, force=force)
    opened, model = open_run(run), DensityModel.load(run)
    fitted = load_fitted(opened, GONE) if source is None else find_fitted(opened)
    judges = held_out(model, fitted) if fitted and source is None else load_for_run(opened, str(source))
    unseen, trained_on = complete_rows(judges.drawn(random_state), "report"), _trained_on(model, fitted, random_state)
    path = write_report(
        model, out, unseen.x, context=unseen.context, X_train=trained_on and trained_on.x,
        context_train=trained_on and trained_on.context, at=_place(opened, context),
        title=f"Report of {Path(run).name}", details=facts(opened), truth=judges.log_prob, random_state=random_state,
    )  # fmt: skip
    click.echo(f"report: {path}   (open it in a browser)")


def _trained_on(model: DensityModel, fitted: LoadedData | None, seed: int) -> LoadedData | None:
    """Return the rows that trained a model; none where they have measurement errors, as these are no draws of it."""
    if fitted is None or fitted.noise is not None:
        return None
    return complete_rows(fitted.take(model.split_indices(fitted.x)[0]).drawn(seed), "report", "rows of the fit")


def _place(run: Run, text: str | None) -> object:
    """Return the context of all draws that an option gives; None for the default."""
    return None if text is None else parse_context(run, text, text.count(",") + 1)
