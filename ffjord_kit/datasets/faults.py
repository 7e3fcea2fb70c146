"""What can be wrong with a table, said in one line that names the column and the first row."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ffjord_kit.datasets.dataset import DataWarning, listing

SHOWN = 5  # columns that a message lists
PART = 1 << 20  # rows summed at once
LOOK = 1000  # rows looked at for repeated values
FEW = 10  # a column with so few values among LOOK rows is discrete


class Found(NamedTuple):
    """How many rows of a column have a fault, and the first of them in words."""

    count: int
    first: str


class Fault(NamedTuple):
    """A kind of fault and what to do about it."""

    what: str
    advice: str


TEXT = Fault("text", "drop those columns, or write them as numbers (1.5, not 1,5)")
MISSING = Fault("missing values", "fill them in, or drop those rows or columns")
INFINITE = Fault("infinite values", "drop those rows, or clip them")


def refuse(label: str, fault: Fault, found: Mapping[str, Found], rows: int) -> None:
    """Raise the ValueError that names each faulty column, unless `found` is empty."""
    if found:
        parts = [f"{name!r} ({count} of {rows} rows, first {first})" for name, (count, first) in found.items()]
        raise ValueError(f"{label}: {fault.what} in {listing(parts, limit=SHOWN)}; {fault.advice}")


def refuse_not_finite(label: str, x: np.ndarray, columns: tuple[str, ...], place: Callable[[int], str]) -> None:
    """Raise ValueError when x (n, d) holds nan, which counts as missing, or infinity; `place` words a row's index."""
    if all(np.isfinite(x[start : start + PART].sum(dtype=np.float64)) for start in range(0, len(x), PART)):
        return  # without a mask as large as the table
    for fault, mask in ((MISSING, np.isnan(x)), (INFINITE, np.isinf(x))):
        bad = np.flatnonzero(mask.any(axis=0))
        found = {columns[j]: Found(int(mask[:, j].sum()), place(int(mask[:, j].argmax()))) for j in bad}
        refuse(label, fault, found, len(x))


def refuse_empty(label: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError when a table has no rows or no columns."""
    if 0 in shape:
        raise ValueError(f"{label}: shape {shape} holds no numbers; expected at least one row and one column")


def refuse_repeated(label: str, names: Sequence[str]) -> None:
    """Raise ValueError when two columns have the same name."""
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ValueError(f"{label}: two columns are called {repeated[0]!r}; give each its own name")


def warn_of_discrete(label: str, x: np.ndarray, columns: tuple[str, ...]) -> None:
    """Warn with DataWarning of columns that are constant or take few values: their density is unbounded."""
    some = x[:: max(1, len(x) // LOOK)]
    values = {name: len(np.unique(column)) for name, column in zip(columns, some.T, strict=True)}
    few = [f"{name!r} ({count})" for name, count in values.items() if count <= min(FEW, len(some) // 10)]
    if few:
        text = f"{label}: columns of few distinct values: {listing(few, limit=SHOWN)}; a density grows without bound"
        warnings.warn(f"{text} there: drop them, use them as context, or add noise", DataWarning, stacklevel=4)
