"""Numbers as a page holds them: rounded to what a picture shows, None where they are not finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

STEPS = 4000  # of a column's usual span that a picture tells apart


def rounded(values: np.ndarray) -> list[Any]:
    """Round values to a 4000th of their usual span.

    Args:
        values: Values, of any shape.

    Returns:
        Lists of numbers of the same shape; None for a value that is not finite.

    Example:
        >>> rounded(np.array([[0.0, 0.123456789], [1.0, np.inf]]))
        [[0.0, 0.1235], [1.0, None]]
    """
    values = np.asarray(values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.full(values.shape, None).tolist()
    low, high = np.quantile(finite, [0.005, 0.995])
    span = high - low or float(np.abs(finite).max()) or 1.0
    near = np.round(values, max(0, math.ceil(-math.log10(span / STEPS)))) + 0.0
    held = near.astype(object)
    held[~np.isfinite(near)] = None
    return held.tolist()


def by_column(rows: np.ndarray) -> list[list[float | None]]:
    """Round the columns of a table, each by itself.

    Args:
        rows: Rows, shape (n, d).

    Returns:
        A list for each column.
    """
    return [rounded(column) for column in np.asarray(rows).T]
