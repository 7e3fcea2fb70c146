"""Maps of the whole sphere, in Mollweide's projection, which shows areas as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ffjord_kit.columns.types import Sphere
from ffjord_kit.plots.figure import DATA, SAMPLES, new_figure, shorten
from ffjord_kit.plots.regions import draw_regions
from ffjord_kit.plots.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAP = "mollweide"
CELLS = 48  # of a smoothed density from pole to pole; twice as many around
LEAST_WIDTH = 3.2  # of a map, inches
WIDEST = 0.4  # radians by which one point is smeared, at most
MERIDIANS, PARALLELS = np.deg2rad([-120, -60, 0, 60, 120]), np.deg2rad([-60, -30, 0, 30, 60])


@dataclass(frozen=True)
class SphereChart:
    """A map of the sphere, on which densities are per steradian.

    Attributes:
        kind: The sphere, with the least longitude settled.
        names: Names of longitude and latitude.
    """

    kind: Sphere
    names: tuple[str, str]
    projection = MAP
    per = "per steradian"

    def panels(self, count: int, side: float = LEAST_WIDTH, *, colour_bar: bool = True) -> tuple[Figure, list[Axes]]:
        """Return a figure with maps.

        Args:
            count: Number of maps.
            side: Least width of a map in inches.
            colour_bar: Whether to leave room for a colour bar.

        Returns:
            The figure and its panels, three in a row.
        """
        per_row = min(count, 3)
        rows = -(-count // per_row)
        figure = new_figure(max(side, LEAST_WIDTH) * per_row + 0.9 * colour_bar, 2.0 * rows + 0.3)
        axes: Any = figure.subplots(rows, per_row, squeeze=False, subplot_kw={"projection": MAP}).ravel().tolist()
        for panel in axes[count:]:
            panel.set_axis_off()
        return figure, axes[:count]

    def points(self, size: int) -> NDArray:
        """Return the centres of cells of equal area.

        Args:
            size: Number of cells from pole to pole; twice as many lie around.

        Returns:
            Longitudes and latitudes in the units of the data, shape (2 size², 2).
        """
        longitude, latitude = np.meshgrid(*_centres(size))
        scale = self.kind.turn / (2 * np.pi)
        return np.stack([(longitude.ravel() + self._middle) * scale, latitude.ravel() * scale], axis=1)

    def on_grid(self, values: NDArray, size: int) -> NDArray:
        """Return values at `points(size)` as a grid.

        Args:
            values: Values, shape (2 size²,).
            size: Number of cells from pole to pole.

        Returns:
            Values, shape (size, 2 size).
        """
        return values.reshape(size, 2 * size)

    def smoothed(self, x: NDArray, size: int) -> NDArray:
        """Estimate the density of points by kernels of von Mises and Fisher.

        Args:
            x: Longitudes and latitudes, shape (n, 2).
            size: Number of cells from pole to pole.

        Returns:
            Densities per steradian, shape (size, 2 size).
        """
        points, at = self.kind.to_points(x), self.kind.to_points(self.points(size))
        spread = np.sqrt(max(1 - float(np.linalg.norm(points.mean(0))), 1e-6))
        concentration = (min(spread, WIDEST) * len(x) ** (-1 / 6)) ** -2
        kernels = np.exp(concentration * (at @ points.T - 1)).mean(1)
        return self.on_grid(kernels * concentration / (2 * np.pi * -np.expm1(-2 * concentration)), size)

    def draw_field(self, panel: Any, values: NDArray, **options: Any) -> Any:
        """Draw values by colours.

        Args:
            panel: Axes of a map.
            values: Values, shape (size, 2 size).
            **options: Options of `Axes.pcolormesh`.

        Returns:
            The drawn mesh.
        """
        size = len(values)
        edges = np.linspace(-np.pi, np.pi, 2 * size + 1), np.arcsin(np.linspace(-1, 1, size + 1))
        mesh = panel.pcolormesh(*edges, values, rasterized=True, **options)
        panel.set_facecolor(mesh.cmap(0.0))  # of the poles, which the cells leave open
        self.mark(panel)
        return mesh

    def draw_regions(self, panel: Any, values: NDArray, *, colour: str, filled: bool) -> None:
        """Draw the regions of highest density that hold 30, 60 and 90 % of the mass.

        Args:
            panel: Axes of a map.
            values: Densities, shape (size, 2 size).
            colour: Colour.
            filled: Whether to fill the regions, or to outline them.
        """
        longitude, latitude = _centres(len(values))
        longitude = np.concatenate([[-np.pi], longitude, [np.pi]])
        seam = values[:, [0, -1]].mean(1, keepdims=True)
        drawn = np.hstack([seam, values, seam])
        draw_regions(panel, longitude, latitude, drawn, colour=colour, filled=filled)
        self.mark(panel)

    def scatter(self, panel: Any, x: NDArray, **options: Any) -> None:
        """Draw points.

        Args:
            panel: Axes of a map.
            x: Longitudes and latitudes, shape (n, 2).
            **options: Options of `Axes.scatter`.
        """
        angles = self.kind.to_angles(self.kind.to_points(x)) * (2 * np.pi / self.kind.turn)
        panel.scatter(angles[:, 0] - self._middle, angles[:, 1], **options)
        self.mark(panel)

    def outside(self, x: NDArray) -> int:
        """Return the number of points outside the map.

        Args:
            x: Points, shape (n, 2).

        Returns:
            None: the map shows all of the sphere.
        """
        return 0

    def mark(self, panel: Any) -> None:
        """Draw meridians and parallels with their angles, and the names of the columns.

        Args:
            panel: Axes of a map.
        """
        scale, sign = self.kind.turn / (2 * np.pi), "°" if self.kind.unit_of_angles == "deg" else ""
        panel.set_xticks(MERIDIANS, [f"{(at + self._middle) * scale:.3g}{sign}" for at in MERIDIANS])
        panel.set_yticks(PARALLELS, [f"{at * scale:.3g}{sign}" for at in PARALLELS])
        panel.tick_params(labelsize=6)
        panel.grid(True, linewidth=0.4, alpha=0.6)
        panel.set_axisbelow(False)
        panel.set_xlabel(shorten(self.names[0], 30), parse_math=False)
        panel.set_ylabel(shorten(self.names[1], 30), parse_math=False)

    @property
    def _middle(self) -> float:
        """Longitude of the map's middle, radians."""
        return (self.kind.start or 0.0) * (2 * np.pi / self.kind.turn) + np.pi


def draw_sphere(panel: Any, table: Table, places: tuple[int, ...]) -> None:
    """Draw the regions of highest density of data, filled, and of draws, outlined.

    Args:
        panel: Axes of a map.
        table: Data and draws.
        places: Places of longitude and latitude.
    """
    pair = (places[0], places[1])
    chart = SphereChart(table.spheres[pair], (table.names[pair[0]], table.names[pair[1]]))
    for rows, colour, filled in ((table.x, DATA, True), (table.sampled, SAMPLES, False)):
        chart.draw_regions(panel, chart.smoothed(rows[:, pair], CELLS), colour=colour, filled=filled)


def _centres(size: int) -> tuple[NDArray, NDArray]:
    """Return longitudes about the middle and latitudes of the centres of cells of equal area, radians."""
    longitude = (np.arange(2 * size) + 0.5) / size * np.pi - np.pi
    return longitude, np.arcsin((np.arange(size) + 0.5) / size * 2 - 1)
