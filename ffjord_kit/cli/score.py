"""The command `score`: log-likelihoods, their numerical errors, bits per dimension, and outlier scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import torch

from ffjord_kit import datasets, metrics, plots
from ffjord_kit.cli.output import CONSOLE, OVER_ROWS, plain_table, print_rows, with_error
from ffjord_kit.cli.sources import LoadedData, find_fitted, held_out, load_for_run, load_model, open_run
from ffjord_kit.columns.types import read_types, units_of
from ffjord_kit.datasets.splits import subset_rows
from ffjord_kit.diagnostics.measurement import NOISE
from ffjord_kit.estimator import DensityModel
from ffjord_kit.estimator.discretize import SteppedNote
from ffjord_kit.estimator.scoring import LogDensities
from ffjord_kit.progress import progress
from ffjord_kit.run import Run
from ffjord_kit.weights import effective_number

IMAGE_ERROR = 1e-3  # bits/dim of an image, by the solver; their standard error is larger
IMAGES = 256  # scored by default, as each one takes a solve
CERTIFIED_ROWS = 1000  # with --certify or --error by default, as these take minutes for ten thousand
CAUTION = (
    "The likelihood alone may rate simpler data of another kind higher than the run's own (Nalisnick et al. 2019): "
    "look at the other scores too."
)

Columns = dict[str, np.ndarray]
Rows = Iterator[tuple[str, str]]


def score(
    run: str,
    source: str,
    other: str | None,
    out: str | None,
    rows: int | None,
    certify: bool,
    error: float | None,
    probes: int | None,
    draws: int,
    context: str | None,
    density: str,
    outliers: bool,
    picture: str | None,
    force: bool,
) -> None:
    """Score data under a run, print the result, and write that of each row to a file.

    Args:
        run: Run folder.
        source: Data.
        other: Data to separate from the first by outlier scores, or None.
        out: File for the result of each row, or None.
        rows: Size of a random subset; None for all rows, 1000 with errors and without a file, or 256 images.
        certify: Whether to state the numerical error of each row.
        error: Numerical error in nats that every row should meet, or None.
        probes: Number of Hutchinson probes; None for the exact trace, or 2 for images.
        draws: Number of draws of the noise on images.
        context: One context for all rows of a table; None for that of each row.
        density: Word of DENSITIES that reports, or "auto" for that of the run.
        outliers: Whether to compute outlier scores.
        picture: PNG file for the outlier scores of both data, or None.
        force: Whether to replace existing files.

    Raises:
        ValueError: If a file exists or cannot be written, or the data do not suit the run.
    """
    opened, model = open_run(run), load_model(run, density)
    if draws > 1 and not model.is_image:
        raise ValueError("--draws is for runs on images, whose grey levels get noise: leave it out")
    certified = certify or error is not None
    data = _load(opened, source, rows, context, most=CERTIFIED_ROWS if certified and out is None else None)
    if outliers:
        sets = {source: data} if other is None else {source: data, other: _load(opened, other, rows, context)}
        columns = _score_outliers(opened, model, sets, picture)
    elif data.is_images and not certified:
        columns = _score_images(model, data, draws, probes)
    elif certified or probes is not None:
        columns = _certify(model, data, error, probes)
    else:
        columns = _evaluate(model, data)
    if out is not None:
        datasets.write(out, np.stack(list(columns.values()), axis=1), list(columns))
        click.echo(f"each row's {' and '.join(columns)} in {out}")


def _load(run: Run, source: str, rows: int | None, context: str | None, most: int | None = None) -> LoadedData:
    """Return the data or a random subset, by default one of at most some rows, or of some images."""
    data = load_for_run(run, source, rows=rows, context=context)
    noun, most = ("images", IMAGES) if data.is_images else ("rows", most or len(data.x))
    if rows is not None or len(data.x) <= most:
        return data
    click.echo(f"{most} of {len(data.x)} {noun}, a random subset (all: --rows {len(data.x)})")
    return data.take(subset_rows(source, len(data.x), rows=most, seed=0))


def _evaluate(model: DensityModel, data: LoadedData) -> Columns:
    """Score a table by the solve of reports."""
    with progress(f"{len(data.x)} rows") as on_progress:
        result = model.evaluate(data.x, context=data.context, on_progress=on_progress)
    cost = _exact_steps(model) if model.density == "steps" else _solve(model, data, result.nfe)
    print_rows([
        *_likelihood(data, result.log_prob),
        *_units(model),
        *cost,
        *_divergence(data, result.log_prob),
    ])  # fmt: skip
    return {"log_likelihood": result.log_prob}


def _solve(model: DensityModel, data: LoadedData, evaluations: int) -> Rows:
    """Yield what the continuous flow's solve took, and its error."""
    if not model.domain.size:
        yield "density", "of categories alone: exact probabilities"
        return
    solver, tolerance = model.solver_error(data.x, context=data.context), model.config.fields.tolerance
    yield "density", f"of the continuous flow{_true_values(model)}"
    yield "evaluations", f"{evaluations} (exact trace, each row to tolerance {tolerance:g})"
    yield "solver's error", f"{solver:.1e} nats a row (mean over up to 64 rows; --certify for each row)"


