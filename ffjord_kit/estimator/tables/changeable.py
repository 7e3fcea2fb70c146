"""Columns of a table that a correction may change: real numbers; angles, spheres and categories stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ffjord_kit.columns.rows import shortened
from ffjord_kit.diagnostics.judgment import find_column
from ffjord_kit.estimator.tables.names import in_order
from ffjord_kit.estimator.tables.table import TableDomain


def changeable_columns(domain: TableDomain, allow: Sequence[str | int] | None) -> list[str]:
    """Return the names of the columns that a correction may change.

    Args:
        domain: Domain of the table.
        allow: Columns by name or number; all real ones if None.

    Returns:
        The names.

    Raises:
        ValueError: If a column is not there, or not real.
    """
    real = _real_columns(domain)
    if allow is None and real:
        return real
    names = [domain.all_columns[find_column(word, domain.all_columns)] for word in allow or ()]
    other = next((name for name in names if name not in real), None)
    if other is not None or not real:
        raise ValueError(
            f"explain changes real columns, and {other or domain.curved} is a circle, of a sphere or a category, which "
            f"stays as it is; real columns: {shortened(real) or 'none'}"
        )
    return names


def with_numbers(domain: TableDomain, x: Any, rows: np.ndarray) -> np.ndarray:
    """Return rows of the table with other real numbers.

    Args:
        domain: Domain of the table.
        x: Rows of the table, shape (n, d), or a frame.
        rows: Rows as the flow has them, which have the numbers, shape (n, size).

    Returns:
        Rows of the table, shape (n, d); angles and categories are those of `x`.
    """
    table = np.array(in_order(domain.coded(x), domain.all_columns), dtype=np.float64)
    for name in _real_columns(domain):
        table[:, domain.all_columns.index(name)] = rows[:, domain.columns.index(name)]
    return table


def _real_columns(domain: TableDomain) -> list[str]:
    """Return the names of the columns that are neither an angle, nor of a sphere, nor a category."""
    return [name for place, name in enumerate(domain.columns) if place in domain.geometry.real]
