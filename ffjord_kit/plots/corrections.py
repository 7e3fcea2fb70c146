"""Maps of a log-density over two columns of a row: where it passes, and what change mends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ffjord_kit.plots.arrays import Bounds, LogDensity, check_bounds, checked_array, checked_log_density, grid_points
from ffjord_kit.plots.figure import ACCENT, COLOUR_MAP, SAMPLES, image_extent, panel_grid, shorten, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PER_ROW = 3
DEPTH = 8.0  # nats below the threshold that are still shaded


class CorrectedRow(NamedTuple):
    """A row before and after its correction, in two columns.

    Attributes:
        title: Title of its panel.
        log_prob: Log-density of the row with other values of the two columns, nats, maps (m, 2) to (m,).
        start: Its values, shape (2,).
        end: Corrected values, shape (2,).
        lower: Lower ends of the box of changes, shape (2,).
        upper: Upper ends, shape (2,).

    Example:
        >>> row = CorrectedRow("row 0", lambda x: -(x**2).sum(1), [3, 0], [1, 0], lower=[-1, -1], upper=[1, 1])
        >>> row.log_prob(np.array([row.start, row.end])).tolist()
        [-9, -1]
    """

    title: str
    log_prob: LogDensity
    start: ArrayLike
    end: ArrayLike
    lower: ArrayLike
    upper: ArrayLike


@styled
def corrections(
    rows: Sequence[CorrectedRow], threshold: float, names: tuple[str, str], *, bounds: Bounds, size: int = 80
) -> Figure:
    """Draw the log-density around each row, the line that it must cross, the change, and the box of changes.

    Args:
        rows: Rows, one panel each.
        threshold: Log-density that a row must have, nats.
        names: Names of the two columns.
        bounds: Limits ((x0, x1), (y0, y1)).
        size: Number of grid cells along each axis.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no row, an array has another shape, or a value is not finite.

    Example:
        >>> row = CorrectedRow("row 0", lambda x: -(x**2).sum(1), [3, 0], [1, 0], [-0.5, -0.5], [1, 0.5])
        >>> corrections([row], -1.0, ("a", "b"), bounds=((-4, 4), (-4, 4)), size=8).axes[0].get_title()
        'row 0'
    """
    if not rows:
        raise ValueError("expected one corrected row or more; got none")
    bounds = check_bounds(bounds)
    figure, panels = panel_grid(len(rows), bounds, per_row=PER_ROW, side=2.3, colour_bar=False)
    for panel, row in zip(panels, rows, strict=True):
        _draw_map(panel, row, threshold, bounds, size)
        _draw_change(panel, row)
        panel.set_title(row.title, fontsize=8.5, parse_math=False)
        panel.set_xlabel(shorten(names[0]), parse_math=False)
    panels[0].set_ylabel(shorten(names[1]), parse_math=False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3)
    return figure


def _draw_map(panel: Axes, row: CorrectedRow, threshold: float, bounds: Bounds, size: int) -> None:
    points = grid_points(bounds, size)
    values = checked_log_density("log_prob", row.log_prob, points).reshape(size, size)
    lowest = threshold - DEPTH
    shown = np.clip(values, lowest, None)
    panel.imshow(
        shown, origin="lower", extent=image_extent(bounds), aspect="auto", cmap=COLOUR_MAP, vmin=lowest,
        vmax=max(float(shown.max()), threshold), interpolation="bilinear",
    )  # fmt: skip
    x, y = points[:size, 0], points[::size, 1]
    if shown.min() < threshold < shown.max():
        panel.contour(x, y, shown, levels=[threshold], colors="white", linewidths=0.9)


def _draw_change(panel: Axes, row: CorrectedRow) -> None:
    from matplotlib.patches import Rectangle

    start, end, lower, upper = (checked_array(name, getattr(row, name), (2,)) for name in row._fields[2:])
    width, height = (upper - lower).tolist()
    corner = (float(lower[0]), float(lower[1]))
    panel.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=ACCENT, linewidth=1.4, label="box"))
    panel.annotate("", end.tolist(), start.tolist(), arrowprops={"arrowstyle": "->", "color": "white", "linewidth": 1})
    panel.plot(*start, "o", color=SAMPLES, markersize=5, label="row")
    panel.plot(*end, "o", color=ACCENT, markersize=5, label="corrected")
