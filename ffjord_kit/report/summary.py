"""Summary of a fit in a few lines, and the curves of its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ffjord_kit.plots.training import PHASE_TITLES
from ffjord_kit.report.rounding import rounded
from ffjord_kit.report.subject import Subject
from ffjord_kit.version import __version__

COLUMNS_SHOWN = 12
POINTS = 300  # of a curve
Records = Sequence[Mapping[str, Any]]


def summary(subject: Subject) -> list[tuple[str, str]]:
    """Say what was fitted.

    Args:
        subject: Subject of the report.

    Returns:
        Names and values.
    """
    return list(_facts(subject))


def _facts(subject: Subject) -> Iterator[tuple[str, str]]:
    model, record = subject.model, subject.model.record
    yield "data", f"{record['data'].get('source', 'from Python')}, {record['rows']:,} rows"
    if model.is_image:
        yield "images", f"{' x '.join(map(str, model.event_shape))}, {model.image_domain.bits} bits"
    else:
        more = f", ... {len(subject.columns)} in all" if len(subject.columns) > COLUMNS_SHOWN else ""
        yield "columns", ", ".join(subject.columns[:COLUMNS_SHOWN]) + more
        yield from _levels(subject)
    if subject.at is not None:
        yield "conditional", _context(subject)
    exact = f"{model.note.scheme}, exact but for rounding" if model.density == "steps" and model.note else ""
    yield "density", f"of {exact or 'the continuous flow'}"
    yield "network", f"{sum(each.numel() for each in model.flow.parameters()):,} weights"
    if model.history.records:
        last = model.history.records[-1]
        yield "training", f"{last['step']:,} steps in {last['seconds']:.0f} s, seed {model.seed}"
    yield "written by", f"ffjord_kit {__version__}"


def _levels(subject: Subject) -> Iterator[tuple[str, str]]:
    """Yield which numbers stand for the levels of categories in pictures."""
    for place, name in enumerate(subject.columns):
        values = np.unique(subject.unseen.x[:, place]) if name in subject.model.domain.cells else np.empty(0)
        if 0 < len(values) <= COLUMNS_SHOWN:
            texts = subject.model.domain.cells[name](values)
            yield f"{name} in pictures", ", ".join(f"{v:g} is {text}" for v, text in zip(values, texts, strict=True))


def _context(subject: Subject) -> str:
    """Say at which context draws are."""
    at = [] if subject.at is None else subject.at.tolist()
    if subject.model.is_image:
        names = subject.model.record["data"].get("classes", [])
        classes = ", ".join(str(names[int(label)] if names else int(label)) for label in at)
        return f"on classes; the draws are of {classes}, in turn"
    values = ", ".join(f"{name} = {value:.4g}" for name, value in zip(subject.context_names, at, strict=True))
    return f"on {', '.join(subject.context_names)}; draws and density are at {values}, beside the rows nearest to it"


def training(records: Records) -> list[dict[str, Any]]:
    """Return the curves of a training: the loss of each phase, and the validations of each density.

    Args:
        records: Log of the training.

    Returns:
        Curves: title, steps, values, and the place of the best value or None.
    """
    phases = list(dict.fromkeys(str(record.get("phase")) for record in records))
    losses = [(f"loss, {PHASE_TITLES.get(phase, phase)}", "loss", {phase}) for phase in phases]
    continuous = {phase for phase in phases if phase != "steps"}
    validations = [
        ("validation NLL, continuous flow", "validation_nll", continuous),
        ("validation NLL, few steps", "validation_nll", {"steps"}),
    ]
    curves = [_curve(records, *each) for each in (*validations, *losses)]
    return [curve for curve in curves if len(curve["x"]) > 1]


def _curve(records: Records, title: str, key: str, phases: set[str]) -> dict[str, Any]:
    """Return the values of one key in some phases."""
    chosen = [each for each in records if each.get(key) is not None and str(each.get("phase")) in phases]
    values = np.array([each[key] for each in chosen], dtype=np.float64)
    best = int(np.nanargmin(values)) if key != "loss" and np.isfinite(values).any() else None
    some = np.linspace(0, len(chosen) - 1, min(POINTS, len(chosen))).astype(int)
    some = np.unique(some if best is None else np.append(some, best))
    place = None if best is None else int(np.searchsorted(some, best))
    return {"title": title, "x": [chosen[i]["step"] for i in some], "y": rounded(values[some]), "best": place}
