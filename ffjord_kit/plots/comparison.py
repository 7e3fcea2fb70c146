"""Samples compared with data: points in the plane, and pairs of columns of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.plots import arrays
from ffjord_kit.plots.arrays import Bounds
from ffjord_kit.plots.figure import (
    DATA,
    HISTOGRAM_STYLES,
    SAMPLES,
    image_extent,
    new_figure,
    panel_grid,
    shorten,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 4000
CELLS = 64  # of a smoothed histogram, along each axis
MASSES = (0.9, 0.6, 0.3)  # of the regions drawn


@styled
def samples(x: ArrayLike, sampled: ArrayLike, columns: Sequence[str] = ("x₁", "x₂")) -> Figure:
    """Draw data beside samples in the plane, equally many points of each, on the same axes.

    The bounds are those of the data; the titles state the number of drawn points outside the bounds.

    Args:
        x: Data, shape (n, 2).
        sampled: Samples, shape (m, 2).
        columns: Names of the two axes.

    Returns:
        The figure: a panel of the data and a panel of the samples.

    Raises:
        ValueError: If an array has another shape, a value is not finite, or there are not two names.

    Example:
        >>> x = np.random.default_rng(0).uniform(size=(50, 2))
        >>> [panel.get_title() for panel in samples(x, [[0.5, 0.5], [9.0, 9.0]]).axes]
        ['data (2 of 50)', 'samples (2, 1 outside)']
    """
    x, sampled = arrays.checked_array("x", x, ("n", 2)), arrays.checked_array("sampled", sampled, ("m", 2))
    names = _checked_names(columns, 2)
    count = min(len(x), len(sampled), MAX_POINTS)
    bounds = arrays.robust_bounds(x)
    figure, axes = panel_grid(2, bounds, per_row=2, side=3.0, colour_bar=False)
    area = float(np.clip(4000 / count, 1.5, 12))
    for panel, title, points, colour in zip(axes, ("data", "samples"), (x, sampled), (DATA, SAMPLES), strict=True):
        shown = points[arrays.subset_indices(len(points), count)]
        panel.scatter(shown[:, 0], shown[:, 1], s=area, c=colour, alpha=0.55, linewidths=0, rasterized=True)
        panel.set_title(_title_with_counts(title, shown, len(points), bounds))
        panel.set_xlabel(shorten(names[0], 40), parse_math=False)
    axes[0].set_ylabel(shorten(names[1], 30), parse_math=False)
    return figure


@styled
def pair_plot(x: ArrayLike, sampled: ArrayLike, columns: Sequence[str], *, most: int = 6) -> Figure:
    """Draw data against samples for each pair of columns, with histograms of each column on the diagonal.

    Regions of highest density hold 30, 60 and 90 % of the points: filled for data, outlined for samples.

    Args:
        x: Data, shape (n, d).
        sampled: Samples, shape (m, d).
        columns: Names of the d columns.
        most: Largest number of columns; the first ones are shown.

    Returns:
        The figure: a lower triangle of panels.

    Raises:
        ValueError: If an array has another shape, a value is not finite, the number of names differs from d, or
            `most` is below 1.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 2))
        >>> figure = pair_plot(x, x + 0.1, ["mass", "charge"])
        >>> figure.get_suptitle()
        '2 of 2 columns'
    """
    x = arrays.checked_array("x", x, ("n", "d"))
    sampled = arrays.checked_array("sampled", sampled, ("m", x.shape[1]))
    most = arrays.check_size(most, name="most", minimum=1)
    names = _checked_names(columns, x.shape[1])[:most]
    count, limits = len(names), [_column_limits(column) for column in x.T[:most]]
    figure = new_figure(max(1.45 * count + 0.9, 3.6), 1.45 * count + 0.9)
    axes: list[list[Axes]] = figure.subplots(count, count, squeeze=False, sharex="col").tolist()
    for row, column in np.ndindex(count, count):
        panel, pair = axes[row][column], [column, row]
        panel.tick_params(labelleft=column == 0)
        if column > row:
            panel.set_axis_off()
        elif column == row:
            _draw_histograms(panel, x[:, row], sampled[:, row], limits[row])
        else:
            _draw_regions(panel, x[:, pair], sampled[:, pair], (limits[column], limits[row]))
    _label_columns(axes, names, limits)
    _add_legend(figure, count, x.shape[1])
    return figure


def _checked_names(columns: Sequence[str], count: int) -> list[str]:
    if len(columns) != count:
        raise ValueError(f"columns must be {count} names; got {len(columns)}")
    return [str(column) for column in columns]


def _title_with_counts(title: str, shown: NDArray, total: int, bounds: Bounds) -> str:
    """Return the title with the number of points drawn and, if any, of those outside the bounds."""
    low, high = np.transpose(bounds)
    outside = int(np.count_nonzero(np.any((shown < low) | (shown > high), axis=1)))
    counts = [f"{len(shown):,}" if len(shown) == total else f"{len(shown):,} of {total:,}", f"{outside:,} outside"]
    return f"{title} ({', '.join(counts[: 1 + (outside > 0)])})"


def _column_limits(x: NDArray) -> tuple[float, float]:
    return arrays.robust_bounds(np.stack([x, x], axis=1), margin=0.15)[0]


def _draw_histograms(panel: Axes, x: NDArray, sampled: NDArray, limits: tuple[float, float]) -> None:
    bins = np.linspace(*limits, int(np.clip(np.sqrt(len(x)), 12, 40)) + 1)
    for values, options in zip((x, sampled), HISTOGRAM_STYLES, strict=True):
        heights = np.histogram(values, bins)[0] / (len(values) * (bins[1] - bins[0]))
        panel.hist(bins[:-1], bins.tolist(), weights=heights, **options)
    panel.set_yticks([])


def _draw_regions(panel: Axes, x: NDArray, sampled: NDArray, bounds: Bounds) -> None:
    blues = [(DATA, alpha) for alpha in (0.2, 0.4, 0.65)]
    extent = image_extent(bounds)
    field, levels = _regions(x, bounds)
    panel.contourf(field, [*levels, np.inf], colors=blues[-len(levels) :], origin="lower", extent=extent)
    field, levels = _regions(sampled, bounds)
    panel.contour(field, levels, colors=[SAMPLES], linewidths=0.9, origin="lower", extent=extent)


def _regions(points: NDArray, bounds: Bounds) -> tuple[NDArray, list[float]]:
    """Return a smoothed density of the points and the levels whose regions hold MASSES of it."""
    blur = 0.13 * len(points) ** (-1 / 6)
    field = arrays.smooth_histogram(points, bounds, CELLS, smooth=(blur, blur))
    return field, arrays.mass_levels(field, MASSES)


def _label_columns(axes: list[list[Axes]], names: list[str], limits: list[tuple[float, float]]) -> None:
    for index, (name, limit) in enumerate(zip(names, limits, strict=True)):
        axes[-1][index].set_xlim(limit)
        axes[-1][index].set_xlabel(shorten(name), parse_math=False)
        if index:
            axes[index][0].set_ylabel(shorten(name), parse_math=False)


def _add_legend(figure: Figure, shown: int, total: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure.align_labels()
    handles = [Patch(facecolor=(DATA, 0.4), label="data"), Line2D([], [], color=SAMPLES, label="samples")]
    title = "regions hold 30, 60, 90 %" if shown > 1 else None
    figure.legend(handles=handles, loc="outside upper right", ncols=2, title=title, title_fontsize=8)
    figure.suptitle(f"{shown} of {total} columns", x=0.01, ha="left")
