"""Sheets of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.plots import arrays
from ffjord_kit.plots.canvas import MUTED, sheet, short, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP, LINE = 0.07, 0.3  # between images, and the height of a line of titles, as shares of an image's width
DOTS = 120  # an image narrower than this is enlarged by a whole number, so that its pixels stay crisp squares


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
    blocks = [_checked("images", images)]
    if beside is not None:
        blocks.append(_checked("beside", beside, like=blocks[0]))
    if titles is not None and len(titles) != len(blocks[0]):
        raise ValueError(f"titles must be {len(blocks[0])} words, one per image; got {len(titles)}")
    across = min(arrays.check_size(columns, name="columns", least=1), max(map(len, blocks)))
    rows = max(-(-len(block) // across) for block in blocks)
    inches = float(np.clip(blocks[0].shape[2] / 55, 0.5, 0.9))
    blocks = [_enlarged(block) for block in blocks]
    pages = [_page(block, rows, across, line=titles is not None) for block in blocks]
    figure = _page_figure(pages, inches / blocks[0].shape[2])
    if titles is not None:
        _write_titles(figure.axes[0], titles, blocks[0], across)
    return figure


def _checked(name: str, images: ArrayLike, *, like: NDArray | None = None) -> NDArray:
    """Return images as bytes in three colours, (n, h, w, 3)."""
    kind = np.asarray(images).dtype
    shape = ("n", "h", "w", 3) if np.ndim(images) == 4 else ("n", "h", "w")
    values = arrays.array(name, images, shape) / (255 if kind.kind in "iu" else 1)
    if values.min() < -0.5 or values.max() > 1.5:
        found = f"{values.min():.3g} to {values.max():.3g}"
        raise ValueError(f"{name} must be integers from 0 to 255 or floats from 0 to 1; got {kind} from {found}")
    if like is not None and values.shape[1:3] != like.shape[1:3]:
        raise ValueError(f"{name} must be as high and wide as images, {like.shape[1:3]}; got {values.shape[1:3]}")
    colours = values if values.ndim == 4 else np.repeat(values[..., None], 3, axis=-1)
    return np.rint(255 * np.clip(colours, 0, 1)).astype(np.uint8)


def _enlarged(images: NDArray) -> NDArray:
    times = -(-DOTS // images.shape[2])
    return images.repeat(times, axis=1).repeat(times, axis=2)


def _corners(count: int, height: int, width: int, across: int, *, line: bool) -> list[tuple[int, int]]:
    """Return the row and column of the upper left dot of each of `count` images on a page."""
    gap, top = round(GAP * width), round(LINE * width) if line else 0
    places = (divmod(place, across) for place in range(count))
    return [(row * (height + gap + top) + top, column * (width + gap)) for row, column in places]


def _page(images: NDArray, rows: int, across: int, *, line: bool) -> NDArray:
    _, height, width, _ = images.shape
    corners = _corners(rows * across, height, width, across, line=line)
    page = np.full((corners[-1][0] + height, corners[-1][1] + width, 3), 255, dtype=np.uint8)
    for image, (row, column) in zip(images, corners, strict=False):
        page[row : row + height, column : column + width] = image
    return page


def _page_figure(pages: list[NDArray], scale: float) -> Figure:
    height, width = pages[0].shape[0] * scale, pages[0].shape[1] * scale
    figure = sheet(len(pages) * (width + 0.16), height + (0.4 if len(pages) > 1 else 0.16))
    panels = figure.subplots(1, len(pages), squeeze=False)[0]
    for panel, page, heading in zip(panels, pages, ("samples", "data"), strict=False):
        panel.imshow(page)
        panel.set_axis_off()
        if len(pages) > 1:
            panel.set_title(heading, loc="left")
    return figure


def _write_titles(panel: Axes, titles: Sequence[str], images: NDArray, across: int) -> None:
    count, height, width, _ = images.shape
    corners = _corners(count, height, width, across, line=True)
    for title, (row, column) in zip(titles, corners, strict=True):
        look = {"ha": "center", "va": "bottom", "fontsize": 6.5, "color": MUTED}
        panel.text(column + width / 2, row - 0.04 * width, short(str(title), 10), parse_math=False, **look)
