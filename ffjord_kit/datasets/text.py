"""Tables in text files: any separator, decimal point or comma, with or without a header and a row of units.

The reading has three steps. Looking gives the compression and the encoding (`text_file.py`), and then the layout
(`layout.py`). pandas, where it is installed, then parses the numbers. Where it fails, or finds a number that is not
finite, the cells are read one by one, so that text is kept, and an error can name the column and the line.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any, TextIO

import numpy as np

from ffjord_kit.datasets.cells import is_missing, number
from ffjord_kit.datasets.frame import CELL_SHOWN, NUMBERS, TEXT, Frame
from ffjord_kit.datasets.layout import Layout, Row, find_layout, is_comment, read_rows
from ffjord_kit.datasets.text_file import TextFile, find_text

TRUTH_VALUES = frozenset({"true", "false"})
CHUNK = 10_000  # rows held as text at once


def read_text(path: str) -> Frame:
    """Read a table from a text file.

    Args:
        path: Path of the file.

    Returns:
        The table.

    Raises:
        ValueError: If the file is empty or damaged, is not text, or has rows of different lengths; the message names
            the line.
    """
    try:
        file = find_text(path)
        layout = find_layout(file)
        for each in (layout, *layout.alternatives):
            x = _read_numbers(file, each)
            if x is not None:
                return _frame(file, each, x)
        return _read_cells(file, layout)
    except csv.Error as error:
        raise ValueError(f"{path}: not a table of text ({error})") from error


def _frame(file: TextFile, layout: Layout, x: np.ndarray, words: Sequence[int] = (), **more: Any) -> Frame:
    """Return the table, with the cells of its columns of text."""
    kinds = tuple(TEXT if j in words else NUMBERS for j in range(len(layout.columns)))
    cells = _read_words(file, layout, words) if words else {}
    found = "; ".join([*layout.found[:1], *([", ".join(rest)] if (rest := layout.found[1:] + file.found) else [])])
    return Frame(file.path, x, layout.columns, kinds, cells, found, **more)


def _read_numbers(file: TextFile, layout: Layout) -> np.ndarray | None:
    """Parse the data with pandas: (n, d), or None unless it is there and every row has d finite numbers."""
    if any(cell.strip('"').casefold() in TRUTH_VALUES for cell in layout.first.cells):
        return None  # pandas would take a column of truth values for numbers
    try:
        import pandas as pd

        rows, comments = _count_rows(file, layout)
        with file.open() as text:
            _skip_lines(text, layout.first.line - 1)
            frame = pd.read_csv(
                text,
                sep=layout.delimiter or r"\s+",
                decimal=layout.decimal,
                header=None,
                skiprows=comments,
                skipinitialspace=True,
                dtype=np.float64,
                low_memory=False,
                **_exact_parsing(pd.__version__),
            )
    except (ImportError, ValueError):
        return None
    x = np.ascontiguousarray(frame.to_numpy())
    return x if x.shape == (rows, len(layout.columns)) and np.all(np.isfinite(x)) else None


def _exact_parsing(version: str) -> dict[str, Any]:
    """Return the option that makes pandas round each number correctly, as it always does from version 3.1."""
    major, minor = version.split(".")[:2]
    return {} if (int(major), int(minor)) >= (3, 1) else {"float_precision": "round_trip"}


def _count_rows(file: TextFile, layout: Layout) -> tuple[int, list[int]]:
    """Count the rows of data, and list the comments among them by their lines, counted from 0 at the first row."""
    rows, comments = 0, []
    with file.open() as text:
        for index, line in enumerate(islice(text, layout.first.line - 1, None)):
            if "\0" in line:
                raise ValueError("a NUL byte, which ends a cell for some versions of pandas")
            if not line.strip():
                continue
            if is_comment(line.split(layout.delimiter, 1)[0].strip().strip('"')):
                comments.append(index)
            else:
                rows += 1
    return rows, comments


def _read_cells(file: TextFile, layout: Layout) -> Frame:
    """Read the data cell by cell, and note the names of the first bad cells."""
    numbers, text, bad_cells = [], np.zeros(len(layout.columns), np.bool_), {}
    for start, rows in _chunks(file, layout):
        cells = np.array([row.cells for row in rows], dtype=object)
        numbers.append(np.vectorize(number, otypes=[np.float64])(cells, layout.decimal))
        words = np.isnan(numbers[-1]) & ~np.vectorize(is_missing, otypes=[np.bool_])(cells)
        text |= words.any(axis=0)
        for i, j in _first_bad_cells(numbers[-1], words):
            bad_cells[start + i, j] = _cell_name(cells[i, j], rows[i].line)
    return _frame(
        file,
        layout,
        np.concatenate(numbers),
        [int(j) for j in np.flatnonzero(text)],
        cell_name=lambda i, j: bad_cells[i, j],
    )


def _read_words(file: TextFile, layout: Layout, columns: Sequence[int]) -> dict[int, np.ndarray]:
    """Read the cells of some columns as text, each word once in memory."""
    words: dict[int, list[str]] = {j: [] for j in columns}
    for _, rows in _chunks(file, layout):
        for j, column in words.items():
            column.extend(sys.intern(row.cells[j]) for row in rows)
    return {j: np.array(column, dtype=object) for j, column in words.items()}


def _chunks(file: TextFile, layout: Layout) -> Iterator[tuple[int, list[Row]]]:
    """Yield the rows of data, some at a time, with the number of those before."""
    with file.open() as text:
        rows = (
            row
            for row in read_rows(text, layout.delimiter)
            if row.line >= layout.first.line and not is_comment(row.cells[0])
        )
        for start in count(step=CHUNK):
            chunk = [_check_width(file.path, row, layout) for row in islice(rows, CHUNK)]
            if not chunk:
                return
            yield start, chunk


def _first_bad_cells(x: np.ndarray, text: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield row and column of the first text, missing and infinite cell of each column."""
    for bad in (text, np.isnan(x) & ~text, np.isinf(x)):
        for j in np.flatnonzero(bad.any(axis=0)):
            yield int(bad[:, j].argmax()), int(j)


def _cell_name(cell: str, line: int) -> str:
    return f"{cell[:CELL_SHOWN]!r} on line {line}" if cell else f"on line {line}"


def _check_width(path: str, row: Row, layout: Layout) -> Row:
    if len(row.cells) != len(layout.columns):
        expected = f"expected {len(layout.columns)}, as on line {layout.header_line or layout.first.line}"
        raise ValueError(f"{path}: line {row.line} has {len(row.cells)} cells; {expected}")
    return row


def _skip_lines(file: TextIO, count: int) -> None:
    for _ in islice(file, count):
        pass
