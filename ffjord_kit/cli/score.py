"""The command that scores data under a run."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from rich.table import Table

from ffjord_kit import datasets, metrics
from ffjord_kit.cli.image_score import score_images
from ffjord_kit.cli.options import PLAIN, check_free
from ffjord_kit.cli.outliers import score_outliers
from ffjord_kit.cli.sources import Source, rows_like
from ffjord_kit.estimator import FFJORD
from ffjord_kit.estimator.errors import LogDensities
from ffjord_kit.runs import Run

IMAGES = 256


@click.command()
@click.argument("run", type=click.Path())
@click.argument("source", metavar="DATA")
@click.argument("other", metavar="[OTHER]", required=False)
@click.option("--out", type=click.Path(), help="File for what is found of each row of DATA.")
@click.option("--rows", type=click.IntRange(min=2), help="Score a random subset of so many (default: all; 256 images).")
@click.option("--error", "with_error", is_flag=True, help="State the error of each row; three times the work.")
@click.option("--target", type=float, help="Solve finer, row by row, until each has this error in nats.")
@click.option("--probes", type=int, help="Probes of Hutchinson's trace (default: exact; of images 2).")
@click.option("--draws", type=click.IntRange(min=1), default=1, help="Draws of the noise on images, weighted.")
@click.option("--ood", is_flag=True, help="How far from what the run knows: likelihood, typicality, gradient.")
@click.option("--picture", type=click.Path(), help="With --ood and OTHER: a picture of the scores, .png.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def score(
    run: str,
    source: str,
    other: str | None,
    out: str | None,
    rows: int | None,
    with_error: bool,
    target: float | None,
    probes: int | None,
    draws: int,
    ood: bool,
    picture: str | None,
    force: bool,
) -> None:
    """Score DATA under a RUN: the mean log-likelihood with its standard error, in nats and in bits per dimension.

    With --ood each row's scores as an outlier, and, where OTHER data are named, how well each score parts the two.
    """
    if (other is not None or picture is not None) and not ood:
        raise click.UsageError("OTHER data and --picture are for --ood")
    if ood and (with_error or target is not None or probes is not None or draws > 1):
        raise click.UsageError("--ood takes neither --error, --target, --probes nor --draws")
    for path in filter(None, (out, picture)):
        check_free(path, force)
    if out is not None:
        datasets.check_writable(out)
    opened, model = Run.open(run), FFJORD.load(run)
    if draws > 1 and (model.images is None or with_error or target is not None):
        raise click.UsageError("--draws are of the noise on images, without --error or --target")
    read = _few(opened, source, rows, model)
    if ood:
        sets = {source: read, **({} if other is None else {other: _few(opened, other, rows, model)})}
        columns = score_outliers(opened, model, sets, picture and Path(picture))
    elif read.is_images and target is None and not with_error:
        columns = score_images(model, read, draws, probes)
    elif with_error or target is not None or probes is not None:
        columns = _certified(model, read, target, probes)
    else:
        columns = _scored(model, read)
    if out is not None:
        datasets.write(out, np.stack(list(columns.values()), axis=1), list(columns))
        click.echo(f"each row's {' and '.join(columns)} in {out}")


def _few(run: Run, source: str, rows: int | None, model: FFJORD) -> Source:
    """The data, or some of them; of images a few unless they are asked for, as each takes a solve."""
    if rows is not None or model.images is None:
        return rows_like(run, source, rows=rows)
    read = rows_like(run, source)
    if len(read.x) <= IMAGES:
        return read
    click.echo(f"{IMAGES} of {len(read.x)} images, a random subset (--rows for more)")
    return rows_like(run, source, rows=IMAGES)


def _scored(model: FFJORD, read: Source) -> dict[str, np.ndarray]:
    result = model.evaluate(read.x, context=read.context)
    table = _table(read, result.log_prob)
    table.add_row("evaluations", f"{result.nfe} (exact trace, each row to tolerance {model.tolerance:g})")
    solver = model.solver_error(read.x, context=read.context)
    table.add_row("solver's error", f"{solver:.1e} nats a row (mean of what is stated for up to 64 rows; --error: all)")
    _close(table, read, result.log_prob)
    return {"log_likelihood": result.log_prob}


def _certified(model: FFJORD, read: Source, target: float | None, probes: int | None) -> dict[str, np.ndarray]:
    found = model.certify(read.x, context=read.context, error=target, probes=probes)
    table = _table(read, found.log_prob)
    table.add_row("error of a row", _spread(found.error) + ", for about 99 % of rows")
    if probes is not None:
        table.add_row("  of the solver", _spread(found.solver_error))
        table.add_row("  of the trace", _spread(found.trace_error) + ", one standard error")
    if target is not None:
        table.add_row(f"error of {target:g}", _met(found))
    table.add_row("steps of a row", f"{_spread(found.taken, 'd')}; refused besides: {found.refused.mean():.1f}")
    _close(table, read, found.log_prob)
    return {"log_likelihood": found.log_prob, "error": found.error}


def _table(read: Source, log_prob: np.ndarray) -> Table:
    mean, error = metrics.mean_and_standard_error(log_prob)
    dimensions = int(np.prod(read.x.shape[1:]))
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("rows", f"{len(log_prob)}, {dimensions} {'pixels' if read.is_images else 'columns'}")
    table.add_row("log-likelihood", f"{mean:.4f} ± {error:.4f} nats a row")
    bits, bits_error = (metrics.bits_per_dim(value, dimensions) for value in (-mean, error))
    table.add_row("bits/dim", f"{bits:.4f} ± {bits_error:.4f}")
    return table


def _close(table: Table, read: Source, log_prob: np.ndarray) -> None:
    """The divergence from the truth, where it is known; then print."""
    if read.log_prob is not None:
        kl, kl_error = metrics.kl_divergence(read.log_prob(read.x), log_prob)
        table.add_row("KL(truth | model)", f"{kl:.4f} ± {kl_error:.4f} nats")
    PLAIN.print(table)


def _spread(values: np.ndarray, form: str = ".1e") -> str:
    kind = int if form == "d" else float
    return f"median {kind(np.median(values)):{form}}, largest {kind(values.max()):{form}}"


def _met(found: LogDensities) -> str:
    unmet = np.flatnonzero(~found.met)
    if not len(unmet):
        return "met by every row"
    rows = ", ".join(map(str, unmet[:5])) + (", ..." if len(unmet) > 5 else "")
    return f"met by {found.met.sum()} of {len(found.met)} rows; not by rows {rows}"
