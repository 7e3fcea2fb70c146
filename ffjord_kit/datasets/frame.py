"""A table as it lies in a file, whatever the kinds of its columns; every reader returns one.

Numbers stand in one array. A column of text or dates keeps its cells beside it. A `Dataset` is made from a frame whose
columns are all numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ffjord_kit.columns.base import ColumnType
from ffjord_kit.columns.categories import Category
from ffjord_kit.columns.mixed import Found, as_known, describe
from ffjord_kit.datasets import validation
from ffjord_kit.datasets.cells import DATES as DATE_TYPES
from ffjord_kit.datasets.cells import is_empty, value
from ffjord_kit.datasets.dataset import Dataset, columns_without
from ffjord_kit.datasets.validation import CellName, check_cells, check_distinct_names, check_finite, check_not_empty
from ffjord_kit.memory import check_fits

NUMBERS, TRUTH_VALUES, TEXT, DATES = "numbers", "truth values", "text", "dates"  # the kinds of a column
FAULTS = {TEXT: validation.TEXT, DATES: validation.DATES}
CELL_SHOWN = 20  # characters of a bad cell that a message shows
SMALLER = "write fewer rows or columns"

Marks = Sequence[float | str]


@dataclass(frozen=True, eq=False)
class Frame:
    """The columns of a file, each with its kind.

    Args:
        name: Path of the file.
        numbers: Values, shape (n, d); nan where a cell is missing, or holds no number.
        columns: Names of the d columns.
        kinds: Kind of each column: NUMBERS, TRUTH_VALUES (0 and 1), TEXT or DATES.
        cells: Cells of the columns of text and of dates, shape (n,), by the positions of the columns.
        found: How the file was read, e.g. "separator ';'"; empty where there is nothing to tell.
        cell_name: Words for a cell, given its row and column; None for its value and its row.
        image_shape: Shape of the picture that each row is flattened from; None for other tables.

    Example:
        >>> frame = make_frame("people", [("age", np.array([20, 30])), ("city", np.array(["Oslo", "Rome"]))])
        >>> frame.kinds, frame.numbers[:, 0].tolist(), frame.cells[1].tolist()
        (('numbers', 'text'), [20.0, 30.0], ['Oslo', 'Rome'])
    """

    name: str
    numbers: np.ndarray
    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    cells: Mapping[int, np.ndarray] = field(default_factory=dict)
    found: str = ""
    cell_name: CellName | None = None
    image_shape: tuple[int, ...] | None = None

    def dataset(self, missing: Marks | None = None) -> Dataset:
        """Return the table, whose columns must all be numbers.

        Args:
            missing: Numbers and words that mark missing cells, beside empty ones, NA and their like; None where no cell
                may be missing.

        Returns:
            The table, with nan where a cell is missing.

        Raises:
            ValueError: If a column holds text or dates, or a value is infinite, or missing where none may be.
        """
        return self._as_numbers(self.numbers, self.kinds, missing=missing)

    def _as_numbers(
        self, numbers: np.ndarray, kinds: Sequence[str], *, missing: Marks | None = None, droppable: bool = False
    ) -> Dataset:
        """Return the table of numbers, if no column of another kind is left."""
        name = self._name_of_cell if missing else self.cell_name or self._name_of_cell
        for kind, fault in FAULTS.items():
            positions = [j for j, own in enumerate(kinds) if own == kind]
            if positions:
                how = "drop those columns (--drop)" if droppable else "drop those columns"
                own = fault._replace(advice=fault.advice.replace("drop those columns", how))
                other = self._other_than_numbers(positions, missing or ())
                check_cells(self.name, own, other, self.columns, cell_name=name)
        check_finite(self.name, numbers, self.columns, cell_name=name, missing=missing is not None)
        x = numbers if not missing else np.where(np.isin(numbers, _numbers(missing)), np.nan, numbers)
        empty = 0 if missing is None else int(np.isnan(x).sum())
        shape = f"{_counted(len(x), 'row')}, {_counted(len(self.columns), 'column')}"
        shape += f", {_counted(empty, 'missing cell')}" if empty else ""
        found = f"{shape}; {self.found}" if self.found else shape
        return Dataset(self.name, x, self.columns, image_shape=self.image_shape, found=found)

    def without(self, names: Sequence[str], *, missing_ok: bool = False) -> Frame:
        """Return the table without some columns.

        Args:
            names: Columns to leave out, each by its name or, where no column has that name, by its index.
            missing_ok: Whether they are names alone, and may be missing.

        Returns:
            The table.

        Raises:
            ValueError: If a name is unknown, or no column is left.
        """
        if not names:
            return self
        kept, name = columns_without(self.columns, names, missing_ok=missing_ok), self.cell_name or self._name_of_cell
        return replace(
            self,
            numbers=self.numbers[:, kept],
            columns=tuple(self.columns[j] for j in kept),
            kinds=tuple(self.kinds[j] for j in kept),
            cells={place: self.cells[j] for place, j in enumerate(kept) if j in self.cells},
            cell_name=lambda row, column: name(row, kept[column]),
            image_shape=None,
        )

    def mixed_dataset(self, types: Mapping[str, ColumnType], missing: Marks | None = None) -> Dataset:
        """Return the table, with numbers in the place of categories and dates.

        Args:
            types: Types that are known, by name; what other columns of texts, truth values and dates are is found.
            missing: Numbers and words that mark missing cells, beside empty ones, NA and their like; None where no cell
                may be missing.

        Returns:
            The table, with the types of these columns.

        Raises:
            ValueError: If a column holds other text, or a value is infinite, or missing where none may be.
        """
        marks = missing or ()
        found = {j: seen for j in range(len(self.columns)) if (seen := self._found(j, types, marks)) is not None}
        if not found:
            return self._as_numbers(self.numbers, self.kinds, missing=missing, droppable=True)
        numbers = np.array(self.numbers)
        for j, seen in found.items():
            numbers[:, j] = seen.numbers
        kinds = tuple(NUMBERS if j in found else kind for j, kind in enumerate(self.kinds))
        dataset = self._as_numbers(numbers, kinds, missing=missing, droppable=True)
        named = {self.columns[j]: seen.kind for j, seen in found.items()}
        told = "; ".join(describe(name, kind) for name, kind in named.items())
        return replace(dataset, types=named, found=f"{dataset.found}; {told}")

    def _found(self, j: int, types: Mapping[str, ColumnType], marks: Marks) -> Found | None:
        """Return what a column of texts, truth values or dates is."""
        numbers, kind = self.numbers[:, j], types.get(self.columns[j])
        numbers = np.where(np.isin(numbers, _numbers(marks)), np.nan, numbers)
        if self.kinds[j] == NUMBERS:
            texts = isinstance(kind, Category) and kind.is_text
            cells: np.ndarray = numbers.astype(object) if texts else numbers
        elif self.kinds[j] == TRUTH_VALUES:
            truths = set(numbers[~np.isnan(numbers)].tolist()) <= {0.0, 1.0}
            cells = np.array([None if v != v else bool(v) for v in numbers.tolist()], object) if truths else numbers
        elif (cells := self.cells[j]).dtype.kind not in "Mm":
            marked, words = np.isin(self.numbers[:, j], _numbers(marks)), _words(marks)
            empty = [is_empty(cell) or str(cell).strip() in words for cell in cells.tolist()] | marked
            cells = np.array([None if none else cell for none, cell in zip(empty, cells.tolist(), strict=True)], object)
        if cells is numbers:
            return None
        try:
            return as_known(self.columns[j], kind, cells, numbers)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def _other_than_numbers(self, positions: list[int], missing: Marks) -> np.ndarray:
        """Return which cells of some columns hold something that is neither number nor missing, shape (n, d)."""
        other, words = np.zeros(self.numbers.shape, dtype=np.bool_), _words(missing)
        for j in positions:
            empty = (is_empty(cell) or str(cell).strip() in words for cell in self.cells[j])
            other[:, j] = np.isnan(self.numbers[:, j]) & ~np.fromiter(empty, np.bool_, len(self.numbers))
        return other

    def _name_of_cell(self, row: int, column: int) -> str:
        place = validation.row_number(row, column)
        if column not in self.cells or is_empty(self.cells[column][row]):
            return place
        return f"{str(self.cells[column][row])[:CELL_SHOWN]!r} in {place}"


def make_frame(
    name: str,
    columns: Iterable[tuple[str, np.ndarray]],
    *,
    found: str = "",
    cell_name: CellName | None = None,
) -> Frame:
    """Make a frame from columns of any type.

    Args:
        name: Path of the file.
        columns: Name and values of each column, shape (n,); or (n, k), which makes k columns.
        found: How the file was read.
        cell_name: Words for a cell, given its row and column.

    Returns:
        The frame.

    Raises:
        ValueError: If there is no column or no row, two names are the same, or a column holds complex numbers.
    """
    arrays = [part for column, array in columns for part in _split(column, array)]
    names = tuple(column for column, _ in arrays)
    rows = len(arrays[0][1]) if arrays else 0
    check_not_empty(name, (rows, len(arrays)))
    check_distinct_names(name, names)
    check_fits(f"{name}: its numbers would take", 8 * rows * len(arrays), SMALLER)
    numbers, kinds, cells = np.empty((rows, len(arrays))), [], {}
    for j, (column, array) in enumerate(arrays):
        kind, others = _kind_of(name, column, array)
        numbers[:, j] = array if others is None else np.fromiter(map(value, others), float, rows)
        kinds.append(kind)
        if kind in FAULTS and others is not None:
            cells[j] = others
    return Frame(name, numbers, names, tuple(kinds), cells, found, cell_name)


def columns_of(name: str, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return the columns of an array with named fields, or of one with two axes.

    Args:
        name: Name of the array, for fields that have none.
        array: Structured array (n,), or array (n, d).

    Returns:
        Name and values of each column.
    """
    names = array.dtype.names
    return [(name, array)] if names is None else [(field, array[field]) for field in names]


