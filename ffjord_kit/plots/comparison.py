"""Samples compared with data, as points in the plane, on a torus or on a sphere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ffjord_kit.plots import arrays
from ffjord_kit.plots.charts import Chart, read_plane
from ffjord_kit.plots.figure import DATA, SAMPLES, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_POINTS = 4000


@styled
def samples(
    x: Any, sampled: Any, columns: Sequence[str] | None = None, types: Mapping[Any, Any] | None = None
) -> Figure:
    """Draw data beside samples of two columns, equally many points of each, on the same axes.

    The bounds are those of the data; the titles state the number of drawn points outside the bounds. Angles span one
    period, and points of a sphere lie on a map of all of it.

    Args:
        x: Data, shape (n, 2), or a frame of two columns.
        sampled: Samples, shape (m, 2).
        columns: Names of the two axes; None for those of the frame.
        types: Types of columns by names, as `FFJORD(columns=...)` takes them.

    Returns:
        The figure: a panel of the data and a panel of the samples.

    Raises:
        ValueError: If an array has another shape, a value is not finite, there are not two names, or a column is a
            category.

    Example:
        >>> x = np.random.default_rng(0).uniform(size=(50, 2))
        >>> [panel.get_title() for panel in samples(x, [[0.5, 0.5], [9.0, 9.0]]).axes]
        ['data (2 of 50)', 'samples (2, 1 outside)']
    """
    chart, x, sampled = read_plane(x, sampled, columns=columns, types=types)
    count = min(len(x), len(sampled), MAX_POINTS)
    figure, axes = chart.panels(2, 3.0, colour_bar=False)
    area = float(np.clip(4000 / count, 1.5, 12))
    for panel, title, points, colour in zip(axes, ("data", "samples"), (x, sampled), (DATA, SAMPLES), strict=True):
        shown = points[arrays.subset_indices(len(points), count)]
        chart.scatter(panel, shown, s=area, color=colour, alpha=0.55, linewidths=0, rasterized=True)
        panel.set_title(_title_with_counts(title, shown, len(points), chart))
    return figure


def _title_with_counts(title: str, shown: NDArray, total: int, chart: Chart) -> str:
    """Return the title with the number of points drawn and, if any, of those outside the bounds."""
    outside = chart.outside(shown)
    counts = [f"{len(shown):,}" if len(shown) == total else f"{len(shown):,} of {total:,}", f"{outside:,} outside"]
    return f"{title} ({', '.join(counts[: 1 + (outside > 0)])})"
