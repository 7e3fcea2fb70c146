"""Columns in pairs: regions of two numbers, intervals of a number at each level, circles for levels of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ffjord_kit.columns.types import Circle
from ffjord_kit.plots import arrays
from ffjord_kit.plots.columns import draw_bars, draw_histograms, legend_handles, mark_axis
from ffjord_kit.plots.figure import DATA, SAMPLES, new_figure, shorten, styled
from ffjord_kit.plots.regions import LEGEND, draw_regions_of_points
from ffjord_kit.plots.tables import Column, read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INTERVALS = (0.05, 0.25, 0.5, 0.75, 0.95)  # quantiles of a number at a level
SHIFT = 0.16  # from a level's middle, of the intervals of data and of draws
FEWEST = 5  # rows of a level that have intervals
WIDTH = 80.0  # of a panel, in points: the largest circle fills its share of it
MOST_ANGLES = 150  # drawn at a level


@styled
def pair_plot(
    x: Any,
    sampled: Any,
    columns: Sequence[str] | None = None,
    types: Mapping[Any, Any] | None = None,
    *,
    most: int = 6,
) -> Figure:
    """Draw data against samples for each pair of columns, and each column on the diagonal.

    Of two numbers, regions of highest density hold 30, 60 and 90 % of the points: filled for data, outlined for
    samples. Of a number at the levels of a category, thin lines hold 90 % and thick ones 50 % about the median; angles
    are points. Of two categories, the areas of circles are shares.

    Args:
        x: Data: an array (n, d), or a frame.
        sampled: Samples of the same columns.
        columns: Names of the d columns; None for those of the frame.
        types: Types of columns by names, as `FFJORD(columns=...)` takes them; texts, truth values and dates of a frame
            need none.
        most: Largest number of columns; the first ones are shown.

    Returns:
        The figure: a lower triangle of panels.

    Raises:
        ValueError: If an array has another shape, a value is not finite, names or types do not suit the columns, or
            `most` is below 1.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 2))
        >>> figure = pair_plot(x, x + 0.1, ["mass", "charge"])
        >>> figure.get_suptitle()
        '2 of 2 columns'
    """
    table = read_table(x, sampled, columns, types)
    count = min(len(table.names), arrays.check_size(most, name="most", minimum=1))
    shown = [table.column(place) for place in range(count)]
    figure = new_figure(max(1.45 * count + 0.9, 3.6), 1.45 * count + 0.9)
    axes: list[list[Axes]] = figure.subplots(count, count, squeeze=False, sharex="col").tolist()
    for row, column in np.ndindex(count, count):
        panel = axes[row][column]
        panel.tick_params(labelleft=column == 0 and row > 0)
        if column > row:
            panel.set_axis_off()
        elif column == row:
            _draw_diagonal(panel, shown[row])
        else:
            _draw_pair(panel, shown[column], shown[row])
    _label(axes, shown)
    figure.align_labels()
    title = LEGEND if count > 1 else None
    figure.legend(handles=legend_handles(), loc="outside upper right", ncols=2, title=title, title_fontsize=8)
    figure.suptitle(f"{count} of {len(table.names)} columns", x=0.01, ha="left")
    return figure


def _draw_diagonal(panel: Axes, column: Column) -> None:
    (draw_bars if column.levels else draw_histograms)(panel, column)
    panel.set_ylabel("")
    panel.set_yticks([])


def _draw_pair(panel: Axes, first: Column, second: Column) -> None:
    """Draw the second column, upwards, against the first."""
    if first.levels and second.levels:
        _draw_circles(panel, first, second)
    elif first.levels or second.levels:
        _draw_intervals(panel, first, second)
    else:
        pairs = ((first.x, second.x, DATA, True), (first.sampled, second.sampled, SAMPLES, False))
        bounds, edges = (first.limits, second.limits), (first.edges, second.edges)
        for x, y, colour, filled in pairs:
            points = np.stack([x, y], axis=1)
            draw_regions_of_points(panel, points, bounds, edges, colour=colour, filled=filled)
    panel.set_ylim(second.limits)
    if not second.levels:
        panel.locator_params(axis="y", nbins=4)
    mark_axis(panel.yaxis, second)


def _draw_circles(panel: Axes, first: Column, second: Column) -> None:
    """Draw the share of each combination of levels as the area of a circle: filled for data, a ring for samples."""
    places = np.stack(np.meshgrid(range(len(first.levels)), range(len(second.levels)), indexing="ij"), -1)
    x, y = places.reshape(-1, 2).T
    shape = len(first.levels), len(second.levels)
    both = [_shares(first.x, second.x, shape), _shares(first.sampled, second.sampled, shape)]
    scale = (WIDTH / max(shape)) ** 2 / max(float(shares.max()) for shares in both)
    panel.scatter(x, y, s=scale * both[0], c=[(DATA, 0.45)], linewidths=0)
    panel.scatter(x, y, s=scale * both[1], facecolors="none", edgecolors=SAMPLES, linewidths=0.9)


def _shares(first: NDArray, second: NDArray, shape: tuple[int, int]) -> NDArray:
    """Return the share of each combination of levels, flat."""
    place = first.astype(int) * shape[1] + second.astype(int)
    return np.bincount(place, minlength=shape[0] * shape[1]) / len(place)


def _draw_intervals(panel: Axes, first: Column, second: Column) -> None:
    """Draw where the numbers of one column lie at each level of the other: medians, 50 and 90 %; of angles, points."""
    upright = bool(first.levels)
    levels, numbers = (first, second) if upright else (second, first)
    parts = ((levels.x, numbers.x, DATA, -SHIFT), (levels.sampled, numbers.sampled, SAMPLES, SHIFT))
    for place, values, colour, shift in parts:
        for level in range(len(levels.levels)):
            own = values[place == level]
            if isinstance(numbers.kind, Circle):
                _draw_angles(panel, level + shift, own, colour, upright=upright)
            elif len(own) >= FEWEST:
                _draw_interval(panel, level + shift, own, colour, upright=upright)


def _draw_interval(panel: Axes, at: float, values: NDArray, colour: str, *, upright: bool) -> None:
    least, low, middle, high, greatest = np.quantile(values, INTERVALS).tolist()
    draw = panel.vlines if upright else panel.hlines
    draw([at], least, greatest, colors=colour, linewidth=0.8)
    draw([at], low, high, colors=colour, linewidth=2.6)
    place = (at, middle) if upright else (middle, at)
    panel.plot(*place, "o", color="white", markeredgecolor=colour, markersize=3.2, markeredgewidth=0.9)


def _draw_angles(panel: Axes, at: float, values: NDArray, colour: str, *, upright: bool) -> None:
    """Draw angles as points beside each other: quantiles would depend on where the circle is cut."""
    shown = values[arrays.subset_indices(len(values), MOST_ANGLES)]
    beside = at + SHIFT * np.random.default_rng(0).uniform(-0.8, 0.8, len(shown))
    x, y = (beside, shown) if upright else (shown, beside)
    panel.scatter(x, y, s=2, color=colour, alpha=0.5, linewidths=0, rasterized=True)


def _label(axes: list[list[Axes]], shown: Sequence[Column]) -> None:
    for index, column in enumerate(shown):
        bottom = axes[-1][index]
        bottom.set_xlim(column.limits)
        bottom.set_xlabel(shorten(column.name), parse_math=False)
        if not column.levels:
            bottom.locator_params(axis="x", nbins=4)
        mark_axis(bottom.xaxis, column)
        if index:
            axes[index][0].set_ylabel(shorten(column.name), parse_math=False)
