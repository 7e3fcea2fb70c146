"""The layout of a table of text: what stands between the cells, the decimal mark, the header and the units.

All pairs of a separator and a decimal mark are tried on the first lines. The best pair cuts every line into the same
number of cells; then it leaves no text among them; then it finds the most numbers. Where two are as good, the first in
CANDIDATES is taken.

Lines that start with #, %, // or sep= are comments; the last one above the data is the header where it has a name for
each column, as `numpy.savetxt` writes it.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from ffjord_kit.datasets.cells import is_missing, is_text
from ffjord_kit.datasets.dataset import DataWarning, default_columns, listing
from ffjord_kit.datasets.header import column_names, find_top
from ffjord_kit.datasets.text_file import TextFile
from ffjord_kit.datasets.validation import check_distinct_names

MARKS = "\t;|,"
CANDIDATES = (
    *(("\t", "."), (";", "."), ("|", "."), (",", "."), (None, ".")),
    *(("\t", ","), (";", ","), ("|", ","), (None, ",")),
)  # separator, None for white space, and decimal mark
COMMENTS = ("#", "%", "//", "sep=")
NAMES = {"\t": "tab", None: "white space"}
PERHAPS_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
TOP, SAMPLE_CELLS = 100, 20_000  # lines that are looked at, and about how many of their cells


class Row(NamedTuple):
    """The cells of a row, and its first line in the file, counted from 1."""

    line: int
    cells: list[str]


class Layout(NamedTuple):
    """The layout of a text file.

    Args:
        delimiter: Character between the cells; None for white space.
        decimal: Mark before the decimals, a point or a comma.
        columns: Names of the columns.
        header_line: Line of the header, counted from 1; None without a header.
        units: Units of the columns; empty without a row of them.
        first: First row of data.
    """

    delimiter: str | None
    decimal: str
    columns: tuple[str, ...]
    header_line: int | None
    units: tuple[str, ...]
    first: Row

    @property
    def alternatives(self) -> list[Layout]:
        """The layout with decimal commas, which may stand below the lines that were looked at."""
        possible = self.decimal == "." and self.delimiter != ","
        return [self._replace(decimal=",")] if possible else []

    @property
    def found(self) -> list[str]:
        """Words about the layout."""
        separator = NAMES.get(self.delimiter, repr(self.delimiter))
        return [
            *([f"separator {separator}"] if len(self.columns) > 1 else []),
            *(["decimal ','"] if self.decimal == "," else []),
            *(["no header"] if self.header_line is None else []),
            *([f"units {listing(self.units, limit=5)}"] if self.units else []),
        ]


class Score(NamedTuple):
    """The fit of a separator and a decimal mark to some lines; the greater, the better."""

    even: bool
    clean: bool
    numbers: int


def find_layout(file: TextFile) -> Layout:
    """Find the layout of a text file by its first lines.

    Args:
        file: The file.

    Returns:
        The layout.

    Raises:
        ValueError: If the file has no rows, or two columns have the same name.
    """
    delimiter, decimal = _find_separator(file)
    with file.open() as text:
        comment, rows = _read_top(read_rows(text, delimiter))
    if not rows:
        raise ValueError(f"{file.path}: the file is empty; expected a row for each observation")
    top = find_top([row.cells for row in rows], decimal)
    if top.has_header and len(rows) == 1:
        raise ValueError(f"{file.path}: no rows, only a header ({listing(rows[0].cells, limit=5)})")
    if decimal == ",":
        _warn_of_thousands(file.path, rows[top.rows :])
    header, first = (rows[0] if top.has_header else comment), rows[top.rows]
    if header is None or (not top.has_header and not _names_columns(header, first)):
        return Layout(delimiter, decimal, default_columns(len(first.cells)), None, (), first)
    units = tuple(rows[1].cells) if top.has_units else ()
    return Layout(delimiter, decimal, _column_names(file.path, header), header.line, units, first)


def read_rows(lines: Iterable[str], delimiter: str | None) -> Iterator[Row]:
    """Cut lines into rows; blank ones are left out.

    Args:
        lines: Lines, from the first of the file on.
        delimiter: Character between the cells; None for white space.

    Yields:
        The rows, comments included.
    """
    if delimiter is None:
        rows: Iterable[Row] = (Row(line, text.split()) for line, text in enumerate(lines, start=1))
    else:
        rows = _delimited_rows(lines, delimiter)
    yield from (row for row in rows if len(row.cells) > 1 or any(row.cells))


def is_comment(cell: str) -> bool:
    """Return whether the first cell of a row makes it a comment; "#N/A" is a missing value.

    Args:
        cell: Cell without surrounding white space.

    Returns:
        True for a comment.
    """
    return cell.startswith(COMMENTS) and not is_missing(cell)


def _find_separator(file: TextFile) -> tuple[str | None, str]:
    """Return the separator and the decimal mark that suit the first lines best."""
    with file.open() as text:
        lines = list(islice((line for line in text if line.strip() and not is_comment(line.lstrip('" \t'))), TOP))
    lines = lines[: max(2, SAMPLE_CELLS // max(1, *(len(line) for line in lines[:2])))] if lines else []
    places = [pair for pair in CANDIDATES if pair[0] is None or any(pair[0] in line for line in lines)]
    return max(places, key=lambda pair: _score(lines, *pair))  # the first of equal ones


def _score(lines: list[str], delimiter: str | None, decimal: str) -> Score:
    try:
        rows = [row.cells for row in read_rows(lines, delimiter)]
    except csv.Error:
        return Score(False, False, -1)
    if not rows:
        return Score(False, False, 0)
    cells = [cell for row in rows[min(find_top(rows, decimal).rows, len(rows) - 1) :] for cell in row]
    text = sum(is_text(cell, decimal) for cell in cells)
    numbers = sum(not is_missing(cell) for cell in cells) - text
    alone = len(rows[0]) == 1 and any(mark in lines[0] for mark in MARKS)
    return Score(len(set(map(len, rows))) == 1 and not alone, not text, numbers)


def _read_top(rows: Iterator[Row]) -> tuple[Row | None, list[Row]]:
    """Return the last comment before the table, without its mark, and the first rows of the table."""
    comment = None
    for row in rows:
        if not is_comment(row.cells[0]):
            others = (row for row in rows if not is_comment(row.cells[0]))
            return comment, [row, *islice(others, TOP)]
        cells = [row.cells[0].lstrip("#%/ "), *row.cells[1:]]
        comment = Row(row.line, cells if cells[0] else cells[1:])
    return comment, []


def _names_columns(comment: Row, first: Row) -> bool:
    """Return whether a comment has a name for each column."""
    return len(comment.cells) == len(first.cells) and any(map(is_text, comment.cells))


def _column_names(path: str, header: Row) -> tuple[str, ...]:
    names = column_names(header.cells)
    check_distinct_names(path, names)
    odd = [repr(cell) for cell in header.cells if not is_text(cell)]
    if odd:
        text = f"{path}: line {header.line} is read as the header, yet it holds {listing(odd, limit=3)}"
        advice = "a column without a name is often an index to be dropped, a number may mean that no header is there"
        warnings.warn(f"{text}; {advice}", DataWarning, stacklevel=6)
    return names


def _warn_of_thousands(path: str, rows: list[Row]) -> None:
    """Warn where each comma that is read as a decimal one could as well mark thousands."""
    cells = [cell for row in rows for cell in row.cells if "," in cell]
    if cells and all(map(PERHAPS_THOUSANDS.fullmatch, cells)):
        text = f"{path}: the comma of {cells[0]!r} is read as a decimal one"
        warnings.warn(f"{text}; if it marks thousands, write the numbers without marks", DataWarning, stacklevel=6)


def _delimited_rows(lines: Iterable[str], delimiter: str) -> Iterator[Row]:
    reader, line = csv.reader(lines, delimiter=delimiter, skipinitialspace=True), 1
    for cells in reader:
        yield Row(line, [cell.strip() for cell in cells])
        line = reader.line_num + 1
