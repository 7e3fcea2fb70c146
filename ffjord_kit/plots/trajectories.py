"""Motion along the flow: the paths of points from base to data, and the velocity field dx/dt = f(t, x)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.plots import arrays
from ffjord_kit.plots.arrays import Bounds
from ffjord_kit.plots.figure import (
    COLOUR_MAP_ON_WHITE,
    INK,
    MUTED,
    add_colour_bar,
    panel_grid,
    shorten,
    single_panel,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

NAMES = ("x₁", "x₂")


@styled
def trajectories(
    times: ArrayLike,
    path: ArrayLike,
    log_density: ArrayLike,
    *,
    most: int = 200,
    columns: Sequence[str] = NAMES,
    ax: Axes | None = None,
) -> Figure:
    """Draw the paths of points from base to data, coloured by the log-density along the path.

    Args:
        times: At least two times, shape (T,), in any order.
        path: Positions of n points at the times, shape (T, n, 2).
        log_density: Log-densities in nats at the positions, shape (T, n).
        most: Largest number of paths drawn.
        columns: Names of the two axes.
        ax: Axes to draw on; those of a new figure if None.

    Returns:
        The figure: one panel.

    Raises:
        ValueError: If an array has another shape, a value is not finite, or `most` is below 1.

    Example:
        >>> start = np.random.default_rng(0).normal(size=(20, 2))
        >>> figure = trajectories([0, 1], np.stack([start, start + 1]), np.zeros((2, 20)), most=10)
        >>> figure.axes[0].get_title(loc="left")
        '10 paths from base to data'
    """
    times = arrays.checked_array("times", times, ("T",))
    arrays.check_size(len(times), name="the number of times")
    path = arrays.checked_array("path", path, (len(times), "n", 2))
    values = arrays.checked_array("log_density", log_density, path.shape[:2])
    shown = arrays.subset_indices(path.shape[1], arrays.check_size(most, name="most", minimum=1))
    order = np.argsort(times)
    times, path, values = times[order], path[order][:, shown], values[order][:, shown]
    bounds = _joint_bounds(path[0], path[-1])
    figure, axes = _panels(1, bounds, 4.2, ax)
    lines = _draw_paths(axes[0], path, values)
    _draw_ends(axes[0], times, path)
    axes[0].set_title(f"{len(shown):,} paths from base to data", loc="left")
    _name_axes(axes, columns)
    add_colour_bar(figure, lines, axes, "log-density along the path (nats)", values)
    return figure


@styled
def vector_field(
    velocity: Callable[[float, NDArray], ArrayLike],
    times: ArrayLike,
    bounds: Bounds,
    *,
    size: int = 20,
    columns: Sequence[str] = NAMES,
    ax: Axes | None = None,
) -> Figure:
    """Draw the velocity field at several times: streamlines for its direction, colours for its speed.

    Args:
        velocity: Velocity dx/dt, maps a time and points (m, 2) to velocities (m, 2).
        times: Times, shape (T,).
        bounds: Limits ((x0, x1), (y0, y1)).
        size: Number of grid cells along each axis at whose centres the velocity is evaluated.
        columns: Names of the two axes.
        ax: Axes to draw one time on; those of a new figure if None.

    Returns:
        The figure: T panels with one colour scale, four in a row.

    Raises:
        ValueError: If an array has another shape, a value is not finite, `size` is below 2, or `ax` is passed for
            several times.

    Example:
        >>> figure = vector_field(lambda t, x: -x, [0.0], ((-1, 1), (-1, 1)), size=5)
        >>> figure.axes[0].get_title()
        't = 0'
    """
    times = arrays.checked_array("times", times, ("T",))
    if ax is not None and len(times) > 1:
        raise ValueError(f"ax takes the field at one time; got {len(times)} times: leave ax out, or pass one")
    bounds, points = arrays.check_bounds(bounds), arrays.grid_points(bounds, size)
    fields = [arrays.checked_array("the result of velocity", velocity(float(t), points), (size**2, 2)) for t in times]
    speeds = np.linalg.norm(fields, axis=-1)
    limit = arrays.colour_limit(*speeds)
    figure, axes = _panels(len(times), bounds, 2.4, ax)
    for panel, t, field in zip(axes, times, fields, strict=True):
        lines = _draw_streamlines(panel, points, field, limit)
        panel.set_title(f"t = {t:.3g}")
    _name_axes(axes, columns)
    add_colour_bar(figure, lines, axes, "speed |dx/dt|", speeds)
    return figure


def _panels(count: int, bounds: Bounds, side: float, ax: Axes | None) -> tuple[Figure, list[Axes]]:
    """Return panels over the same bounds, four in a row, or the caller's one."""
    if ax is None:
        return panel_grid(count, bounds, per_row=4, side=side)
    figure, panel = single_panel(ax, side, side)
    panel.set(xlim=bounds[0], ylim=bounds[1])
    return figure, [panel]


