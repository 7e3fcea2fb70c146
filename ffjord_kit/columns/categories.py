"""Types of columns that hold no plain numbers: categories, and dates.

In an array of a table, a text or a truth value is given by its place among the levels, from 0 on, a number among the
levels as it is, and a date by its days since 1970-01-01.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timezone
from numbers import Real as Number
from typing import Any, ClassVar

import numpy as np

from ffjord_kit.columns.base import ColumnType, warn, written

MOST_LEVELS = 100  # of all categories of a table together
LEVELS_SHOWN = 5  # in messages
TRUTHS = frozenset({"true", "false"})
SECONDS, MICROSECONDS = 86_400, 86_400 * 10**6  # of a day
UTC = timezone.utc

Level = str | bool | float


@dataclass(frozen=True)
class Category(ColumnType):
    """Texts, truth values or numbers that stand for groups; the density is a probability of each of these levels.

    In an array of numbers, texts are given by their places among the levels, from 0 on; numbers are given as they are.

    Args:
        levels: The levels, all texts, all truth values, or all numbers; None for those that the rows have, sorted.

    Raises:
        ValueError: If the levels are fewer than 2, too many, of several kinds, or one is there twice.

    Example:
        >>> city = Category(["Oslo", "Rome"])
        >>> str(city), city.codes(np.array(["Rome", "Bern"], dtype=object)).tolist()
        ('category:["Oslo", "Rome"]', [1.0, -1.0])
        >>> Category([1, 5]).codes(np.array([5.0, 1.0, 2.0])).tolist()
        [1.0, 0.0, -1.0]
    """

    word: ClassVar[str] = "category"

    levels: tuple[Level, ...] | None = None

    def __post_init__(self) -> None:
        if self.levels is None:
            return
        levels = tuple(_level(each) for each in self.levels)
        kinds = {type(each) for each in levels}
        if len(kinds) > 1 or not 2 <= len(set(levels)) == len(levels) <= MOST_LEVELS:
            raise ValueError(
                f"a category has 2 to {MOST_LEVELS} different levels, all texts, all truth values or all numbers; got "
                f"{self.levels!r:.80}"
            )
        object.__setattr__(self, "levels", levels)

    @property
    def unit(self) -> str:
        return "level"

    @property
    def size(self) -> int:
        """Number of levels, once they are settled."""
        return len(self.levels or ())

    @property
    def is_text(self) -> bool:
        """Whether the levels are texts."""
        return isinstance((self.levels or (0.0,))[0], str)

    @property
    def is_numeric(self) -> bool:
        """Whether the levels are numbers, so that an array holds these themselves."""
        return self.levels is None or isinstance(self.levels[0], float)

    def settled(self, values: np.ndarray, name: str) -> ColumnType:
        levels = self.levels or tuple(float(value) for value in np.unique(values))
        check_level_count(len(levels), len(values), name)
        found = Category(levels)
        counts = np.bincount(found.codes(values).astype(np.int64) + 1, minlength=len(levels) + 1)
        if counts[0]:
            raise ValueError(
                f"column {name!r} has {counts[0]} of {len(values)} values that are not among its levels, "
                f"{_listed(levels)}: name all of them, or leave them open"
            )
        kept = [level for level, count in zip(levels, counts[1:], strict=True) if count or self.levels]
        single = [level for level, count in zip(levels, counts[1:], strict=True) if count == 1]
        if single:
            warn(
                f"column {name!r} has levels with a single row ({_listed(single)}): nothing is learnt of the other "
                "columns there; put rare levels together"
            )
        return Category(tuple(kept))

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Return the places of values among the levels.

        Args:
            values: Cells of any kind, or numbers as an array of a table holds them, shape (n,).

        Returns:
            Places from 0 on, -1 for what is no level and nan for what is missing, in float64, shape (n,).
        """
        levels = self.levels or ()
        if values.dtype.kind not in "OSU":
            numbers = values.astype(np.float64)
            if not self.is_numeric:
                return np.where((numbers >= 0) & (numbers < len(levels)) & (numbers % 1 == 0), numbers, -1.0)
            known = {level: float(place) for place, level in enumerate(levels)}
            return np.array([known.get(value, -1.0) for value in numbers.tolist()], np.float64)
        places = {_text(level): float(place) for place, level in enumerate(levels)}
        return np.array([_place(cell, places) for cell in values.tolist()], np.float64)

    def numbers(self, codes: np.ndarray) -> np.ndarray:
        """Return what an array of the table holds in the place of codes.

        Args:
            codes: Places among the levels, shape (n,).

        Returns:
            Numbers, shape (n,).
        """
        return np.array(self.levels, np.float64)[codes.astype(np.int64)] if self.is_numeric else codes

    def cells(self, numbers: np.ndarray) -> np.ndarray:
        """Return the levels that an array of the table stands for.

        Args:
            numbers: Numbers as an array of the table holds them, all of them levels or NaN, shape (n,).

        Returns:
            Texts, truth values or numbers, shape (n,); None where a text or a truth value is missing.
        """
        if self.is_numeric:
            return numbers
        missing = np.isnan(numbers)
        levels: np.ndarray = np.array(self.levels, dtype=object if self.is_text or missing.any() else np.bool_)
        cells = levels[np.where(missing, 0, numbers).astype(np.int64)]
        if missing.any():
            cells[missing] = None
        return cells

    def __str__(self) -> str:
        """Return the type as config.json holds it, with its levels as a list of JSON."""
        return self.word if self.levels is None else f"{self.word}:{json.dumps(self.levels, ensure_ascii=False)}"


