"""Tables in JSON: a row in each line, or one list of rows, or one list for each column."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from ffjord_kit.datasets.cells import is_empty
from ffjord_kit.datasets.dataset import default_columns
from ffjord_kit.datasets.frame import CELL_SHOWN, Frame, make_frame
from ffjord_kit.datasets.text_file import TextFile, find_text
from ffjord_kit.datasets.validation import row_number

ROWS = "expected an object of columns and values, or a list of values"


def read_json(path: str) -> Frame:
    """Read a table in JSON.

    Args:
        path: Path of the file, whose rows stand one in a line, or in one list; or which has a list for each column.

    Returns:
        The table. Columns are in the order in which they first occur; where a row lacks one, its cell is missing.

    Raises:
        ValueError: If the file is damaged, or is no table.
    """
    file = find_text(path)
    whole = _read_whole(file)
    if isinstance(whole, dict) and whole and all(isinstance(column, list) for column in whole.values()):
        return _frame_of_columns(file, whole)
    rows = list(enumerate(whole)) if isinstance(whole, list) else list(_read_lines(file))
    by_line = not isinstance(whole, list)
    return _frame_of_rows(file, rows, by_line=by_line)


def _read_whole(file: TextFile) -> Any:
    """Return the document; None where the lines are documents of their own."""
    with file.open() as text:
        first = next((line for line in text if line.strip()), "")
    if _is_document(first):
        with file.open() as text:
            if sum(1 for line in text if line.strip()) > 1:
                return None
    with file.open() as text:
        try:
            return json.load(text)
        except RecursionError as error:
            raise ValueError(f"{file.path}: values within values, too deep for a table") from error
        except json.JSONDecodeError:
            return None


def _is_document(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _read_lines(file: TextFile) -> Iterator[tuple[int, Any]]:
    """Yield the line, from 1, and the row in it."""
    with file.open() as text:
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = str(error).partition(":")[0]
                raise ValueError(f"{file.path}: line {number} is not JSON ({reason}): mend or drop it") from error


def _frame_of_rows(file: TextFile, rows: list[tuple[int, Any]], *, by_line: bool) -> Frame:
    if not rows:
        raise ValueError(f"{file.path}: the file is empty; expected a row for each observation")

    def place(row: int) -> str:
        return f"on line {rows[row][0]}" if by_line else f"in {row_number(row, 0)}"

    names = _names(rows[0][1])
    for i, (_, row) in enumerate(rows):
        if type(row) is not type(rows[0][1]) or names is None or (isinstance(row, list) and len(row) != len(names)):
            raise ValueError(f"{file.path}: {ROWS} as in the first row; got {str(row)[:CELL_SHOWN]!r} {place(i)}")
        if isinstance(row, dict):
            names |= dict.fromkeys(row)
    cells = np.full((len(rows), len(names or ())), None, dtype=object)
    for i, (_, row) in enumerate(rows):
        for j, name in enumerate(names or ()):
            cells[i, j] = row.get(name) if isinstance(row, dict) else row[j]

    def cell_name(i: int, j: int) -> str:
        return place(i) if is_empty(cells[i, j]) else f"{str(cells[i, j])[:CELL_SHOWN]!r} {place(i)}"

    columns = [(name, cells[:, j]) for j, name in enumerate(names or ())]
    return make_frame(file.path, columns, found=", ".join(file.found), cell_name=cell_name)


def _names(row: Any) -> dict[str, None] | None:
    """Return the names of the columns of a row, in their order; None for what is no row."""
    if isinstance(row, list):
        return dict.fromkeys(default_columns(len(row)))
    return dict.fromkeys(row) if isinstance(row, dict) else None


def _frame_of_columns(file: TextFile, whole: dict[str, list[Any]]) -> Frame:
    lengths = {name: len(column) for name, column in whole.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in list(lengths.items())[:5])
        raise ValueError(f"{file.path}: its columns have different lengths ({told}): give each the same")
    columns = [(name, np.fromiter(column, object, len(column))) for name, column in whole.items()]
    return make_frame(file.path, columns, found=", ".join(file.found))
