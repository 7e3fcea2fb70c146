"""Draws and densities of a conditional run while one context changes and the others stay."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ffjord_kit import plots
from ffjord_kit.estimator import DensityModel
from ffjord_kit.plots.arrays import Bounds

PLACES, DRAWS, PANELS = 9, 300, 5  # of a context: values with draws, draws at each, and values with a map
MOST_CONTEXTS = 4
RANGE = (0.05, 0.95)  # quantiles of a context between which it changes


def context_sweeps(model: DensityModel, contexts: np.ndarray, context: np.ndarray, seed: int) -> list[plots.Sweep]:
    """Draw while one context after the other changes.

    Args:
        model: A conditional model.
        contexts: Contexts of the data, shape (n, c).
        context: Where the others stay, shape (c,).
        seed: Seed of the draws, the same at each value.

    Returns:
        Draws along each of the first four contexts.
    """
    sweeps = []
    for place, name, values in _ranges(model, contexts, PLACES):
        draws = [
            np.asarray(model.domain.coded(model.sample(DRAWS, context=at, random_state=seed)), float)
            for at in _moved(context, place, values)
        ]
        sweeps.append(plots.Sweep(name, values, np.stack(draws), contexts[:, place]))
    return sweeps


def density_sweep(
    model: DensityModel, contexts: np.ndarray, context: np.ndarray, bounds: Bounds, size: int
) -> list[tuple[str, np.ndarray]]:
    """Return densities of a plane while one context after the other changes.

    Args:
        model: A conditional model of two columns.
        contexts: Contexts of the data, shape (n, c).
        context: Where the others stay, shape (c,).
        bounds: Limits ((x0, x1), (y0, y1)).
        size: Number of grid cells along each axis.

    Returns:
        Titles, and densities on the grid, shape (size, size).
    """
    points, found = plots.grid_points(bounds, size), []
    for place, name, values in _ranges(model, contexts, PANELS):
        for value, at in zip(values, _moved(context, place, values), strict=True):
            log_prob = model.draft(points, context=np.broadcast_to(at, (len(points), len(at))))
            found.append((f"{name} = {value:.3g}", np.exp(log_prob).reshape(size, size)))
    return found


def context_names(model: DensityModel) -> list[str]:
    """Return the names of a run's contexts.

    Args:
        model: The model.

    Returns:
        The names; c0, c1, ... where they have none.
    """
    return list(getattr(model.domain, "context_columns", ())) or [f"c{i}" for i in range(model.context_dim)]


def _ranges(model: DensityModel, contexts: np.ndarray, count: int) -> Iterator[tuple[int, str, np.ndarray]]:
    """Yield place, name and values of each context: all that it has, or some between two quantiles."""
    for place, name in enumerate(context_names(model)[:MOST_CONTEXTS]):
        column = contexts[:, place]
        own = np.unique(column)
        low, high = np.quantile(column, RANGE).tolist()
        yield place, name, own if len(own) <= count else np.linspace(low, high, count)


def _moved(context: np.ndarray, place: int, values: np.ndarray) -> np.ndarray:
    """Return the context with other values in one place, shape (k, c)."""
    moved = np.repeat(context[None], len(values), axis=0)
    moved[:, place] = values
    return moved