def _true_values(model: DensityModel) -> str:
    """Say of what the density is where the fit removed measurement errors."""
    return ", of true values, without the measurement errors of the fit" if NOISE in model.record else ""


def _exact_steps(model: DensityModel) -> Rows:
    """Yield the steps whose density it is, and their receipt."""
    note = cast(SteppedNote, model.note)
    yield "density", f"of {note.scheme}, exact but for rounding{_true_values(model)}"
    yield "receipt", str(note.receipt)


def _certify(model: DensityModel, data: LoadedData, error: float | None, probes: int | None) -> Columns:
    """Score data with the numerical error of each row."""
    with progress(f"{len(data.x)} {'images' if data.is_images else 'rows'}") as on_progress:
        result = model.certify(data.x, context=data.context, error=error, probes=probes, on_progress=on_progress)
    print_rows([
        *_likelihood(data, result.log_prob),
        *_units(model),
        *_errors(result, error, probes),
        *(_exact_steps(model) if model.density == "steps" else _adaptive_steps(result)),
        *_divergence(data, result.log_prob),
    ])  # fmt: skip
    return {"log_likelihood": result.log_prob, "error": result.error}


def _adaptive_steps(result: LogDensities) -> Rows:
    """Yield the steps that rows took."""
    yield "steps of a row", f"{_spread(result.accepted, 'd')}; rejected: {result.rejected.mean():.1f}"
    yield "longest step", f"{result.longest_step.max():.2g} of the time; shorter changes may go unseen"


def _likelihood(data: LoadedData, log_prob: np.ndarray) -> Rows:
    """Yield the mean log-likelihood and bits per dimension."""
    dimensions = int(np.prod(data.x.shape[1:]))
    yield "rows", f"{len(log_prob)}, {dimensions} {'pixels' if data.is_images else 'columns'}; {OVER_ROWS}"
    missing = 0.0 if data.is_images else float(np.isnan(data.x).mean())
    if missing:
        yield "observed", f"{1 - missing:.1%} of the cells; each row's density is that of its observed cells"
    possible = log_prob > -np.inf
    if not possible.all():
        yield "density 0", f"{(~possible).sum()} rows: beyond the support, or of a level that the fit has not seen"
    if not possible.any():
        return
    others = "" if possible.all() else " (of the others; of all: minus infinity)"
    yield "log-likelihood", f"{with_error(log_prob[possible])} nats a row{others}"
    if data.weight is not None:
        yield "  by weight", _by_weight(data.weight[possible], log_prob[possible])
    yield "bits/dim", with_error(metrics.bits_per_dim(-log_prob[possible], dimensions))


def _by_weight(weight: np.ndarray, log_prob: np.ndarray) -> str:
    """Return the weighted mean of log-likelihoods."""
    if not weight.sum() > 0:
        return f"none: the weights sum to {weight.sum():.3g}"
    count = effective_number(torch.from_numpy(weight))
    return f"{with_error(log_prob, weight=weight)} nats a row; by their weights {len(weight)} rows count as {count:.1f}"


def _units(model: DensityModel) -> Rows:
    """Yield what the density is one of, where columns have types."""
    types = read_types(model.record.get("types"))
    if types:
        yield "nats", units_of(types, model.record["columns"])


def _divergence(data: LoadedData, log_prob: np.ndarray) -> Rows:
    """Yield the divergence from the true density where it is known."""
    if data.log_prob is not None:
        kl, error = metrics.kl_divergence(data.log_prob(data.x), log_prob)
        yield "KL(truth | model)", f"{kl:.4f} ± {error:.4f} nats over {len(log_prob)} rows of {data.note['source']}"


def _errors(result: LogDensities, error: float | None, probes: int | None) -> Rows:
    """Yield the numerical errors of the rows."""
    yield "error of a row", _spread(result.error) + ", for about 99 % of rows"
    if probes is not None:
        yield "  of the solver", _spread(result.solver_error)
        yield "  of the trace", _spread(result.trace_error) + ", one standard error"
    if error is not None:
        yield f"error of {error:g}", _format_met(result.met)