def _split(name: str, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return the columns of an array with more than one axis, numbered; else the array itself."""
    if array.ndim == 1:
        return [(name, array)]
    flat = array.reshape(len(array), -1) if array.size else array.reshape(len(array), 0)
    return [(name, flat[:, 0])] if flat.shape[1] == 1 else [(f"{name}{j}", flat[:, j]) for j in range(flat.shape[1])]


def _kind_of(name: str, column: str, array: np.ndarray) -> tuple[str, np.ndarray | None]:
    """Return the kind of a column, and its cells where they must be looked at one by one."""
    code = array.dtype.kind
    if code in "biuf":
        return (TRUTH_VALUES if code == "b" else NUMBERS), None
    if code in "Mm":
        return DATES, array
    if code not in "SUO":
        raise ValueError(f"{name}: column {column!r} holds {array.dtype}; expected real numbers: drop it, or write |z|")
    cells = np.fromiter((_decoded(cell) for cell in array.tolist()), object, len(array))
    others = [cell for cell in cells if np.isnan(value(cell)) and not is_empty(cell)]
    if others:
        return (DATES if all(isinstance(cell, DATE_TYPES) for cell in others) else TEXT), cells
    truth = any(isinstance(cell, (bool, np.bool_)) for cell in cells)
    return (TRUTH_VALUES if truth else NUMBERS), cells


def _numbers(marks: Marks) -> list[float]:
    return [float(mark) for mark in marks if not isinstance(mark, str)]


def _words(marks: Marks) -> set[str]:
    return {str(mark).strip() for mark in marks}


def _decoded(cell: object) -> object:
    return cell.decode(errors="replace") if isinstance(cell, bytes) else cell


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
