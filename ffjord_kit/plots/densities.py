"""Densities over the plane: beside the data and the truth, and as they change along the flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.plots import arrays
from ffjord_kit.plots.arrays import Bounds, LogDensity
from ffjord_kit.plots.canvas import COLOUR_MAP, colour_bar, panel_extent, panels, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def density(
    x: ArrayLike,
    log_prob: LogDensity,
    *,
    truth: LogDensity | None = None,
    bounds: Bounds | None = None,
    size: int = 200,
) -> Figure:
    """Draw the data, the learned density and, where `truth` is given, the true one, on one colour scale.

    x is (n, 2); log_prob and truth map (m, 2) to log-densities (m,) in nats; `bounds` default to `robust_bounds(x)`
    and `size` is the number of cells along each side. With `truth`, of which x must be a sample, the title carries
    KL(truth || model), the mean of truth(x) - log_prob(x), with its standard error.
    """
    x = arrays.array("x", x, ("n", 2))
    bounds = arrays.robust_bounds(x) if bounds is None else arrays.check_bounds(bounds)
    named = {"learned density": arrays.on_grid("log_prob", log_prob, bounds, size)}
    if truth is not None:
        named["true density"] = arrays.on_grid("truth", truth, bounds, size)
    top = arrays.ceiling(*named.values())
    named = {f"data ({len(x):,} points, smoothed)": _data_density(x, bounds, size), **named}
    figure, axes = panels(len(named), bounds, per_row=3, side=2.6)
    _fill(figure, axes, list(named.values()), bounds, top)
    for panel, title in zip(axes, named, strict=True):
        panel.set_title(title)
    if truth is not None:
        figure.suptitle(_divergence(x, log_prob, truth))
    return figure


@styled
def density_strip(times: ArrayLike, log_densities: ArrayLike, bounds: Bounds) -> Figure:
    """Draw the density at each time as a row of panels from base to data, on one colour scale.

    times is (T,); log_densities is (T, size, size) in nats, its rows going up (see `grid_points`); `bounds` are those
    of the grid. More than eight panels go on to the next row.
    """
    times, densities = ordered_densities(times, log_densities)
    bounds = arrays.check_bounds(bounds)
    figure, axes = panels(len(times), bounds, per_row=8, side=1.3, ticks=False)
    _fill(figure, axes, densities, bounds, arrays.ceiling(*densities))
    for panel, t in zip(axes, times, strict=True):
        panel.set_xlabel(f"t = {t:.3g}")
    return figure


def ordered_densities(times: ArrayLike, log_densities: ArrayLike) -> tuple[NDArray, NDArray]:
    """Return the times in ascending order, base first, and the densities (T, size, size) at them; both checked."""
    times = arrays.array("times", times, ("T",))
    side = np.shape(log_densities)[-1] if np.ndim(log_densities) else "size"
    values = arrays.array("log_densities", log_densities, (len(times), side, side), log=True)
    order = np.argsort(times)
    return times[order], arrays.exponential(values[order])


def _fill(figure: Figure, axes: Sequence[Axes], densities: Sequence[NDArray], bounds: Bounds, top: float) -> None:
    look = {"origin": "lower", "extent": panel_extent(bounds), "aspect": "auto", "interpolation": "bilinear"}
    for panel, values in zip(axes, densities, strict=True):
        drawn = panel.imshow(values, cmap=COLOUR_MAP, vmin=0.0, vmax=top, **look)
    colour_bar(figure, drawn, axes, "density", densities)


def _data_density(x: NDArray, bounds: Bounds, size: int) -> NDArray:
    blur = 0.06 * len(x) ** (-1 / 6)
    return arrays.histogram(x, bounds, size, smooth=(blur, blur / arrays.box_ratio(bounds)))


def _divergence(x: NDArray, log_prob: LogDensity, truth: LogDensity) -> str:
    gaps = arrays.log_density("truth", truth, x) - arrays.log_density("log_prob", log_prob, x)
    known = len(gaps) > 1 and bool(np.all(np.isfinite(gaps)))
    error = f" ± {gaps.std(ddof=1) / np.sqrt(len(gaps)):.3f}" if known else ""
    return f"KL(truth ‖ model) = {gaps.mean():.3f}{error} nats"
