"""Rows of a table whose columns have types or a support: checked by them, and in the form that the flow has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from ffjord_kit.columns.types import Bounded, Circle, Sphere, Types, read_types
from ffjord_kit.geometry import Geometry

Bounds = tuple[tuple[float, float], ...]


def settled_types(columns: Any, x: np.ndarray, names: Sequence[str], found: Types | None = None) -> Types:
    """Read the types of a table's columns, check the rows by them, and settle what they leave open.

    Args:
        columns: The field `columns`.
        x: Rows, shape (n, d).
        names: Names of the columns.
        found: Types that the data showed, by names, which know the levels of texts.

    Returns:
        Types by names.

    Raises:
        ValueError: If a type cannot be read, or the rows are not of it.
    """
    types, places = {**read_types(columns, names), **(found or {})}, {name: i for i, name in enumerate(names)}
    settled: Types = {}
    for own, kind in types.items():
        values = x[:, [places[name] for name in own]]
        settled[own] = kind.settled(values if kind.width > 1 else values[:, 0], " and ".join(own))
    return settled


def geometry_of(types: Types, names: Sequence[str]) -> Geometry:
    """Return which elements of a row are angles, and which are points on a sphere.

    A point takes the places of its longitude and its latitude, and one more behind the columns.

    Args:
        types: Types by names.
        names: Names of the columns.

    Returns:
        The geometry of a row as the flow has it.
    """
    places = {name: i for i, name in enumerate(names)}
    pairs = [own for own, kind in types.items() if isinstance(kind, Sphere)]
    spheres = tuple((places[a], places[b], len(names) + i) for i, (a, b) in enumerate(pairs))
    circles = tuple(places[own[0]] for own, kind in types.items() if isinstance(kind, Circle))
    return Geometry(len(names) + len(pairs), circles, spheres)


def with_bounds_of_types(bounds: Bounds, types: Types, names: Sequence[str]) -> Bounds:
    """Return the bounds of the columns, those with a type of their own by this type.

    Args:
        bounds: Bounds of each column by the field `support`.
        types: Types by names.
        names: Names of the columns.

    Returns:
        Bounds of each column.
    """
    typed = {name: kind.bounds for own, kind in types.items() for name in own}
    return tuple(typed.get(name, pair) for name, pair in zip(names, bounds, strict=True))


def refuse_two_supports(support: Any, types: Types) -> None:
    """Refuse a column with a type and, by name, a support.

    Args:
        support: The field `support`.
        types: Types by names.

    Raises:
        ValueError: If there is one.
    """
    twice = [name for own in types for name in own if isinstance(support, Mapping) and name in support]
    if twice:
        raise ValueError(f"column {twice[0]!r} has a type in columns and a support: give it one of them")


def curved_columns(types: Types) -> list[str]:
    """Return the columns that are no real line.

    Args:
        types: Types by names.

    Returns:
        Names of circles, and of spheres as "a and b".
    """
    return [" and ".join(own) for own, kind in types.items() if isinstance(kind, (Circle, Sphere))]


def spread_ends(x: np.ndarray, types: Types, names: Sequence[str], seed: int | None) -> np.ndarray:
    """Move values at the ends of bounded columns inside.

    Args:
        x: Rows, shape (n, d), or longer ones.
        types: Types by names.
        names: Names of the first d columns.
        seed: Seed of the places within the strip at an end; None for its middle.

    Returns:
        Rows, the same array where no value is at an end.
    """
    rng = None if seed is None else np.random.default_rng((seed, 1))
    moved = x
    for own, kind in types.items():
        if isinstance(kind, Bounded):
            column = list(names).index(own[0])
            inside = kind.inside(x[:, column], rng)
            if not np.array_equal(inside, x[:, column]):
                moved = np.array(moved) if moved is x else moved
                moved[:, column] = inside
    return moved


def to_internal(x: np.ndarray, types: Types, names: Sequence[str]) -> np.ndarray:
    """Return rows as the flow has them: angles in their range, points of the unit sphere in place of pairs.

    Args:
        x: Rows of the table, shape (n, d).
        types: Types by names.
        names: Names of the columns.

    Returns:
        Rows, shape (n, d + number of spheres).
    """
    geometry = geometry_of(types, names)
    if geometry.is_flat:
        return x
    rows = wrapped(np.array(x), types, names)
    spheres = [(own, kind) for own, kind in types.items() if isinstance(kind, Sphere)]
    behind = []
    for (own, kind), (a, b, _) in zip(spheres, geometry.spheres, strict=True):
        kind.check(x[:, [a, b]], " and ".join(own))
        points = kind.to_points(x[:, [a, b]])
        rows[:, [a, b]] = points[:, :2]
        behind.append(points[:, 2:])
    return np.concatenate([rows, *behind], axis=1)


def wrapped(x: np.ndarray, types: Types, names: Sequence[str]) -> np.ndarray:
    """Bring angles into their range.

    Args:
        x: Rows of the table, shape (n, d), which are changed in place.
        types: Types by names.
        names: Names of the columns.

    Returns:
        The rows.
    """
    for own, kind in types.items():
        if isinstance(kind, Circle):
            column = list(names).index(own[0])
            x[:, column] = kind.wrap(x[:, column])
    return x


def to_table(x: np.ndarray, types: Types, names: Sequence[str]) -> np.ndarray:
    """Return rows of the flow as those of the table.

    Args:
        x: Rows of the flow, shape (..., d + number of spheres).
        types: Types by names.
        names: Names of the columns.

    Returns:
        Rows, shape (..., d).
    """
    places, behind, result = {name: i for i, name in enumerate(names)}, len(names), x[..., : len(names)].copy()
    for own, kind in types.items():
        columns = [places[name] for name in own]
        if isinstance(kind, Circle):
            result[..., columns[0]] = kind.wrap(x[..., columns[0]])
        if isinstance(kind, Sphere):
            result[..., columns] = kind.to_angles(x[..., [*columns, behind]])
            behind += 1
    return result


def support_bounds(support: Any, names: Sequence[str]) -> Bounds:
    """Read the support of the columns.

    Args:
        support: "real", "positive" or ("bounded", low, high), for all columns; a list of these, one for each; or a
            mapping from names to these, the other columns being real.
        names: Names of the columns.

    Returns:
        Bounds (lower, upper) of each column, infinite where it is open.

    Raises:
        ValueError: If the support cannot be read, names a column that is not there, or does not have one entry for
            each column.
    """
    columns = len(names)
    if isinstance(support, Mapping):
        missing = [name for name in support if name not in names]
        if missing:
            raise ValueError(f"support names a column {missing[0]!r} that is not there; there are {shortened(names)}")
        return tuple(_bounds(support.get(name, "real")) for name in names)
    single = isinstance(support, str) or (isinstance(support, Sequence) and tuple(support[:1]) == ("bounded",))
    if not single and not isinstance(support, Sequence):
        raise _support_error(support)
    entries = [support] if single else list(support)
    if len(entries) not in (1, columns):
        raise ValueError(f"support must have one word for all {columns} columns, or one each; got {len(entries)}")
    bounds = tuple(_bounds(entry) for entry in entries)
    return bounds * columns if len(bounds) == 1 else bounds


def inside_support(x: np.ndarray, bounds: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return which values lie strictly between the bounds of their columns.

    Args:
        x: Rows, shape (n, d).
        bounds: Bounds of each column.

    Returns:
        A mask, shape (n, d).
    """
    lower, upper = np.reshape(bounds, (-1, 2)).T
    return (x > lower) & (x < upper)


