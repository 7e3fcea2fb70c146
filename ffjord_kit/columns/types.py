r"""Types of columns, by name: where the values of a column live, and so what its density is one of.

    real               any number                                       nats per unit of the column
    positive           above 0                                          nats per unit of the column
    bounded:LOW:HIGH   from LOW to HIGH                                 nats per unit of the column
    integer            whole numbers, from 0 on where none is negative  log-probability of a number
    circle:PERIOD      angles, the same again after each PERIOD         nats per unit of the column
    sphere:UNIT        a pair, longitude and latitude in deg or rad     nats per steradian
    category           levels: texts, truth values or numbers           log-probability of a level
    date               dates and times, as days since 1970-01-01        nats per day
    season:CYCLE       dates by their place in the year, week or day    nats per day, or per hour of the day

A type is a word with numbers, on the command line and in config.json, or an object of a class below, in Python. What a
type leaves open, e.g. whether angles are given from 0 or from minus half a period on, is settled by the rows of a fit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ffjord_kit.columns.base import Bounds, ColumnType, all_finite, warn, written
from ffjord_kit.columns.categories import Category, Date
from ffjord_kit.columns.circles import FEW_ROWS, TURN, Circle, Season, start_of, wrapped

STRIP = 1e-3  # of the range of a bounded column, into which values at a closed end are moved
FORMS = (
    "real, positive, bounded:LOW:HIGH, integer[:LOW[:HIGH]], circle:PERIOD, sphere:deg, sphere:rad, category, date, "
    "season:year, season:week or season:day"
)
NAMED = 4  # columns without a type that the units list by name

Types = dict[tuple[str, ...], "ColumnType"]


@dataclass(frozen=True)
class Real(ColumnType):
    """Any number.

    Example:
        >>> str(Real())
        'real'
    """

    word: ClassVar[str] = "real"

    @property
    def unit(self) -> str:
        return "unit"


@dataclass(frozen=True)
class Positive(ColumnType):
    """Numbers above 0.

    Example:
        >>> Positive().bounds
        (0.0, inf)
    """

    word: ClassVar[str] = "positive"

    @property
    def bounds(self) -> Bounds:
        return 0.0, math.inf

    @property
    def unit(self) -> str:
        return "unit"


@dataclass(frozen=True)
class Bounded(ColumnType):
    """Numbers from one bound to another; values at a bound itself are moved into the outermost thousandth of the range.

    Args:
        low: Lower bound.
        high: Upper bound.

    Raises:
        ValueError: If the lower bound is not below the upper one, or one is not finite.

    Example:
        >>> share = Bounded(0, 1)
        >>> str(share), share.inside(np.array([0.0, 0.5])).tolist()
        ('bounded:0:1', [0.0005, 0.5])
    """

    word: ClassVar[str] = "bounded"

    low: float
    high: float

    def __post_init__(self) -> None:
        if not all_finite(self.low, self.high) or not self.low < self.high:
            raise ValueError(f"a bounded column needs finite bounds LOW < HIGH; got {self.low!r} and {self.high!r}")

    @property
    def bounds(self) -> Bounds:
        return float(self.low), float(self.high)

    @property
    def unit(self) -> str:
        return "unit"

    @property
    def strip(self) -> float:
        """Width of the strip at each end into which values at the end are moved."""
        return STRIP * (self.high - self.low)

    def settled(self, values: np.ndarray, name: str) -> ColumnType:
        at_ends = int(np.sum((values == self.low) | (values == self.high)))
        if at_ends:
            warn(
                f"column {name!r} has {at_ends} of {len(values)} rows at {written(self.low)} or "
                f"{written(self.high)} itself: they are spread over the outermost {self.strip:g}, as a density has "
                "no room for them at one value"
            )
        return self

    def inside(self, values: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Move values at an end, or in the middle of its strip, to a random place in this strip.

        Args:
            values: Values, shape (n,).
            rng: Source of the places; None for the middle.

        Returns:
            Values, shape (n,); the same array where none is at an end.
        """
        low, high, strip = self.low, self.high, self.strip
        below = (values == low) | (values == low + strip / 2)
        above = (values == high) | (values == high - strip / 2)
        if not (below.any() or above.any()):
            return values
        share = np.full(len(values), 0.5) if rng is None else rng.uniform(1e-6, 1.0, len(values))
        return np.where(below, low + strip * share, np.where(above, high - strip * share, values))


