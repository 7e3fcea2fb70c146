"""Conditional densities against their contexts: what draws do while one context changes and the others stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.columns.types import Circle
from ffjord_kit.plots.arrays import checked_array, subset_indices
from ffjord_kit.plots.columns import mark_axis
from ffjord_kit.plots.figure import DATA, SAMPLES, new_figure, shorten, styled
from ffjord_kit.plots.tables import Column, Table, read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS, MOST_POINTS = 6, 600
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LEGEND = "samples: median, 50 and 90 %"


class Sweep(NamedTuple):
    """Draws at several values of a context.

    Attributes:
        name: Name of the context.
        values: Values of the context, ascending, shape (k,).
        draws: Draws at each of them, shape (k, n, d).
        at: Values of the context that the rows of the data have, shape (m,).

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(2, 100, 1)) + np.array([20.0, 60.0])[:, None, None]
        >>> Sweep("age", values=[20, 60], draws=draws, at=[25, 31, 58]).draws.mean(axis=1).round().ravel().tolist()
        [20.0, 60.0]
    """

    name: str
    values: ArrayLike
    draws: ArrayLike
    at: ArrayLike


@styled
def context_sweep(
    sweeps: Sequence[Sweep],
    x: Any,
    columns: Sequence[str] | None = None,
    types: Mapping[Any, Any] | None = None,
) -> Figure:
    """Draw what a conditional model draws while a context changes: medians and bands of numbers, shares of levels.

    Points are rows of the data. Angles are points of draws, too.

    Args:
        sweeps: Draws along each context, one row of panels each.
        x: Data: an array (m, d), or a frame.
        columns: Names of the d columns; None for those of the frame.
        types: Types of columns by names, as `FFJORD(columns=...)` takes them.

    Returns:
        The figure: a row of panels for each context, and a panel in it for each of the first six columns.

    Raises:
        ValueError: If there is no sweep, an array has another shape, or a value is not finite.

    Example:
        >>> draws = np.zeros((3, 50, 1)) + np.arange(3.0)[:, None, None] + np.linspace(0, 0.9, 50)[:, None]
        >>> figure = context_sweep([Sweep("age", [0, 1, 2], draws, [0.5, 1.5])], [[0.7], [1.2]], ["dose"])
        >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
        ('age', 'dose')
    """
    if not sweeps:
        raise ValueError("sweeps must have one context or more; got none")
    tables = [_read(sweep, x, columns, types) for sweep in sweeps]
    count = min(len(tables[0].names), MOST_COLUMNS)
    figure = new_figure(max(2.5 * count + 0.4, 3.6), 2.1 * len(sweeps) + 0.4)
    axes = figure.subplots(len(sweeps), count, squeeze=False)
    for (row, place), panel in np.ndenumerate(axes):
        sweep, column = sweeps[row], tables[row].column(place)
        _draw(panel, column, np.asarray(sweep.values, float), np.asarray(sweep.at, float))
        panel.set_xlabel(shorten(sweep.name, 30), parse_math=False)
        panel.set_ylabel(shorten(f"share of {column.name}" if column.levels else column.name, 24), parse_math=False)
    figure.legend(handles=_handles(), loc="outside upper right", ncols=2)
    return figure


def _read(sweep: Sweep, x: Any, columns: Sequence[str] | None, types: Mapping[Any, Any] | None) -> Table:
    """Check a sweep, and return its draws as a table beside the data."""
    count = len(checked_array("values", sweep.values, ("k",)))
    draws = checked_array("draws", sweep.draws, (count, "n", "d"))
    table = read_table(x, draws.reshape(-1, draws.shape[2]), columns, types)
    checked_array("at", sweep.at, (len(table.x),))
    return table


def _draw(panel: Axes, column: Column, values: NDArray, at: NDArray) -> None:
    """Draw one column against the context."""
    draws = column.sampled.reshape(len(values), -1)
    margin = 0.04 * (values[-1] - values[0]) or 0.5
    panel.set_xlim(values[0] - margin, values[-1] + margin)
    if column.levels:
        return _draw_shares(panel, column, values, draws)
    shown = subset_indices(len(at), MOST_POINTS)
    panel.scatter(at[shown], column.x[shown], s=4, color=DATA, alpha=0.4, linewidths=0, rasterized=True)
    if isinstance(column.kind, Circle):
        beside = np.repeat(values[:, None], draws.shape[1], axis=1)
        few = subset_indices(draws.size, MOST_POINTS)
        panel.scatter(
            beside.ravel()[few], draws.ravel()[few], s=4, color=SAMPLES, alpha=0.4, linewidths=0, rasterized=True
        )
    else:
        least, low, middle, high, greatest = np.quantile(draws, QUANTILES, axis=1)
        panel.fill_between(values, least, greatest, color=SAMPLES, alpha=0.2, linewidth=0)
        panel.fill_between(values, low, high, color=SAMPLES, alpha=0.3, linewidth=0)
        panel.plot(values, middle, color=SAMPLES, linewidth=1.4)
    panel.set_ylim(column.limits)
    return mark_axis(panel.yaxis, column)


def _draw_shares(panel: Axes, column: Column, values: NDArray, draws: NDArray) -> None:
    """Draw the shares of levels as stacked bands, each with its name."""
    shares = np.stack([(draws == level).mean(1) for level in range(len(column.levels))])
    ends = np.concatenate([np.zeros((1, len(values))), shares.cumsum(0)])
    for level, name in enumerate(column.levels):
        opacity = 0.2 + 0.6 * level / max(len(column.levels) - 1, 1)
        panel.fill_between(values, ends[level], ends[level + 1], color=SAMPLES, alpha=opacity, linewidth=0)
        widest = int(shares[level, 1:-1].argmax()) + 1 if len(values) > 2 else 0
        if shares[level, widest] > 0.07:
            middle = ends[level : level + 2, widest].mean()
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "parse_math": False}
            panel.text(values[widest], middle, shorten(name, 14), **style)
    panel.set_ylim(0, 1)


def _handles() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    data = Line2D([], [], color=DATA, marker="o", markersize=3, linestyle="", label="data")
    return [data, Patch(facecolor=(SAMPLES, 0.5), label=LEGEND)]
