"""The nearest of many rows, so that samples can be compared with what a model was trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PART = 1 << 22  # elements that are compared at once


def nearest(x: NDArray, among: NDArray, count: int) -> tuple[NDArray, NDArray]:
    """The `count` nearest of `among` (m, *event) to each of x (n, *event): their numbers and distances, (n, count).

    A distance is the root mean square of the differences of elements. Memory grows with n m alone.
    Raises ValueError for events of another shape, or fewer than `count` of them.
    """
    if x.shape[1:] != among.shape[1:] or not 1 <= count <= len(among):
        raise ValueError(f"expected {count} or more events of shape {x.shape[1:]}; got {among.shape}")
    rows, size = x.reshape(len(x), -1).astype(np.float64), int(np.prod(x.shape[1:]))
    step = max(1, PART // size)
    parts = [_squares(rows, among[start : start + step]) for start in range(0, len(among), step)]
    distances = np.sqrt(np.concatenate(parts, axis=1) / size)
    which = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return which, np.take_along_axis(distances, which, axis=1)


def _squares(rows: NDArray, part: NDArray) -> NDArray:
    """The squared distances of rows (n, d) from a part of the others, (n, k)."""
    others = part.reshape(len(part), -1).astype(np.float64)
    products = rows @ others.T
    return np.maximum((rows**2).sum(1)[:, None] - 2 * products + (others**2).sum(1), 0)
