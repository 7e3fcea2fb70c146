"""The domain of a table: plain, with categories, or for any question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ffjord_kit.columns.types import Types, read_types
from ffjord_kit.estimator.fields import TableFields
from ffjord_kit.estimator.tables.categories import categories_of
from ffjord_kit.estimator.tables.mixed import MixedDomain
from ffjord_kit.estimator.tables.mixed_subsets import MixedSubsetDomain
from ffjord_kit.estimator.tables.subsets import SubsetDomain
from ffjord_kit.estimator.tables.table import Header, TableDomain


def table_domain(fields: TableFields, x: np.ndarray, header: Header, found: Types) -> TableDomain:
    """Return the domain of a table to be fitted.

    Args:
        fields: Fields.
        x: Rows, shape (n, d).
        header: Names.
        found: Types that the data showed, by names.

    Returns:
        The domain.

    Raises:
        ValueError: If the rows cannot be fitted, or fields do not suit them.
    """
    types = {**read_types(fields.columns, header.columns), **found}
    return _kind(fields, types, header.columns).of(fields, x, header, found)


def stored_table_domain(fields: TableFields, record: Mapping[str, Any]) -> TableDomain:
    """Return the domain of a table that a run keeps.

    Args:
        fields: Fields of the run.
        record: Config of the run.

    Returns:
        The domain.

    Raises:
        ValueError: If the record makes no sense.
        RunError: If an earlier version fitted it to heavy tails.
    """
    if not record["columns"]:
        raise ValueError("columns must name 1 column or more")
    types = read_types(record.get("types"), record["columns"])
    return _kind(fields, types, record["columns"]).from_record(fields, record)


def _kind(fields: TableFields, types: Types, names: Any) -> type[TableDomain]:
    if fields.subsets:
        return MixedSubsetDomain if categories_of(types, names) else SubsetDomain
    return MixedDomain if categories_of(types, names) else TableDomain
