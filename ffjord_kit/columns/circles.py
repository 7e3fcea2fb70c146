"""Types of columns that begin again after a period: angles, and the season of a date."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ffjord_kit.columns.base import ColumnType, all_finite, warn, written
from ffjord_kit.columns.categories import SECONDS, Date, Dated

TURN = {"deg": 360.0, "rad": 2 * math.pi}  # a full turn in each unit
FEW_ROWS = 10  # that say nothing of a unit
LEAP_DAY = 59  # days of a year before February 29
WEEK = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
FIRST_WEEKDAY = 3  # of 1970-01-01, a Thursday
TIME = r"([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d(?:\.\d+)?))?"


class Cycle(NamedTuple):
    """Period of a season.

    Attributes:
        days: Length in days.
        unit: Unit of the places in it.
        units: Number of these in a day.
        written: How draws are written.
    """

    days: int
    unit: str
    units: int
    written: re.Pattern[str]


CYCLES = {
    "year": Cycle(366, "day", 1, re.compile(rf"(\d\d-\d\d)(?: {TIME})?")),
    "week": Cycle(7, "day", 1, re.compile(rf"({'|'.join(WEEK)})(?: {TIME})?")),
    "day": Cycle(1, "hour", 24, re.compile(rf"(){TIME}")),
}


@dataclass(frozen=True)
class Circle(ColumnType):
    """Angles, hours of a day, or any other numbers that are the same again after a period.

    Args:
        period: The period, e.g. 360.
        start: Least of the numbers that draws have; None for 0, or minus half a period where rows are negative.

    Raises:
        ValueError: If the period is not positive.

    Example:
        >>> phi = Circle(360).settled(np.array([-170.0, 20.0]), "phi")
        >>> str(phi), phi.wrap(np.array([190.0])).tolist()
        ('circle:360:-180', [-170.0])
    """

    word: ClassVar[str] = "circle"

    period: float
    start: float | None = None

    def __post_init__(self) -> None:
        if not all_finite(self.period, self.start or 0.0) or not self.period > 0:
            raise ValueError(f"a circle needs a positive period, e.g. 360; got {self.period!r}")

    @property
    def unit(self) -> str:
        return "unit"

    def settled(self, values: np.ndarray, name: str) -> ColumnType:
        largest = float(np.abs(values).max())
        if largest > 2 * self.period:
            warn(
                f"column {name!r} goes to {largest:g}, many times around a circle of period {written(self.period)}: "
                "is the period in the unit of the column?"
            )
        elif self.period == TURN["deg"] and largest <= TURN["rad"] and len(values) > FEW_ROWS:
            warn(f"column {name!r} lies within 2 pi: if these are radians, its type is circle:{TURN['rad']!r}")
        return self if self.start is not None else Circle(self.period, start_of(values, self.period))

    def wrap(self, values: np.ndarray) -> np.ndarray:
        """Bring values into the range from `start` on.

        Args:
            values: Values of any shape.

        Returns:
            Values of the same angles, in [start, start + period).
        """
        return wrapped(values, self.start or 0.0, self.period)


@dataclass(frozen=True)
class Season(Circle, Dated):
    """Dates and times by their place in the year, in the week or in the day alone, which is a circle.

    In an array of numbers a year has its days from 0 on, February 29 among them, a week its days from Monday on, and a
    day its hours. Do not keep the same dates as numbers in another column: the season is then a function of it, and
    the table has no joint density.

    Args:
        cycle: "year", "week" or "day".

    Raises:
        ValueError: If the cycle is unknown.

    Example:
        >>> season = Season("year")
        >>> season.numbers(np.array(["2023-01-02", "2023-03-01", "2024-03-01"], dtype=object)).tolist()
        [1.0, 60.0, 60.0]
        >>> season.cells(np.array([60.0])).tolist()
        ['03-01']
    """

    word: ClassVar[str] = "season"

    period: float = field(init=False, repr=False)
    start: float | None = field(init=False, repr=False, default=0.0)
    cycle: str = "year"

    def __post_init__(self) -> None:
        if self.cycle not in CYCLES:
            raise ValueError(f"a season is that of a year, a week or a day, e.g. season:year; got {self.cycle!r}")
        object.__setattr__(self, "period", float(self._cycle.days * self._cycle.units))

    @property
    def unit(self) -> str:
        return self._cycle.unit

    def settled(self, values: np.ndarray, name: str) -> ColumnType:
        beyond = np.flatnonzero((values < 0) | (values >= self.period))
        if len(beyond):
            raise ValueError(
                f"column {name!r} has {len(beyond)} of {len(values)} numbers that are no {self._cycle.unit} of a "
                f"{self.cycle}, from 0 to below {self.period:g} (first: row {beyond[0]}, {values[beyond[0]]:g}): pass "
                "dates, or the type date"
            )
        return self

    def numbers(self, values: np.ndarray) -> np.ndarray:
        if values.dtype.kind in "biuf":
            return values.astype(np.float64)
        if values.dtype.kind != "O":
            return self._of_days(Date().numbers(values))
        own = np.array([self._read(cell) for cell in values.tolist()])
        others = np.where(np.isnan(own), values, np.array(None))
        return np.where(np.isnan(own), self._of_days(Date().numbers(others)), own)

    def cells(self, numbers: np.ndarray) -> np.ndarray:
        timed = not self.are_whole(numbers)
        texts = [None if number != number else self._text(number, timed=timed) for number in numbers.tolist()]
        return np.array(texts, dtype=object)

    def __str__(self) -> str:
        """Return the type as the command line writes it, e.g. 'season:year'."""
        return f"{self.word}:{self.cycle}"

    @property
    def _cycle(self) -> Cycle:
        return CYCLES[self.cycle]

    def _of_days(self, days: np.ndarray) -> np.ndarray:
        """Return the places of days since 1970-01-01, nan where one is missing."""
        if self.cycle == "day":
            return self._cycle.units * (days % 1)
        if self.cycle == "week":
            return (days + FIRST_WEEKDAY) % 7
        dates = np.floor(np.nan_to_num(days)).astype(np.int64).astype("datetime64[D]")
        years = dates.astype("datetime64[Y]")
        first, following = (year.astype("datetime64[D]").astype(np.int64) for year in (years, years + 1))
        place = days - first
        return place + ((following - first < 366) & (place >= LEAP_DAY))

    def _read(self, cell: Any) -> float:
        """Return the place that a text of `cells` says; nan for any other cell."""
        found = self._cycle.written.fullmatch(cell.strip()) if isinstance(cell, str) else None
        if found is None:
            return math.nan
        date, hours, minutes, seconds = found.groups()
        day = 0.0 if self.cycle == "day" else WEEK.index(date) if self.cycle == "week" else self._day_of_year(date)
        time = (int(hours or 0) + int(minutes or 0) / 60 + float(seconds or 0) / 3600) / 24
        return self._cycle.units * (day + time)

    def _day_of_year(self, date: str) -> float:
        """Return the place of a date such as 03-14."""
        return float(self._of_days(Date().numbers(np.array([f"2000-{date}"], dtype=object)))[0])

    def _text(self, number: float, *, timed: bool) -> str:
        """Write a place in the cycle, with the time to the second if asked."""
        day, seconds = divmod(round(number / self._cycle.units * SECONDS), SECONDS)
        day %= self._cycle.days
        time = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        if self.cycle == "day":
            return time
        date = WEEK[day] if self.cycle == "week" else str(np.datetime64("2000-01-01") + day)[5:]
        return f"{date} {time}" if timed else date


def start_of(values: np.ndarray, period: float) -> float:
    """Return where angles begin: at 0, or at minus half a period where values are negative.

    Args:
        values: Angles of any shape.
        period: The period.

    Returns:
        The least angle.
    """
    return -period / 2 if float(values.min()) < 0 else 0.0


def wrapped(values: np.ndarray, start: float, period: float) -> np.ndarray:
    """Bring angles into one period.

    Args:
        values: Angles of any shape.
        start: Least angle.
        period: The period.

    Returns:
        The same angles in [start, start + period).
    """
    within = start + np.mod(values - start, period)
    return np.where(within >= start + period, start, within)  # rounding may reach the end
