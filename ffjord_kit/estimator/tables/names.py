"""Names of columns and contexts: rows are brought into the order of the fit by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ffjord_kit.columns.rows import shortened
from ffjord_kit.rows import as_rows, take_columns


def column_names(columns: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Return the names of columns for messages and files.

    Args:
        columns: Names; x0, x1, ... if None.
        count: Number of columns.

    Returns:
        The names.

    Raises:
        ValueError: If their number is not that of the columns.
    """
    names = tuple(f"x{i}" for i in range(count)) if columns is None else tuple(map(str, columns))
    if len(names) != count:
        raise ValueError(f"columns must name {count} columns; got {len(names)}: {', '.join(names[:5])}")
    return names


def in_order(x: Any, columns: Sequence[str]) -> Any:
    """Bring the columns of a frame into the order of the fit, by their names.

    Args:
        x: Rows; those of a frame carry names.
        columns: Names of the fit's columns.

    Returns:
        The rows; an array, or a frame without any of the names, comes back as it is.

    Raises:
        ValueError: If a frame has some of the names and lacks others.
    """
    x = as_rows(x)
    places = {name: i for i, name in enumerate(names_of(x))}
    missing = [name for name in columns if name not in places]
    if not places or len(missing) == len(columns):
        return x
    if missing:
        raise ValueError(f"X lacks columns of the fit: {shortened(missing)}; it has {shortened(list(places))}")
    return take_columns(x, [places[name] for name in columns])


def refuse_repeated(names: Iterable[Any]) -> None:
    """Refuse columns of the same name.

    Args:
        names: Names of the columns.

    Raises:
        ValueError: If a name is repeated; the message has the first one.
    """
    repeated = [name for name, times in Counter(map(str, names)).items() if times > 1]
    if repeated:
        raise ValueError(f"two columns are called {repeated[0]!r}: give each its own name")


def context_in_order(context: Any, columns: Sequence[str]) -> Any:
    """Bring the columns of a frame of contexts into the order of the fit, by their names.

    Args:
        context: Contexts; those of a frame carry names, as do the values of a mapping, e.g. {"age": 40}: one for all.
        columns: Names of the fit's contexts; none where it had none.

    Returns:
        The contexts; an array comes back as it is.

    Raises:
        ValueError: If a frame or a mapping lacks columns, or has others.
    """
    if isinstance(context, Mapping):
        return _values_in_order(context, columns)
    names = names_of(context)
    if not names or not columns:
        return context
    if sorted(names) != sorted(columns):
        raise ValueError(
            f"context must have the columns of the fit, {', '.join(columns)}; got {', '.join(names)}: name them so"
        )
    return take_columns(context, [names.index(name) for name in columns])


def check_same_names(values: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Refuse values of other contexts than those of the fit.

    Args:
        values: Values by name.
        columns: Names of the fit's contexts.

    Raises:
        ValueError: If names are missing, or others are there.
    """
    if sorted(map(str, values)) != sorted(columns):
        known = ", ".join(columns) or "no names: give values in the order of the fit"
        raise ValueError(f"context must have the columns of the fit, {known}; got {', '.join(map(str, values))}")


def _values_in_order(values: Mapping[str, Any], columns: Sequence[str]) -> np.ndarray:
    """Return the values of one context in the order of the fit, shape (1, c)."""
    check_same_names(values, columns)
    many = [str(name) for name, value in values.items() if np.ndim(value)]
    if many:
        raise ValueError(
            f"context must give {many[0]!r} one number; got {np.shape(values[many[0]])}: pass a frame of rows"
        )
    return np.array([[float(values[name]) for name in columns]])


def context_names(context: Any, columns: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the contexts of a fit.

    Args:
        context: Contexts, or None; those of a frame carry names.
        columns: Names of an array's, or None.

    Returns:
        The names; none of an array without.

    Raises:
        ValueError: If they are not one for each column, or one occurs twice.
    """
    names = tuple(names_of(context) or map(str, columns or ()))
    expected = np.shape(context)[1] if np.ndim(context) == 2 else min(np.ndim(context), 1)
    if names and (len(names) != expected or len(set(names)) < len(names)):
        raise ValueError(f"context needs {expected} different names of its columns; got {', '.join(names)}")
    return names


def names_of(x: Any) -> list[str]:
    """Return the names of the columns of a frame.

    Args:
        x: A frame, or an array.

    Returns:
        The names; none of an array.
    """
    return [] if getattr(x, "columns", None) is None else [str(name) for name in x.columns]
