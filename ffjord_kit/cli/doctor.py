"""The command that examines a run on a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ffjord_kit import plots
from ffjord_kit.cli.options import PLAIN, check_free
from ffjord_kit.cli.sources import held_out_of, rows_like, source_of
from ffjord_kit.diagnostics import Diagnosis
from ffjord_kit.estimator import FFJORD, examine
from ffjord_kit.runs import Run

COLOURS = {"good": "green", "fair": "yellow", "bad": "bold red", "unsure": "cyan"}
PICTURE = "diagnosis.png"
KINDS = {"dopri5_by_row": "adaptive", "rk4": "rk4, graded steps"}


@click.command()
@click.argument("run", type=click.Path())
@click.argument("source", metavar="[DATA]", required=False)
@click.option("--rows", type=click.IntRange(min=1), default=1000, show_default=True, help="Most rows to look at.")
@click.option("--out", type=click.Path(file_okay=False), help="Folder for the pictures.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of all draws.")
@click.option("--force", is_flag=True, help="Replace a picture that is there.")
def doctor(run: str, source: str | None, rows: int, out: str | None, seed: int, force: bool) -> None:
    """Examine a RUN on a table, on DATA that it has not seen (default: what it held out): is it their density?"""
    if out is not None:
        check_free(str(Path(out) / PICTURE), force)
    opened, model = Run.open(run), FFJORD.load(run)
    fitted = None if source is not None else source_of(opened)
    x, context = held_out_of(model, fitted) if source is None else rows_like(opened, source).pair
    with Console(stderr=True).status("looking at rows") as status:
        found = examine(
            model, x, context=context, rows=rows, seed=seed, tell=lambda what: status.update(f"looking at {what}")
        )
    _print(found)
    if out is not None:
        click.echo(plots.save(plots.diagnosis(**_arrays(found)), Path(out) / PICTURE))


def _print(found: Diagnosis) -> None:
    table = Table("verdict", "what", "measured", box=None, pad_edge=False)
    for finding in found.findings:
        remedy = f"\n-> {finding.remedy}" if finding.remedy else ""
        table.add_row(Text(finding.verdict, style=COLOURS[finding.verdict]), finding.name, finding.measured + remedy)
    PLAIN.print(table)
    PLAIN.print(Text.assemble("on the whole: ", (found.verdict, COLOURS[found.verdict])))


def _arrays(found: Diagnosis) -> dict[str, Any]:
    """What the picture is made of."""
    errors = {
        title: tuple(zip(*((s.nfe, s.error) for s in found.settings if s.solver.method == method), strict=True))
        for method, title in KINDS.items()
        if found.settings
    }
    spectrum = found.spectrum
    return {
        "errors": errors,
        "at_base": found.at_base.flatten(1).numpy(force=True),
        "base_draws": found.base_draws.flatten(1).numpy(force=True),
        "log_densities": found.log_densities.numpy(force=True),
        "drawn_log_densities": found.drawn_log_densities.numpy(force=True),
        "steps": found.steps.numpy(force=True),
        "spectrum": None if spectrum is None else (spectrum.times, spectrum.real, spectrum.modulus),
    }
