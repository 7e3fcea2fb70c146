"""Images of a model: sheets of samples, strips from noise to image, interpolations, neighbours and extremes.

Images are grey, shape (..., h, w), or in colour, shape (..., h, w, 3): integers from 0 to 255, or floats from 0 to 1.
Floats at most 0.5 outside that range are clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ffjord_kit.plots.arrays import check_size, checked_array
from ffjord_kit.plots.figure import styled
from ffjord_kit.plots.mosaic import Block, checked_images, format_numbers, mosaic

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
    """Draw images in rows and, if wanted, other images in a second block to their right.

    The two blocks have the headings "samples" and "data".

    Args:
        images: Images, shape (n, h, w) or (n, h, w, 3).
        columns: Number of images in a row.
        titles: Text above each of the n images.
        beside: Images of the second block, shape (m, h, w) or (m, h, w, 3).

    Returns:
        The figure: one panel per block.

    Raises:
        ValueError: If a shape, a value, or the number of titles differs from what is expected, or `columns` is below
            1.

    Example:
        >>> figure = image_sheet(np.zeros((4, 8, 8)), columns=2, beside=np.ones((4, 8, 8)))
        >>> [panel.get_title(loc="left") for panel in figure.axes]
        ['samples', 'data']
    """
    left = checked_images("images", images)
    if titles is not None and len(titles) != len(left):
        raise ValueError(f"titles must be {len(left)} strings, one per image; got {len(titles)}")
    right = None if beside is None else checked_images("beside", beside, like=("images", left))
    most = len(left) if right is None else max(len(left), len(right))
    across = min(check_size(columns, name="columns", minimum=1), most)
    captions = () if titles is None else tuple(titles)
    if right is None:
        return mosaic(Block(left, across, captions=captions, captions_above=True))
    blank = [""] * len(right) if captions else ()  # so that the rows of both blocks are equally far apart
    return mosaic(
        Block(left, across, "samples", captions=captions, captions_above=True),
        Block(right, across, "data", captions=blank, captions_above=True),
    )


@styled
def image_strip(times: ArrayLike, images: ArrayLike) -> Figure:
    """Draw samples on their way from noise (t = 0) to image (t = 1), one row per sample and one column per time.

    Args:
        times: Times, shape (T,), in any order.
        images: Images of n samples at the times, shape (T, n, h, w) or (T, n, h, w, 3).

    Returns:
        The figure: one panel.

    Raises:
        ValueError: If a shape or a value differs from what is expected.

    Example:
        >>> figure = image_strip([0, 1], np.zeros((2, 3, 8, 8)))
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['t = 0.00', 't = 1.00']
    """
    times = checked_array("times", times, ("T",))
    images = checked_images("images", images, (len(times), "n"))
    order = np.argsort(times)
    rows = images[order].swapaxes(0, 1)
    labels = [f"t = {t:.2f}" for t in times[order]]
    return mosaic(Block(rows.reshape(-1, *rows.shape[2:]), len(times), labels=labels))


@styled
def interpolation_strip(images: ArrayLike) -> Figure:
    """Draw interpolations through the base between pairs of data, one row per pair.

    Args:
        images: Images along each interpolation, shape (rows, steps, h, w) or (rows, steps, h, w, 3), with at least
            three steps; the first and the last are the data.

    Returns:
        The figure: panels of the first data, the interpolations and the last data.

    Raises:
        ValueError: If a shape or a value differs from what is expected.

    Example:
        >>> figure = interpolation_strip(np.zeros((2, 5, 8, 8)))
        >>> [panel.get_title(loc="left") for panel in figure.axes]
        ['data', 'through the base', 'data']
    """
    images = checked_images("images", images, ("rows", "steps"))
    steps = check_size(images.shape[1], name="the number of steps", minimum=3)
    middle = images[:, 1:-1].reshape(-1, *images.shape[2:])
    return mosaic(
        Block(images[:, 0], 1, "data"), Block(middle, steps - 2, "through the base"), Block(images[:, -1], 1, "data")
    )


@styled
def nearest_images(samples: ArrayLike, neighbours: ArrayLike, distances: ArrayLike) -> Figure:
    """Draw each sample beside its nearest training images, one row per sample, with their distances beneath.

    Args:
        samples: Images, shape (n, h, w) or (n, h, w, 3).
        neighbours: The k nearest images of each, shape (n, k, h, w) or (n, k, h, w, 3).
        distances: Distances, shape (n, k), in any unit.

    Returns:
        The figure: a panel of the samples and a panel of the neighbours.

    Raises:
        ValueError: If a shape or a value differs from what is expected.

    Example:
        >>> figure = nearest_images(np.zeros((1, 8, 8)), np.zeros((1, 2, 8, 8)), [[0.25, 1.0]])
        >>> [text.get_text() for text in figure.axes[1].texts]
        ['0.25', '1.00']
    """
    left = checked_images("samples", samples)
    right = checked_images("neighbours", neighbours, (len(left), "k"), like=("samples", left))
    count = right.shape[1]
    captions = format_numbers(checked_array("distances", distances, (len(left), count)))
    return mosaic(
        Block(left, 1, "sample", captions=[""] * len(left)),
        Block(right.reshape(-1, *right.shape[2:]), count, "nearest training images", captions=captions),
    )


@styled
def extreme_images(
    least: ArrayLike, most: ArrayLike, least_bits: ArrayLike, most_bits: ArrayLike, *, columns: int = 5
) -> Figure:
    """Draw the least likely images beside the most likely ones, with their bits per dimension beneath.

    Args:
        least: Least likely images, shape (n, h, w) or (n, h, w, 3).
        most: Most likely images, shape (m, h, w) or (m, h, w, 3).
        least_bits: Negative log-likelihoods of the least likely images in bits per dimension, shape (n,).
        most_bits: Negative log-likelihoods of the most likely images in bits per dimension, shape (m,).
        columns: Number of images in a row of each panel.

    Returns:
        The figure: a panel of the least likely and a panel of the most likely images.

    Raises:
        ValueError: If a shape or a value differs from what is expected, `columns` is below 1, or the mean of
            `least_bits` is below the mean of `most_bits`.

    Example:
        >>> figure = extreme_images(np.ones((1, 8, 8)), np.zeros((1, 8, 8)), [5.0], [1.0])
        >>> [panel.texts[0].get_text() for panel in figure.axes]
        ['5.00', '1.00']
    """
    first = checked_images("least", least)
    second = checked_images("most", most, like=("least", first))
    high = checked_array("least_bits", least_bits, (len(first),))
    low = checked_array("most_bits", most_bits, (len(second),))
    if high.mean() < low.mean():
        means = f"{high.mean():.3g} and {low.mean():.3g}"
        raise ValueError(f"least_bits must be above most_bits in the mean; got {means}: exchange least and most")
    check_size(columns, name="columns", minimum=1)
    captions = format_numbers(np.concatenate([high, low]))
    return mosaic(
        Block(first, min(columns, len(first)), "least likely (bits/dim)", captions=captions[: len(first)]),
        Block(second, min(columns, len(second)), "most likely (bits/dim)", captions=captions[len(first) :]),
    )
