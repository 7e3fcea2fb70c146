"""The command `doctor`: examine a run on a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from ffjord_kit import plots
from ffjord_kit.cli.checks import check_replaceable
from ffjord_kit.cli.output import CONSOLE, plain_table
from ffjord_kit.cli.sources import complete_rows, find_fitted, held_out, load_fitted, load_for_run, open_run
from ffjord_kit.diagnostics import Diagnosis, Finding
from ffjord_kit.estimator import DensityModel
from ffjord_kit.ode import PerRowSolver

COLOURS = {"good": "green", "fair": "yellow", "bad": "bold red", "unsure": "cyan"}
PICTURE = "diagnosis.png"
GONE = "pass rows that it has not seen as DATA"


def doctor(run: str, source: str | None, rows: int, out: str | None, random_state: int, force: bool) -> None:
    """Examine a run on a table, print the findings, and draw them.

    Args:
        run: Run folder.
        source: Data that the run has not seen; None for the rows that it held out.
        rows: Largest number of rows.
        out: Folder of the picture, or None.
        random_state: Seed of all draws.
        force: Whether to replace an existing picture.

    Raises:
        ValueError: If the picture exists, the run is on images or categories alone, or the data do not suit it.
    """
    picture = None if out is None else Path(out) / PICTURE
    if picture is not None:
        check_replaceable(picture, force=force)
    opened, model = open_run(run), DensityModel.load(run)
    model.domain.require_table(
        "doctor", "score their bits per dimension, and look at their samples with ffjord-kit plot"
    )
    fitted = find_fitted(opened)
    data = held_out(model, load_fitted(opened, GONE)) if source is None else load_for_run(opened, source)
    data = complete_rows(data.drawn(random_state), "doctor")
    trained_on = None
    if fitted is not None and fitted.noise is None:  # rows with measurement errors are no draws of the density
        trained_on = complete_rows(
            fitted.take(model.split_indices(fitted.x)[0]).drawn(random_state), "doctor", "rows of the fit"
        )
    with Console(stderr=True).status("examining rows") as status:
        diagnosis = model.diagnose(
            data.x, context=data.context, X_train=trained_on and trained_on.x,
            context_train=trained_on and trained_on.context, rows=rows, seed=random_state,
            on_progress=lambda name: status.update(f"examining {name}"),
        )  # fmt: skip
    print_findings(diagnosis.findings)
    CONSOLE.print(Text.assemble("on the whole: ", (diagnosis.verdict, COLOURS[diagnosis.verdict])))
    if picture is not None:
        click.echo(plots.save(plots.diagnosis(**_arrays(diagnosis)), picture))


def print_findings(findings: Sequence[Finding]) -> None:
    """Print findings as a table.

    Args:
        findings: Findings.
    """
    table = plain_table("verdict", "what", "measured")
    for finding in findings:
        remedy = f"\n-> {finding.remedy}" if finding.remedy else ""
        table.add_row(Text(finding.verdict, style=COLOURS[finding.verdict]), finding.name, finding.measured + remedy)
    CONSOLE.print(table)


def _arrays(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the arguments of the picture."""
    errors: dict[str, list[tuple[float, float]]] = {}
    for setting in diagnosis.settings:
        title = "adaptive" if isinstance(setting.solver, PerRowSolver) else "rk4, graded steps"
        errors.setdefault(title, []).append((setting.nfe, setting.error))
    spectrum = diagnosis.spectrum
    return {
        "errors": {title: tuple(zip(*points, strict=True)) for title, points in errors.items()},
        "at_base": diagnosis.at_base.flatten(1).numpy(force=True),
        "base_draws": diagnosis.base_draws.flatten(1).numpy(force=True),
        "log_densities": diagnosis.log_densities.numpy(force=True),
        "drawn_log_densities": diagnosis.drawn_log_densities.numpy(force=True),
        "steps": diagnosis.steps.numpy(force=True),
        "spectrum": None if spectrum is None else (spectrum.times, spectrum.real, spectrum.modulus),
    }
