"""Tables in text files: comma, semicolon, tab or white space between the cells, with or without a header.

The reading has two steps. The top of the file gives its layout: the delimiter, the names of the columns and the line
of the first data. pandas then parses the numbers. Where pandas fails, or finds a number that is not finite, the cells
are read once more as text, so that the error can name the column and the line.

Lines that start with # are comments; the last one above the data is the header where it has a name for each column,
as `numpy.savetxt` writes it.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterable, Iterator
from itertools import count, islice
from math import isnan
from typing import Any, NamedTuple, TextIO

import numpy as np

from ffjord_kit.datasets.dataset import Dataset, DataWarning, default_columns, listing
from ffjord_kit.datasets.validation import TEXT, check_cells, check_distinct_names, check_finite

DELIMITERS = ("\t", ";", ",")  # white space when none of them occurs
MISSING_WORDS = frozenset({"", "na", "n/a", "#n/a", "nan", "-nan", "null", "none", "?", "-"})
TRUTH_VALUES = frozenset({"true", "false"})
CELL_SHOWN = 20  # characters of a bad cell that a message shows
CHUNK = 10_000  # rows held as text at once


class Row(NamedTuple):
    """The cells of a row, and its first line in the file, counted from 1."""

    line: int
    cells: list[str]


class Layout(NamedTuple):
    """The layout of a text file.

    Args:
        delimiter: Character between the cells; None for white space.
        columns: Names of the columns.
        header_line: Line of the header, counted from 1; None without a header.
        first: First row of data.
    """

    delimiter: str | None
    columns: tuple[str, ...]
    header_line: int | None
    first: Row


def read_text(path: str) -> Dataset:
    """Read a table of numbers from a text file in UTF-8.

    Args:
        path: Path of the file.

    Returns:
        The table, float64.

    Raises:
        ValueError: If the file is empty, not UTF-8, has rows of different lengths, or holds text, missing or infinite
            values; the message names column and line.
    """
    try:
        layout = _find_layout(path)
        x = _read_numbers(path, layout)
        return Dataset(path, _read_cells(path, layout) if x is None else x, layout.columns)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 (byte {error.start}); save it again as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path}: not a table of text ({error})") from error


def is_text(cell: str) -> bool:
    """Return whether a cell is neither a number nor a word for a missing one, as in a header.

    Args:
        cell: Cell without surrounding white space.

    Returns:
        True for text.
    """
    return not _is_missing(cell) and isnan(_number(cell))


def _read_numbers(path: str, layout: Layout) -> np.ndarray | None:
    """Parse the data with pandas: (n, d), or None unless every row has d finite numbers."""
    import pandas as pd

    if any(cell.strip('"').casefold() in TRUTH_VALUES for cell in layout.first.cells):
        return None  # pandas would take a column of truth values for numbers
    try:
        rows, comments = _count_rows(path, layout)
        with _open(path) as file:
            _skip_lines(file, layout.first.line - 1)
            frame = pd.read_csv(
                file,
                sep=layout.delimiter or r"\s+",
                header=None,
                skiprows=comments,
                skipinitialspace=True,
                dtype=np.float64,
                low_memory=False,
                **_exact_parsing(pd.__version__),
            )
    except ValueError:
        return None
    x = np.ascontiguousarray(frame.to_numpy())
    return x if x.shape == (rows, len(layout.columns)) and np.all(np.isfinite(x)) else None


def _exact_parsing(version: str) -> dict[str, Any]:
    """Return the option that makes pandas round each number correctly, as it always does from version 3.1."""
    major, minor = version.split(".")[:2]
    return {} if (int(major), int(minor)) >= (3, 1) else {"float_precision": "round_trip"}


def _count_rows(path: str, layout: Layout) -> tuple[int, list[int]]:
    """Count the rows of data, and list the comments among them by their lines, counted from 0 at the first row."""
    rows, comments = 0, []
    with _open(path) as file:
        for index, line in enumerate(islice(file, layout.first.line - 1, None)):
            if "\0" in line:
                raise ValueError("a NUL byte, which ends a cell for some versions of pandas")
            if not line.strip():
                continue
            if _is_comment(line.split(layout.delimiter, 1)[0].strip().strip('"')):
                comments.append(index)
            else:
                rows += 1
    return rows, comments


def _read_cells(path: str, layout: Layout) -> np.ndarray:
    """Read the data cell by cell, and raise the ValueError that names the first bad cells."""
    numbers, text, bad_cells = [], [], {}
    with _open(path) as file:
        rows = (row for row in _data_rows(file, layout.delimiter) if row.line >= layout.first.line)
        for start in count(step=CHUNK):
            chunk = [_check_width(path, row, layout) for row in islice(rows, CHUNK)]
            if not chunk:
                break
            cells = np.array([row.cells for row in chunk], dtype=object)
            numbers.append(np.vectorize(_number, otypes=[np.float64])(cells))
            text.append(np.isnan(numbers[-1]) & ~np.vectorize(_is_missing, otypes=[np.bool_])(cells))
            for i, j in _first_bad_cells(numbers[-1], text[-1]):
                bad_cells[start + i, j] = _cell_name(cells[i, j], chunk[i].line)
    x = np.concatenate(numbers)
    check_cells(path, TEXT, np.concatenate(text), layout.columns, cell_name=lambda i, j: bad_cells[i, j])
    check_finite(path, x, layout.columns, cell_name=lambda i, j: bad_cells[i, j])
    return x


def _first_bad_cells(x: np.ndarray, text: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield row and column of the first text, missing and infinite cell of each column."""
    for bad in (text, np.isnan(x) & ~text, np.isinf(x)):
        for j in np.flatnonzero(bad.any(axis=0)):
            yield int(bad[:, j].argmax()), int(j)


