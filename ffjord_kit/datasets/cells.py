"""One cell of a table: a number, a word, a date, or nothing."""

from __future__ import annotations

import datetime
from decimal import Decimal
from math import isnan
from numbers import Real
from typing import Any

import numpy as np

MISSING_WORDS = frozenset({"", "na", "n/a", "#n/a", "nan", "-nan", "nat", "null", "none", "<na>", "?", "-"})
DATES = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64)


def number(cell: str, decimal: str = ".") -> float:
    """Return the number that a cell of text holds.

    Args:
        cell: Cell without surrounding white space.
        decimal: Mark before the decimals, a point or a comma.

    Returns:
        The number; nan for any other text.

    Example:
        >>> number("1,5", decimal=","), number("1,5"), number("1.5", decimal=",")
        (1.5, nan, nan)
    """
    if decimal == ",":
        cell = cell.replace(".", "_").replace(",", ".")
    try:
        return float(cell) if "_" not in cell else np.nan  # Python reads 1_0 as 10
    except ValueError:
        return np.nan


def is_missing(cell: str) -> bool:
    """Return whether a cell of text stands for a missing value.

    Args:
        cell: Cell without surrounding white space.

    Returns:
        True for an empty cell and for words such as NA.
    """
    return cell.casefold() in MISSING_WORDS


def is_text(cell: str, decimal: str = ".") -> bool:
    """Return whether a cell is neither a number nor a word for a missing one, as in a header.

    Args:
        cell: Cell without surrounding white space.
        decimal: Mark before the decimals, a point or a comma.

    Returns:
        True for text.
    """
    return not is_missing(cell) and isnan(number(cell, decimal))


def value(cell: Any) -> float:
    """Return the number that a cell of any type holds.

    Args:
        cell: A number, text, or anything else.

    Returns:
        The number; nan where it holds none.

    Example:
        >>> value(True), value(" 1.5 "), value(None)
        (1.0, 1.5, nan)
    """
    if isinstance(cell, str):
        return number(cell.strip())
    try:
        return float(cell) if isinstance(cell, (Real, Decimal, np.bool_)) else np.nan
    except OverflowError:
        return np.inf if cell > 0 else -np.inf


def is_empty(cell: Any) -> bool:
    """Return whether a cell of any type stands for a missing value.

    Args:
        cell: A number, text, or anything else.

    Returns:
        True for None, nan, the missing values of pandas, and words such as NA.
    """
    if isinstance(cell, str):
        return is_missing(cell.strip())
    return cell is None or (isinstance(cell, (Real, Decimal)) and isnan(cell)) or str(cell) in ("<NA>", "NaT")
