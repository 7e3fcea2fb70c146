"""Columns of text, truth values and dates: what they are, found by looking, and the numbers that stand for them.

A column of texts is a category if its texts repeat. One of truth values is a category, one of dates or of texts in ISO
form has dates. Where numbers have a few texts among them these are taken for errors, and the column for nothing.
"""

from __future__ import annotations

import datetime
import re
import warnings
from collections.abc import Callable, Set
from typing import Any, NamedTuple

import numpy as np

from ffjord_kit.columns.base import ColumnType, ColumnTypeWarning, written
from ffjord_kit.columns.categories import TRUTHS, Category, Date, Dated, Level, check_level_count
from ffjord_kit.columns.types import Types

FEW_TEXTS = 0.05  # share of texts among numbers that are errors
MOSTLY_DISTINCT = 0.5  # share of different texts in a column of names or numbers of things
ISO = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?)?Z?")


class Found(NamedTuple):
    """A column found by looking.

    Attributes:
        kind: Its type, with its levels.
        numbers: What stands for its cells, nan where one is missing, shape (n,).
    """

    kind: ColumnType
    numbers: np.ndarray


def look(name: str, cells: np.ndarray, numbers: np.ndarray) -> Found | None:
    """Find what a column is.

    Args:
        name: Its name, for messages.
        cells: Cells, None or NaN where one is missing, shape (n,).
        numbers: The numbers that cells hold, NaN where a cell holds none, shape (n,).

    Returns:
        The type and the numbers; None where the column is neither a category nor one of dates.

    Raises:
        ValueError: If a category has one level, or too many.

    Example:
        >>> cells = np.array(["b", "a", "b", "a"], dtype=object)
        >>> str(look("letter", cells, np.full(4, np.nan)).kind)
        'category:["a", "b"]'
    """
    if cells.dtype.kind == "M":
        return Found(Date(), Date().numbers(cells))
    there = [cell for cell in cells.tolist() if not is_missing(cell)]
    if there and all(isinstance(cell, (bool, np.bool_)) for cell in there):
        return _category(name, {bool(cell) for cell in there}, cells)
    if there and all(isinstance(cell, (datetime.date, np.datetime64)) for cell in there):
        return Found(Date(), Date().numbers(cells))
    texts = [cell for cell, number in zip(cells.tolist(), numbers.tolist(), strict=True) if number != number]
    texts = [cell for cell in texts if not is_missing(cell)]
    if not texts or not all(isinstance(cell, str) for cell in texts) or len(texts) < FEW_TEXTS * len(there):
        return None
    if len(texts) == len(there) and all(ISO.fullmatch(cell.strip()) for cell in texts):
        return Found(Date(), Date().numbers(cells))
    if len(texts) == len(there) and {cell.strip().lower() for cell in texts} <= TRUTHS:
        return _category(name, {cell.strip().lower() == "true" for cell in texts}, cells)
    levels = {_as_text(cell) for cell in there}
    return None if len(levels) > MOSTLY_DISTINCT * len(there) else _category(name, levels, cells)


def as_known(name: str, kind: ColumnType | None, cells: np.ndarray, numbers: np.ndarray) -> Found | None:
    """Read a column whose type may be known, or else find what it is.

    Args:
        name: Its name, for messages.
        kind: Its type; None where it is to be found.
        cells: Cells, None or NaN where one is missing, shape (n,).
        numbers: The numbers that cells hold, NaN where a cell holds none, shape (n,).

    Returns:
        The type and the numbers; None where the column is neither a category nor one of dates.

    Raises:
        ValueError: If a category has one level, or too many, or a cell is no date.
    """
    if isinstance(kind, Dated):
        return Found(kind, dates_as_numbers(name, kind, cells))
    if not isinstance(kind, Category):
        return look(name, cells, numbers) if kind is None else None
    if kind.levels is None:
        return _category(name, _levels(cells), cells)
    codes = kind.codes(cells)
    warn_of_unknown(name, codes, cells)
    return Found(kind, codes)


