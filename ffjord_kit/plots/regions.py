"""Regions of highest density, which hold 30, 60 and 90 % of the mass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ffjord_kit.plots.arrays import Bounds, Edges, mass_levels, smooth_histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MASSES = (0.9, 0.6, 0.3)
SHADES = (0.2, 0.4, 0.65)  # opacity of each region
CELLS = 64  # of a smoothed histogram, along each axis
LEGEND = "regions hold 30, 60, 90 %"


def draw_regions(panel: Axes, x: NDArray, y: NDArray, values: NDArray, *, colour: str, filled: bool) -> None:
    """Draw the regions of a density on a grid of cells of equal area.

    Args:
        panel: Axes.
        x: Horizontal coordinates of the centres of the cells, shape (k,).
        y: Vertical ones, shape (l,).
        values: Densities, shape (l, k).
        colour: Colour.
        filled: Whether to fill the regions, or to outline them.
    """
    levels = mass_levels(values, MASSES)
    if not levels or values.min() == values.max():
        return
    if filled:
        shades = [(colour, alpha) for alpha in SHADES[-len(levels) :]]
        panel.contourf(x, y, values, [*levels, np.inf], colors=shades)
    else:
        panel.contour(x, y, values, levels, colors=[colour], linewidths=0.9)


def draw_regions_of_points(
    panel: Axes, points: NDArray, bounds: Bounds, edges: Edges, *, colour: str, filled: bool
) -> None:
    """Draw the regions of a smoothed histogram of points.

    Args:
        panel: Axes.
        points: Points, shape (n, 2).
        bounds: Limits ((x0, x1), (y0, y1)).
        edges: What lies beyond both ends of each axis.
        colour: Colour.
        filled: Whether to fill the regions, or to outline them.
    """
    blur = 0.13 * len(points) ** (-1 / 6)
    values = smooth_histogram(points, bounds, CELLS, smooth=(blur, blur), edges=edges)
    x, y = (centres(limits, CELLS) for limits in bounds)
    draw_regions(panel, x, y, values, colour=colour, filled=filled)


def centres(limits: tuple[float, float], count: int) -> NDArray:
    """Return the centres of equal cells.

    Args:
        limits: Ends of the range.
        count: Number of cells.

    Returns:
        Centres, shape (count,).
    """
    return limits[0] + (np.arange(count) + 0.5) / count * (limits[1] - limits[0])
