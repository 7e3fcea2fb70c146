"""Images on their way: from noise to image, and from one datum to another through the base."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ffjord_kit.plots import arrays
from ffjord_kit.plots.canvas import styled
from ffjord_kit.plots.mosaic import Block, checked, mosaic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def image_strip(times: ArrayLike, images: ArrayLike) -> Figure:
    """Draw samples on their way from noise (t = 0) to image (t = 1): one row a sample, one column a time.

    times is (T,), in either direction; images is (T, n, h, w) for grey or (T, n, h, w, 3) for colour, floats from 0
    to 1, so that the caller clips the noise.
    """
    times = arrays.array("times", times, ("T",))
    images = checked("images", images, (len(times), "n"))
    order = np.argsort(times)
    rows = images[order].swapaxes(0, 1)
    words = [f"t = {t:.2f}" for t in times[order]]
    return mosaic(Block(rows.reshape(-1, *rows.shape[2:]), len(times), columns=words))


@styled
def interpolation_strip(images: ArrayLike) -> Figure:
    """Draw interpolations, one a row: between two data, at the ends and marked as such, through the base.

    images is (rows, steps, h, w) for grey or (rows, steps, h, w, 3) for colour, floats from 0 to 1, with at least
    three steps; the first and the last are the data.
    """
    images = checked("images", images, ("rows", "steps"))
    steps = arrays.check_size(images.shape[1], name="the number of steps", least=3)
    middle = images[:, 1:-1].reshape(-1, *images.shape[2:])
    return mosaic(
        Block(images[:, 0], 1, "data"), Block(middle, steps - 2, "through the base"), Block(images[:, -1], 1, "data")
    )