def _spread(values: np.ndarray, form: str = ".1e") -> str:
    """Return the median and the largest value."""
    kind = int if form == "d" else float
    return f"median {kind(np.median(values)):{form}}, largest {kind(values.max()):{form}}"


def _format_met(met: np.ndarray) -> str:
    """Return how many rows met the requested error, and the first ones that did not."""
    unmet = np.flatnonzero(~met)
    if not len(unmet):
        return "met by every row"
    rows = ", ".join(map(str, unmet[:5])) + (", ..." if len(unmet) > 5 else "")
    return f"met by {met.sum()} of {len(met)} rows; not by rows {rows}"


def _score_images(model: DensityModel, data: LoadedData, draws: int, probes: int | None) -> Columns:
    """Score images in bits per dimension, with every error of the figure."""
    options: dict[str, Any] = {"max_error": IMAGE_ERROR, **({} if probes is None else {"probes": probes})}
    with progress(f"{len(data.x)} images") as on_progress:
        result = model.bits_per_dim(data.x, context=data.context, draws=draws, on_progress=on_progress, **options)
    values = result.values.numpy()
    nats = -values * model.n_features * np.log(2)
    print_rows([
        ("images", f"{len(values)} of {' x '.join(map(str, model.event_shape))}, {result.bits} bits"),
        ("bits/dim", f"{result.mean:.4f} ± {result.standard_error:.4f} ({OVER_ROWS})"),
        ("log-likelihood", f"{with_error(nats, digits=2)} nats an image"),
        ("noise", f"{result.noise}, {result.draws} draw{'s' * (result.draws > 1)} (an upper bound on the bits)"),
        ("grey levels", _scaling(model)),
        ("trace", f"{result.probes} probes an image; their error is part of the standard error"),
        ("solver's error", f"{result.solver_error:.1e} bits/dim an image, {result.setting}"),
        ("evaluations", f"{result.nfe} (the largest number of a batch)"),
    ])  # fmt: skip
    return {"log_likelihood": nats, "bits_per_dim": values}


def _scaling(model: DensityModel) -> str:
    """Return the scaling of grey levels."""
    scaling = model.config.fields.scaling
    return f"logit with alpha {model.image_domain.alpha:g}" if scaling == "logit" else scaling


def _score_outliers(run: Run, model: DensityModel, sets: Mapping[str, LoadedData], picture: str | None) -> Columns:
    """Score one or two sets as outliers; of two, measure how well each score separates them."""
    first, *others = sets
    reference = _reference(run, model, sets[first])
    scores = {}
    for name, data in sets.items():
        with progress(name) as on_progress:
            scores[name] = model.outlier_scores(
                data.x, context=data.context, reference=reference, on_progress=on_progress
            )
    inside = scores[first]
    if not others:
        _print_outliers(scores, {})
        return inside
    outside = scores[others[0]]
    areas = {word: metrics.auroc(values, outside[word]) for word, values in inside.items()}
    _print_outliers(scores, areas)
    if picture is not None:
        pairs = {word: (values, outside[word]) for word, values in inside.items()}
        figure = plots.outlier_histograms(
            pairs, {word: area for word, (area, _) in areas.items()}, names=(first, others[0])
        )
        plots.save(figure, Path(picture))
        click.echo(f"picture: {picture}")
    return inside


def _print_outliers(scores: Mapping[str, Columns], areas: Mapping[str, tuple[float, float]]) -> None:
    """Print the medians of each score, and the areas under the ROC curve of two sets."""
    first, *others = scores
    table = plain_table("score (higher: further)", *(f"median of {name}" for name in scores), *["AUROC"] * len(others))
    for word in scores[first]:
        medians = (f"{np.median(values[word]):.2f}" for values in scores.values())
        table.add_row(word, *medians, *("{:.3f} ± {:.3f}".format(*areas[word]) for _ in others))
    CONSOLE.print(table, soft_wrap=True)
    if others and areas["likelihood"][0] < 0.5:
        click.echo(f"{others[0]} is more likely than {first}: the known failure of the likelihood as a score.")
    click.echo(CAUTION)


def _reference(run: Run, model: DensityModel, data: LoadedData) -> float:
    """Return the mean log-density of rows that the run held out; of the data if those of the run cannot be had."""
    fitted = find_fitted(run)
    rows = data if fitted is None else held_out(model, fitted)
    if fitted is None and "source" in run.config["data"]:
        click.echo(f"the data of the fit are gone ({run.config['data']['source']}): typicality is relative to DATA")
    return model.score(rows.x, context=rows.context, sample_weight=rows.weight)
