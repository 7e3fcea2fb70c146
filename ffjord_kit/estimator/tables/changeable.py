"""Columns of a table that a correction may change: real numbers; angles, spheres and categories stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

from ffjord_kit.columns.rows import shortened
from ffjord_kit.diagnostics.judgment import find_column
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
    real = domain.real_columns
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
