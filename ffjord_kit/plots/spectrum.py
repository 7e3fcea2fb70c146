"""Heat maps of the frequency principle: relative error of a spectrum by frequency and step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ffjord_kit.plots.figure import COLOUR_MAP_ON_WHITE, FRAME, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOWEST, HIGHEST, LEARNED = 0.01, 1.0, 0.1  # relative errors at the ends of the colours, and on the line


class SpectrumHistory(NamedTuple):
    """Relative errors of a spectrum over training.

    Attributes:
        steps: Steps, ascending, shape (T,).
        frequencies: Frequencies, positive, ascending, shape (K,).
        errors: Relative errors, shape (T, K); NaN where there is no reading.

    Example:
        >>> SpectrumHistory(steps=[100, 200], frequencies=[1.0, 2.0], errors=[[0.3, 0.9], [0.1, 0.4]]).errors[-1]
        [0.1, 0.4]
    """

    steps: ArrayLike
    frequencies: ArrayLike
    errors: ArrayLike


def watched_spectrum(records: Sequence[Mapping[str, Any]]) -> SpectrumHistory | None:
    """Return what the validations of a run have recorded of its spectrum.

    Args:
        records: Records of the run's log.

    Returns:
        The history; None where nothing was recorded.

    Example:
        >>> record = {"step": 100, "spectrum": {"frequencies": [1.0, 2.0], "errors": [0.3, None]}}
        >>> watched_spectrum([{"step": 50}, record]).errors
        array([[0.3, nan]])
    """
    seen = [record for record in records if "spectrum" in record]
    if not seen:
        return None
    errors = np.array([record["spectrum"]["errors"] for record in seen], dtype=float)
    return SpectrumHistory([record["step"] for record in seen], seen[0]["spectrum"]["frequencies"], errors)


@styled
def spectrum_errors(
    histories: Mapping[str, SpectrumHistory], *, label: str = "radians per standard deviation"
) -> Figure:
    """Draw the relative error of a spectrum by frequency and step, one panel for each history.

    A line marks where the error is a tenth. White places have no reading: the reference does not stand out of the
    noise there.

    Args:
        histories: Relative errors over training, by title.
        label: Text beside the frequencies.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no history, or its arrays do not fit.

    Example:
        >>> figure = spectrum_errors({"fit": SpectrumHistory([1, 2], [1.0, 2.0, 4.0], np.full((2, 3), 0.3))})
        >>> figure.axes[0].get_title()
        'fit'
    """
    from matplotlib.colors import LogNorm

    if not histories:
        raise ValueError("histories must have one entry or more; got none")
    figure = new_figure(2.5 * len(histories) + 1.0, 2.7)
    panels = figure.subplots(1, len(histories), sharey=True, squeeze=False)[0].tolist()
    norm = LogNorm(LOWEST, HIGHEST)
    for panel, (title, history) in zip(panels, histories.items(), strict=True):
        steps, frequencies, errors = (np.asarray(values, float) for values in history)
        if errors.shape != (len(steps), len(frequencies)):
            raise ValueError(
                f"errors of {title!r} must be of shape ({len(steps)}, {len(frequencies)}); got {errors.shape}"
            )
        mesh = panel.pcolormesh(
            np.append(0.0, steps), _edges(frequencies), np.clip(errors, LOWEST, HIGHEST).T, norm=norm,
            cmap=COLOUR_MAP_ON_WHITE, rasterized=True,
        )  # fmt: skip
        if len(steps) > 1 and np.isfinite(errors).any():
            middles = (np.append(0.0, steps[:-1]) + steps) / 2
            panel.contour(middles, frequencies, errors.T, [LEARNED], colors=[FRAME], linewidths=1.2)
        panel.set(yscale="log", title=title, xlabel="step")
        panel.locator_params(axis="x", nbins=4)
    panels[0].set(ylabel=label, ylim=_read_range(histories.values()))
    figure.colorbar(mesh, ax=panels, label="relative error").outline.set_visible(False)
    return figure


def _read_range(histories: Iterable[SpectrumHistory]) -> tuple[float, float]:
    """Return the range of the frequencies that have a reading somewhere, with a margin."""
    pairs = [(np.asarray(history.frequencies, float), np.asarray(history.errors, float)) for history in histories]
    read = np.concatenate([frequencies[np.isfinite(errors).any(0)] for frequencies, errors in pairs])
    shown = read if len(read) else pairs[0][0]
    return shown.min() / 1.1, shown.max() * 1.1


def _edges(centres: np.ndarray) -> np.ndarray:
    """Return the ends of cells around frequencies, in the middle of their logarithms, shape (K + 1,)."""
    logs = np.log(centres)
    middles = (logs[1:] + logs[:-1]) / 2
    first, last = (2 * logs[0] - middles[0], 2 * logs[-1] - middles[-1]) if len(middles) else (logs[0] - 1, logs[0] + 1)
    return np.exp(np.concatenate([[first], middles, [last]]))