@dataclass(frozen=True)
class Integer(ColumnType):
    """Whole numbers, which get noise as wide as a step; draws are whole, and within the bounds.

    Args:
        low: Least number; None for 0 where no row is negative, else none.
        high: Largest number; None for none.

    Raises:
        ValueError: If a bound is no whole number, or the lower one is not below the upper one.

    Example:
        >>> Integer(0, 10).bounds
        (-0.5, 10.5)
        >>> str(Integer().settled(np.array([0.0, 3.0]), "kids"))
        'integer:0'
    """

    word: ClassVar[str] = "integer"

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        given = [bound for bound in (self.low, self.high) if bound is not None]
        whole = all_finite(*given) and all(float(bound).is_integer() for bound in given)
        if not whole or (self.low is None and self.high is not None) or sorted(set(given)) != given:
            raise ValueError(
                f"a column of integers has no bounds, a lower one, or both, whole numbers LOW < HIGH; "
                f"got {self.low!r} and {self.high!r}"
            )

    @property
    def bounds(self) -> Bounds:
        low = -math.inf if self.low is None else self.low - 0.5
        return low, math.inf if self.high is None else self.high + 0.5

    @property
    def unit(self) -> str:
        return "whole number"

    def settled(self, values: np.ndarray, name: str) -> ColumnType:
        fractions = np.flatnonzero(values != np.round(values))
        if len(fractions):
            raise ValueError(
                f"column {name!r} has {len(fractions)} of {len(values)} values that are no whole numbers (first: row "
                f"{fractions[0]}, {values[fractions[0]]:g}): give it another type ({FORMS})"
            )
        return Integer(0) if self.low is None and values.min() >= 0 else self


@dataclass(frozen=True)
class Sphere(ColumnType):
    """A pair of columns, longitude (or right ascension) and latitude (or declination).

    Args:
        unit_of_angles: "deg" or "rad".
        start: Least longitude of draws; None for 0, or minus half a turn where rows have negative ones.

    Raises:
        ValueError: If the unit is another one.

    Example:
        >>> sky = Sphere("deg", 0)
        >>> points = sky.to_points(np.array([[350.0, 30.0]]))
        >>> points.round(3).tolist(), sky.to_angles(points).round(6).tolist()
        ([[0.853, -0.15, 0.5]], [[350.0, 30.0]])
    """

    word: ClassVar[str] = "sphere"
    width: ClassVar[int] = 2

    unit_of_angles: str
    start: float | None = None

    def __post_init__(self) -> None:
        if self.unit_of_angles not in TURN or not all_finite(self.start or 0.0):
            raise ValueError(f"a sphere needs the unit of its angles, 'deg' or 'rad'; got {self.unit_of_angles!r}")

    @property
    def unit(self) -> str:
        return "steradian"

    @property
    def turn(self) -> float:
        """A full turn in the unit."""
        return TURN[self.unit_of_angles]

    def settled(self, values: np.ndarray, name: str) -> ColumnType:
        self.check(values, name)
        longitude, latitude = np.abs(values).max(axis=0)
        in_radians = longitude <= TURN["rad"] and latitude <= math.pi / 2 and len(values) > FEW_ROWS
        if self.unit_of_angles == "deg" and in_radians:
            warn(f"columns {name} lie within 2 pi and pi / 2: if these are radians, their type is sphere:rad")
        return self if self.start is not None else Sphere(self.unit_of_angles, start_of(values[:, 0], self.turn))

    def check(self, values: np.ndarray, name: str) -> None:
        """Refuse latitudes beyond the poles, and degrees that are passed as radians.

        Args:
            values: Longitudes and latitudes, shape (n, 2).
            name: Names of the columns, for the message.

        Raises:
            ValueError: If there are any.
        """
        beyond = np.abs(values[:, 1]) > self.turn / 4 * (1 + 1e-9)
        far = np.abs(values[:, 0]) > self.turn * (1 + 1e-9)
        wrong = np.flatnonzero(beyond | (far if self.unit_of_angles == "rad" else False))
        if len(wrong):
            hint = ": these look like degrees, type sphere:deg" if self.unit_of_angles == "rad" else ""
            raise ValueError(
                f"columns {name} must be longitude and latitude in {self.unit_of_angles}, the latter within "
                f"{self.turn / 4:g} (first of {len(wrong)} other rows: row {wrong[0]}, {values[wrong[0], 0]:g} and "
                f"{values[wrong[0], 1]:g}){hint or ': are the two columns in this order?'}"
            )

    def to_points(self, angles: np.ndarray) -> np.ndarray:
        """Return the points of the unit sphere.

        Args:
            angles: Longitudes and latitudes, shape (n, 2).

        Returns:
            Points, shape (n, 3).
        """
        longitude, latitude = np.moveaxis(angles * (2 * math.pi / self.turn), -1, 0)
        across = np.cos(latitude)
        return np.stack([across * np.cos(longitude), across * np.sin(longitude), np.sin(latitude)], axis=-1)

    def to_angles(self, points: np.ndarray) -> np.ndarray:
        """Return longitudes and latitudes of points of any length.

        Args:
            points: Points, shape (..., 3).

        Returns:
            Longitudes, from `start` on, and latitudes, shape (..., 2).
        """
        x, y, z = np.moveaxis(points, -1, 0)
        scale = self.turn / (2 * math.pi)
        longitude = wrapped(np.arctan2(y, x) * scale, self.start or 0.0, self.turn)
        return np.stack([longitude, np.arctan2(z, np.hypot(x, y)) * scale], axis=-1)