def _cell_name(cell: str, line: int) -> str:
    return f"{cell[:CELL_SHOWN]!r} on line {line}" if cell else f"on line {line}"


def _find_layout(path: str) -> Layout:
    delimiter = _find_delimiter(path)
    with _open(path) as file:
        comment, first, second = _read_top(_rows(file, delimiter))
    if first is None:
        raise ValueError(f"{path}: the file is empty; expected a row for each observation")
    if any(is_text(cell) for cell in first.cells):
        if second is None:
            raise ValueError(f"{path}: no rows, only a header ({listing(first.cells, limit=5)})")
        return Layout(delimiter, _column_names(path, first), first.line, second)
    if comment is not None and len(comment.cells) == len(first.cells) and any(map(is_text, comment.cells)):
        return Layout(delimiter, _column_names(path, comment), comment.line, first)
    return Layout(delimiter, default_columns(len(first.cells)), None, first)


def _find_delimiter(path: str) -> str | None:
    """Return the first of DELIMITERS in the second row of the table, which is data, or in its only row."""
    with _open(path) as file:
        lines = list(islice((line for line in file if line.strip() and not line.lstrip().startswith("#")), 2))
    line = lines[-1] if lines else ""
    return next((mark for mark in DELIMITERS if mark in line), None)


def _read_top(rows: Iterator[Row]) -> tuple[Row | None, Row | None, Row | None]:
    """Return the last comment before the table, without its #, and the first two rows of the table."""
    comment = None
    for row in rows:
        if not _is_comment(row.cells[0]):
            return comment, row, next((row for row in rows if not _is_comment(row.cells[0])), None)
        cells = [row.cells[0].lstrip("# "), *row.cells[1:]]
        comment = Row(row.line, cells if cells[0] else cells[1:])
    return comment, None, None


def _column_names(path: str, header: Row) -> tuple[str, ...]:
    names = tuple(cell or f"x{i}" for i, cell in enumerate(header.cells))
    check_distinct_names(path, names)
    _warn_of_odd_header(path, header)
    return names


def _warn_of_odd_header(path: str, header: Row) -> None:
    odd = [repr(cell) for cell in header.cells if not is_text(cell)]
    if odd:
        text = f"{path}: line {header.line} is read as the header, yet it holds {listing(odd, limit=3)}"
        advice = "a column without a name is often an index to be dropped, a number may mean that no header is there"
        warnings.warn(f"{text}; {advice}", DataWarning, stacklevel=7)


def _check_width(path: str, row: Row, layout: Layout) -> Row:
    if len(row.cells) != len(layout.columns):
        expected = f"expected {len(layout.columns)}, as on line {layout.header_line or layout.first.line}"
        raise ValueError(f"{path}: line {row.line} has {len(row.cells)} cells; {expected}")
    return row


def _data_rows(file: Iterable[str], delimiter: str | None) -> Iterator[Row]:
    return (row for row in _rows(file, delimiter) if not _is_comment(row.cells[0]))


def _rows(file: Iterable[str], delimiter: str | None) -> Iterator[Row]:
    """Yield the rows that are not blank, comments included."""
    if delimiter is None:
        rows: Iterable[Row] = (Row(line, text.split()) for line, text in enumerate(file, start=1))
    else:
        rows = _delimited_rows(file, delimiter)
    return (row for row in rows if len(row.cells) > 1 or any(row.cells))


def _delimited_rows(file: Iterable[str], delimiter: str) -> Iterator[Row]:
    reader, line = csv.reader(file, delimiter=delimiter, skipinitialspace=True), 1
    for cells in reader:
        yield Row(line, [cell.strip() for cell in cells])
        line = reader.line_num + 1


def _open(path: str) -> TextIO:
    return open(path, encoding="utf-8-sig", newline="")


def _skip_lines(file: TextIO, count: int) -> None:
    for _ in islice(file, count):
        pass


def _is_comment(cell: str) -> bool:
    """Return whether the first cell of a row makes it a comment; "#N/A" is a missing value."""
    return cell.startswith("#") and not _is_missing(cell)


def _is_missing(cell: str) -> bool:
    return cell.casefold() in MISSING_WORDS


def _number(cell: str) -> float:
    """Return the number in a cell, or nan."""
    try:
        return float(cell) if "_" not in cell else np.nan  # Python reads 1_0 as 10
    except ValueError:
        return np.nan
