"""Tables in the sheets of Excel files, by openpyxl."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ffjord_kit.datasets.arrays import check_unpacked_size, choose_table
from ffjord_kit.datasets.damage import explained_by
from ffjord_kit.datasets.dataset import default_columns, listing
from ffjord_kit.datasets.extras import import_extra
from ffjord_kit.datasets.frame import CELL_SHOWN, Frame, make_frame
from ffjord_kit.datasets.header import column_names, find_top

SMALLER = "save the sheet as .csv"


class SheetRow(NamedTuple):
    """The cells of a row of a sheet, and its number there, from 1."""

    number: int
    cells: tuple[Any, ...]


def read_excel(path: str, key: str | None = None) -> Frame:
    """Read a sheet of an Excel file: the values that stand in its cells, and not the formulas.

    Args:
        path: Path of the file.
        key: Name of the sheet; None for the only one that is not empty.

    Returns:
        The table. Rows and columns that are empty are left out.

    Raises:
        ValueError: If the file is damaged, or has no such sheet, or a sheet without rows.
        ImportError: If openpyxl is missing.
    """
    openpyxl = import_extra("openpyxl", path)
    with explained_by(path, "an Excel file"), open(path, "rb") as file:
        check_unpacked_size(path, SMALLER)
        with _workbook(openpyxl, file) as book:
            sheets = {sheet.title: _rows(sheet) for sheet in book.worksheets if key in (None, sheet.title)}
            names = [sheet.title for sheet in book.worksheets]
    filled = [name for name in names if sheets.get(name)] if key is None else names
    name = choose_table(path, filled or names[:1], key)
    label = path if key is None else f"{path}:{key}"
    return _frame(label, sheets[name], [] if len(names) == 1 else [f"sheet {name!r}"])


@contextmanager
def _workbook(openpyxl: Any, file: Any) -> Iterator[Any]:
    book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    try:
        yield book
    finally:
        book.close()


def _rows(sheet: Any) -> list[SheetRow]:
    """Return the rows of a sheet that are not empty."""
    rows = (SheetRow(number, cells) for number, cells in enumerate(sheet.iter_rows(values_only=True), start=1))
    return [row for row in rows if any(map(_is_filled, row.cells))]


def _frame(label: str, rows: list[SheetRow], found: list[str]) -> Frame:
    if not rows:
        raise ValueError(f"{label}: the sheet is empty; expected a row for each observation")
    width = max(len(row.cells) for row in rows)
    grid = np.full((len(rows), width), None, dtype=object)
    for i, row in enumerate(rows):
        grid[i, : len(row.cells)] = row.cells
    kept = [j for j in range(width) if any(map(_is_filled, grid[:, j]))]
    grid = grid[:, kept]
    top = find_top(grid.tolist())
    header, units, data = grid[0], grid[top.rows - 1], grid[top.rows :]
    if not len(data):
        raise ValueError(f"{label}: no rows, only a header ({listing(list(map(str, header)), limit=5)})")
    names = column_names(header) if top.has_header else default_columns(len(kept))
    found += ["no header"] * (not top.has_header)
    found += [f"units {listing([str(unit or '') for unit in units], limit=5)}"] * top.has_units

    def cell_name(i: int, j: int) -> str:
        cell, place = data[i, j], f"cell {_letters(kept[j])}{rows[top.rows + i].number}"
        return f"{str(cell)[:CELL_SHOWN]!r} in {place}" if _is_filled(cell) else place

    columns = [(name, data[:, j]) for j, name in enumerate(names)]
    return make_frame(label, columns, found=", ".join(found), cell_name=cell_name)


def _is_filled(cell: Any) -> bool:
    return cell is not None and (not isinstance(cell, str) or bool(cell.strip()))


def _letters(column: int) -> str:
    """Return the letters of a column, counted from 0: A, B, ..., Z, AA, ...

    Example:
        >>> _letters(0), _letters(27)
        ('A', 'AB')
    """
    letters = ""
    while column >= 0:
        letters, column = chr(ord("A") + column % 26) + letters, column // 26 - 1
    return letters
