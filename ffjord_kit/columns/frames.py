"""Frames with columns of text, truth values and dates: numbers in their place, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from ffjord_kit.columns.categories import Category, Dated
from ffjord_kit.columns.mixed import Found, as_known, cells_of, dates_as_numbers, is_missing, is_number, warn_of_unknown
from ffjord_kit.columns.types import Types, read_types
from ffjord_kit.rows import frame_of, is_frame, take_columns


def read_frame(x: Any, columns: Any, marks: Any = None) -> tuple[Any, Types]:
    """Return rows with numbers in the place of categories and dates, and the types that a frame shows.

    Args:
        x: Rows; a frame of pandas or polars may hold texts, truth values and dates.
        columns: Types that the user has given, as the field `columns` takes them.
        marks: Marks of missing cells, words and numbers, or None.

    Returns:
        The rows, what is no frame as it is, and types by names.

    Raises:
        ValueError: If a type cannot be read, or a category has one level, or too many.
    """
    if not is_frame(x):
        return x, {}
    frame = unmarked(x, marks)
    found = look_at_frame(frame, read_types(columns, [str(name) for name in frame.columns]))
    return code_frame(frame, found, warned=False), found


def look_at_frame(frame: Any, types: Types) -> Types:
    """Find the columns of a frame that are categories or dates.

    Args:
        frame: Frame of pandas or polars.
        types: Types that the user has given, by names.

    Returns:
        Types by names, with the levels of categories.

    Raises:
        ValueError: If a category has one level, or too many.
    """
    given: Types = {own: kind for own, kind in types.items() if len(own) == 1}
    found: Types = {}
    for place, name in enumerate(map(str, frame.columns)):
        kind, cells = given.get((name,)), _other_cells(frame, place)
        if cells is None or not isinstance(kind, (Category, Dated, type(None))):
            continue
        categorical = _dtype(frame, place) in ("category", "Categorical", "Enum")
        kind = Category() if kind is None and categorical else kind
        seen = Found(kind, cells) if kind not in (None, Category()) else as_known(name, kind, cells, _numbers(cells))
        if seen is not None:
            found[name,] = seen.kind
    return found


def unmarked(x: Any, marks: Any) -> Any:
    """Return rows without the words that mark missing cells.

    Args:
        x: Rows; a frame of pandas or polars may hold words.
        marks: Marks of missing cells, words and numbers, or None.

    Returns:
        A frame of the same library with None in the place of the words; what holds none comes back as it is.

    Raises:
        ValueError: If the marks are not numbers and words.
    """
    words = {mark.strip() for mark in checked_marks(marks) if isinstance(mark, str)}
    if not words or not is_frame(x):
        return x
    columns: dict[int, np.ndarray] = {}
    for place in range(len(x.columns)):
        cells = _cells(x, place).astype(object)
        found = np.array([isinstance(cell, str) and cell.strip() in words for cell in cells.tolist()])
        if found.any():
            columns[place] = np.where(found, np.array(None), cells)
    return _with_columns(x, columns)


def checked_marks(marks: Any) -> Sequence[Real | str]:
    """Check the field `missing`.

    Args:
        marks: Marks of missing cells, or None.

    Returns:
        The marks, none for None.

    Raises:
        ValueError: If they are not numbers and words.
    """
    given = marks or ()
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(isinstance(m, Real | str) for m in given):
        raise ValueError(f"missing must be numbers and words such as (-999, 'unknown'); got {marks!r}")
    return given


def code_frame(frame: Any, types: Types, *, warned: bool = True) -> Any:
    """Return a frame with numbers in the place of categories and dates.

    Args:
        frame: Frame of pandas or polars.
        types: Types by names.
        warned: Whether to warn of levels that a fit has not seen.

    Returns:
        A frame of the same library, NaN where a cell is missing; the same one where nothing is to be done.

    Raises:
        ValueError: If a cell is no date.
    """
    columns: dict[int, np.ndarray] = {}
    for place, name in enumerate(map(str, frame.columns)):
        kind = types.get((name,))
        cells = _other_cells(frame, place)
        if cells is None or not isinstance(kind, (Category, Dated)):
            continue
        columns[place] = _coded(name, kind, cells, warned=warned)
    return _with_columns(frame, columns)


def presented(draws: np.ndarray, names: Sequence[str], types: Types) -> Any:
    """Return draws as a user holds the data.

    Args:
        draws: Draws, shape (n, d).
        names: Names of the columns.
        types: Types by names.

    Returns:
        A frame of pandas where a column is of texts or of dates, else the draws.
    """
    if not any(isinstance(kind, Dated) or (isinstance(kind, Category) and kind.is_text) for kind in types.values()):
        return draws
    cells = cells_of(types)
    named = zip(names, draws.T, strict=True)
    return frame_of({name: cells[name](column) if name in cells else column for name, column in named})


def _with_columns(frame: Any, columns: Mapping[int, np.ndarray]) -> Any:
    """Return a frame with other cells in some columns, by their places; the same one where there are none."""
    if not columns:
        return frame
    every = {name: columns.get(place, _cells(frame, place)) for place, name in enumerate(frame.columns)}
    return type(frame)(every, index=frame.index) if hasattr(frame, "index") else type(frame)(every)


def _coded(name: str, kind: Category | Dated, cells: np.ndarray, *, warned: bool) -> np.ndarray:
    """Return what an array holds for the cells of a category, or for dates."""
    if isinstance(kind, Dated):
        return dates_as_numbers(name, kind, cells)
    if kind.is_numeric:
        return _numbers(cells)
    codes = kind.codes(cells)
    if warned:
        warn_of_unknown(name, codes, cells)
    return codes


def _dtype(frame: Any, place: int) -> str:
    """Return the type of a column, as its library writes it."""
    types = getattr(frame, "dtypes", None)
    return "" if types is None else str(list(types)[place]).partition("(")[0]


def _cells(frame: Any, place: int) -> np.ndarray:
    return np.asarray(take_columns(frame, [place]).to_numpy()).ravel()


def _other_cells(frame: Any, place: int) -> np.ndarray | None:
    """Return the cells of a column; None where they are plain numbers."""
    types = getattr(frame, "dtypes", None)
    if types is not None and getattr(list(types)[place], "kind", "O") in "iuf":
        return None
    cells, categorical = _cells(frame, place), _dtype(frame, place) in ("category", "Categorical", "Enum")
    if cells.dtype.kind == "M" or cells.dtype.kind == "b":
        return cells if cells.dtype.kind == "M" else cells.astype(object)
    if cells.dtype.kind in "iuf":
        return cells.astype(object) if categorical else None
    cells = cells.astype(object)
    return None if all(map(is_number, cells.tolist())) and not categorical else cells


def _numbers(cells: np.ndarray) -> np.ndarray:
    """Return the numbers among cells of a frame; texts are none, even if they could be read as one."""
    values = [float(cell) if is_number(cell) and not is_missing(cell) else np.nan for cell in cells.tolist()]
    return np.array(values, np.float64)
