"""Blocks of images side by side, laid out in dots of the written picture (160 an inch).

An image is enlarged by a whole number and its page is drawn dot by dot, so that its pixels are equal, crisp squares.
A block is one array, however many images it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.plots import arrays
from ffjord_kit.plots.canvas import FORMATS, INK, MUTED, sheet, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = FORMATS["png"][0]
SIDE, SMALLEST = 112, 40  # the wished width of an image, in dots, and that below which many columns do not press it
WIDEST = 1600  # dots for the columns of all blocks
GAP, BETWEEN, MARGIN = 5, 22, 12  # dots between images, between blocks, and around
LINE, HEAD = 21, 28  # dots of a line of captions, and of one of headings
SMALL, LARGE = 6.5, 8.0  # points
LETTER = 0.6  # the width of a letter as a share of its height, in the mean


@dataclass(frozen=True, eq=False)
class Block:
    """Bytes of images in three colours, (n, h, w, 3), in rows of `across`, beneath a heading or a word a column.

    `captions` are n words, beneath each image or, with `over`, above it.
    """

    images: NDArray
    across: int
    heading: str = ""
    columns: Sequence[str] = ()
    captions: Sequence[str] = ()
    over: bool = False


def checked(
    name: str, images: ArrayLike, lead: tuple[str | int, ...] = ("n",), *, like: tuple[str, NDArray] | None = None
) -> NDArray:
    """Return images (*lead, h, w) or (*lead, h, w, 3) as bytes in three colours, (*lead, h, w, 3).

    Integers are from 0 to 255, floats from 0 to 1, of which a little outside is clipped; `like` are the name and bytes
    of images as high and wide. Raises ValueError for other shapes and values.
    """
    kind = np.asarray(images).dtype
    shape = (*lead, "h", "w", 3) if np.ndim(images) == len(lead) + 3 else (*lead, "h", "w")
    values = arrays.array(name, images, shape) / (255 if kind.kind in "iu" else 1)
    if values.min() < -0.5 or values.max() > 1.5:
        found = f"{values.min():.3g} to {values.max():.3g}"
        raise ValueError(f"{name} must be integers from 0 to 255 or floats from 0 to 1; got {kind} from {found}")
    colours = values if values.ndim == len(lead) + 3 else np.repeat(values[..., None], 3, axis=-1)
    if like is not None and colours.shape[-3:-1] != like[1].shape[-3:-1]:
        other, size = like[0], like[1].shape[-3:-1]
        raise ValueError(f"{name} must be as high and wide as {other}, {size}; got {colours.shape[-3:-1]}")
    return np.rint(255 * np.clip(colours, 0, 1)).astype(np.uint8)


def numbers(values: NDArray) -> list[str]:
    """Return the values as words with as many decimals as give the largest three digits."""
    top = float(np.abs(values).max()) or 1.0
    decimals = int(np.clip(2 - np.floor(np.log10(top)), 0, 5))
    return [f"{value:.{decimals}f}" for value in values.ravel()]


def mosaic(*blocks: Block) -> Figure:
    """Return a figure of the blocks side by side, each on axes of its own, in the order given."""
    side = float(np.clip(WIDEST / sum(block.across for block in blocks), SMALLEST, SIDE))
    sized = [_sized(block.images, side) for block in blocks]
    pages = [_page(block, images) for block, images in zip(blocks, sized, strict=True)]
    head = HEAD * any(block.heading or block.columns for block in blocks)
    widths = [max(page.shape[1], _dots(block.heading, LARGE)) for block, page in zip(blocks, pages, strict=True)]
    width = 2 * MARGIN + sum(widths) + BETWEEN * (len(blocks) - 1)
    height = 2 * MARGIN + head + max(page.shape[0] for page in pages)
    figure = sheet(width / DPI, height / DPI, layout="none")
    figure.set_dpi(DPI)  # a notebook, too, shows dot for dot
    left = MARGIN
    for block, images, page, wide in zip(blocks, sized, pages, widths, strict=True):
        down, right = page.shape[:2]
        panel = figure.add_axes((left / width, 1 - (MARGIN + head + down) / height, right / width, down / height))
        panel.imshow(page, interpolation="nearest", aspect="auto")
        panel.set_axis_off()
        _write(panel, block, images)
        left += wide + BETWEEN
    return figure


def _sized(images: NDArray, side: float) -> NDArray:
    """Return the images enlarged by the whole number that brings them nearest to `side` dots; large ones shrunk."""
    height, width = images.shape[1:3]
    if width > 1.5 * side:
        from PIL import Image

        size = round(side), round(height * side / width)
        return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in images])
    times = max(1, round(side / width))
    return images.repeat(times, axis=1).repeat(times, axis=2)


def _corners(block: Block, images: NDArray) -> NDArray:
    """Return the row and column of the upper left dot of each image on its page, (n, 2)."""
    count, height, width, _ = images.shape
    line = LINE * bool(block.captions)
    rows, columns = np.divmod(np.arange(count), block.across)
    return np.stack([rows * (height + GAP + line) + line * block.over, columns * (width + GAP)], axis=1)


def _page(block: Block, images: NDArray) -> NDArray:
    height, width = images.shape[1:3]
    corners = _corners(block, images)
    down, right = corners.max(axis=0) + (height, width)
    below = LINE * (bool(block.captions) and not block.over)
    page = np.full((down + below, right, 3), 255, dtype=np.uint8)
    for image, (row, column) in zip(images, corners, strict=True):
        page[row : row + height, column : column + width] = image
    return page


def _write(panel: Axes, block: Block, images: NDArray) -> None:
    """Write the block's heading, the words over its columns, and the captions of its images."""
    height, width = images.shape[1:3]
    corners = _corners(block, images)
    if block.heading:
        panel.set_title(block.heading, loc="left", fontsize=LARGE, pad=3.5, parse_math=False)
    look = {"ha": "center", "fontsize": SMALL, "color": MUTED, "parse_math": False}
    if block.columns:
        every = -(-max(_dots(word, SMALL) for word in block.columns) // (width + GAP))
        for word, (_, column) in list(zip(block.columns, corners, strict=False))[::every]:
            panel.text(column + width / 2, -6, word, va="bottom", **{**look, "color": INK})
    letters = int((width + GAP) / _dots("x", SMALL)) if block.captions else 0
    for caption, (row, column) in zip(block.captions, corners, strict=False):
        place = row - 4 if block.over else row + height + 3
        word = short(str(caption), max(letters, 4))
        panel.text(column + width / 2, place, word, va="bottom" if block.over else "top", **look)


def _dots(word: str, points: float) -> int:
    """Return the dots that a word of that size wants across, roughly."""
    return round(len(word) * LETTER * points / 72 * DPI)