def parse_type(text: str) -> ColumnType:
    """Read a type as the command line writes it.

    Args:
        text: A word with numbers, e.g. "bounded:0:1"; the period of a circle may be deg or rad.

    Returns:
        The type.

    Raises:
        ValueError: If the text cannot be read; the message lists the types.

    Example:
        >>> parse_type("integer"), parse_type("sphere:deg")
        (Integer(low=None, high=None), Sphere(unit_of_angles='deg', start=None))
    """
    word, *parts = (part.strip() for part in text.split(":"))
    if word == Category.word:
        return _parse_category(text)
    kind = TYPES.get(word)
    if kind is None:
        raise ValueError(f"expected a type, one of {FORMS}; got {text!r}")
    try:
        return kind(*_arguments(kind, parts))
    except (TypeError, ValueError) as error:
        reason = f": {error}" if type(error) is ValueError and "could not convert" not in str(error) else ""
        raise ValueError(f"expected a type, one of {FORMS}; got {text!r}{reason}") from None


def read_types(columns: Any, names: Sequence[str] | None = None) -> Types:
    """Read the types of columns.

    Args:
        columns: Types by name, or by a pair of names, (a, b) or "a+b"; a type is an object or a text. None for none.
        names: Names of all columns; None where they are not known yet.

    Returns:
        Types by their names.

    Raises:
        ValueError: If a type cannot be read, or a column is not there or has two types; the message names the column.

    Example:
        >>> read_types({"phi": "circle:360", ("ra", "dec"): Sphere("deg")}, ["phi", "ra", "dec"])[("ra", "dec")]
        Sphere(unit_of_angles='deg', start=None)
    """
    if columns is None:
        return {}
    if not isinstance(columns, Mapping):
        raise ValueError(f"columns must be types by name, e.g. {{'kids': Integer()}} ({FORMS}); got {columns!r}")
    types: Types = {}
    for key, value in columns.items():
        kind = _read_type(key, value)
        own = _names_of_key(key, kind, names)
        repeated = [name for known in types for name in known if name in own]
        if repeated or len(set(own)) < len(own):
            raise ValueError(f"columns gives column {(repeated or own)[0]!r} two types: give it one")
        types[own] = kind
    return types


