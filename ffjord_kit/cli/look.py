"""The command `look`: what training did to a run, on one page."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from rich.console import Console

from ffjord_kit import plots
from ffjord_kit.atomic import replacing
from ffjord_kit.cli.checks import check_replaceable
from ffjord_kit.cli.doctor import GONE, print_findings
from ffjord_kit.cli.output import CONSOLE
from ffjord_kit.cli.sources import LoadedData, complete_rows, held_out, load_fitted, load_for_run, open_run
from ffjord_kit.data import Batch
from ffjord_kit.diagnostics import (
    Finding,
    check_spectrum,
    density_spectrum,
    loss_shape,
    network_condensation,
)
from ffjord_kit.diagnostics.findings import GOOD, UNSURE, grade
from ffjord_kit.diagnostics.spectrum import LEARNED
from ffjord_kit.estimator import DensityModel
from ffjord_kit.estimator.data import tensor
from ffjord_kit.estimator.tables.table import TableDomain
from ffjord_kit.objectives import FlowMatching

PAGE = "index.html"
SHAPE_ROWS, ATTACKED_ROWS, SPECTRUM_ROWS, REFERENCE_ROWS = 300, 100, 2_000, 1_000
EPS, ATTACK_STEPS = 0.1, 5
CHEAP, DEAR = 0.3, 1.0  # nats that a move within EPS may cost
CONDENSED = 0.8  # share of neurons that differ, below which a narrower network is worth a try
OUTLYING = 0.01  # share of the rows of the fit below which a row lies outside the usual
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "img{max-width:100%;background:#fff}h2{margin:2rem 0 .2rem}.good{color:#1a7f37}.fair{color:#9a6700}"
    ".bad{color:#cf222e}.unsure{color:#0969da}p{margin:.3rem 0}"
)


class Rows(NamedTuple):
    """Rows that a look is taken at.

    Attributes:
        fitted: Rows that trained the run.
        judges: Rows that it has not seen.
        seed: Seed of all draws.
    """

    fitted: LoadedData
    judges: LoadedData
    seed: int


class Section(NamedTuple):
    """A part of the page: what was found, and pictures of it by file name."""

    finding: Finding
    pictures: dict[str, Any]


def look(run: str, source: str | None, out: str, random_state: int, force: bool) -> None:
    """Look at what training did: print the findings, and write them with pictures on one page.

    Args:
        run: Run folder.
        source: Rows that the run has not seen; None for those that it held out.
        out: Folder of the page.
        random_state: Seed of all draws.
        force: Whether to replace an existing page.

    Raises:
        ValueError: If the page exists, the run is on images, or the data of the fit are gone.
    """
    page = Path(out) / PAGE
    check_replaceable(page, force=force)
    opened, model = open_run(run), DensityModel.load(run)
    model.domain.require_table("look", "look at their samples with ffjord-kit plot")
    if model.domain.curved:
        parts = "an adversary" if cast(TableDomain, model.domain).geometry.is_flat else "an adversary and scales"
        CONSOLE.print(f"left out, as for real columns alone: {parts}, beside {model.domain.curved}")
    data = load_fitted(opened, GONE)
    judges = held_out(model, data) if source is None else load_for_run(opened, source)
    trained_on = complete_rows(data.take(model.split_indices(data.x)[0]).drawn(random_state), "look", "rows of the fit")
    rows = Rows(trained_on, complete_rows(judges.drawn(random_state), "look"), random_state)
    sections = []
    with Console(stderr=True).status("looking") as status:
        for name, examine in _parts(model):
            status.update(f"looking at {name}")
            sections.append(examine(model, rows))
    print_findings([section.finding for section in sections])
    page.parent.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for name, figure in section.pictures.items():
            plots.save(figure, page.parent / name)
    with replacing(page) as part:
        part.write_text(_page(run, sections), encoding="utf-8")
    CONSOLE.print(f"page: {page}")


def _parts(model: DensityModel) -> Iterator[tuple[str, Callable[[DensityModel, Rows], Section]]]:
    """Yield what the page is made of."""
    yield "the shape of the loss", _shape
    domain = cast(TableDomain, model.domain)
    if not domain.curved and np.isinf(domain.bounds).all():
        yield "an adversary", _adversary
    if domain.geometry.is_flat:
        yield "scales", _scales
    yield "neurons", _neurons
    yield "the least likely row", _least_likely


def _shape(model: DensityModel, rows: Rows) -> Section:
    """Look at the loss of flow matching, which needs no solver, around the weights."""
    matching = model.domain.matching(FlowMatching())
    losses = [
        model.weight_loss(x, context=context, objective=matching, seed=rows.seed)
        for x, context in (_some(rows.fitted, SHAPE_ROWS), _some(rows.judges, SHAPE_ROWS))
    ]
    shape = loss_shape(losses[0], {"held-out rows": losses[1]}, seed=rows.seed)
    grid = np.linspace(shape.lowest, shape.largest, 300)
    width = max(shape.largest - shape.lowest, np.finfo(float).tiny) / 60
    label = "loss of flow matching"
    return Section(shape.finding, {
        "landscape.png": plots.loss_planes({"around the fit": (shape.steps, shape.steps, shape.plane)}, label=label),
        "steepest.png": plots.loss_lines(
            shape.along, shape.lines, along="step along the steepest direction, in the weights' length", label=label
        ),
        "hessian.png": plots.spectral_densities({"eigenvalues": (grid, *shape.density.density(grid, width))}),
    })  # fmt: skip


def _adversary(model: DensityModel, rows: Rows) -> Section:
    """Look for the worst rows near some that the run has not seen."""
    x, context = _some(rows.judges, ATTACKED_ROWS)
    found = model.attack(x, EPS, context=context, steps=ATTACK_STEPS, seed=rows.seed)
    cost, error = found.cost
    measured = f"moving each column by up to {EPS:g} standard deviations lowers log p by {cost:.2f} ± {error:.2f} nats"
    advice = (
        f"if rows carry errors of that size, fit with --robust {EPS:g} and a phase of maximum likelihood: the density "
        "is smoother, and its likelihood lower"
    )
    return Section(Finding("an adversary", grade(cost, good=CHEAP, fair=DEAR), measured, advice), {})


def _scales(model: DensityModel, rows: Rows) -> Section:
    """Look for scales of the data that are not learned yet."""
    x, context = _some(rows.judges, SPECTRUM_ROWS)
    contexts, (numbers, inside) = model.domain.contexts(context, len(x), model.context_dim), model.domain.rows(x)
    batch = model.domain.joined(Batch(numbers, None if contexts is None else tensor(contexts[inside])))
    spectrum = density_spectrum(model.flow, batch.x, batch.context, seed=rows.seed)
    errors = spectrum.relative_error.clamp(max=2.0).numpy()
    curve = plots.loss_lines(
        spectrum.frequencies.numpy(), {"this fit": errors, "not learned above": np.full_like(errors, LEARNED)},
        along="frequency, radians per standard deviation", label="relative error of the spectrum",
    )  # fmt: skip
    return Section(check_spectrum(spectrum), {"scales.png": curve})


def _neurons(model: DensityModel, rows: Rows) -> Section:
    """Look for neurons that do the work of one."""
    layers = network_condensation(model.flow)
    share = min(layer.effective / layer.width for layer in layers)
    counts = ", ".join(f"{layer.effective} of {layer.width}" for layer in layers)
    finding = Finding(
        "neurons", GOOD if share >= CONDENSED else UNSURE, f"{counts} differ, layer by layer",
        "try ffjord-kit condense RUN --out NARROW: fewer neurons may hold the same density, and score faster",
    )  # fmt: skip
    return Section(finding, {
        "neurons.png": plots.similarity_matrices({
            layer.name.split(".")[-1].replace("_", " "): layer.ordered_similarity for layer in layers
        })
    })  # fmt: skip


def _least_likely(model: DensityModel, rows: Rows) -> Section:
    """Name the least likely row that the run has not seen, beside the 1 % quantile of the fit's."""
    x, context = _some(rows.judges, REFERENCE_ROWS)
    fitted, fitted_context = _some(rows.fitted, REFERENCE_ROWS)
    log_prob = model.evaluate(x, context=context).log_prob
    usual = float(np.quantile(model.evaluate(fitted, context=fitted_context).log_prob, OUTLYING))
    worst = int(log_prob.argmin())
    cells = model.domain.cells
    named = zip(rows.judges.columns, x[worst], strict=True)
    values = ", ".join(
        f"{name}={cells[name](np.array([value]))[0] if name in cells else f'{value:.4g}'}" for name, value in named
    )
    finding = Finding(
        "the least likely row", GOOD if log_prob[worst] >= usual else UNSURE,
        f"{values}, log p {log_prob[worst]:.2f}; {1 - OUTLYING:.0%} of the rows of the fit are above {usual:.2f}",
        "look whether it is a mistake; ffjord-kit explain RUN ROWS says what would mend such rows",
    )  # fmt: skip
    return Section(finding, {})


def _some(data: LoadedData, most: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return evenly spaced rows and their contexts."""
    places = np.linspace(0, len(data.x) - 1, min(most, len(data.x))).astype(int)
    return data.x[places], None if data.context is None else data.context[places]


def _page(run: str, sections: list[Section]) -> str:
    """Return the page, whose pictures lie beside it."""
    title = html.escape(f"What training did to {Path(run).name}")
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
    ]
    for finding, pictures in sections:
        name, measured, remedy = map(html.escape, (finding.name, finding.measured, finding.remedy))
        parts.append(f"<h2>{name}: <span class={finding.verdict}>{finding.verdict}</span></h2><p>{measured}.</p>")
        parts += [f"<p>What to do: {remedy}.</p>"] if remedy else []
        parts += [f'<img src="{picture}" alt="{name}">' for picture in pictures]
    return "\n".join(parts)
