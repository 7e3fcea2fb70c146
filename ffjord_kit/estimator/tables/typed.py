"""Consequences of the types of columns: steps of equal size, and fields that circles and spheres rule out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ffjord_kit.columns.categories import Dated
from ffjord_kit.columns.rows import curved_columns
from ffjord_kit.columns.types import Bounded, Integer, Sphere, Types
from ffjord_kit.diagnostics.grid import Grid, find_grid
from ffjord_kit.estimator.fields import TableFields, regularizer_weights
from ffjord_kit.geometry import Geometry


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
    found = find_grid(dequantize, x, names)
    if not types:
        return found
    places = {name: i for i, name in enumerate(names)}
    whole = {
        own[0]: 1.0
        for own, kind in types.items()
        if isinstance(kind, Integer) or (isinstance(kind, Dated) and kind.are_whole(x[:, places[own[0]]]))
    }
    smooth = [name for own, kind in types.items() if isinstance(kind, (Sphere, Bounded)) for name in own]
    named = set(dequantize) if isinstance(dequantize, (Mapping, list, tuple)) else set()
    twice = [name for name in (*whole, *smooth) if name in named]
    if twice:
        raise ValueError(f"column {twice[0]!r} has a type in columns and a step in dequantize: drop the latter")
    step = [0.0 if name in smooth else whole.get(name, step) for name, step in zip(names, found.step, strict=True)]
    steps = {name: each for name, each in zip(names, step, strict=True) if each}
    return find_grid(steps or None, x, names)


def refuse_on_manifolds(fields: TableFields, types: Types, geometry: Geometry) -> None:
    """Refuse what is made for real columns where there are circles or spheres, and the reverse.

    Args:
        fields: Fields.
        types: Types by names.
        geometry: Which elements of a row are angles, and which are points on spheres.

    Raises:
        ValueError: If a field asks for it.
    """
    if fields.base == "kernels" and not geometry.is_one_sphere:
        raise ValueError(
            "base='kernels' is for places on one sphere without other columns, e.g. columns={('lon', 'lat'): "
            "Sphere('deg')}: choose another base"
        )
    curved = curved_columns(types)
    asked = {
        "transforms": fields.transforms, "robust": fields.robust, "watch": fields.watch,
        "regularizers hjb": "hjb" in regularizer_weights(fields.regularizers),
    }  # fmt: skip
    name = next((name for name, value in asked.items() if value), None)
    if curved and name is not None:
        raise ValueError(f"{name} is for real columns, and {curved[0]} is a circle or a sphere: leave one of them out")
