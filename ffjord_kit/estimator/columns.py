"""Types of a table's columns by name, and the bounds and the steps that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ffjord_kit.categories import Date
from ffjord_kit.column_types import Bounded, Circle, Integer, Sphere, Types, read_types
from ffjord_kit.diagnostics.grid import Grid, find_grid
from ffjord_kit.estimator.fields import TableFields
from ffjord_kit.estimator.support import Bounds
from ffjord_kit.geometry import Geometry


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


def grid_with_types(dequantize: Any, types: Types, x: np.ndarray, names: Sequence[str]) -> Grid:
    """Find the steps of the columns; whole numbers have steps of one, and points on a sphere none.

    Args:
        dequantize: The field `dequantize`.
        types: Types by names.
        x: Rows, shape (n, d).
        names: Names of the columns.

    Returns:
        The grid.

    Raises:
        ValueError: If columns have no such steps.
    """
    places = {name: i for i, name in enumerate(names)}
    whole = {
        own[0]: 1.0
        for own, kind in types.items()
        if isinstance(kind, Integer) or (isinstance(kind, Date) and _all_whole(x[:, places[own[0]]]))
    }
    smooth = [name for own, kind in types.items() if isinstance(kind, (Sphere, Bounded)) for name in own]
    named = set() if dequantize is None or isinstance(dequantize, str) else set(dequantize)
    twice = [name for name in (*whole, *smooth) if name in named]
    if twice:
        raise ValueError(f"column {twice[0]!r} has a type in columns and a step in dequantize: drop the latter")
    found = find_grid(dequantize, x, names)
    if not types:
        return found
    step = [0.0 if name in smooth else whole.get(name, step) for name, step in zip(names, found.step, strict=True)]
    steps = {name: each for name, each in zip(names, step, strict=True) if each}
    return find_grid(steps or None, x, names)


def _all_whole(values: np.ndarray) -> bool:
    """Say whether dates are without times."""
    return bool((values == np.round(values)).all())


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


def refuse_on_manifolds(fields: TableFields, types: Types) -> None:
    """Refuse what is made for real columns where there are circles or spheres.

    Args:
        fields: Fields.
        types: Types by names.

    Raises:
        ValueError: If a field asks for it.
    """
    curved = curved_columns(types)
    asked = {
        "transforms": fields.transforms, "robust": fields.robust, "watch": fields.watch,
        "regularizers hjb": "hjb" in (fields.regularizers or {}),
    }  # fmt: skip
    name = next((name for name, value in asked.items() if value), None)
    if curved and name is not None:
        raise ValueError(f"{name} is for real columns, and {curved[0]} is a circle or a sphere: leave one of them out")


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
