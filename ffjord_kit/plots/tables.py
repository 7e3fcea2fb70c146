"""Tables as pictures take them: columns with their types, and what belongs together in one panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ffjord_kit.columns.base import ColumnType, written
from ffjord_kit.columns.categories import Category, Date, Dated, Level
from ffjord_kit.columns.types import Bounded, Circle, Integer, Real, Sphere, read_types
from ffjord_kit.plots.arrays import Edge, checked_array, robust_bounds

FEW_NUMBERS = 16  # whole numbers from the least to the greatest that are drawn as bars
MOST_LEVELS = 12  # of a category that have a bar of their own
MARGIN = 0.15  # of a panel's axis beyond nearly all values


@dataclass(frozen=True)
class Column:
    """A column in a picture: the values of the data and of the draws, and its axis.

    Attributes:
        name: Its name.
        kind: Its type.
        x: Values of the data, or places of their bars, shape (n,).
        sampled: Those of the draws, shape (m,).
        levels: Names of the bars; none of a column that is drawn as a histogram.
        limits: Ends of its axis.
        edges: What lies beyond both ends, for smoothing.
    """

    name: str
    kind: ColumnType
    x: NDArray
    sampled: NDArray
    levels: tuple[str, ...]
    limits: tuple[float, float]
    edges: tuple[Edge, Edge]

    @classmethod
    def of(cls, name: str, kind: ColumnType, x: NDArray, sampled: NDArray) -> Column:
        """Choose the picture of a column: bars of categories and of a few whole numbers, else a histogram.

        Args:
            name: Its name.
            kind: Its type, with nothing left open.
            x: Values of the data, as an array of the table holds them, shape (n,).
            sampled: Those of the draws, shape (m,).

        Returns:
            The column.

        Example:
            >>> kids = Column.of("kids", Integer(), np.array([0.0, 2.0, 2.0]), np.array([1.0]))
            >>> kids.levels, kids.x.tolist()
            (('0', '1', '2'), [0.0, 2.0, 2.0])
        """
        if isinstance(kind, Category):
            return cls._of_bars(name, kind, *_common_levels(kind, x, sampled))
        if isinstance(kind, (Real, Integer)) and _few_numbers(x, sampled):
            least, greatest = int(min(x.min(), sampled.min())), int(max(x.max(), sampled.max()))
            names = tuple(str(number) for number in range(least, greatest + 1))
            return cls._of_bars(name, kind, names, x - least, sampled - least)
        if isinstance(kind, Circle):
            start = kind.start or 0.0
            return cls(name, kind, kind.wrap(x), kind.wrap(sampled), (), (start, start + kind.period), ("wrap", "wrap"))
        limits, edges = limits_within(x, kind.bounds)
        return cls(name, kind, x, sampled, (), limits, edges)

    @classmethod
    def _of_bars(cls, name: str, kind: ColumnType, levels: tuple[str, ...], x: NDArray, sampled: NDArray) -> Column:
        return cls(name, kind, x, sampled, levels, (-0.5, len(levels) - 0.5), ("constant", "constant"))

    @property
    def shares(self) -> tuple[NDArray, NDArray]:
        """Shares of the bars in the data and in the draws, each of shape (levels,)."""
        count = len(self.levels)
        x, sampled = (np.bincount(part.astype(int), minlength=count) / len(part) for part in (self.x, self.sampled))
        return x, sampled


class Table(NamedTuple):
    """Data and draws of a table.

    Attributes:
        names: Names of the columns.
        kinds: Types of the columns, longitude and latitude of a sphere each by its own.
        spheres: Spheres by the places of their two columns.
        x: Data, shape (n, d); a category is held by its places or numbers.
        sampled: Draws, shape (m, d).
    """

    names: list[str]
    kinds: list[ColumnType]
    spheres: dict[tuple[int, int], Sphere]
    x: NDArray
    sampled: NDArray

    def column(self, place: int) -> Column:
        """Return a column as a picture shows it.

        Args:
            place: Its place.

        Returns:
            The column.
        """
        return Column.of(self.names[place], self.kinds[place], self.x[:, place], self.sampled[:, place])


def read_table(x: Any, sampled: Any, columns: Sequence[str] | None, types: Mapping[Any, Any] | None) -> Table:
    """Read data and draws, and settle by the data what their types leave open.

    Args:
        x: Data: an array (n, d), or a frame.
        sampled: Draws of the same columns.
        columns: Names of the columns; None for those of the frame.
        types: Types of columns by names, as `FFJORD(columns=...)` takes them; texts, truth values and dates of a frame
            need none.

    Returns:
        The table.

    Raises:
        ValueError: If an array has another shape, a value is not finite, or names or types do not suit the columns.
    """
    names = _names(x, columns)
    given = read_types(types, names)
    kinds: list[ColumnType] = [given.get((name,)) or _kind_of_cells(x, place) for place, name in enumerate(names)]
    held, drawn = _numbers("x", x, kinds, "n"), _numbers("sampled", sampled, kinds, "m")
    places = {name: place for place, name in enumerate(names)}
    spheres: dict[tuple[int, int], Sphere] = {}
    for own, kind in given.items():
        where = [places[name] for name in own]
        settled = _settled(kind, held[:, where] if len(where) > 1 else held[:, where[0]], " and ".join(own))
        if isinstance(settled, Sphere):
            spheres[where[0], where[1]] = settled
            kinds[where[0]] = Circle(settled.turn, settled.start)
            kinds[where[1]] = Bounded(-settled.turn / 4, settled.turn / 4)
        else:
            kinds[where[0]] = settled
    return Table(names, kinds, spheres, held, drawn)


def limits_within(
    x: NDArray, bounds: tuple[float, float], margin: float = MARGIN
) -> tuple[tuple[float, float], tuple[Edge, Edge]]:
    """Return limits that hold nearly all values and stay within the support.

    Args:
        x: Values, shape (n,).
        bounds: Support, infinite where it is open.
        margin: Width added at each end, as a fraction of the span.

    Returns:
        Limits, and what lies beyond each: the mirror image at an end of the support.

    Example:
        >>> limits_within(np.array([0.1, 1.1]), (0.0, np.inf), margin=0.5)[1]
        ('symmetric', 'constant')
    """
    low, high = robust_bounds(np.stack([x, x], axis=1), margin=margin)[0]
    edges: tuple[Edge, Edge] = (
        "symmetric" if low <= bounds[0] else "constant", "symmetric" if high >= bounds[1] else "constant",
    )  # fmt: skip
    return (max(low, bounds[0]), min(high, bounds[1])), edges


def _names(x: Any, columns: Sequence[str] | None) -> list[str]:
    """Return the names of the columns of data."""
    of_frame = getattr(x, "columns", None)
    count = len(of_frame) if of_frame is not None else np.shape(x)[1] if len(np.shape(x)) == 2 else 0
    names = [str(name) for name in (of_frame if columns is None and of_frame is not None else columns or ())]
    if of_frame is None and columns is None:
        names = [f"x{place}" for place in range(count)]
    if count and len(names) != count:
        raise ValueError(f"columns must be {count} names; got {len(names)}")
    return names


def _cells(x: Any, place: int) -> NDArray:
    """Return the cells of a column of a frame."""
    return np.asarray(x[list(x.columns)[place]])


def _kind_of_cells(x: Any, place: int) -> ColumnType:
    """Return the type of a column that has none: a category or dates where its cells are no numbers."""
    if getattr(x, "columns", None) is None:
        return Real()
    cells = _cells(x, place)
    if cells.dtype.kind == "M":
        return Date()
    if cells.dtype.kind not in "OSUb":
        return Real()
    levels: list[Level] = sorted({cell if isinstance(cell, bool) else str(cell) for cell in cells.tolist()})
    return Category(tuple(levels)) if len(levels) > 1 else Real()


def _numbers(title: str, x: Any, kinds: Sequence[ColumnType], count: str) -> NDArray:
    """Return rows as an array of numbers; a category by its places or numbers, a date by its days."""
    if getattr(x, "columns", None) is not None:
        x = np.stack([_coded(_cells(x, place), kind) for place, kind in enumerate(kinds)], axis=1)
    return checked_array(title, x, (count, len(kinds) or "d"))


def _coded(cells: NDArray, kind: ColumnType) -> NDArray:
    """Return what an array of the table holds for the cells of a frame."""
    if isinstance(kind, Dated):
        return kind.numbers(cells)
    if isinstance(kind, Category) and not kind.is_numeric:
        return kind.codes(cells)
    return cells.astype(float)


def _settled(kind: ColumnType, values: NDArray, name: str) -> ColumnType:
    """Settle a type by the data, where it leaves something open."""
    if kind == Category():
        return Category(tuple(np.unique(values).tolist()))
    is_open = isinstance(kind, (Circle, Sphere)) and kind.start is None
    return kind.settled(values, name) if is_open else kind


def _few_numbers(x: NDArray, sampled: NDArray) -> bool:
    """Say whether all values are whole numbers, and few."""
    both = np.concatenate([x, sampled])
    return float(np.ptp(both)) < FEW_NUMBERS and bool(np.all(both == np.round(both)))


def _common_levels(kind: Category, x: NDArray, sampled: NDArray) -> tuple[tuple[str, ...], NDArray, NDArray]:
    """Return the levels that have a bar, the most frequent ones of the data, and the places of both among them."""
    names = [_written(level) for level in kind.levels or ()]
    codes, drawn = (kind.codes(values).astype(int) for values in (x, sampled))
    if (codes < 0).any() or (drawn < 0).any():
        raise ValueError(f"values must be levels of the category, {', '.join(names[:5])}; got others")
    if len(names) <= MOST_LEVELS:
        return tuple(names), codes.astype(float), drawn.astype(float)
    counts = np.bincount(codes, minlength=len(names))
    kept = np.sort(np.argsort(-counts, kind="stable")[: MOST_LEVELS - 1])
    place = np.full(len(names), float(len(kept)))
    place[kept] = np.arange(len(kept))
    return (*(names[i] for i in kept), f"{len(names) - len(kept)} others"), place[codes], place[drawn]


def _written(level: Level) -> str:
    if isinstance(level, bool):
        return str(level).lower()
    return level if isinstance(level, str) else written(level)
