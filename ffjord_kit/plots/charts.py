"""Charts: the surface that two columns span, a piece of the plane or of a torus, with its axes and its grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ffjord_kit.columns.types import Circle
from ffjord_kit.plots import arrays
from ffjord_kit.plots.arrays import Bounds, Edges
from ffjord_kit.plots.figure import image_extent, panel_grid, shorten
from ffjord_kit.plots.regions import centres, draw_regions
from ffjord_kit.plots.sphere import SphereChart
from ffjord_kit.plots.tables import limits_within, read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARGIN = 0.1  # beyond nearly all points


@dataclass(frozen=True)
class PlaneChart:
    """A rectangle of the plane; an axis of angles spans one period, and is the same at both ends.

    Attributes:
        bounds: Limits ((x0, x1), (y0, y1)).
        edges: What lies beyond both ends of each axis, for smoothing.
        names: Names of the axes.
        ticks: Ticks of each axis; None for those that matplotlib chooses.
    """

    bounds: Bounds
    edges: Edges
    names: tuple[str, str]
    ticks: tuple[NDArray | None, NDArray | None] = (None, None)
    projection = None
    per = ""

    def panels(self, count: int, side: float = 2.6, *, colour_bar: bool = True) -> tuple[Figure, list[Axes]]:
        """Return a figure with panels.

        Args:
            count: Number of panels.
            side: Width of a panel in inches.
            colour_bar: Whether to leave room for a colour bar.

        Returns:
            The figure and its panels, three in a row.
        """
        return panel_grid(count, self.bounds, per_row=3, side=side, colour_bar=colour_bar)

    def points(self, size: int) -> NDArray:
        """Return the centres of the cells of a grid.

        Args:
            size: Number of cells along each axis.

        Returns:
            Points, shape (size², 2).
        """
        return arrays.grid_points(self.bounds, size)

    def on_grid(self, values: NDArray, size: int) -> NDArray:
        """Return values at `points(size)` as a grid.

        Args:
            values: Values, shape (size²,).
            size: Number of cells along each axis.

        Returns:
            Values, shape (size, size).
        """
        return values.reshape(size, size)

    def smoothed(self, x: NDArray, size: int) -> NDArray:
        """Estimate the density of points by a smoothed histogram.

        Args:
            x: Points, shape (n, 2).
            size: Number of cells along each axis.

        Returns:
            Densities, shape (size, size).
        """
        blur = 0.06 * len(x) ** (-1 / 6)
        smooth = (blur, blur / arrays.aspect_ratio(self.bounds))
        return arrays.smooth_histogram(x, self.bounds, size, smooth=smooth, edges=self.edges)

    def draw_field(self, panel: Axes, values: NDArray, **options: Any) -> Any:
        """Draw values by colours.

        Args:
            panel: Axes.
            values: Values, shape (size, size).
            **options: Options of `Axes.imshow`.

        Returns:
            The drawn image.
        """
        extent = image_extent(self.bounds)
        image = panel.imshow(values, origin="lower", extent=extent, aspect="auto", interpolation="bilinear", **options)
        self.mark(panel)
        return image

    def draw_regions(self, panel: Axes, values: NDArray, *, colour: str, filled: bool) -> None:
        """Draw the regions of highest density that hold 30, 60 and 90 % of the mass.

        Args:
            panel: Axes.
            values: Densities, shape (size, size).
            colour: Colour.
            filled: Whether to fill the regions, or to outline them.
        """
        x, y = (centres(limits, len(values)) for limits in self.bounds)
        draw_regions(panel, x, y, values, colour=colour, filled=filled)
        self.mark(panel)

    def scatter(self, panel: Axes, x: NDArray, **options: Any) -> None:
        """Draw points; angles are brought into their period.

        Args:
            panel: Axes.
            x: Points, shape (n, 2).
            **options: Options of `Axes.scatter`.
        """
        panel.scatter(*self._wrapped(x).T, **options)
        self.mark(panel)

    def outside(self, x: NDArray) -> int:
        """Return the number of points outside the rectangle.

        Args:
            x: Points, shape (n, 2).

        Returns:
            Number.
        """
        (low, high), points = np.transpose(self.bounds), self._wrapped(x)
        return int(np.count_nonzero(np.any((points < low) | (points > high), axis=1)))

    def mark(self, panel: Axes) -> None:
        """Write the names of the columns, on the outer panels alone.

        Args:
            panel: Axes.
        """
        place = panel.get_subplotspec()
        panel.set(xlim=self.bounds[0], ylim=self.bounds[1])
        panel.set_xlabel(shorten(self.names[0], 40), parse_math=False)
        if place is None or place.is_first_col():
            panel.set_ylabel(shorten(self.names[1], 30), parse_math=False)
        for axis, ticks in zip((panel.xaxis, panel.yaxis), self.ticks, strict=True):
            if ticks is not None:
                axis.set_ticks(ticks.tolist())

    def _wrapped(self, x: NDArray) -> NDArray:
        """Return points with their angles within the period."""
        periodic = np.array([edge[0] == "wrap" for edge in self.edges])
        low, high = np.transpose(self.bounds)
        return np.where(periodic, low + (x - low) % (high - low), x)


Chart = PlaneChart | SphereChart


def read_plane(
    x: Any,
    sampled: Any = None,
    *,
    columns: Sequence[str] | None,
    types: Mapping[Any, Any] | None,
    bounds: Bounds | None = None,
) -> tuple[Chart, NDArray, NDArray]:
    """Read points of two columns, and choose their chart.

    Args:
        x: Data, shape (n, 2), or a frame of two columns.
        sampled: Draws of the same columns; the data if None.
        columns: Names of the columns; None for those of the frame.
        types: Types of columns by names, as `FFJORD(columns=...)` takes them.
        bounds: Limits ((x0, x1), (y0, y1)) of a plane; None for those that hold nearly all points.

    Returns:
        The chart, the data and the draws.

    Raises:
        ValueError: If an array has another shape, a value is not finite, or a column is a category.
    """
    if columns is None and getattr(x, "columns", None) is None:
        arrays.checked_array("x", x, ("n", 2))
        columns = ("x₁", "x₂")
    table = read_table(x, x if sampled is None else sampled, columns, types)
    if len(table.names) != 2 or any(kind.word == "category" for kind in table.kinds):
        kinds = ", ".join(f"{name} ({kind.word})" for name, kind in zip(table.names, table.kinds, strict=True))
        raise ValueError(
            f"this picture is of a density of two columns of numbers; got {kinds}: draw a table by pair_plot or columns"
        )
    names = (table.names[0], table.names[1])
    if (1, 0) in table.spheres:
        raise ValueError(f"this map takes longitude before latitude; got {names[0]}, {names[1]}: swap the columns")
    if (0, 1) in table.spheres:
        return SphereChart(table.spheres[0, 1], names), table.x, table.sampled
    axes = [_axis(kind, column) for kind, column in zip(table.kinds, table.x.T, strict=True)]
    (first, second) = (each[:2] for each in axes)
    if bounds is not None:
        return PlaneChart(arrays.check_bounds(bounds), arrays.OPEN, names), table.x, table.sampled
    chart = PlaneChart((first[0], second[0]), (first[1], second[1]), names, (axes[0][2], axes[1][2]))
    return chart, table.x, table.sampled


def plane_bounds(x: Any, columns: Sequence[str] | None = None, types: Mapping[Any, Any] | None = None) -> Bounds:
    """Return bounds that hold nearly all points, stay within the support, and span one period of angles.

    Args:
        x: Data, shape (n, 2), or a frame of two columns.
        columns: Names of the columns; None for those of the frame.
        types: Types of columns by names, as `FFJORD(columns=...)` takes them.

    Returns:
        Limits ((x0, x1), (y0, y1)).

    Raises:
        ValueError: If the columns are a sphere, or no numbers.

    Example:
        >>> plane_bounds([[0.0, 10.0], [2.0, 350.0]], ["a", "phi"], {"a": "positive", "phi": "circle:360"})[1]
        (0.0, 360.0)
    """
    chart, _, _ = read_plane(x, columns=columns, types=types)
    if isinstance(chart, SphereChart):
        raise ValueError(f"a sphere has no bounds; got {' and '.join(chart.names)}: draw it by density or samples")
    return chart.bounds


def _axis(kind: Any, values: NDArray) -> tuple[Any, Any, NDArray | None]:
    """Return the limits of an axis, what lies beyond them, and its ticks."""
    if isinstance(kind, Circle):
        start = kind.start or 0.0
        return (start, start + kind.period), ("wrap", "wrap"), np.linspace(start, start + kind.period, 5)
    return *limits_within(values, kind.bounds, MARGIN), None
