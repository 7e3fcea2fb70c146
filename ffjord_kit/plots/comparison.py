"""Samples beside data: in the plane, and column by column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.plots import arrays
from ffjord_kit.plots.arrays import Bounds
from ffjord_kit.plots.canvas import DATA, SAMPLES, panel_extent, panels, sheet, short, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 4000
CELLS, MASSES = 64, (0.9, 0.6, 0.3)


@styled
def samples(x: ArrayLike, sampled: ArrayLike, columns: Sequence[str] = ("x₁", "x₂")) -> Figure:
    """Draw data beside samples in the plane, as many points of each, on the same axes.

    x is (n, 2), sampled is (m, 2); `columns` name the two axes. The bounds are those of the data; the titles say
    how many of the points drawn lie outside.
    """
    x, sampled = arrays.array("x", x, ("n", 2)), arrays.array("sampled", sampled, ("m", 2))
    names = _names(columns, 2)
    shown = min(len(x), len(sampled), MOST_POINTS)
    bounds = arrays.robust_bounds(x)
    figure, axes = panels(2, bounds, per_row=2, side=3.0, bar=False)
    size = float(np.clip(4000 / shown, 1.5, 12))
    for panel, title, points, colour in zip(axes, ("data", "samples"), (x, sampled), (DATA, SAMPLES), strict=True):
        kept = points[arrays.thin(len(points), shown)]
        panel.scatter(*kept.T, s=size, c=colour, alpha=0.55, linewidths=0, rasterized=True)
        panel.set_title(_count(title, kept, len(points), bounds))
        panel.set_xlabel(short(names[0], 40), parse_math=False)
    axes[0].set_ylabel(short(names[1], 30), parse_math=False)
    return figure


@styled
def pair_plot(x: ArrayLike, sampled: ArrayLike, columns: Sequence[str], *, most: int = 6) -> Figure:
    """Draw data against samples for every pair of columns, and each column's histograms on the diagonal.

    x is (n, d), sampled is (m, d); `columns` are d names. The first `most` columns are shown. Regions hold 30, 60 and
    90 % of the points: filled for data, lines for samples.
    """
    x = arrays.array("x", x, ("n", "d"))
    sampled = arrays.array("sampled", sampled, ("m", x.shape[1]))
    most = arrays.check_size(most, name="most", least=1)
    names = _names(columns, x.shape[1])[:most]
    shown, limits = len(names), [_limits(column) for column in x.T[:most]]
    figure = sheet(max(1.45 * shown + 0.9, 3.6), 1.45 * shown + 0.9)
    axes = figure.subplots(shown, shown, squeeze=False, sharex="col")
    for row, column in np.ndindex(shown, shown):
        panel, pair = axes[row, column], [column, row]
        panel.tick_params(labelleft=column == 0)
        if column > row:
            panel.set_axis_off()
        elif column == row:
            _histograms(panel, x[:, row], sampled[:, row], limits[row])
        else:
            _pair(panel, x[:, pair], sampled[:, pair], (limits[column], limits[row]))
    _finish(figure, axes, names, limits, x.shape[1])
    return figure


def _names(columns: Sequence[str], count: int) -> list[str]:
    if len(columns) != count:
        raise ValueError(f"columns must be {count} names; got {len(columns)}")
    return [str(column) for column in columns]


def _count(title: str, kept: NDArray, total: int, bounds: Bounds) -> str:
    low, high = np.transpose(bounds)
    outside = int(np.count_nonzero(np.any((kept < low) | (kept > high), axis=1)))
    words = [f"{len(kept):,}" if len(kept) == total else f"{len(kept):,} of {total:,}", f"{outside:,} outside"]
    return f"{title} ({', '.join(words[: 1 + (outside > 0)])})"


def _limits(x: NDArray) -> tuple[float, float]:
    return arrays.robust_bounds(np.stack([x, x], axis=1), margin=0.15)[0]


def _histograms(panel: Axes, x: NDArray, sampled: NDArray, limits: tuple[float, float]) -> None:
    bins = np.linspace(*limits, int(np.clip(np.sqrt(len(x)), 12, 40)) + 1)
    looks = ({"histtype": "stepfilled", "color": (DATA, 0.4)}, {"histtype": "step", "color": SAMPLES})
    for values, look in zip((x, sampled), looks, strict=True):
        heights = np.histogram(values, bins)[0] / (len(values) * (bins[1] - bins[0]))
        panel.hist(bins[:-1], bins, weights=heights, **look)
    panel.set_yticks([])


def _pair(panel: Axes, x: NDArray, sampled: NDArray, bounds: Bounds) -> None:
    blues = [(DATA, alpha) for alpha in (0.2, 0.4, 0.65)]
    field, steps = _regions(x, bounds)
    panel.contourf(field, [*steps, np.inf], colors=blues[-len(steps) :], origin="lower", extent=panel_extent(bounds))
    field, steps = _regions(sampled, bounds)
    panel.contour(field, steps, colors=[SAMPLES], linewidths=0.9, origin="lower", extent=panel_extent(bounds))


def _regions(points: NDArray, bounds: Bounds) -> tuple[NDArray, list[float]]:
    """Return a smooth density of the points and the levels that hold MASSES of it."""
    blur = 0.13 * len(points) ** (-1 / 6)
    field = arrays.histogram(points, bounds, CELLS, smooth=(blur, blur))
    return field, arrays.levels(field, MASSES)


def _finish(figure: Figure, axes: NDArray, names: list[str], limits: list[tuple[float, float]], total: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    for place, (name, limit) in enumerate(zip(names, limits, strict=True)):
        axes[-1, place].set_xlim(limit)
        axes[-1, place].set_xlabel(short(name), parse_math=False)
        if place:
            axes[place, 0].set_ylabel(short(name), parse_math=False)
    figure.align_labels()
    handles = [Patch(facecolor=(DATA, 0.4), label="data"), Line2D([], [], color=SAMPLES, label="samples")]
    title = "regions hold 30, 60, 90 %" if len(names) > 1 else None
    figure.legend(handles=handles, loc="outside upper right", ncols=2, title=title, title_fontsize=8)
    figure.suptitle(f"{len(names)} of {total} columns", x=0.01, ha="left")
