"""Spectral densities of Hessians."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ffjord_kit.plots.arrays import checked_array
from ffjord_kit.plots.cost import COLOURS
from ffjord_kit.plots.figure import single_panel, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST = 1e-6  # of a density, relative to the largest, that is drawn


@styled
def spectral_densities(
    densities: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], *, ax: Axes | None = None
) -> Figure:
    """Draw densities of eigenvalues on a logarithmic scale, each with a band of two standard errors.

    Args:
        densities: By name the eigenvalues (g,), the density there (g,), and its standard errors (g,).
        ax: Axes to draw on; those of a new figure if None.

    Returns:
        The figure, one panel.

    Raises:
        ValueError: If there is no density, or an array has another shape or values that are not finite.

    Example:
        >>> figure = spectral_densities({"plain": ([0, 1, 2], [1, 0.1, 0.01], [0.1, 0.01, 0.001])})
        >>> figure.axes[0].get_xlabel()
        'eigenvalue of the Hessian'
    """
    if not densities:
        raise ValueError("densities must have one or more; got none")
    figure, panel = single_panel(ax, 4.6, 3.2)
    for i, (name, parts) in enumerate(densities.items()):
        grid = checked_array(name, parts[0], ("g",))
        density, error = (checked_array(name, part, (len(grid),)) for part in parts[1:])
        least, colour = LEAST * density.max(), COLOURS[i % len(COLOURS)]
        panel.plot(grid, np.maximum(density, least), color=colour, label=name)
        low, high = (np.maximum(density + sign * 2 * error, least) for sign in (-1, 1))
        panel.fill_between(grid, low, high, color=colour, alpha=0.25, linewidth=0)
    panel.set(xlabel="eigenvalue of the Hessian", ylabel="density of eigenvalues", yscale="log")
    panel.legend()
    return figure
