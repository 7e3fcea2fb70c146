"""The density of a table and its points: rows of the fit, rows held out, and draws of the model."""

from __future__ import annotations

from typing import Any

import numpy as np

from ffjord_kit.plots.arrays import grid_points, robust_bounds
from ffjord_kit.report.rounding import by_column, rounded
from ffjord_kit.report.subject import Subject

NUMBERS, MOST = 40_000, 2_000  # of each set: numbers, rows
GRID, CURVE = 72, 241
COMPARED = 64  # rows at which the picture's error is measured


def points(subject: Subject, draws: np.ndarray) -> dict[str, Any]:
    """Return the points of a table's pictures.

    Args:
        subject: Subject of the report.
        draws: Draws of the model, shape (n, d).

    Returns:
        By set its columns: "fitted" (empty where the rows of the fit are unknown), "unseen" and "draws".
    """
    sets = {"fitted": subject.fitted, "unseen": subject.unseen}
    shown = {
        name: [] if rows is None else by_column(subject.beside(rows).some(count_of(subject)).x)
        for name, rows in sets.items()
    }
    return {**shown, "draws": by_column(draws)}


def count_of(subject: Subject) -> int:
    """Return the number of rows of a set that a page can hold.

    Args:
        subject: Subject of the report.

    Returns:
        The number.
    """
    return min(MOST, NUMBERS // len(subject.columns))


def density(subject: Subject, draws: np.ndarray) -> dict[str, Any] | None:
    """Return the density of one or two columns on a grid.

    Args:
        subject: Subject of the report.
        draws: Draws of the model, shape (n, d).

    Returns:
        Bounds, size, log-densities (nats, row by row) and the largest error of such a one; None for more columns or
        categories, whose density the page estimates from the draws.
    """
    model, dimensions = subject.model, len(subject.columns)
    if dimensions > 2 or model.domain.has_categories:
        return None
    if dimensions == 1:
        (low, high), _ = robust_bounds(np.repeat(draws, 2, axis=1))
        bounds, places, size = [[low, high]], np.linspace(low, high, CURVE)[:, None], CURVE
    else:
        box = robust_bounds(draws)
        bounds, places, size = [list(side) for side in box], grid_points(box, GRID), GRID
    log_prob = model.draft(places, context=subject.contexts(len(places)))
    return {"bounds": bounds, "size": size, "log_prob": rounded(log_prob), "error": _error(subject)}


def _error(subject: Subject) -> float:
    """Return the largest error of the picture's log-densities at some held-out rows, nats."""
    few = subject.unseen.some(COMPARED)
    exact = subject.model.evaluate(few.x, context=few.context).log_prob
    return float(np.abs(subject.model.draft(few.x, context=few.context) - exact).max())
