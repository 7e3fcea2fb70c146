"""Stability regions of methods of integration in the plane of z = h lambda, for the equation dx/dt = lambda x."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ffjord_kit.plots import arrays
from ffjord_kit.plots.arrays import Bounds
from ffjord_kit.plots.figure import DATA, FRAME, INK, panel_grid, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST = 10.0  # of a growth that is drawn


@styled
def stability_regions(growths: Mapping[str, ArrayLike], bounds: Bounds, *, level: float = 1.0) -> Figure:
    """Draw where steps of a method do not grow, one panel for each method.

    Args:
        growths: Growth of |x| in a step at the points of a grid, by method; each of shape (n, m), whose rows ascend
            with the imaginary part of z and whose columns with its real part, the ends of the bounds included.
        bounds: Limits ((least, largest real part), (least, largest imaginary part)).
        level: Growth up to which a step counts as stable.

    Returns:
        The figure, four panels in a row.

    Raises:
        ValueError: If there is no method, an array has another shape, or a growth is no number.

    Example:
        >>> real, imaginary = np.meshgrid(np.linspace(-2, 1, 7), np.linspace(-1, 1, 5))
        >>> figure = stability_regions({"euler": np.abs(1 + real + 1j * imaginary)}, ((-2, 1), (-1, 1)))
        >>> figure.axes[0].get_title()
        'euler'
    """
    if not growths:
        raise ValueError("growths must have one method or more; got none")
    bounds = arrays.check_bounds(bounds)
    figure, panels = panel_grid(len(growths), bounds, per_row=4, side=2.1, colour_bar=False)
    for panel, (name, growth) in zip(panels, growths.items(), strict=True):
        values = arrays.checked_array(name, np.minimum(growth, LARGEST), ("n", "m"))
        x, y = (np.linspace(low, high, count) for (low, high), count in zip(bounds, values.shape[::-1], strict=True))
        panel.axhline(0, color=FRAME, linewidth=0.7)
        panel.axvline(0, color=FRAME, linewidth=0.7)
        panel.contourf(x, y, values, [-1, level], colors=[DATA], alpha=0.35)
        panel.contour(x, y, values, [level], colors=[INK], linewidths=1.0)
        panel.set_title(name)
    figure.supxlabel("real part of z")
    figure.supylabel("imaginary part of z")
    return figure
