"""Sheets of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from ffjord_kit.plots import arrays
from ffjord_kit.plots.canvas import styled
from ffjord_kit.plots.mosaic import Block, checked, mosaic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def image_sheet(
    images: ArrayLike,
    *,
    columns: int = 10,
    titles: Sequence[str] | None = None,
    beside: ArrayLike | None = None,
) -> Figure:
    """Draw images in rows of `columns` and, where `beside` is given, those in a second block at their right.

    images is (n, h, w) for grey or (n, h, w, 3) for colour, and `beside` is alike in all but n: integers from 0 to
    255, or floats from 0 to 1, of which a little outside is clipped. `titles` are n words, one over each image. The two
    blocks are headed "samples" and "data".
    """
    blocks = [checked("images", images)]
    if beside is not None:
        blocks.append(checked("beside", beside, like=("images", blocks[0])))
    if titles is not None and len(titles) != len(blocks[0]):
        raise ValueError(f"titles must be {len(blocks[0])} words, one per image; got {len(titles)}")
    across = min(arrays.check_size(columns, name="columns", least=1), max(map(len, blocks)))
    headings = ("samples", "data") if len(blocks) > 1 else ("",)
    captions: list[Sequence[str]] = [(), ()]
    if titles is not None:
        captions = [tuple(titles), [""] * len(blocks[-1])]  # the rows of both blocks are as far apart
    parts = zip(blocks, headings, captions, strict=False)
    return mosaic(*(Block(block, across, heading, captions=words, over=True) for block, heading, words in parts))
