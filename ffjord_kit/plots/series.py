"""Irregular series: what was seen of them, and a prediction with its bands, beyond the last time too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ffjord_kit.plots.figure import DATA, MUTED, SAMPLES, new_figure, shorten, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_SERIES, MOST_CHANNELS = 6, 4


class PredictedSeries(NamedTuple):
    """A series and its prediction.

    Attributes:
        name: Name of the series.
        times: Times of its rows, shape (T,).
        values: Values, NaN where missing, shape (T, channels).
        at: Times of the prediction, rising, shape (P,).
        mean: Mean, shape (P, channels).
        low: Lower end of the band, shape (P, channels).
        high: Upper end, shape (P, channels).

    Example:
        >>> t, x = np.arange(3.0), np.zeros((3, 1))
        >>> PredictedSeries("a", t, x, at=t, mean=x, low=x - 1, high=x + 1).high.ravel().tolist()
        [1.0, 1.0, 1.0]
    """

    name: str
    times: np.ndarray
    values: np.ndarray
    at: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@styled
def series_bands(series: Sequence[PredictedSeries], channels: Sequence[str], *, level: float) -> Figure:
    """Draw series with their predictions: a panel for each series and channel.

    A line marks the last time; what is beyond is extrapolated. At most six series and four channels are drawn.

    Args:
        series: Series and predictions.
        channels: Names of the channels.
        level: Probability of the bands, for the legend.

    Returns:
        The figure.

    Example:
        >>> t, x = np.arange(3.0), np.zeros((3, 1))
        >>> figure = series_bands([PredictedSeries("a", t, x, t, x, x - 1, x + 1)], ["x"], level=0.9)
        >>> len(figure.axes)
        1
    """
    series, channels = series[:MOST_SERIES], channels[:MOST_CHANNELS]
    figure = new_figure(3.0 * len(series) + 0.6, 1.7 * len(channels) + 0.7)
    axes = figure.subplots(len(channels), len(series), sharex="col", sharey="row", squeeze=False)
    for column, item in enumerate(series):
        for row, name in enumerate(channels):
            _draw(axes[row, column], item, row)
            if column == 0:
                axes[row, column].set_ylabel(shorten(name))
        axes[0, column].set_title(f"series {shorten(item.name)}", loc="left")
        axes[-1, column].set_xlabel("time")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    words = [label.replace("band", f"{level:.0%} band") for label in labels]
    figure.legend(handles, words, loc="outside upper right", ncols=len(words))
    return figure


def _draw(panel: Axes, item: PredictedSeries, channel: int) -> None:
    """Draw one channel of a series: the band, the mean, and what was seen."""
    seen = ~np.isnan(item.values[:, channel])
    panel.fill_between(
        item.at, item.low[:, channel], item.high[:, channel], color=SAMPLES, alpha=0.2, lw=0, label="band"
    )
    panel.plot(item.at, item.mean[:, channel], color=SAMPLES, lw=1.2, label="mean")
    panel.plot(item.times[seen], item.values[seen, channel], ".", color=DATA, ms=4, label="seen")
    panel.axvline(item.times[-1], color=MUTED, lw=0.8, ls=":")
