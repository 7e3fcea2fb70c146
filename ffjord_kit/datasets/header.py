"""A header and a row of units, told from the rows of data below them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ffjord_kit.datasets.cells import is_empty, is_text, value

UNIT_LENGTH = 20  # characters of the longest unit


class Top(NamedTuple):
    """The rows above the data.

    Args:
        has_header: Whether the first row is a header.
        has_units: Whether the row below it gives the units.
    """

    has_header: bool
    has_units: bool

    @property
    def rows(self) -> int:
        """Number of rows above the data."""
        return self.has_header + self.has_units


def find_top(rows: Sequence[Sequence[Any]], decimal: str = ".") -> Top:
    """Tell a header and a row of units from data.

    A header is a first row with a word in it. A row of units has short words and not one number, and below each word
    all rows have numbers.

    Args:
        rows: The first rows of a table, of three cells or more in all.
        decimal: Mark before the decimals of cells of text, a point or a comma.

    Returns:
        What there is.

    Example:
        >>> find_top([["mass", "length"], ["kg", "m"], ["1.5", "2"]])
        Top(has_header=True, has_units=True)
    """
    has_header = bool(rows) and any(_is_word(cell, decimal) for cell in rows[0])
    has_units = has_header and len({len(row) for row in rows[:2]}) == 1 and _are_units(rows[1:], decimal)
    return Top(has_header, has_units)


def column_names(header: Sequence[Any]) -> tuple[str, ...]:
    """Return the names of columns, where those without a name are numbered.

    Args:
        header: Cells of the header.

    Returns:
        The names.
    """
    return tuple(f"x{i}" if is_nameless(cell) else str(cell).strip() for i, cell in enumerate(header))


def is_nameless(cell: Any) -> bool:
    """Return whether a cell of a header is blank.

    Args:
        cell: Cell.

    Returns:
        True for no cell, and for one of white space.
    """
    return cell is None or not str(cell).strip()


def _are_units(rows: Sequence[Sequence[Any]], decimal: str) -> bool:
    if len(rows) < 2:
        return False
    first, *data = rows
    words = [j for j, cell in enumerate(first) if _is_word(cell, decimal)]
    return (
        bool(words)
        and all(len(str(first[j])) <= UNIT_LENGTH for j in words)
        and all(is_empty(cell) for j, cell in enumerate(first) if j not in words)
        and all(_is_number(row[j], decimal) for row in data for j in words if j < len(row))
    )


def _is_word(cell: Any, decimal: str) -> bool:
    return isinstance(cell, str) and is_text(cell.strip(), decimal)


def _is_number(cell: Any, decimal: str) -> bool:
    if isinstance(cell, str):
        return not is_text(cell.strip(), decimal)
    return is_empty(cell) or value(cell) == value(cell)
