"""Is a sample new? Each beside the training images that are nearest to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from ffjord_kit.plots import arrays
from ffjord_kit.plots.canvas import styled
from ffjord_kit.plots.mosaic import Block, checked, mosaic, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def nearest_images(samples: ArrayLike, neighbours: ArrayLike, distances: ArrayLike) -> Figure:
    """Draw each sample beside its nearest training images, one row a sample, with the distance beneath each.

    samples is (n, h, w) for grey or (n, h, w, 3) for colour, neighbours is (n, k, h, w) or (n, k, h, w, 3), floats
    from 0 to 1; distances is (n, k), in units of the caller's.
    """
    left = checked("samples", samples)
    right = checked("neighbours", neighbours, (len(left), "k"), like=("samples", left))
    across = right.shape[1]
    words = numbers(arrays.array("distances", distances, (len(left), across)))
    return mosaic(
        Block(left, 1, "sample", captions=[""] * len(left)),
        Block(right.reshape(-1, *right.shape[2:]), across, "nearest training images", captions=words),
    )
