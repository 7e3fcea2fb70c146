"""Checks of a table: each error is one line that names the columns and the first bad row of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ffjord_kit.datasets.dataset import listing

SHOWN = 5  # columns that a message lists
CHUNK = 1 << 20  # rows summed at once


class Fault(NamedTuple):
    """A kind of unusable cell, and the advice that its message gives."""

    description: str
    advice: str


TEXT = Fault("text", "drop those columns, or write them as numbers, with one decimal mark and no mark of thousands")
DATES = Fault("dates", "drop those columns, or write them as numbers, e.g. days since the first")
MISSING = Fault("missing values", "fill them in, drop those rows or columns, or fit with --subsets")
INFINITE = Fault("infinite values", "drop those rows, or clip them")

CellName = Callable[[int, int], str]  # words for the cell in a row and a column, both counted from 0


def row_number(row: int, column: int) -> str:
    """Name a cell of an array by its row.

    Args:
        row: Index of the row, from 0.
        column: Index of the column, which the message names already.

    Returns:
        For example "row 3 (counted from 0)".
    """
    return f"row {row} (counted from 0)"


def check_cells(label: str, fault: Fault, bad: np.ndarray, columns: Sequence[str], *, cell_name: CellName) -> None:
    """Check that no cell of a table has a fault.

    Args:
        label: Path of the file, for the message.
        fault: Kind of fault.
        bad: True where a cell has the fault, shape (n, d).
        columns: Names of the d columns.
        cell_name: Words for a cell, given its row and column.

    Raises:
        ValueError: If a cell is bad; the message names each column, its number of bad rows and the first of them.
    """
    counts = bad.sum(axis=0)
    if not counts.any():
        return
    first = bad.argmax(axis=0)
    faulty = [
        f"{columns[j]!r} ({counts[j]} of {len(bad)} rows, first {cell_name(int(first[j]), j)})"
        for j in map(int, np.flatnonzero(counts))
    ]
    raise ValueError(f"{label}: {fault.description} in {listing(faulty, limit=SHOWN)}; {fault.advice}")


def check_finite(
    label: str,
    x: np.ndarray,
    columns: Sequence[str],
    *,
    cell_name: CellName = row_number,
    missing: bool = False,
) -> None:
    """Check that every value of a table is finite; nan counts as missing.

    Args:
        label: Path of the file, for the message.
        x: Values, shape (n, d).
        columns: Names of the d columns.
        cell_name: Words for a cell, given its row and column.
        missing: Whether cells may be missing.

    Raises:
        ValueError: If a value is infinite, or nan where none may be missing.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if all(np.isfinite(x[start : start + CHUNK].sum(dtype=np.float64)) for start in range(0, len(x), CHUNK)):
            return  # without a mask as large as the table
    if not missing:
        check_cells(label, MISSING, np.isnan(x), columns, cell_name=cell_name)
    check_cells(label, INFINITE, np.isinf(x), columns, cell_name=cell_name)


def check_not_empty(label: str, shape: tuple[int, ...]) -> None:
    """Check that a table has rows and columns.

    Args:
        label: Path of the file, for the message.
        shape: Shape of the table.

    Raises:
        ValueError: If an entry of `shape` is 0.
    """
    if 0 in shape:
        raise ValueError(f"{label}: shape {shape} holds no numbers; expected at least one row and one column")


def check_distinct_names(label: str, names: Sequence[str]) -> None:
    """Check that no two columns have the same name.

    Args:
        label: Path of the file, for the message.
        names: Names of the columns.

    Raises:
        ValueError: If a name is repeated.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{label}: two columns are called {name!r}; give each its own name")
        seen.add(name)