@dataclass(frozen=True)
class Dated(ColumnType):
    """A type of dates and times, in whose place an array of the table holds numbers."""

    @abstractmethod
    def numbers(self, values: np.ndarray) -> np.ndarray:
        """Return the numbers of dates.

        Args:
            values: Dates and times: objects, texts in ISO form, an array of NumPy's, or numbers already, shape (n,).

        Returns:
            Numbers, nan where a date is missing, shape (n,).

        Raises:
            ValueError: If a text is no date.
        """

    @abstractmethod
    def cells(self, numbers: np.ndarray) -> np.ndarray:
        """Return the dates of numbers; with times, to the second, where numbers are broken.

        Args:
            numbers: Numbers, NaN where a date is missing, shape (n,).

        Returns:
            Dates as a table shows them, shape (n,).
        """

    def are_whole(self, numbers: np.ndarray) -> bool:
        """Say whether all numbers are whole, so that dates are without times.

        Args:
            numbers: Numbers, NaN where a date is missing, shape (n,).

        Returns:
            True if they are.
        """
        return bool((np.isnan(numbers) | (numbers == np.round(numbers))).all())


@dataclass(frozen=True)
class Date(Dated):
    """Dates and times: numbers of days since 1970-01-01, UTC, in an array.

    Example:
        >>> Date().numbers(np.array(["1970-01-02", "1970-01-03T12:00"], dtype=object)).tolist()
        [1.0, 2.5]
        >>> Date().cells(np.array([1.0, 2.0])).astype(str).tolist()
        ['1970-01-02', '1970-01-03']
    """

    word: ClassVar[str] = "date"

    @property
    def unit(self) -> str:
        return "day"

    def numbers(self, values: np.ndarray) -> np.ndarray:
        if values.dtype.kind in "biuf":
            return values.astype(np.float64)
        if values.dtype.kind == "O":
            values = np.array([_moment(cell) for cell in values.tolist()], dtype="datetime64[us]")
        moments = values.astype("datetime64[us]")
        days = moments.astype(np.int64) / MICROSECONDS
        return np.where(np.isnat(moments), np.nan, days)

    def cells(self, numbers: np.ndarray) -> np.ndarray:
        unit, per_day = ("D", 1) if self.are_whole(numbers) else ("s", SECONDS)
        moments = np.round(np.nan_to_num(numbers) * per_day).astype(np.int64).astype(f"datetime64[{unit}]")
        moments[np.isnan(numbers)] = np.datetime64("NaT")
        return moments


def check_level_count(count: int, rows: int, name: str) -> None:
    """Refuse a category with one level, or with too many.

    Args:
        count: Number of its levels.
        rows: Number of rows.
        name: Name of the column.

    Raises:
        ValueError: If it has.
    """
    if count < 2:
        raise ValueError(f"column {name!r} is a category with one level in all rows: drop it, as it says nothing")
    if count > MOST_LEVELS:
        raise ValueError(
            f"column {name!r} is a category of {count} levels in {rows} rows, more than {MOST_LEVELS}: drop it, or put "
            "rare levels together"
        )


def _level(value: Any) -> Level:
    """Return a level as one of Python's own kinds."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, Number):
        return float(value)
    if isinstance(value, str):
        return str(value)
    raise ValueError(f"a level is a text, a truth value or a number; got {value!r:.40}")


def _text(level: Any) -> str:
    """Return how a level is written: texts without white space around them, truth values as 'true' and 'false'."""
    if isinstance(level, (bool, np.bool_)):
        return str(bool(level)).lower()
    return level.strip() if isinstance(level, str) else written(level)


def _place(cell: Any, places: Mapping[str, float]) -> float:
    """Return the place of a cell's level; -1 for no level, nan for no cell."""
    if cell is None or cell != cell or str(cell) in ("<NA>", "NaT"):
        return math.nan
    text = _text(cell) if isinstance(cell, (str, bool, np.bool_, Number)) else str(cell)
    return places.get(text, places.get(text.lower(), -1.0) if set(places) <= TRUTHS else -1.0)


def _moment(cell: Any) -> np.datetime64:
    """Return a date or time without its zone, in UTC."""
    if isinstance(cell, str):
        return np.datetime64(cell.strip().removesuffix("Z"), "us")
    if cell is None or cell != cell or str(cell) in ("<NA>", "NaT"):
        return np.datetime64("NaT", "us")
    if getattr(cell, "tzinfo", None) is not None:
        cell = cell.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(cell, "us")


def _listed(levels: Sequence[Level]) -> str:
    more = f" and {len(levels) - LEVELS_SHOWN} more" if len(levels) > LEVELS_SHOWN else ""
    return ", ".join(repr(level) if isinstance(level, str) else _text(level) for level in levels[:LEVELS_SHOWN]) + more
