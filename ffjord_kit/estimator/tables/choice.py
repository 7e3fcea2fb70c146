"""The domain of a table: plain, with categories, or for any question."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ffjord_kit.columns.rows import shortened
from ffjord_kit.columns.types import Types, read_types
from ffjord_kit.estimator.fields import TableFields
from ffjord_kit.estimator.tables.categories import categories_of
from ffjord_kit.estimator.tables.mixed import MixedDomain
from ffjord_kit.estimator.tables.mixed_subsets import MixedSubsetDomain
from ffjord_kit.estimator.tables.subsets import SubsetDomain
from ffjord_kit.estimator.tables.table import Header, TableDomain
from ffjord_kit.rows import chunks

PRICE = "0.01 to 0.06"  # in benchmarks/questions.py


class MissingCellsWarning(UserWarning):
    """Tell that a fit learns every question because cells are missing."""


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
    by_default = fields.subsets is None and any(bool(np.isnan(part).any()) for part in chunks(x))
    kind = _kind(bool(fields.subsets) or by_default, types, header.columns)
    if not by_default:
        return kind.of(fields, x, header, found)
    missing = np.isnan(x)
    try:
        domain = kind.of(fields, x, header, found)
    except ValueError as error:
        raise ValueError(f"{missing.sum()} cells are missing, which subsets=True takes; {error}") from error
    _warn_of_missing(missing, header.columns)
    return domain


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
    asked = bool(fields.subsets or record.get("subsets"))
    return _kind(asked, types, record["columns"]).from_record(fields, record)


def _warn_of_missing(missing: np.ndarray, names: Sequence[str]) -> None:
    """Tell that a fit learns every question because cells are missing, and what that costs."""
    holed = [names[place] for place in np.flatnonzero(missing.any(axis=0)).tolist()]
    warnings.warn(
        f"{missing.sum()} of {missing.size} cells are missing (columns {shortened(holed)}): the fit learns every "
        "question from the observed ones (subsets=True), as if they were missing at random; where none is missing the "
        f"joint density pays {PRICE} nats for it (docs/questions.md)",
        MissingCellsWarning, stacklevel=2,
    )  # fmt: skip


def _kind(asked: bool, types: Types, names: Any) -> type[TableDomain]:
    if asked:
        return MixedSubsetDomain if categories_of(types, names) else SubsetDomain
    return MixedDomain if categories_of(types, names) else TableDomain
