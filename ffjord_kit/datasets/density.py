"""A density in the plane whose truth is known: what a toy data set is drawn from and judged by.

x ~ p,  and log p(x) is exact: a closed form, or a quadrature that is converged to 1e-6 however far x lies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

CHUNK = 1024  # points evaluated at a time, so that memory does not grow with the number of points
HORIZON = 1e100  # beyond it squared distances overflow, and log p is -inf in floating point


class Density(ABC):
    """A probability density on the plane that draws points and knows its own logarithm."""

    @abstractmethod
    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n independent points, (n, 2)."""

    @abstractmethod
    def _log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log-density of finite points: (n, 2) -> (n,)."""

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Exact log-density in nats: (n, 2) -> (n,); -inf outside the support, nan where x is nan.

        Raises ValueError unless x has shape (n, 2).
        """
        points = _as_points(x)
        result = np.where(np.isnan(points).any(axis=1), np.nan, -np.inf)
        inside = np.flatnonzero(np.all(np.abs(points) < HORIZON, axis=1))
        for start in range(0, len(inside), CHUNK):
            chosen = inside[start : start + CHUNK]
            result[chosen] = self._log_prob(points[chosen])
        return result


def _as_points(x: np.ndarray) -> np.ndarray:
    points = np.asarray(x, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"x must have shape (n, 2); got {points.shape}")
    return points
