"""Columns one by one, data beside draws: bars, a histogram, a circle or a map of the sphere, by their types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.columns.base import ColumnType
from ffjord_kit.columns.categories import Date
from ffjord_kit.columns.types import Circle
from ffjord_kit.plots import arrays
from ffjord_kit.plots.figure import DATA, HISTOGRAM_STYLES, SAMPLES, new_figure, shorten, single_panel, styled
from ffjord_kit.plots.sphere import MAP, draw_sphere
from ffjord_kit.plots.tables import Column, Table, read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PER_ROW = 3
ANGLES = 24  # sectors of a circle
POINTS_OF_ARC = 9  # of the outline of a sector
BAR = 0.38  # width of one of two bars
EIGHTHS = np.arange(8) / 8


@styled
def column(
    x: ArrayLike,
    sampled: ArrayLike,
    name: str = "x",
    kind: ColumnType | str = "real",
    *,
    ax: Axes | None = None,
) -> Figure:
    """Draw one column of the data beside that of draws, in the picture of its type.

    Categories and few whole numbers are bars, whose heights are shares; angles are a circle, which needs an `ax` with
    projection="polar"; all else is a histogram.

    Args:
        x: Values of the data, shape (n,); a category by its levels, or by their places.
        sampled: Those of the draws, shape (m,).
        name: Name of the column.
        kind: Its type: an object, or a text as on the command line.
        ax: Axes to draw on; those of a new figure if None.

    Returns:
        The figure.

    Raises:
        ValueError: If values are not of the type, or `ax` has another projection.

    Example:
        >>> figure = column([0, 1, 1, 1], [0, 1], "owner", 'category:["no", "yes"]')
        >>> [round(float(bar.get_height()), 2) for bar in figure.axes[0].patches]
        [0.25, 0.75, 0.5, 0.5]
    """
    rows, draws = (np.asarray(values).reshape(-1, 1) for values in (x, sampled))
    drawn = read_table(rows, draws, [name], {name: kind}).column(0)
    is_circle = isinstance(drawn.kind, Circle)
    figure, panel = single_panel(ax, 3.0, 3.0 if is_circle else 2.5, projection="polar" if is_circle else None)
    draw_column(panel, drawn)
    panel.legend(loc="lower left" if is_circle else "best", bbox_to_anchor=(0.9, 0.9) if is_circle else None)
    return figure


@styled
def columns(
    x: Any,
    sampled: Any,
    columns: Sequence[str] | None = None,
    types: Mapping[Any, Any] | None = None,
    *,
    most: int = 12,
) -> Figure:
    """Draw each column of the data beside that of draws, a sphere as one map.

    Args:
        x: Data: an array (n, d), or a frame.
        sampled: Draws of the same columns.
        columns: Names of the d columns; None for those of the frame.
        types: Types of columns by names, as `FFJORD(columns=...)` takes them; texts, truth values and dates of a frame
            need none.
        most: Largest number of panels; the first ones are shown.

    Returns:
        The figure, three panels in a row.

    Raises:
        ValueError: If an array has another shape, a value is not finite, or names or types do not suit the columns.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = np.column_stack([rng.integers(0, 3, 50), rng.uniform(0, 360, 50)])
        >>> figure = columns(x, x, ["kids", "phi"], {"phi": "circle:360"})
        >>> [panel.name for panel in figure.axes]
        ['rectilinear', 'polar']
    """
    table = read_table(x, sampled, columns, types)
    panels = _panels(table)[: arrays.check_size(most, name="most", minimum=1)]
    per_row = min(len(panels), PER_ROW)
    rows = -(-len(panels) // per_row)
    figure = new_figure(max(2.7 * per_row + 0.2, 3.4), 2.2 * rows + 0.4)
    grid = figure.add_gridspec(rows, per_row)
    for number, places in enumerate(panels):
        cell = grid[number // per_row, number % per_row]
        if len(places) == 2:
            draw_sphere(figure.add_subplot(cell, projection=MAP), table, places)
        else:
            drawn = table.column(places[0])
            polar = "polar" if isinstance(drawn.kind, Circle) else None
            draw_column(figure.add_subplot(cell, projection=polar), drawn)
    figure.legend(handles=legend_handles(), loc="outside upper right", ncols=2)
    return figure


def draw_column(panel: Any, drawn: Column) -> None:
    """Draw a column on a panel, with its name.

    Args:
        panel: Axes; polar ones for a circle.
        drawn: The column.
    """
    if drawn.levels:
        draw_bars(panel, drawn)
    elif panel.name == "polar":
        _draw_circle(panel, drawn)
    else:
        draw_histograms(panel, drawn)
        panel.set_xlim(drawn.limits)
        mark_axis(panel.xaxis, drawn)
        panel.set_ylabel("density")
    if panel.name == "polar":
        panel.set_title(shorten(drawn.name, 30), parse_math=False)
    else:
        panel.set_xlabel(shorten(drawn.name, 30), parse_math=False)


def draw_bars(panel: Axes, drawn: Column) -> None:
    """Draw shares of levels, those of the data beside those of the draws.

    Args:
        panel: Axes.
        drawn: A column of levels.
    """
    places = np.arange(len(drawn.levels))
    for side, shares, colour, label in zip((-1, 1), drawn.shares, (DATA, SAMPLES), ("data", "samples"), strict=True):
        panel.bar(places + side * BAR / 2, shares, BAR, color=(colour, 0.6), label=label)
    panel.set_ylabel("share")
    mark_axis(panel.xaxis, drawn)


def draw_histograms(panel: Axes, drawn: Column) -> None:
    """Draw histograms of a column, filled for the data, outlined for the draws.

    Args:
        panel: Axes.
        drawn: A column.
    """
    bins = np.linspace(*drawn.limits, int(np.clip(np.sqrt(len(drawn.x)), 12, 40)) + 1)
    for values, label, options in zip((drawn.x, drawn.sampled), ("data", "samples"), HISTOGRAM_STYLES, strict=True):
        heights = np.histogram(values, bins)[0] / (len(values) * (bins[1] - bins[0]))
        panel.hist(bins[:-1], bins.tolist(), weights=heights, label=label, **options)


def mark_axis(axis: Any, drawn: Column) -> None:
    """Name the levels of a column on an axis, or else choose its ticks.

    Args:
        axis: Axis of a panel.
        drawn: The column.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    if drawn.levels:
        names = [shorten(level, 12) for level in drawn.levels]
        steep = axis.axis_name == "x" and sum(map(len, names)) > 16
        slant: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if steep else {}
        axis.set_ticks(range(len(names)), names, parse_math=False, **slant)
    elif isinstance(drawn.kind, Date):
        locator = AutoDateLocator(maxticks=4)
        axis.set_major_locator(locator)
        axis.set_major_formatter(ConciseDateFormatter(locator))
    elif isinstance(drawn.kind, Circle):
        ends = drawn.limits[0] + drawn.kind.period * EIGHTHS[::2]
        axis.set_ticks([*ends, drawn.limits[1]], [f"{value:.3g}" for value in (*ends, drawn.limits[1])])


