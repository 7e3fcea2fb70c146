"""Averages of log-densities, divergences, and the integral of a density on the plane.

Means come with a standard error, s / sqrt(n) for the deviation s of n independent values. With x ~ p,

    KL(p | q) = E[log p(x) - log q(x)],       bits per dimension = -log p(x) / (d log 2),

and a density on the plane integrates over midpoints of cells of area h_1 h_2, which converges faster than any power
of h for a smooth density that vanishes at the bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import logsumexp

Bounds = tuple[tuple[float, float], tuple[float, float]]


def mean_and_standard_error(values: np.ndarray | Sequence[float]) -> tuple[float, float]:
    """Mean of independent values (n,) and its standard error, nan for a single value.

    Raises ValueError when there are none.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    if len(values) == 0:
        raise ValueError("values must hold at least one number; got none")
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def bits_per_dim(nll_nats: float | np.ndarray, dimensions: int) -> float | np.ndarray:
    """Negative log-likelihoods in nats as bits per dimension, of the same shape.

    For a picture the data are to stand in units of one grey level, where a level has the volume 1.
    """
    return nll_nats / (dimensions * np.log(2))


def kl_divergence(log_p: np.ndarray, log_q: np.ndarray) -> tuple[float, float]:
    """KL(p | q) in nats and its standard error, from both log-densities (n,) at points drawn from p.

    Infinite, with the error nan, when q is zero at one of the points. Raises ValueError for unequal shapes.
    """
    log_p, log_q = np.asarray(log_p, dtype=np.float64), np.asarray(log_q, dtype=np.float64)
    if log_p.shape != log_q.shape:
        raise ValueError(f"log_p and log_q must have the same shape; got {log_p.shape} and {log_q.shape}")
    with np.errstate(invalid="ignore"):  # the deviation of infinite values is nan, as said
        return mean_and_standard_error(log_p - log_q)


def grid(bounds: Bounds, size: int) -> tuple[np.ndarray, float]:
    """Midpoints of `size` by `size` cells, (size * size, 2), and the area of a cell.

    `bounds` are ((x0, x1), (y0, y1)). The first coordinate runs fastest, so that values reshaped to
    (size, size) have a row for each height, from the bottom.
    """
    (left, right), (bottom, top) = bounds
    if not (left < right and bottom < top and size >= 1):
        raise ValueError(
            f"bounds must be ((x0, x1), (y0, y1)) with x0 < x1, y0 < y1 and size >= 1; got {bounds} and {size}"
        )
    middle = (np.arange(size) + 0.5) / size
    first, second = np.meshgrid(left + (right - left) * middle, bottom + (top - bottom) * middle)
    return np.stack([first.ravel(), second.ravel()], axis=1), (right - left) * (top - bottom) / size**2


def integral_on_grid(log_prob: Callable[[np.ndarray], np.ndarray], bounds: Bounds, size: int) -> float:
    """Integral of exp(log_prob) by midpoints; `log_prob` maps (n, 2) to (n,). One, for a density within the bounds."""
    points, area = grid(bounds, size)
    return float(np.exp(logsumexp(log_prob(points)) + np.log(area)))