def types_as_text(columns: Any) -> dict[str, str] | None:
    """Return the types of columns as config.json holds them.

    Args:
        columns: The field `columns`, or types by tuples of names.

    Returns:
        Texts by name; names of a pair are joined by a plus.

    Example:
        >>> types_as_text({("ra", "dec"): Sphere("deg"), "kids": "integer"})
        {'ra+dec': 'sphere:deg', 'kids': 'integer'}
    """
    if columns is None:
        return None
    texts = {key if isinstance(key, str) else "+".join(map(str, key)): value for key, value in columns.items()}
    return {name: str(_read_type(name, value)) for name, value in texts.items()}


def units_of(types: Types, columns: Sequence[str]) -> str:
    """Return the units of a table's density, where its columns have types.

    Args:
        types: Types by names.
        columns: Names of all columns; those without a type are real.

    Returns:
        The text; empty without types.

    Example:
        >>> types = read_types({"ra+dec": "sphere:deg", "kids": "integer"})
        >>> units_of(types, ["ra", "dec", "kids", "mass", "age"])
        'per steradian of ra and dec, whole number of kids, unit of mass, unit of age'
    """
    if not types:
        return ""
    typed = {name for own in types for name in own}
    real = [name for name in columns if name not in typed]
    units = [f"{kind.unit} of {' and '.join(own)}" for own, kind in types.items()]
    each = [f"unit of {name}" for name in real] if len(real) <= NAMED else [f"unit of each of the {len(real)} others"]
    return f"per {', '.join([*units, *each])}"


def _parse_category(text: str) -> Category:
    """Read a category, without levels or with a list of them in JSON."""
    levels = text.partition(":")[2].strip()
    try:
        return Category(tuple(json.loads(levels)) if levels else None)
    except (TypeError, ValueError) as error:
        advice = 'expected category, or category:LEVELS with a list of JSON, e.g. category:["a", "b"]'
        raise ValueError(f"{advice}; got {text!r:.80} ({error})") from None


def _read_type(key: Any, value: Any) -> ColumnType:
    """Return the type of a column; the message of an error names it."""
    if isinstance(value, ColumnType):
        return value
    try:
        if not isinstance(value, str):
            raise ValueError(f"expected a type, one of {FORMS}; got {value!r}")
        return parse_type(value)
    except ValueError as error:
        raise ValueError(f"column {_shown(key)}: {error}") from None


def _names_of_key(key: Any, kind: ColumnType, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names that a key stands for: as many as the type is wide."""
    candidates = [tuple(map(str, key))] if not isinstance(key, str) else _splits(key, kind.width)
    known = [own for own in candidates if names is None or set(own) <= set(names)]
    found = next((own for own in known if len(own) == kind.width), None)
    if found is not None:
        return found
    if any(len(own) != kind.width for own in candidates) or not candidates:
        wanted = "a pair of columns, longitude and latitude, e.g. ra+dec" if kind.width == 2 else "one column"
        raise ValueError(f"column {_shown(key)}: {kind.word} is a type of {wanted}; got {_shown(key)}")
    missing = [name for name in candidates[0] if name not in set(names or ())]
    there = ", ".join(list(names or ())[:10]) + (", ..." if len(names or ()) > 10 else "")
    raise ValueError(f"columns names a column {missing[0]!r} that is not there; there are {there}")


def _splits(key: str, width: int) -> list[tuple[str, ...]]:
    """Return the ways to read a text as so many names; a name may hold a plus itself."""
    if width == 1:
        return [(key,)]
    parts = key.split("+")
    return [("+".join(parts[:i]).strip(), "+".join(parts[i:]).strip()) for i in range(1, len(parts))]


def _arguments(kind: type[ColumnType], parts: Sequence[str]) -> list[Any]:
    """Return the arguments of a type: numbers, but for the unit of a sphere, and a turn in a unit."""
    if kind is Sphere:
        return [*parts[:1], *map(float, parts[1:])]
    if kind is Season:
        return list(parts)
    if kind is Circle and parts and parts[0] in TURN:
        return [TURN[parts[0]], *map(float, parts[1:])]
    return [float(part) for part in parts]


def _shown(key: Any) -> str:
    return repr(key if isinstance(key, str) else "+".join(map(str, key)))


TYPES: dict[str, type[ColumnType]] = {
    kind.word: kind for kind in (Real, Positive, Bounded, Integer, Circle, Sphere, Category, Date, Season)
}