def legend_handles() -> list[Any]:
    """Return the entries of a legend of data and draws.

    Returns:
        Handles.
    """
    from matplotlib.patches import Patch

    return [Patch(facecolor=(DATA, 0.5), label="data"), Patch(facecolor="none", edgecolor=SAMPLES, label="samples")]


def _draw_circle(panel: Any, drawn: Column) -> None:
    """Draw the shares of directions as sectors, filled for the data, outlined for the draws; 0 points to the right."""
    period, edges = drawn.limits[1] - drawn.limits[0], np.linspace(0, 2 * np.pi, ANGLES + 1)
    x, sampled = (_radii(values / period % 1) for values in (drawn.x, drawn.sampled))
    panel.bar(edges[:-1], x, np.diff(edges), align="edge", color=(DATA, 0.4), label="data")
    arcs = np.linspace(edges[:-1], edges[1:], POINTS_OF_ARC, axis=1).ravel()
    closed = [*arcs, arcs[0]], [*np.repeat(sampled, POINTS_OF_ARC), sampled[0]]
    panel.plot(*closed, color=SAMPLES, linewidth=1.0, label="samples")
    at = (EIGHTHS * period - drawn.limits[0]) % period + drawn.limits[0]
    panel.set_xticks(2 * np.pi * EIGHTHS, [f"{value:.3g}" for value in at])
    panel.set_yticks([])
    panel.tick_params(pad=0)


def _radii(turns: NDArray) -> NDArray:
    """Return the radii of sectors whose areas are the shares of angles, which are given in turns from 0 to 1."""
    shares = np.histogram(turns, ANGLES, range=(0, 1))[0] / len(turns)
    return np.sqrt(shares * ANGLES / np.pi)


def _panels(table: Table) -> list[tuple[int, ...]]:
    """Return the places of the columns of each panel, in the order of the table."""
    pairs = {min(pair): pair for pair in table.spheres}
    drawn_with_another = {max(pair) for pair in table.spheres}
    return [pairs.get(place, (place,)) for place in range(len(table.names)) if place not in drawn_with_another]
