"""How far a flow can be trusted: its solves, base, regions of highest density, and the stiffness of its paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.plots import arrays
from ffjord_kit.plots.canvas import ACCENT, DATA, MUTED, SAMPLES, sheet, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARES = np.linspace(0.005, 0.995, 199)
KEPT = 0.01  # nats
BAND = 2.58  # standard errors: 99 %
MOST_COORDINATES = 64


@styled
def diagnosis(
    *,
    errors: Mapping[str, tuple[ArrayLike, ArrayLike]],
    at_base: ArrayLike,
    base_draws: ArrayLike,
    log_densities: ArrayLike,
    drawn_log_densities: ArrayLike,
    steps: ArrayLike,
    spectrum: tuple[ArrayLike, ArrayLike, ArrayLike] | None,
) -> Figure:
    """Draw six panels of a diagnosis.

    errors: name -> evaluations and errors in nats, each (k,); at_base (n, d) and base_draws (m, d), which should be
    alike; log-densities in nats of held-out rows (n,) and of draws (m,); steps (n,); spectrum: times, largest real part
    and modulus of the Jacobian's eigenvalues, each (T,), or None.
    """
    rows, base = arrays.array("at_base", at_base, ("n", "d")), arrays.array("base_draws", base_draws, ("m", "d"))
    held, drawn = np.asarray(log_densities, float), np.asarray(drawn_log_densities, float)
    figure = sheet(10.4, 6.0)
    (first, second, third), (fourth, fifth, sixth) = figure.subplots(2, 3)
    _solves(first, errors)
    _base(second, rows, base)
    _coverage(third, held, drawn)
    _densities(fourth, held, drawn)
    _spectrum(fifth, spectrum)
    _steps(sixth, np.asarray(steps, float))
    return figure


def _solves(panel: Axes, errors: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> None:
    panel.set(title="error of the solve", xlabel="evaluations of the dynamics", ylabel="nats a row")
    if not errors:
        _nothing(panel)
        return
    for (name, (nfe, error)), colour in zip(errors.items(), (DATA, SAMPLES, ACCENT), strict=False):
        panel.plot(nfe, np.maximum(error, 1e-12), "o-", color=colour, label=name, markersize=3.5)
    panel.axhline(KEPT, color=MUTED, linewidth=0.8, linestyle="--")
    panel.annotate(f"{KEPT:g} nats", (0.02, KEPT), xycoords=("axes fraction", "data"), color=MUTED, va="bottom")
    panel.set(xscale="log", yscale="log")
    panel.legend()


def _base(panel: Axes, rows: NDArray, base: NDArray) -> None:
    """The share of rows below each quantile of the base, less what it should be; coordinate by coordinate."""
    for row, draws in zip(rows.T[:MOST_COORDINATES], base.T, strict=False):
        found = np.searchsorted(np.sort(row), np.quantile(draws, SHARES)) / len(row)
        panel.plot(SHARES, found - SHARES, color=DATA, linewidth=0.8, alpha=0.6)
    noise = np.sqrt(1 / len(rows) + 1 / len(base))
    _band(panel, noise)
    panel.set(title="rows at the base", xlabel="quantile of the base", ylabel="share − quantile")


def _coverage(panel: Axes, held: NDArray, drawn: NDArray) -> None:
    """The share of rows within each region of highest density, less what it should hold."""
    found = (held[:, None] >= np.quantile(drawn, 1 - SHARES)).mean(0)
    panel.plot(SHARES, found - SHARES, color=DATA)
    _band(panel, np.sqrt(1 / len(held) + 1 / len(drawn)))
    panel.set(title="regions of highest density", xlabel="probability of the region", ylabel="share − probability")


def _band(panel: Axes, noise: float) -> None:
    """Zero, and what chance allows at 99 % of places."""
    width = BAND * noise * np.sqrt(SHARES * (1 - SHARES))
    panel.fill_between(SHARES, -width, width, color=MUTED, alpha=0.2, linewidth=0, label="chance, 99 %")
    panel.axhline(0, color=MUTED, linewidth=0.8)
    panel.margins(y=0.18)
    panel.legend(loc="upper right")


def _densities(panel: Axes, held: NDArray, drawn: NDArray) -> None:
    low, high = np.quantile(np.concatenate([held, drawn]), [0.005, 0.995])
    bins = np.linspace(low, high, int(np.clip(np.sqrt(len(held)), 10, 40)) + 1)
    looks = {"histtype": "stepfilled", "color": (DATA, 0.4)}, {"histtype": "step", "color": SAMPLES}
    for values, name, look in zip((held, drawn), ("held-out rows", "draws"), looks, strict=True):
        weights = np.full(len(values), 1 / len(values))
        panel.hist(values, bins, weights=weights, label=name, **look)
    panel.set(title="log-densities", xlabel="nats", ylabel="share")
    panel.legend(loc="upper left")


def _spectrum(panel: Axes, spectrum: tuple[ArrayLike, ArrayLike, ArrayLike] | None) -> None:
    panel.set(title="stiffness along the paths", xlabel="time, from base to data", ylabel="of the Jacobian’s spectrum")
    if spectrum is None:
        _nothing(panel)
        return
    times, real, modulus = (np.asarray(values, float) for values in spectrum)
    panel.plot(times, modulus, "o-", color=DATA, markersize=3, label="largest modulus")
    panel.plot(times, real, "o-", color=SAMPLES, markersize=3, label="largest real part")
    panel.axhline(0, color=MUTED, linewidth=0.8)
    panel.legend()


def _steps(panel: Axes, steps: NDArray) -> None:
    low, high = int(steps.min()), int(steps.max())
    width = max(1, -(-(high - low + 1) // 30))
    panel.hist(steps, np.arange(low, high + width + 1, width) - 0.5, color=DATA, alpha=0.6)
    panel.set(title="steps of a row, to tolerance", xlabel="steps", ylabel="rows")


def _nothing(panel: Axes) -> None:
    panel.text(0.5, 0.5, "nothing to show", ha="center", va="center", color=MUTED, transform=panel.transAxes)
    panel.set_xticks([])
    panel.set_yticks([])
