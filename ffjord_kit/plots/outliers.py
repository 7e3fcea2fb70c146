"""What a model finds unlikely: the images at both ends of its likelihoods, and scores within beside scores without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.plots import arrays
from ffjord_kit.plots.canvas import DATA, SAMPLES, sheet, short, styled
from ffjord_kit.plots.mosaic import Block, checked, mosaic, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PER_ROW, BINS = 3, 40
EVEN = np.linspace(0, 1, 1001)  # levels of quantiles


@styled
def extreme_images(
    least: ArrayLike, most: ArrayLike, least_bits: ArrayLike, most_bits: ArrayLike, *, columns: int = 5
) -> Figure:
    """Draw the least likely images beside the most likely ones, in rows of `columns`, their bits/dim beneath.

    least is (n, h, w) for grey or (n, h, w, 3) for colour, most is alike in all but n, m of them: floats from 0 to 1.
    least_bits (n,) and most_bits (m,) are in bits per dimension. Raises ValueError where the least likely have fewer
    bits than the most likely, in the mean.
    """
    first = checked("least", least)
    second = checked("most", most, like=("least", first))
    high, low = (
        arrays.array(name, bits, (len(images),))
        for name, bits, images in (("least_bits", least_bits, first), ("most_bits", most_bits, second))
    )
    if high.mean() < low.mean():
        found = f"{high.mean():.3g} and {low.mean():.3g}"
        raise ValueError(f"least_bits must be above most_bits in the mean; got {found}: exchange least and most")
    arrays.check_size(columns, name="columns", least=1)
    words = numbers(np.concatenate([high, low]))
    return mosaic(
        Block(first, min(columns, len(first)), "least likely (bits/dim)", captions=words[: len(first)]),
        Block(second, min(columns, len(second)), "most likely (bits/dim)", captions=words[len(first) :]),
    )


@styled
def outlier_histograms(
    scores: Mapping[str, tuple[ArrayLike, ArrayLike]],
    aurocs: Mapping[str, float],
    *,
    names: tuple[str, str] = ("inside", "outside"),
) -> Figure:
    """Draw for each score the histograms of its values within and without, entitled with the area under its ROC curve.

    scores: name -> values (n,) of what is inside and (m,) of what is outside, finite; aurocs: the same names -> area,
    from 0 to 1; `names` are those of the two sets. A panel spans the 0.5 % to 99.5 % quantiles of both sets together,
    either of which counts as much, however many values it has; bars are shares of a set.
    """
    if not scores or set(scores) != set(aurocs):
        raise ValueError(f"scores and aurocs must have the same names, one or more; got {[*scores]} and {[*aurocs]}")
    areas = arrays.array("aurocs", [aurocs[name] for name in scores], (len(scores),))
    if areas.min() < 0 or areas.max() > 1:
        raise ValueError(f"aurocs must be from 0 to 1; got {areas.min():.3g} to {areas.max():.3g}")
    pairs = {name: _pair(name, both, names) for name, both in scores.items()}
    across = min(len(pairs), PER_ROW)
    rows = -(-len(pairs) // across)
    figure = sheet(max(2.3 * across, 3.0) + 0.1, 1.75 * rows + 0.3)
    axes = figure.subplots(rows, across, squeeze=False).ravel()
    for panel, (name, both), area in zip(axes, pairs.items(), areas, strict=False):
        _histograms(panel, both, names)
        panel.set_title(f"{short(name, 22)}: AUROC {area:.2f}", fontsize=8.5, parse_math=False)
    for panel in axes[len(pairs) :]:
        panel.set_axis_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def _pair(name: str, both: tuple[ArrayLike, ArrayLike], names: tuple[str, str]) -> list[NDArray]:
    if len(both) != 2 or len(names) != 2:
        raise ValueError(f"scores[{name!r}] must be the values of two sets, and names two; got {len(both)}, {names}")
    return [arrays.array(f"{where} of {name!r}", values, ("n",)) for where, values in zip(names, both, strict=True)]


def _histograms(panel: Axes, both: list[NDArray], names: tuple[str, str]) -> None:
    least = min(map(len, both))
    bins = np.linspace(*_range(both), int(np.clip(np.sqrt(least), 10, BINS)) + 1)
    looks = {"histtype": "stepfilled", "color": (DATA, 0.4)}, {"histtype": "step", "color": SAMPLES}
    for values, name, look in zip(both, names, looks, strict=True):
        panel.hist(values, bins, weights=np.full(len(values), 1 / len(values)), label=short(name, 24), **look)
    panel.set_xlim(bins[0], bins[-1])
    panel.set_yticks([])
    panel.locator_params(axis="x", nbins=6)


def _range(both: list[NDArray]) -> tuple[float, float]:
    """Return the ends of what is drawn; a set of few values is not lost beside one of many."""
    evenly = np.concatenate([np.quantile(values, EVEN) for values in both])
    low, high = np.quantile(evenly, [0.005, 0.995]).tolist()
    return (low, high) if low < high else (low - 0.5, high + 0.5)
