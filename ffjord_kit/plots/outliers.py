"""Histograms of outlier scores: values of inliers against values of outliers, with the area under the ROC curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.plots.arrays import checked_array
from ffjord_kit.plots.figure import HISTOGRAM_STYLES, new_figure, shorten, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PER_ROW = 3
MAX_BINS = 40
QUANTILE_LEVELS = np.linspace(0, 1, 1001)


@styled
def outlier_histograms(
    scores: Mapping[str, tuple[ArrayLike, ArrayLike]],
    aurocs: Mapping[str, float],
    *,
    names: tuple[str, str] = ("inside", "outside"),
) -> Figure:
    """Draw histograms of each score for inliers and outliers; titles state the area under the ROC curve (AUROC).

    A panel spans the 0.5 % to 99.5 % quantiles of both sets together, each set having the same weight whatever its
    size. Heights are fractions of a set.

    Args:
        scores: For each score its values for inliers, shape (n,), and outliers, shape (m,).
        aurocs: For each score its AUROC, between 0 and 1.
        names: Names of the two sets.

    Returns:
        The figure: one panel per score, three in a row.

    Raises:
        ValueError: If scores and AUROCs have different names, an array has another shape, or a value is not finite.

    Example:
        >>> figure = outlier_histograms({"NLL": ([0.0, 1.0], [2.0, 3.0])}, {"NLL": 1.0})
        >>> figure.axes[0].get_title()
        'NLL: AUROC 1.00'
    """
    if not scores or set(scores) != set(aurocs):
        raise ValueError(f"scores and aurocs must have the same names, one or more; got {[*scores]} and {[*aurocs]}")
    areas = checked_array("aurocs", [aurocs[name] for name in scores], (len(scores),))
    if areas.min() < 0 or areas.max() > 1:
        raise ValueError(f"aurocs must be from 0 to 1; got {areas.min():.3g} to {areas.max():.3g}")
    pairs = {name: _checked_pair(name, pair, names) for name, pair in scores.items()}
    columns = min(len(pairs), PER_ROW)
    rows = -(-len(pairs) // columns)
    figure = new_figure(max(2.3 * columns, 3.0) + 0.1, 1.75 * rows + 0.3)
    axes: list[Axes] = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for panel, (name, pair), area in zip(axes, pairs.items(), areas, strict=False):
        _draw_histograms(panel, pair, names)
        panel.set_title(f"{shorten(name, 22)}: AUROC {area:.2f}", fontsize=8.5, parse_math=False)
    for panel in axes[len(pairs) :]:
        panel.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2)
    return figure


def _checked_pair(name: str, pair: tuple[ArrayLike, ArrayLike], names: tuple[str, str]) -> list[NDArray]:
    if len(pair) != 2 or len(names) != 2:
        raise ValueError(f"scores[{name!r}] and names must each have two elements; got {len(pair)} and {len(names)}")
    return [checked_array(f"{group} of {name!r}", values, ("n",)) for group, values in zip(names, pair, strict=True)]


def _draw_histograms(panel: Axes, pair: list[NDArray], names: tuple[str, str]) -> None:
    smaller = min(map(len, pair))
    bins = np.linspace(*_common_range(pair), int(np.clip(np.sqrt(smaller), 10, MAX_BINS)) + 1).tolist()
    for values, name, options in zip(pair, names, HISTOGRAM_STYLES, strict=True):
        weights = np.full(len(values), 1 / len(values))
        panel.hist(values, bins, weights=weights, label=shorten(name, 24), **options)
    panel.set_xlim(bins[0], bins[-1])
    panel.set_yticks([])
    panel.locator_params(axis="x", nbins=6)


def _common_range(pair: list[NDArray]) -> tuple[float, float]:
    """Return the range of both sets, in which a small set has the same weight as a large one."""
    values = np.concatenate([np.quantile(values, QUANTILE_LEVELS) for values in pair])
    low, high = np.quantile(values, [0.005, 0.995]).tolist()
    return (low, high) if low < high else (low - 0.5, high + 0.5)