def _name_axes(axes: Sequence[Axes], columns: Sequence[str]) -> None:
    """Write the names of the columns, the second one on the outer panels alone."""
    if len(columns) != 2:
        raise ValueError(f"columns must be 2 names; got {len(columns)}")
    for number, panel in enumerate(axes):
        panel.set_xlabel(shorten(str(columns[0]), 40), parse_math=False)
        if number % 4 == 0:
            panel.set_ylabel(shorten(str(columns[1]), 30), parse_math=False)


def _draw_paths(panel: Axes, path: NDArray, values: NDArray) -> ScalarMappable:
    """Draw each segment of each path in the colour of its mean value."""
    from matplotlib.collections import LineCollection

    segments = np.stack([path[:-1], path[1:]], axis=2).reshape(-1, 2, 2)
    means = (0.5 * (values[:-1] + values[1:])).ravel()
    low, high = np.quantile(means, [0.02, 0.98])
    lines = LineCollection(list(segments), cmap=COLOUR_MAP_ON_WHITE, linewidths=0.8, capstyle="round", rasterized=True)
    lines.set_array(means)
    lines.set_clim(low, high if high > low else low + 1.0)
    panel.add_collection(lines, autolim=False)
    return lines


def _draw_ends(panel: Axes, times: NDArray, path: NDArray) -> None:
    options: dict[str, Any] = {"s": 9, "zorder": 3, "linewidths": 0.5}
    panel.scatter(*path[0].T, facecolors="white", edgecolors=MUTED, label=f"t = {times[0]:.3g}", **options)
    panel.scatter(*path[-1].T, facecolors=INK, edgecolors="white", label=f"t = {times[-1]:.3g}", **options)
    panel.legend(loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=2, handletextpad=0.1, borderaxespad=0.2)


def _joint_bounds(*clouds: NDArray) -> Bounds:
    """Return bounds that contain nearly all points of each cloud."""
    corners = np.array([arrays.robust_bounds(cloud) for cloud in clouds])
    (x0, y0), (x1, y1) = corners[..., 0].min(axis=0).tolist(), corners[..., 1].max(axis=0).tolist()
    return (x0, x1), (y0, y1)


def _draw_streamlines(panel: Axes, points: NDArray, field: NDArray, limit: float) -> ScalarMappable:
    from matplotlib.colors import Normalize

    size = round(len(points) ** 0.5)
    x, y = points[:size, 0], points[::size, 1]
    u, v = field.T.reshape(2, size, size)
    if not field.any():
        panel.text(0.5, 0.5, "at rest", transform=panel.transAxes, ha="center", va="center", color=MUTED)
    options: dict[str, Any] = {"norm": Normalize(0.0, limit), "cmap": COLOUR_MAP_ON_WHITE, "density": 1.1}
    return panel.streamplot(x, y, u, v, color=np.hypot(u, v), linewidth=0.9, arrowsize=0.7, **options).lines
