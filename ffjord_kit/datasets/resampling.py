r"""Smaller images, and grey ones, by averages of whole numbers that are rounded once.

A pixel is a square of constant level. With the running sum C_j = x_0 + .. + x_(j-1) of a row of S pixels, linear
between whole j, new pixel k of s is the mean from k S / s to (k + 1) S / s:

    y_k = (s C_((k+1) S / s) - s C_(k S / s)) / S.

The numerator is a whole number; so it is after both axes and for luma, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) in
thousandths. Only the last division rounds, half to even. Where s divides S this is the mean over squares.
"""

from __future__ import annotations

import numpy as np

LUMA = (299, 587, 114)  # thousandths
PART = 1 << 18  # pixels at once, few enough for a processor's cache
BAND = 64  # rows of a picture at once


def resampled(images: np.ndarray, *, size: int | None = None, grey: bool = False, bits: int = 8) -> np.ndarray:
    """Images (n, c, h, w) of uint8, levels in the highest `bits`, of `size` by `size` pixels, and grey.

    The square in the middle is what is averaged, or, where `size` is larger, drawn larger. What needs no change is
    returned as it is.
    """
    count, channels, height, width = images.shape
    grey = grey and channels == 3
    if not grey and size in (None, height) and size in (None, width):
        return images
    images = images if size is None else _middle(images)
    shape = images.shape[2:] if size is None else (size, size)
    result = np.empty((count, 1 if grey else channels, *shape), dtype=np.uint8)
    step, shift = max(1, PART // (height * width)), 8 - bits
    for start in range(0, count, step):
        result[start : start + step] = _averages(images[start : start + step] >> shift, size, grey=grey) << shift
    return result


def _middle(images: np.ndarray) -> np.ndarray:
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, :, top : top + side, left : left + side]


def _averages(levels: np.ndarray, size: int | None, *, grey: bool) -> np.ndarray:
    sums, weight = (_luma(levels), sum(LUMA)) if grey else (levels, 1)
    if size is not None:
        weight *= sums.shape[2] ** 2
        sums = _area_sums(sums, size)
    return np.rint(sums / weight).astype(np.uint8)


def _luma(levels: np.ndarray) -> np.ndarray:
    """A thousand times the grey, (n, 1, h, w)."""
    return sum(weight * levels[:, c : c + 1].astype(np.uint32) for c, weight in enumerate(LUMA))


def _area_sums(x: np.ndarray, size: int) -> np.ndarray:
    """Sums of whole numbers (n, c, S, S) over new pixels, S^2 times their means: (n, c, size, size)."""
    bands = [_row_sums(x[:, :, start : start + BAND], size) for start in range(0, x.shape[2], BAND)]
    columns = np.concatenate(bands, axis=2).swapaxes(2, 3)
    return _row_sums(columns, size).swapaxes(2, 3)


def _row_sums(x: np.ndarray, size: int) -> np.ndarray:
    """The numerators above along the last axis."""
    side = x.shape[-1]
    running = np.zeros((*x.shape[:-1], side + 1), dtype=np.int64)
    np.cumsum(x, axis=-1, out=running[..., 1:])
    whole, rest = np.divmod(np.arange(size + 1) * side, size)
    after = running[..., np.minimum(whole + 1, side)]
    return np.diff((size - rest) * running[..., whole] + rest * after)
