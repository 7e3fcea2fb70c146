"""The support of a table's columns: how it is read, and which rows lie within it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

Bounds = tuple[tuple[float, float], ...]


def support_bounds(support: Any, names: Sequence[str]) -> Bounds:
    """Read the support of the columns.

    Args:
        support: "real", "positive" or ("bounded", low, high), for all columns; a list of these, one for each; or a
            mapping from names to these, the other columns being real.
        names: Names of the columns.

    Returns:
        Bounds (lower, upper) of each column, infinite where it is open.

    Raises:
        ValueError: If the support cannot be read, names a column that is not there, or does not have one entry for
            each column.
    """
    columns = len(names)
    if isinstance(support, Mapping):
        missing = [name for name in support if name not in names]
        if missing:
            raise ValueError(f"support names a column {missing[0]!r} that is not there; there are {shortened(names)}")
        return tuple(_bounds(support.get(name, "real")) for name in names)
    single = isinstance(support, str) or (isinstance(support, Sequence) and tuple(support[:1]) == ("bounded",))
    if not single and not isinstance(support, Sequence):
        raise _support_error(support)
    entries = [support] if single else list(support)
    if len(entries) not in (1, columns):
        raise ValueError(f"support must have one word for all {columns} columns, or one each; got {len(entries)}")
    bounds = tuple(_bounds(entry) for entry in entries)
    return bounds * columns if len(bounds) == 1 else bounds


def inside_support(x: np.ndarray, bounds: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return which values lie strictly between the bounds of their columns.

    Args:
        x: Rows, shape (n, d).
        bounds: Bounds of each column.

    Returns:
        A mask, shape (n, d).
    """
    lower, upper = np.array(bounds).T
    return (x > lower) & (x < upper)


def check_support(x: np.ndarray, bounds: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Check that rows lie within their support.

    Args:
        x: Rows, shape (n, d).
        bounds: Bounds of each column.
        names: Names of the columns.

    Raises:
        ValueError: If some do not; it names the first such column and row.
    """
    if not np.isfinite(bounds).any():
        return
    for column, (low, high) in enumerate(bounds):
        rows = np.flatnonzero(~inside_support(x[:, [column]], [bounds[column]]))
        if not len(rows):
            continue
        raise ValueError(
            f"column {names[column]!r} has {len(rows)} of {len(x)} rows outside its support, {low:g} to {high:g} with "
            f"both ends left out (first: row {rows[0]}, {x[rows[0], column]:g}): give it another support, or drop them"
        )


def _bounds(entry: Any) -> tuple[float, float]:
    """Read the support of one column."""
    if entry == "real":
        return -math.inf, math.inf
    if entry == "positive":
        return 0.0, math.inf
    if isinstance(entry, str) or not isinstance(entry, Sequence) or len(entry) != 3 or entry[0] != "bounded":
        raise _support_error(entry)
    low, high = entry[1:]
    if not all(isinstance(limit, Real) and math.isfinite(limit) for limit in (low, high)) or not low < high:
        raise _support_error(entry)
    return float(low), float(high)


def _support_error(support: Any) -> ValueError:
    return ValueError(f"support must be 'real', 'positive' or ('bounded', LOW, HIGH); got {support!r}")


def shortened(words: Sequence[str], limit: int = 10) -> str:
    """Return the first of many words for a message.

    Args:
        words: Words.
        limit: Most words to list.

    Returns:
        The text, which counts the others.

    Example:
        >>> shortened(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
