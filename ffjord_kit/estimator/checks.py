"""What a table must be for its density to exist: said once, before any training, by the column's name."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np


class DegenerateDataWarning(UserWarning):
    """Data on which a likelihood can be made as large as one likes, or too few to trust one."""


def column_names(columns: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The names to use in messages and files: those given, or x0, x1, ...

    Raises ValueError where their number is not that of the columns.
    """
    names = tuple(f"x{i}" for i in range(count)) if columns is None else tuple(map(str, columns))
    if len(names) != count:
        raise ValueError(f"columns must name {count} columns; got {len(names)}: {', '.join(names[:5])}")
    return names


def check_columns(x: np.ndarray, names: Sequence[str]) -> None:
    """Refuse constant columns, and warn of duplicated ones and of fewer rows than columns, for x (n, d).

    Raises ValueError naming the constant columns.
    """
    _refuse_constant(x, names)
    _warn_of_duplicates(x, names)
    if len(x) < x.shape[1]:
        _warn(f"{len(x)} rows for {x.shape[1]} columns: the density will follow the rows, not what they came from")


def inside_support(x: np.ndarray, bounds: Sequence[tuple[float, float]]) -> np.ndarray:
    """Where x (n, d) lies strictly between the bounds of its column, (n, d)."""
    lower, upper = np.array(bounds).T
    return (x > lower) & (x < upper)


def check_support(x: np.ndarray, bounds: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Raise ValueError naming the first column of x (n, d) with rows outside its bounds, and the first such row."""
    outside = ~inside_support(x, bounds)
    for column in np.flatnonzero(outside.any(axis=0)):
        rows, (low, high) = np.flatnonzero(outside[:, column]), bounds[column]
        raise ValueError(
            f"column {names[column]!r} has {len(rows)} of {len(x)} rows outside its support, {low:g} to {high:g} with "
            f"both ends left out (first: row {rows[0]}, {x[rows[0], column]:g}): give it another support, or drop them"
        )


def _refuse_constant(x: np.ndarray, names: Sequence[str]) -> None:
    constant = [names[i] for i in np.flatnonzero(np.ptp(x, axis=0) == 0)]
    if constant:
        raise ValueError(
            f"column {_listed(constant)} has one value in all rows (n_samples={len(x)}), so its density is infinite: "
            "drop it, or add noise to it"
        )


def _warn_of_duplicates(x: np.ndarray, names: Sequence[str]) -> None:
    order = np.argsort(x[0], kind="stable")
    for a, b in zip(order[:-1], order[1:], strict=True):
        if x[0, a] == x[0, b] and np.array_equal(x[:, a], x[:, b]):
            _warn(f"columns {names[a]!r} and {names[b]!r} are equal: the likelihood has no bound; drop one of them")


def _warn(text: str) -> None:
    warnings.warn(text, DegenerateDataWarning, stacklevel=4)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(repr(name) for name in names[:5]) + more
