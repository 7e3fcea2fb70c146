"""Layout of images side by side in blocks, in pixels of the written figure (160 per inch).

Each image is enlarged by an integer factor and each block is drawn pixel by pixel, so that the pixels of an image are
equal, sharp squares. A block is one array, however many images it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.plots.arrays import checked_array
from ffjord_kit.plots.figure import FORMATS, INK, MUTED, new_figure, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = FORMATS["png"][0]
IMAGE_WIDTH, MIN_IMAGE_WIDTH = 112, 40  # desired width of an image, and its minimum where there are many columns
MAX_WIDTH = 1600  # of the columns of all blocks together
IMAGE_GAP, BLOCK_GAP, MARGIN = 5, 22, 12  # between images, between blocks, and around the figure
CAPTION_HEIGHT, HEADING_HEIGHT = 21, 28
CAPTION_SIZE, HEADING_SIZE = 6.5, 8.0  # points
LETTER_WIDTH = 0.6  # mean width of a letter over its height


@dataclass(frozen=True, eq=False)
class Block:
    """Images in rows, beneath a heading or beneath a label for each column.

    Args:
        images: Colour images as bytes, shape (n, h, w, 3).
        columns: Number of images in a row.
        heading: Text over the block.
        labels: Text over each column.
        captions: Text beneath each image, or above it.
        captions_above: Whether captions stand above the images.

    Example:
        >>> block = Block(np.zeros((2, 8, 8, 3), np.uint8), 2, "samples")
        >>> mosaic(block).axes[0].get_title(loc="left")
        'samples'
    """

    images: NDArray
    columns: int
    heading: str = ""
    labels: Sequence[str] = ()
    captions: Sequence[str] = ()
    captions_above: bool = False


def checked_images(
    name: str, images: ArrayLike, lead: tuple[str | int, ...] = ("n",), *, like: tuple[str, NDArray] | None = None
) -> NDArray:
    """Check images and convert them to colour images of bytes.

    Args:
        name: Name of the argument for the error message.
        images: Grey images, shape (*lead, h, w), or colour images, shape (*lead, h, w, 3): integers from 0 to 255, or
            floats from 0 to 1; floats at most 0.5 outside are clipped.
        lead: Expected leading shape; a string stands for any size from 1 upwards.
        like: Name and bytes of other images that must have the same height and width.

    Returns:
        Bytes, shape (*lead, h, w, 3).

    Raises:
        ValueError: If the shape or a value differs from what is expected.

    Example:
        >>> checked_images("images", [[[0.0, 1.0]]])[0, 0].tolist()
        [[0, 0, 0], [255, 255, 255]]
    """
    dtype = np.asarray(images).dtype
    shape = (*lead, "h", "w", 3) if np.ndim(images) == len(lead) + 3 else (*lead, "h", "w")
    values = checked_array(name, images, shape) / (255 if dtype.kind in "iu" else 1)
    if values.min() < -0.5 or values.max() > 1.5:
        span = f"{values.min():.3g} to {values.max():.3g}"
        raise ValueError(f"{name} must be integers from 0 to 255 or floats from 0 to 1; got {dtype} from {span}")
    colours = values if values.ndim == len(lead) + 3 else np.repeat(values[..., None], 3, axis=-1)
    if like is not None and colours.shape[-3:-1] != like[1].shape[-3:-1]:
        other, size = like[0], like[1].shape[-3:-1]
        raise ValueError(f"{name} must be as high and wide as {other}, {size}; got {colours.shape[-3:-1]}")
    return np.rint(255 * np.clip(colours, 0, 1)).astype(np.uint8)


def format_numbers(values: NDArray) -> list[str]:
    """Format numbers with the same number of decimals, so that the largest has three digits.

    Args:
        values: Numbers, of any shape.

    Returns:
        The numbers as text, in row-major order.

    Example:
        >>> format_numbers(np.array([0.01234, 0.5]))
        ['0.012', '0.500']
    """
    largest = float(np.abs(values).max()) or 1.0
    decimals = int(np.clip(2 - np.floor(np.log10(largest)), 0, 5))
    return [f"{value:.{decimals}f}" for value in values.ravel()]


def mosaic(*blocks: Block) -> Figure:
    """Draw blocks of images side by side.

    Args:
        *blocks: Blocks from left to right.

    Returns:
        The figure, with axes for each block in the same order.
    """
    target = float(np.clip(MAX_WIDTH / sum(block.columns for block in blocks), MIN_IMAGE_WIDTH, IMAGE_WIDTH))
    scaled = [_scaled(block.images, target) for block in blocks]
    pages = [_page(block, images) for block, images in zip(blocks, scaled, strict=True)]
    top = MARGIN + HEADING_HEIGHT * any(block.heading or block.labels for block in blocks)
    widths = [
        max(page.shape[1], text_width(block.heading, HEADING_SIZE)) for block, page in zip(blocks, pages, strict=True)
    ]
    width = 2 * MARGIN + sum(widths) + BLOCK_GAP * (len(blocks) - 1)
    height = top + MARGIN + max(page.shape[0] for page in pages)
    figure = new_figure(width / DPI, height / DPI, layout=None)
    figure.set_dpi(DPI)  # so that a notebook, too, shows pixel for pixel
    left = MARGIN
    for block, images, page, block_width in zip(blocks, scaled, pages, widths, strict=True):
        rows, columns = page.shape[:2]
        panel = figure.add_axes((left / width, 1 - (top + rows) / height, columns / width, rows / height))
        panel.imshow(page, interpolation="nearest", aspect="auto")
        panel.set_axis_off()
        _write_texts(panel, block, images)
        left += block_width + BLOCK_GAP
    return figure


def text_width(text: str, points: float) -> int:
    """Estimate the width of a text.

    Args:
        text: One line of text.
        points: Font size in points.

    Returns:
        Width in pixels, rather too large than too small.
    """
    return round(len(text) * LETTER_WIDTH * points / 72 * DPI)


def _scaled(images: NDArray, target: float) -> NDArray:
    """Enlarge images by the integer factor that brings their width nearest to `target`; shrink large ones to it."""
    height, width = images.shape[1:3]
    if width > 1.5 * target:
        from PIL import Image

        size = round(target), round(height * target / width)
        return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in images])
    factor = max(1, round(target / width))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def _corners(block: Block, images: NDArray) -> NDArray:
    """Return the row and column of the upper left pixel of each image on its page, shape (n, 2)."""
    count, height, width, _ = images.shape
    line = CAPTION_HEIGHT * bool(block.captions)
    rows, columns = np.divmod(np.arange(count), block.columns)
    above = line * block.captions_above
    return np.stack([rows * (height + IMAGE_GAP + line) + above, columns * (width + IMAGE_GAP)], axis=1)


def _page(block: Block, images: NDArray) -> NDArray:
    """Return the block as one image on white, without its texts."""
    height, width = images.shape[1:3]
    corners = _corners(block, images)
    rows, columns = corners.max(axis=0) + (height, width)
    below = CAPTION_HEIGHT * (bool(block.captions) and not block.captions_above)
    page = np.full((rows + below, columns, 3), 255, dtype=np.uint8)
    for image, (row, column) in zip(images, corners, strict=True):
        page[row : row + height, column : column + width] = image
    return page


def _write_texts(panel: Axes, block: Block, images: NDArray) -> None:
    """Write the heading of a block, the labels of its columns and the captions of its images."""
    if block.heading:
        panel.set_title(block.heading, loc="left", fontsize=HEADING_SIZE, pad=3.5, parse_math=False)
    options: dict[str, Any] = {"ha": "center", "fontsize": CAPTION_SIZE, "parse_math": False}
    _write_labels(panel, block, images, {**options, "color": INK})
    _write_captions(panel, block, images, {**options, "color": MUTED})


def _write_labels(panel: Axes, block: Block, images: NDArray, options: dict[str, Any]) -> None:
    """Write every k-th column label, with k as small as leaves room between labels."""
    if not block.labels:
        return
    width = images.shape[2]
    every = -(-max(text_width(label, CAPTION_SIZE) for label in block.labels) // (width + IMAGE_GAP))
    for label, (_, column) in list(zip(block.labels, _corners(block, images), strict=False))[::every]:
        panel.text(column + width / 2, -6, label, va="bottom", **options)


def _write_captions(panel: Axes, block: Block, images: NDArray, options: dict[str, Any]) -> None:
    """Write the captions, each cut off at the width of its image."""
    height, width = images.shape[1:3]
    letters = int((width + IMAGE_GAP) / text_width("x", CAPTION_SIZE))
    align = "bottom" if block.captions_above else "top"
    for caption, (row, column) in zip(block.captions, _corners(block, images), strict=False):
        y = row - 4 if block.captions_above else row + height + 3
        panel.text(column + width / 2, y, shorten(str(caption), max(letters, 4)), va=align, **options)
