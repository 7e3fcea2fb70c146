"""The page: sections gathered one by one, and put into one file with its style and script."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from ffjord_kit.atomic import write_text
from ffjord_kit.progress import progress
from ffjord_kit.report.calibration import examine
from ffjord_kit.report.density import count_of, density, points
from ffjord_kit.report.errors import LogProb, numbers
from ffjord_kit.report.extremes import extremes
from ffjord_kit.report.flow import flow
from ffjord_kit.report.images import SCORED, images
from ffjord_kit.report.subject import Rows, Subject
from ffjord_kit.report.summary import summary, training

UNSEEN = 2_000  # held-out rows of a table that are scored

Parts = list[tuple[str, Callable[[], Any]]]


def write_report(
    model: Any,
    path: str | Path,
    X: Any,
    *,
    context: Any = None,
    X_train: Any = None,
    context_train: Any = None,
    at: Any = None,
    title: str = "A fitted density",
    details: Sequence[tuple[str, str]] = (),
    truth: LogProb | None = None,
    random_state: int = 0,
    shown: bool | None = None,
) -> Path:
    """Write a report of a fitted model: one page that needs no network.

    Args:
        model: Fitted estimator, or its DensityModel.
        path: File, which is written whole or not at all; an earlier one is replaced.
        X: Rows or images that the model has not seen.
        context: Their contexts.
        X_train: Rows that the model was fitted to: then overfitting shows, and they are drawn.
        context_train: Their contexts.
        at: Context of all draws of a conditional model, or labels of images; the median, or all labels, if None.
        title: Title of the page.
        details: Further names and values of the fit.
        truth: True log-density, from rows (n, d) to nats (n,), where it is known.
        random_state: Seed of all draws.
        shown: Whether to show progress bars; None for on a terminal or in Jupyter alone.

    Returns:
        The path.

    Raises:
        ValueError: If rows and contexts do not fit the model, or all rows have density 0.
    """
    path, model = Path(path), getattr(model, "model_", model)
    fitted = None if X_train is None else Rows(np.asarray(model.domain.coded(X_train)), context_train)
    unseen = Rows(np.asarray(model.domain.coded(X)), context).some(SCORED if model.is_image else UNSEEN)
    with progress("held-out rows", shown=shown) as on_progress:
        subject = Subject.of(model, unseen, fitted, at=at, seed=random_state, on_progress=on_progress)
    content = {"title": title, "details": list(details), **_gather(subject, truth, shown)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(content))
    return path


def page(content: dict[str, Any]) -> str:
    """Put the content of a report into a page.

    Args:
        content: Title and sections, as JSON holds them.

    Returns:
        The page; no text of the content can end the element that holds it.
    """
    template, style, script = (_part(f"report.{suffix}") for suffix in ("html", "css", "js"))
    data = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template(template).substitute(title=html.escape(content["title"]), style=style, script=script, data=data)


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _gather(subject: Subject, truth: LogProb | None, shown: bool | None) -> dict[str, Any]:
    """Return the sections of a report."""
    sections: dict[str, Any] = {
        "summary": summary(subject),
        "training": training(subject.model.history.records),
    }
    parts = _of_images(subject) if subject.model.is_image else _of_table(subject)
    with progress("sections", shown=shown) as on_progress:
        for place, (name, gather) in enumerate(parts):
            on_progress(place, len(parts) + 1)
            sections[name] = gather()
    with progress("checks", shown=shown) as on_progress:
        sections["checks"] = examine(subject, on_progress)
    sections["numbers"] = [each._asdict() for each in numbers(subject, truth, sections)]
    return sections


def _of_images(subject: Subject) -> Parts:
    return [("kind", lambda: "images"), ("images", lambda: images(subject))]


def _of_table(subject: Subject) -> Parts:
    """Return the sections of a table, each with the function that gathers it."""
    draws = subject.draws(count_of(subject))
    return [
        ("kind", lambda: "table"),
        ("columns", lambda: subject.columns),
        ("points", lambda: points(subject, draws)),
        ("density", lambda: density(subject, draws)),
        ("flow", lambda: flow(subject)),
        ("extremes", lambda: extremes(subject, draws)),
    ]
