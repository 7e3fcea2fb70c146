"""Diagnosis of a flow in six panels: error of the solve, base, regions, log-densities, stiffness and steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.plots.arrays import checked_array
from ffjord_kit.plots.figure import ACCENT, DATA, HISTOGRAM_STYLES, MUTED, SAMPLES, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROBABILITIES = np.linspace(0.005, 0.995, 199)
TOLERABLE_ERROR = 0.01  # nats
BAND_WIDTH = 2.58  # standard errors: 99 % of a normal distribution
MAX_COORDINATES = 64


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
    """Draw the six panels of a diagnosis.

    For a flow that fits, the data at the base are distributed as the base, and a region of highest density with
    probability p holds the fraction p of the held-out data.

    Args:
        errors: For each solver its numbers of evaluations, shape (k,), and its errors in nats, shape (k,).
        at_base: Held-out data transformed to the base, shape (n, d).
        base_draws: Draws from the base, shape (m, d).
        log_densities: Log-densities of the held-out data in nats, shape (n,).
        drawn_log_densities: Log-densities of samples of the flow in nats, shape (m,).
        steps: Number of steps that the solver takes for each row, shape (n,).
        spectrum: Times, largest real part and largest modulus of the eigenvalues of the Jacobian df/dx, each of shape
            (T,), or None.

    Returns:
        The figure: two rows of three panels.

    Raises:
        ValueError: If `at_base` or `base_draws` has another shape or a value that is not finite.

    Example:
        >>> z, ones = np.random.default_rng(0).normal(size=(50, 2)), np.ones(50)
        >>> log_densities = -0.5 * (z**2).sum(1)
        >>> figure = diagnosis(errors={}, at_base=z, base_draws=-z, log_densities=log_densities,
        ...                    drawn_log_densities=log_densities, steps=9 * ones, spectrum=None)
        >>> figure.axes[0].get_title()
        'error of the solve'
    """
    z, draws = checked_array("at_base", at_base, ("n", "d")), checked_array("base_draws", base_draws, ("m", "d"))
    held_out, sampled = np.asarray(log_densities, float), np.asarray(drawn_log_densities, float)
    figure = new_figure(10.4, 6.0)
    axes: list[Axes] = figure.subplots(2, 3).ravel().tolist()
    _draw_errors(axes[0], errors)
    _draw_base(axes[1], z, draws)
    _draw_coverage(axes[2], held_out, sampled)
    _draw_log_densities(axes[3], held_out, sampled)
    _draw_spectrum(axes[4], spectrum)
    _draw_steps(axes[5], np.asarray(steps, float))
    return figure


def _draw_errors(panel: Axes, errors: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> None:
    panel.set(title="error of the solve", xlabel="evaluations of the dynamics", ylabel="nats a row")
    if not errors:
        _leave_empty(panel)
        return
    for (name, (evaluations, error)), colour in zip(errors.items(), (DATA, SAMPLES, ACCENT), strict=False):
        visible = np.maximum(np.asarray(error, float), 1e-12)
        panel.plot(np.asarray(evaluations, float), visible, "o-", color=colour, label=name, markersize=3.5)
    panel.axhline(TOLERABLE_ERROR, color=MUTED, linewidth=0.8, linestyle="--")
    text, place = f"{TOLERABLE_ERROR:g} nats", (0.02, TOLERABLE_ERROR)
    panel.annotate(text, place, xycoords=("axes fraction", "data"), color=MUTED, va="bottom")
    panel.set(xscale="log", yscale="log")
    panel.legend()


def _draw_base(panel: Axes, z: NDArray, draws: NDArray) -> None:
    """Draw, for each coordinate, the fraction of rows below each quantile of the base minus its expectation."""
    for column, draw in zip(z.T[:MAX_COORDINATES], draws.T, strict=False):
        fractions = np.searchsorted(np.sort(column), np.quantile(draw, PROBABILITIES)) / len(column)
        panel.plot(PROBABILITIES, fractions - PROBABILITIES, color=DATA, linewidth=0.8, alpha=0.6)
    _draw_chance_band(panel, np.sqrt(1 / len(z) + 1 / len(draws)))
    panel.set(title="rows at the base", xlabel="quantile of the base", ylabel="share − quantile")


def _draw_coverage(panel: Axes, held_out: NDArray, sampled: NDArray) -> None:
    """Draw the fraction of rows in each region of highest density minus the probability of the region."""
    fractions = (held_out[:, None] >= np.quantile(sampled, 1 - PROBABILITIES)).mean(0)
    panel.plot(PROBABILITIES, fractions - PROBABILITIES, color=DATA)
    _draw_chance_band(panel, np.sqrt(1 / len(held_out) + 1 / len(sampled)))
    panel.set(title="regions of highest density", xlabel="probability of the region", ylabel="share − probability")


def _draw_chance_band(panel: Axes, noise: float) -> None:
    """Draw zero and the band that holds 99 % of chance deviations at each probability."""
    width = BAND_WIDTH * noise * np.sqrt(PROBABILITIES * (1 - PROBABILITIES))
    panel.fill_between(PROBABILITIES, -width, width, color=MUTED, alpha=0.2, linewidth=0, label="chance, 99 %")
    panel.axhline(0, color=MUTED, linewidth=0.8)
    panel.margins(y=0.18)
    panel.legend(loc="upper right")


def _draw_log_densities(panel: Axes, held_out: NDArray, sampled: NDArray) -> None:
    low, high = np.quantile(np.concatenate([held_out, sampled]), [0.005, 0.995])
    bins = np.linspace(low, high, int(np.clip(np.sqrt(len(held_out)), 10, 40)) + 1).tolist()
    for values, name, options in zip((held_out, sampled), ("held-out rows", "draws"), HISTOGRAM_STYLES, strict=True):
        panel.hist(values, bins, weights=np.full(len(values), 1 / len(values)), label=name, **options)
    panel.set(title="log-densities", xlabel="nats", ylabel="share")
    panel.legend(loc="upper left")


def _draw_spectrum(panel: Axes, spectrum: tuple[ArrayLike, ArrayLike, ArrayLike] | None) -> None:
    panel.set(title="stiffness along the paths", xlabel="time, from base to data", ylabel="of the Jacobian’s spectrum")
    if spectrum is None:
        _leave_empty(panel)
        return
    times, real, modulus = (np.asarray(values, float) for values in spectrum)
    panel.plot(times, modulus, "o-", color=DATA, markersize=3, label="largest modulus")
    panel.plot(times, real, "o-", color=SAMPLES, markersize=3, label="largest real part")
    panel.axhline(0, color=MUTED, linewidth=0.8)
    panel.legend()


def _draw_steps(panel: Axes, steps: NDArray) -> None:
    low, high = int(steps.min()), int(steps.max())
    width = max(1, -(-(high - low + 1) // 30))
    bins = (np.arange(low, high + width + 1, width) - 0.5).tolist()
    panel.hist(steps, bins, color=DATA, alpha=0.6)
    panel.set(title="steps of a row, to tolerance", xlabel="steps", ylabel="rows")


def _leave_empty(panel: Axes) -> None:
    panel.text(0.5, 0.5, "nothing to show", ha="center", va="center", color=MUTED, transform=panel.transAxes)
    panel.set_xticks([])
    panel.set_yticks([])
