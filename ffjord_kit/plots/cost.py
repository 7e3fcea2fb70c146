"""Errors against what they cost: one curve for each model, with the intervals of the errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ffjord_kit.plots.arrays import checked_array
from ffjord_kit.plots.figure import ACCENT, DATA, MUTED, SAMPLES, single_panel, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS, MARKS = (DATA, SAMPLES, ACCENT, "#E69F00", "#CC79A7", MUTED), "os^Dv<"


@styled
def error_against_cost(
    curves: Mapping[str, ArrayLike], *, error: str = "error", scale: str = "log", ax: Axes | None = None
) -> Figure:
    """Draw errors against evaluations, which are on a logarithmic scale.

    Args:
        curves: For each model evaluations, error, and the lower and the upper end of its interval, shape (k, 4); a
            curve of one point is a mark alone.
        error: Label of the errors.
        scale: Scale of the errors, "log" or "linear".
        ax: Axes to draw on; those of a new figure if None.

    Returns:
        The figure, one panel.

    Raises:
        ValueError: If there is no curve, or one has another shape or values that are not finite.

    Example:
        >>> figure = error_against_cost({"ode": [[2, 0.5, 0.4, 0.6], [20, 0.1, 0.05, 0.2]]})
        >>> figure.axes[0].get_xlabel()
        'evaluations of the field'
    """
    if not curves:
        raise ValueError("curves must have one model or more; got none")
    figure, panel = single_panel(ax, 4.6, 3.4)
    for i, (name, points) in enumerate(curves.items()):
        nfe, middle, low, high = np.asarray(sorted(checked_array(name, points, ("k", 4)).tolist())).T
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)], "markersize": 4}
        if i >= len(COLOURS):
            style |= {"linestyle": "--", "markerfacecolor": "white"}
        panel.errorbar(nfe, middle, [middle - low, high - middle], label=name, capsize=2, linewidth=1.0, **style)
    panel.set(xscale="log", yscale=scale, xlabel="evaluations of the field", ylabel=error)
    panel.legend()
    return figure
