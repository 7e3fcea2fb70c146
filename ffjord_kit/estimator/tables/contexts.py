"""Contexts with columns of texts: in the place of such a column stand the one-hot codes of its levels.

    a user's contexts (n, c)  --coded-->  numbers, then the codes of each category (n, C)  -->  the flow

An array of contexts gives a level by its place among the levels, a frame by itself. C is larger than c where there is a
category, so both forms are told apart by their width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ffjord_kit.columns.categories import Category
from ffjord_kit.columns.frames import code_frame, look_at_frame
from ffjord_kit.columns.rows import shortened
from ffjord_kit.columns.types import Types
from ffjord_kit.estimator.tables.names import context_in_order
from ffjord_kit.rows import as_rows, frame_of, is_frame


def categories_of_contexts(context: Any) -> Types:
    """Find the columns of a frame of contexts that are categories: texts, and pandas' own categories.

    Args:
        context: Contexts, or None.

    Returns:
        Types by names; truth values, which are the numbers 0 and 1, and dates are none.
    """
    found = look_at_frame(context, {}) if is_frame(context) else {}
    return {
        own: kind for own, kind in found.items() if isinstance(kind, Category) and (kind.is_text or kind.is_numeric)
    }


def coded_contexts(context: Any, columns: Sequence[str], types: Types) -> Any:
    """Return contexts with codes in the place of their categories.

    Args:
        context: Contexts: a frame (n, c), an array (n, c), one (c,), or values by name, e.g. {"city": "Oslo"}, of one
            context; coded ones (n, C) stay as they are.
        columns: Names of the c columns.
        types: Categories among them, by names; without any, contexts stay as they are.

    Returns:
        Numbers first, then the codes of each category, shape (n, C).

    Raises:
        ValueError: If a level is unknown, or a value is none.
    """
    kinds = {own[0]: kind for own, kind in types.items() if isinstance(kind, Category)}
    if not kinds or context is None:
        return context
    if isinstance(context, Mapping):
        context = frame_of({name: np.array([value], dtype=object) for name, value in context.items()})
    if is_frame(context):
        context = code_frame(context_in_order(context, columns), types, warned=False)
    array = np.asarray(as_rows(context, "context"), dtype=np.float64)
    array = array[None] if array.ndim == 1 and len(array) == len(columns) > 1 else array.reshape(len(array), -1)
    if array.shape[1] != len(columns):
        return array
    numbers = [array[:, [i]] for i, name in enumerate(columns) if name not in kinds]
    codes = [_codes(name, kinds[name], array[:, i]) for i, name in enumerate(columns) if name in kinds]
    return np.concatenate([*numbers, *codes], axis=1)


def coded_names(columns: Sequence[str], types: Types) -> list[str]:
    """Return the names of coded contexts.

    Args:
        columns: Names of the contexts.
        types: Categories among them, by names.

    Returns:
        Names of numbers, then NAME=LEVEL of each level.
    """
    kinds: Mapping[str, Any] = {own[0]: kind for own, kind in types.items()}
    levels = [f"{name}={level}" for name in columns if name in kinds for level in kinds[name].levels]
    return [*(name for name in columns if name not in kinds), *levels]


def _codes(name: str, kind: Category, values: np.ndarray) -> np.ndarray:
    """Return the one-hot codes of a category, shape (n, K)."""
    places = kind.codes(values)
    wrong = np.flatnonzero(~(places >= 0))
    if len(wrong):
        levels = shortened([str(level) for level in kind.levels or ()])
        raise ValueError(
            f"context column {name!r} has {len(wrong)} of {len(values)} values that are missing or no level of the fit "
            f"(first: row {wrong[0]}, counted from 0); its levels are {levels}: drop these rows, or keep the column in "
            "the table and fit with subsets=True (--subsets)"
        )
    return np.eye(kind.size)[places.astype(np.int64)]
