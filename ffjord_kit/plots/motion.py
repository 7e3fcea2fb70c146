"""What moves the points: their paths from base to data, and the velocity that carries them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.plots import arrays
from ffjord_kit.plots.arrays import Bounds
from ffjord_kit.plots.canvas import COLOUR_MAP_ON_WHITE, INK, MUTED, colour_bar, panels, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure


@styled
def trajectories(times: ArrayLike, path: ArrayLike, log_density: ArrayLike, *, most: int = 200) -> Figure:
    """Draw the paths of points from base to data, coloured by the log-density along the way.

    times is (T,) with T at least 2, in either direction; path is (T, n, 2); log_density is (T, n) in nats. At most
    `most` of the n paths are drawn.
    """
    times = arrays.array("times", times, ("T",))
    arrays.check_size(len(times), name="the number of times")
    path = arrays.array("path", path, (len(times), "n", 2))
    colours = arrays.array("log_density", log_density, path.shape[:2])
    kept = arrays.thin(path.shape[1], arrays.check_size(most, name="most", least=1))
    order = np.argsort(times)
    times, path, colours = times[order], path[order][:, kept], colours[order][:, kept]
    bounds = _around(path[0], path[-1])
    figure, axes = panels(1, bounds, per_row=1, side=4.2)
    lines = _lines(axes[0], path, colours)
    _ends(axes[0], times, path)
    axes[0].set_title(f"{len(kept):,} paths from base to data", loc="left")
    colour_bar(figure, lines, axes, "log-density along the path (nats)", colours)
    return figure


@styled
def vector_field(
    velocity: Callable[[float, NDArray], ArrayLike], times: ArrayLike, bounds: Bounds, *, size: int = 20
) -> Figure:
    """Draw the velocity at each time as a row of panels: streamlines for the direction, colour for the speed.

    velocity maps t and points (m, 2) to dx/dt (m, 2); times is (T,); `size` is the number of cells along each side on
    which it is asked. The colour scale is that of all panels; more than four panels go on to the next row.
    """
    times = arrays.array("times", times, ("T",))
    bounds, points = arrays.check_bounds(bounds), arrays.grid_points(bounds, size)
    fields = [arrays.array("the result of velocity", velocity(float(t), points), (size**2, 2)) for t in times]
    speeds = np.linalg.norm(fields, axis=-1)
    top = arrays.ceiling(*speeds)
    figure, axes = panels(len(times), bounds, per_row=4, side=2.4)
    for panel, t, field in zip(axes, times, fields, strict=True):
        drawn = _streams(panel, points, field, top)
        panel.set_title(f"t = {t:.3g}")
    colour_bar(figure, drawn, axes, "speed |dx/dt|", speeds)
    return figure


def _lines(panel: Axes, path: NDArray, colours: NDArray) -> ScalarMappable:
    from matplotlib.collections import LineCollection

    pieces = np.stack([path[:-1], path[1:]], axis=2).reshape(-1, 2, 2)
    middles = (0.5 * (colours[:-1] + colours[1:])).ravel()
    low, high = np.quantile(middles, [0.02, 0.98])
    lines = LineCollection(pieces, cmap=COLOUR_MAP_ON_WHITE, linewidths=0.8, capstyle="round", rasterized=True)
    lines.set_array(middles)
    lines.set_clim(low, high if high > low else low + 1.0)
    return panel.add_collection(lines, autolim=False)


def _ends(panel: Axes, times: NDArray, path: NDArray) -> None:
    look = {"s": 9, "zorder": 3, "linewidths": 0.5}
    panel.scatter(*path[0].T, facecolors="white", edgecolors=MUTED, label=f"t = {times[0]:.3g}", **look)
    panel.scatter(*path[-1].T, facecolors=INK, edgecolors="white", label=f"t = {times[-1]:.3g}", **look)
    panel.legend(loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=2, handletextpad=0.1, borderaxespad=0.2)


def _around(*clouds: NDArray) -> Bounds:
    """Return bounds that hold nearly all of each cloud of points."""
    corners = np.array([arrays.robust_bounds(cloud) for cloud in clouds])
    (x0, y0), (x1, y1) = corners[..., 0].min(axis=0).tolist(), corners[..., 1].max(axis=0).tolist()
    return (x0, x1), (y0, y1)


def _streams(panel: Axes, points: NDArray, field: NDArray, top: float) -> ScalarMappable:
    from matplotlib.colors import Normalize

    size = round(len(points) ** 0.5)
    across, up = points[:size, 0], points[::size, 1]
    u, v = field.T.reshape(2, size, size)
    if not field.any():
        panel.text(0.5, 0.5, "at rest", transform=panel.transAxes, ha="center", va="center", color=MUTED)
    look = {"color": np.hypot(u, v), "norm": Normalize(0.0, top), "cmap": COLOUR_MAP_ON_WHITE, "density": 1.1}
    return panel.streamplot(across, up, u, v, linewidth=0.9, arrowsize=0.7, **look).lines