def check_support(x: np.ndarray, bounds: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Check that rows lie within their support.

    Args:
        x: Rows, shape (n, d).
        bounds: Bounds of each column.
        names: Names of the columns.

    Raises:
        ValueError: If some do not; it names the first such column and row.
    """
    if not np.isfinite(bounds).any():
        return
    for column, (low, high) in enumerate(bounds):
        rows = np.flatnonzero(~inside_support(x[:, [column]], [bounds[column]]))
        if not len(rows):
            continue
        raise ValueError(
            f"column {names[column]!r} has {len(rows)} of {len(x)} rows outside its support, {low:g} to {high:g} with "
            f"both ends left out (first: row {rows[0]}, {x[rows[0], column]:g}): give it another support, or drop them"
        )


def _bounds(entry: Any) -> tuple[float, float]:
    """Read the support of one column."""
    if entry == "real":
        return -math.inf, math.inf
    if entry == "positive":
        return 0.0, math.inf
    if isinstance(entry, str) or not isinstance(entry, Sequence) or len(entry) != 3 or entry[0] != "bounded":
        raise _support_error(entry)
    low, high = entry[1:]
    if not all(isinstance(limit, Real) and math.isfinite(limit) for limit in (low, high)) or not low < high:
        raise _support_error(entry)
    return float(low), float(high)


def _support_error(support: Any) -> ValueError:
    return ValueError(f"support must be 'real', 'positive' or ('bounded', LOW, HIGH); got {support!r}")


def shortened(words: Sequence[str], limit: int = 10) -> str:
    """Return the first of many words for a message.

    Args:
        words: Words.
        limit: Most words to list.

    Returns:
        The text, which counts the others.

    Example:
        >>> shortened(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
