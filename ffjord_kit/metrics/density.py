"""Metrics of log-densities: means with standard errors, Kullback-Leibler divergence, bits per dimension, integrals.

The standard error of the mean of n independent values with standard deviation s is s / sqrt(n). Further,

    KL(p || q) = E[log p(x) - log q(x)] for x ~ p,       bits per dimension = -log p(x) / (d log 2),

and a density on the plane is integrated by the midpoint rule on cells of area h_1 h_2. The rule converges faster than
any power of h for a smooth density that vanishes at the bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from scipy.special import logsumexp

Bounds = tuple[tuple[float, float], tuple[float, float]]
Values = TypeVar("Values", float, np.ndarray)


def mean_and_standard_error(
    values: np.ndarray | Sequence[float], weights: np.ndarray | None = None
) -> tuple[float, float]:
    """Compute the mean of independent values and its standard error.

    Args:
        values: At least one value, shape (n,).
        weights: Weights of positive sum, shape (n,), or None.

    Returns:
        The mean and its standard error, in the unit of the values; the error of a single value is nan.

    Raises:
        ValueError: If there is no value.

    Example:
        >>> mean_and_standard_error([1.0, 3.0])
        (2.0, 1.0)
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    if len(values) == 0:
        raise ValueError("values must hold at least one number; got none")
    if weights is not None:
        mean = np.average(values, weights=weights)
        return float(mean), float(np.linalg.norm(weights * (values - mean)) / weights.sum())
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def bits_per_dim(nll_nats: Values, dimensions: int) -> Values:
    """Convert negative log-likelihoods from nats to bits per dimension.

    For images, log-densities must be those of data in units of one grey level, so that a level has volume 1.

    Args:
        nll_nats: Negative log-likelihoods in nats, of any shape.
        dimensions: Number of dimensions d of the data.

    Returns:
        Bits per dimension, of the same shape.

    Example:
        >>> print(f"{bits_per_dim(3 * np.log(256), dimensions=3):.1f}")
        8.0
    """
    return nll_nats / (dimensions * np.log(2))


def kl_divergence(log_p: np.ndarray, log_q: np.ndarray) -> tuple[float, float]:
    """Estimate the Kullback-Leibler divergence KL(p || q) from points drawn from p.

    Args:
        log_p: Log-densities of p in nats at the points, shape (n,).
        log_q: Log-densities of q in nats at the points, shape (n,).

    Returns:
        The divergence and its standard error in nats; infinity and nan if q vanishes at a point.

    Raises:
        ValueError: If the shapes differ or there is no point.

    Example:
        >>> kl_divergence(np.array([-1.0, -2.0]), np.array([-2.0, -5.0]))
        (2.0, 1.0)
    """
    log_p, log_q = np.asarray(log_p, dtype=np.float64), np.asarray(log_q, dtype=np.float64)
    if log_p.shape != log_q.shape:
        raise ValueError(f"log_p and log_q must have the same shape; got {log_p.shape} and {log_q.shape}")
    with np.errstate(invalid="ignore"):  # the standard error of infinite values is nan
        return mean_and_standard_error(log_p - log_q)


def grid(bounds: Bounds, size: int) -> tuple[np.ndarray, float]:
    """Return the midpoints of the cells of a grid over a rectangle, and the area of a cell.

    Args:
        bounds: Limits ((x0, x1), (y0, y1)).
        size: Number of cells along each axis.

    Returns:
        Points, shape (size * size, 2), the first coordinate varying fastest, and the area of a cell. Values at the
        points, reshaped to (size, size), have one row for each y, in ascending order.

    Raises:
        ValueError: If the bounds do not ascend or `size` is below 1.

    Example:
        >>> grid(((0, 4), (-1, 1)), size=2)
        (array([[ 1. , -0.5],
               [ 3. , -0.5],
               [ 1. ,  0.5],
               [ 3. ,  0.5]]), 2.0)
    """
    (x0, x1), (y0, y1) = bounds
    if not (x0 < x1 and y0 < y1 and size >= 1):
        raise ValueError(
            f"bounds must be ((x0, x1), (y0, y1)) with x0 < x1, y0 < y1 and size >= 1; got {bounds} and {size}"
        )
    midpoints = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(x0 + (x1 - x0) * midpoints, y0 + (y1 - y0) * midpoints)
    return np.stack([x.ravel(), y.ravel()], axis=1), (x1 - x0) * (y1 - y0) / size**2


def integral_on_grid(log_prob: Callable[[np.ndarray], np.ndarray], bounds: Bounds, size: int) -> float:
    """Integrate a density over a rectangle by the midpoint rule.

    Args:
        log_prob: Log-density in nats, maps (n, 2) to (n,).
        bounds: Limits ((x0, x1), (y0, y1)).
        size: Number of cells along each axis.

    Returns:
        The integral of exp(log_prob): 1 for a normalized density that lies within the bounds.

    Raises:
        ValueError: If the bounds do not ascend or `size` is below 1.

    Example:
        >>> print(f"{integral_on_grid(lambda x: np.zeros(len(x)), ((0, 2), (0, 3)), size=10):.6f}")
        6.000000
    """
    points, area = grid(bounds, size)
    return float(np.exp(logsumexp(log_prob(points)) + np.log(area)))