def dates_as_numbers(name: str, kind: Dated, cells: np.ndarray) -> np.ndarray:
    """Return the numbers of a column of dates.

    Args:
        name: Its name, for messages.
        kind: Its type.
        cells: Cells, None or NaN where one is missing, shape (n,).

    Returns:
        Numbers, nan where a date is missing, shape (n,).

    Raises:
        ValueError: If a cell is no date; it names the column and the row.
    """
    try:
        return kind.numbers(cells)
    except ValueError:
        row = next(row for row in range(len(cells)) if not _is_date(kind, cells[row : row + 1]))
    raise ValueError(
        f"column {name!r} must hold dates, e.g. 2020-01-31; got {cells[row]!r} in row {row} (counted from 0): mend it, "
        "or mark it as missing"
    )


def _is_date(kind: Dated, cell: np.ndarray) -> bool:
    try:
        kind.numbers(cell)
    except ValueError:
        return False
    return True


def is_missing(cell: Any) -> bool:
    """Return whether a cell of any kind is missing.

    Args:
        cell: The cell.

    Returns:
        True for None, NaN, and the missing values of pandas.
    """
    return cell is None or (not isinstance(cell, str) and (str(cell) in ("<NA>", "NaT") or cell != cell))


def describe(name: str, kind: ColumnType) -> str:
    """Describe what a column was taken for.

    Args:
        name: Its name.
        kind: Its type.

    Returns:
        Text such as "city: category of 3 levels".
    """
    return f"{name}: category of {kind.size} levels" if isinstance(kind, Category) else f"{name}: {kind.word}"


def cells_of(types: Types) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return what numbers of an array stand for: texts, truth values and dates.

    Args:
        types: Types by names.

    Returns:
        Functions of a column's numbers, by the names of such columns.
    """
    kinds = ((own[0], kind) for own, kind in types.items())
    return {
        name: kind.cells
        for name, kind in kinds
        if isinstance(kind, Dated) or (isinstance(kind, Category) and not kind.is_numeric)
    }


def warn_of_unknown(name: str, codes: np.ndarray, cells: np.ndarray) -> None:
    """Warn of levels that a fit has not seen.

    Args:
        name: Name of the column.
        codes: Places among the levels, -1 for those.
        cells: Cells, shape (n,).
    """
    unknown = codes < 0
    if unknown.any():
        first = cells[int(unknown.argmax())]
        shown = repr(first) if isinstance(first, str) else f"{first:g}" if isinstance(first, float) else str(first)
        warnings.warn(
            f"column {name!r} has {int(unknown.sum())} rows with a level that the fit has not seen (first: {shown}): "
            "their log-density is minus infinity",
            ColumnTypeWarning, stacklevel=4,
        )  # fmt: skip


def _category(name: str, levels: Set[Level], cells: np.ndarray) -> Found:
    """Return a category with the levels in order."""
    check_level_count(len(levels), len(cells), name)
    kind = Category(tuple(sorted(levels)))  # type: ignore[type-var]
    return Found(kind, kind.codes(cells))


def _levels(cells: np.ndarray) -> set[Level]:
    """Return the levels of a column that is said to be a category: as they are if of one kind, else their texts."""
    there = [cell for cell in cells.tolist() if not is_missing(cell)]
    if all(isinstance(cell, (bool, np.bool_)) for cell in there):
        return {bool(cell) for cell in there}
    if all(map(is_number, there)):
        return {float(cell) for cell in there}
    return {_as_text(cell) for cell in there}


def _as_text(cell: Any) -> str:
    return cell.strip() if isinstance(cell, str) else written(cell) if is_number(cell) else str(cell)


def is_number(cell: Any) -> bool:
    """Return whether a cell of a frame is a number, or missing.

    Args:
        cell: The cell.

    Returns:
        True for these; texts are none, even if they could be read as one.
    """
    if isinstance(cell, (str, bool, np.bool_)):
        return False
    try:
        float(cell)
    except (TypeError, ValueError):
        return is_missing(cell)
    return True
