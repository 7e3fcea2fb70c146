"""Tables in text files: comma, semicolon, tab or white space between the cells, with a header or without.

NumPy's reader does the work. Only when it fails, or finds a number that is not finite, is the file read again cell by
cell, to say which column is wrong and where.
"""

from __future__ import annotations

import csv
import warnings
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from math import isfinite, isinf, isnan
from typing import NamedTuple

import numpy as np

from ffjord_kit.datasets.dataset import Dataset, DataWarning, default_columns, listing
from ffjord_kit.datasets.faults import INFINITE, MISSING, TEXT, Fault, Found, refuse, refuse_repeated

DELIMITERS = ("\t", ";", ",")  # white space when none of them occurs
MISSING_WORDS = frozenset({"", "na", "n/a", "#n/a", "nan", "-nan", "null", "none", "?", "-"})


class Row(NamedTuple):
    """The cells of a row and its line in the file, counted from 1."""

    line: int
    cells: list[str]


class Layout(NamedTuple):
    """How a file is written: `delimiter` (None: white space), `columns`, the line of the header and of the data."""

    delimiter: str | None
    columns: tuple[str, ...]
    header_line: int | None
    data_line: int


def read_text(path: str) -> Dataset:
    """Read a table of numbers from a text file in UTF-8.

    Raises ValueError, naming column and line, for text, missing or infinite values, ragged rows or an empty file.
    """
    try:
        layout = _layout(path)
        x = _read_fast(path, layout)
        return Dataset(path, _read_slowly(path, layout) if x is None else x, layout.columns)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 (byte {error.start}); save it again as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path}: not a table of text ({error})") from error


def _read_fast(path: str, layout: Layout) -> np.ndarray | None:
    try:
        x = np.loadtxt(
            path,
            delimiter=layout.delimiter,
            skiprows=layout.data_line - 1,
            ndmin=2,
            comments=None,
            quotechar='"',
            encoding="utf-8-sig",
        )
    except ValueError:
        return None
    return x if x.shape[1] == len(layout.columns) and np.all(np.isfinite(x)) else None


def _read_slowly(path: str, layout: Layout) -> np.ndarray:
    values, faults = array("d"), {TEXT: {}, MISSING: {}, INFINITE: {}}
    with open(path, encoding="utf-8-sig", newline="") as file:
        for row in _table(file, layout):
            _check_width(path, row, layout)
            for name, cell in zip(layout.columns, row.cells, strict=True):
                values.append(value := _number(cell))
                if not isfinite(value):
                    _note(faults[_fault(cell, value)], name, cell, row.line)
    x = np.array(values).reshape(-1, len(layout.columns))
    for fault, found in faults.items():
        refuse(path, fault, found, len(x))
    return x


def _table(file: Iterable[str], layout: Layout) -> Iterator[Row]:
    return (row for row in _rows(file, layout.delimiter) if row.line >= layout.data_line and not _is_comment(row))


def _rows(file: Iterable[str], delimiter: str | None) -> Iterator[Row]:
    """The rows that are not blank, comments among them."""
    if delimiter is None:
        rows = (Row(line, text.split()) for line, text in enumerate(file, start=1))
    else:
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        rows = (Row(reader.line_num, [cell.strip() for cell in cells]) for cells in reader)
    return (row for row in rows if len(row.cells) > 1 or any(row.cells))


def _is_comment(row: Row) -> bool:
    return row.cells[0].startswith("#") and row.cells[0].casefold() not in MISSING_WORDS


def _layout(path: str) -> Layout:
    delimiter = _delimiter(path)
    with open(path, encoding="utf-8-sig", newline="") as file:
        comment, first, second = _top(_rows(file, delimiter))
    if first is None:
        raise ValueError(f"{path}: the file is empty; expected a row for each observation")
    if any(is_text(cell) for cell in first.cells):
        return Layout(delimiter, _names(path, first), first.line, _data_line(path, first, second))
    if comment is not None and len(comment.cells) == len(first.cells) and any(map(is_text, comment.cells)):
        return Layout(delimiter, _names(path, comment), comment.line, first.line)
    return Layout(delimiter, default_columns(len(first.cells)), None, first.line)


def _top(rows: Iterator[Row]) -> tuple[Row | None, Row | None, Row | None]:
    """The last comment before the table, with its # taken away, then the table's first two rows."""
    comment = None
    for row in rows:
        if not _is_comment(row):
            return comment, row, next((row for row in rows if not _is_comment(row)), None)
        cells = [row.cells[0].lstrip("# "), *row.cells[1:]]
        comment = Row(row.line, cells if cells[0] else cells[1:])
    return comment, None, None


def _delimiter(path: str) -> str | None:
    """The first of DELIMITERS in the table's second row, which is data, or in its first if it has no other."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = list(islice((line for line in file if line.strip() and not line.lstrip().startswith("#")), 2))
    line = lines[-1] if lines else ""
    return next((mark for mark in DELIMITERS if mark in line), None)


def _data_line(path: str, header: Row, second: Row | None) -> int:
    if second is None:
        raise ValueError(f"{path}: no rows, only a header ({listing(header.cells, limit=5)})")
    return second.line


def _names(path: str, header: Row) -> tuple[str, ...]:
    names = [cell or f"x{i}" for i, cell in enumerate(header.cells)]
    refuse_repeated(path, names)
    _warn_of_odd_header(path, header)
    return tuple(names)


def _warn_of_odd_header(path: str, header: Row) -> None:
    odd = [repr(cell) for cell in header.cells if not is_text(cell)]
    if odd:
        text = f"{path}: line {header.line} is read as the header, yet it holds {listing(odd, limit=3)}"
        advice = "a column without a name is often an index to be dropped, a number may mean that no header is there"
        warnings.warn(f"{text}; {advice}", DataWarning, stacklevel=7)


def _check_width(path: str, row: Row, layout: Layout) -> None:
    if len(row.cells) != len(layout.columns):
        where = layout.header_line or layout.data_line
        expected = f"expected {len(layout.columns)}, as on line {where}"
        raise ValueError(f"{path}: line {row.line} has {len(row.cells)} cells; {expected}")


def is_text(cell: str) -> bool:
    """Whether a cell is neither a number nor a word for a missing one, as in a header."""
    return cell.casefold() not in MISSING_WORDS and isnan(_number(cell))


def _number(cell: str) -> float:
    """The number a cell holds, or nan."""
    try:
        return float(cell) if "_" not in cell else np.nan  # Python reads 1_0 as 10
    except ValueError:
        return np.nan


def _fault(cell: str, value: float) -> Fault:
    if isinf(value):
        return INFINITE
    return MISSING if cell.casefold() in MISSING_WORDS else TEXT


def _note(found: dict[str, Found], name: str, cell: str, line: int) -> None:
    first = f"{cell[:20]!r} on line {line}" if cell else f"on line {line}"
    count, first = found.get(name, Found(0, first))
    found[name] = Found(count + 1, first)
