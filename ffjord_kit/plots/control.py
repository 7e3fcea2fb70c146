"""The costate and the Jacobian along the paths of a flow: do gradients explode or vanish on the way?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ffjord_kit.plots.arrays import checked_array
from ffjord_kit.plots.figure import DATA, MUTED, SAMPLES, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST = 1e-12  # that is drawn


@styled
def gradients_along_path(*, times: ArrayLike, costate: ArrayLike, largest: ArrayLike, smallest: ArrayLike) -> Figure:
    """Draw the sizes of the costate and of the Jacobian against time: medians, and shaded where all rows are.

    Args:
        times: Times, shape (T,).
        costate: Norm of the costate of each row, shape (T, n).
        largest: Largest singular value of the Jacobian dx(t)/dx(1), shape (T, n).
        smallest: Smallest singular value, shape (T, n).

    Returns:
        The figure, two panels.

    Raises:
        ValueError: If an array has another shape, or a value is not finite.

    Example:
        >>> figure = gradients_along_path(times=[1, 0], costate=[[1], [2]], largest=[[1], [3]], smallest=[[1], [0.5]])
        >>> [panel.get_title() for panel in figure.axes]
        ['costate', 'Jacobian dx(t)/dx(1)']
    """
    t = checked_array("times", times, ("T",))
    figure = new_figure(7.2, 3.0)
    left, right = figure.subplots(1, 2).ravel().tolist()
    _draw(left, t, "costate", costate, DATA, "norm")
    _draw(right, t, "largest", largest, SAMPLES, "largest singular value")
    _draw(right, t, "smallest", smallest, DATA, "smallest singular value")
    right.axhline(1, color=MUTED, linewidth=0.8, linestyle="--")
    for panel, title in ((left, "costate"), (right, "Jacobian dx(t)/dx(1)")):
        panel.set(title=title, xlabel="time, from base to data", yscale="log")
        panel.legend()
    return figure


def _draw(panel: Axes, times: np.ndarray, name: str, values: ArrayLike, colour: str, label: str) -> None:
    sizes = np.maximum(checked_array(name, values, (len(times), "n")), LEAST)
    panel.fill_between(times, sizes.min(1), sizes.max(1), color=colour, alpha=0.2, linewidth=0)
    panel.plot(times, np.median(sizes, axis=1), "o-", color=colour, markersize=3, label=label)
