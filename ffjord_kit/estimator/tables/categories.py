"""Tables with columns of categories: what all of them have in common, however their density is made.

The fields of the domain are those of the columns that are no categories, and `table` names all columns. In an array of
the table a column of texts holds the places of its levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.columns.categories import MOST_LEVELS, Category
from ffjord_kit.columns.mixed import warn_of_unknown
from ffjord_kit.columns.rows import refuse_two_supports, settled_types, support_bounds, to_internal
from ffjord_kit.columns.types import Types, read_types, types_as_text
from ffjord_kit.diagnostics.grid import Grid
from ffjord_kit.estimator.data import tensor
from ffjord_kit.estimator.fields import TableFields
from ffjord_kit.estimator.tables.names import in_order
from ffjord_kit.estimator.tables.table import Header, TableDomain
from ffjord_kit.flow import Flow
from ffjord_kit.transforms import Categorical, Preprocess, Transform

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True)
class CategoriesDomain(TableDomain):
    """Tables with columns of categories; the fields of a table's domain are those of its other columns.

    Args:
        table: Names of all columns, in their order.
        categories: Types of the columns of categories, by names.
    """

    table: tuple[str, ...] = ()
    categories: Mapping[str, Category] = field(default_factory=dict)

    @classmethod
    def of(cls, fields: TableFields, x: np.ndarray, header: Header, found: Types) -> Self:
        types = settled_types(fields.columns, x, header.columns, found)
        refuse_two_supports(fields.support, types)
        categories = categories_of(types, header.columns)
        _check_level_total(categories)
        places = _places_of_numbers(header.columns, categories)
        own = header._replace(columns=tuple(header.columns[place] for place in places))
        rest = {names: kind for names, kind in types.items() if names[0] not in categories}
        plain = TableDomain.of_types(_of_numbers(fields, header.columns, places), x[:, places], own, rest)
        return cls._beside(plain, header.columns, categories)

    @classmethod
    def from_record(cls, fields: TableFields, record: Mapping[str, Any]) -> Self:
        names = tuple(record["columns"])
        types = read_types(record.get("types"), names)
        categories = categories_of(types, names)
        if not all(kind.size for kind in categories.values()):
            raise ValueError("types must give the levels of each category")
        places, grid = _places_of_numbers(names, categories), Grid.from_record(record["grid"], len(names))
        numbers = {
            "columns": [names[place] for place in places],
            "types": types_as_text({own: kind for own, kind in types.items() if own[0] not in categories}),
            "grid": {name: [part[place] for place in places] for name, part in grid._asdict().items()},
        }
        plain = TableDomain.from_record(_of_numbers(fields, names, places), {**record, **numbers})
        return cls._beside(plain, names, categories)

    @classmethod
    def _beside(cls, plain: TableDomain, table: tuple[str, ...], categories: Mapping[str, Category]) -> Self:
        """Return the domain of a table with categories beside the columns of a plain one."""
        own = {each.name: getattr(plain, each.name) for each in dataclass_fields(plain)}
        return cls(**own, table=table, categories=categories)

    @property
    def n_features(self) -> int:
        return len(self.table)

    @property
    def sizes(self) -> list[int]:
        return [kind.size for kind in self.categories.values()]

    @cached_property
    def places(self) -> list[int]:
        """Positions of the columns that are no categories."""
        return [place for place, name in enumerate(self.table) if name not in self.categories]

    @cached_property
    def category_places(self) -> list[int]:
        """Positions of the categories, in their order."""
        return [self.table.index(name) for name in self.categories]

    @property
    def curved(self) -> str:
        return ", ".join(filter(None, [super().curved, *self.categories]))

    def record(self) -> dict[str, Any]:
        grid = Grid(
            self._widened(self.grid.step, 0.0), self._widened(self.grid.offset, 0.0),
            self._widened(self.grid.counts, False),
        )  # fmt: skip
        return {
            **super().record(), "columns": self.table, "grid": grid._asdict(),
            "types": types_as_text(self.all_types),
        }  # fmt: skip

    def _widened(self, part: Sequence[Any], empty: Any) -> list[Any]:
        """Return what columns have, with an empty entry for each category."""
        entries: list[Any] = [empty] * len(self.table)
        for place, entry in zip(self.places, part, strict=True):
            entries[place] = entry
        return entries

    @property
    def all_columns(self) -> tuple[str, ...]:
        return self.table

    @property
    def all_types(self) -> Types:
        return {**self.types, **{(name,): kind for name, kind in self.categories.items()}}

    @property
    def has_categories(self) -> bool:
        return True

    def given_categories(self, flow: Flow) -> Flow:
        kept = [each for each in flow.preprocess.transforms if not isinstance(each, Categorical)]
        return Flow(
            cast("list[Transform]", list(flow.transforms)), base=flow.base,
            preprocess=Preprocess(kept, flow.preprocess.context), context_dim=flow.context_dim,
        )  # fmt: skip

    def all_rows(self, x: Any) -> Tensor:
        rows = np.asarray(in_order(self.coded(x), self.table), dtype=np.float64)
        places = self._codes(rows[:, self.category_places])
        unknown = np.flatnonzero((places < 0).any(1))
        if len(unknown):
            name = list(self.categories)[int((places[unknown[0]] < 0).argmax())]
            raise ValueError(
                f"row {unknown[0]} has a level of {name!r} that the fit has not seen: no change of numbers mends it; "
                "leave such rows out"
            )
        numbers = to_internal(rows[:, self.places], self.types, self.columns)
        return tensor(np.concatenate([numbers, places], axis=1))

    def _with_places(self, rows: Tensor, inside: np.ndarray, codes: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Return the rows whose levels are all known, followed by their places, and a mask of these among all rows."""
        known = np.all(codes >= 0, axis=1)
        places = torch.from_numpy(codes[inside & known])
        return torch.cat([rows[torch.from_numpy(known[inside])], places], dim=1), inside & known

    def _with_levels(self, numbers: np.ndarray, codes: Tensor) -> np.ndarray:
        """Return rows of the table, shape (n, d), from the columns of numbers and the codes of all categories."""
        rows = np.empty((len(numbers), len(self.table)))
        rows[:, self.places] = numbers
        own = zip(self.category_places, self.categories.values(), codes.split(self.sizes, dim=1), strict=True)
        for place, kind, part in own:
            rows[:, place] = kind.numbers(part.argmax(1).numpy().astype(np.float64))
        return rows

    def _one_hot(self, x: np.ndarray) -> np.ndarray:
        """Return the codes of columns of categories, shape (n, code_dim)."""
        return self._one_hot_of(self._codes(x))

    def _one_hot_of(self, places: np.ndarray) -> np.ndarray:
        """Return the codes of places among the levels, shape (n, code_dim)."""
        parts = [np.eye(size)[column.astype(np.int64)] for size, column in zip(self.sizes, places.T, strict=True)]
        return np.concatenate(parts, axis=1)

    def _codes(self, x: np.ndarray) -> np.ndarray:
        """Return the places of values among the levels, -1 where there is none, shape (n, categories)."""
        codes = [kind.codes(column) for kind, column in zip(self.categories.values(), x.T, strict=True)]
        for (name, kind), column, own in zip(self.categories.items(), x.T, codes, strict=True):
            if kind.is_numeric:
                warn_of_unknown(name, own, column)
        return np.stack(codes, axis=1)


def categories_of(types: Types, names: Sequence[str]) -> dict[str, Category]:
    """Return the columns of categories, in the order of the table.

    Args:
        types: Types by names.
        names: Names of the columns.

    Returns:
        Categories by name.
    """
    found = {own[0]: kind for own, kind in types.items() if isinstance(kind, Category)}
    return {name: found[name] for name in names if name in found}


def _places_of_numbers(names: Sequence[str], categories: Mapping[str, Category]) -> list[int]:
    """Return the positions of the columns that are no categories."""
    return [place for place, name in enumerate(names) if name not in categories]


def _check_level_total(categories: Mapping[str, Category]) -> None:
    """Refuse more levels of all categories together than a table may have."""
    sizes = {name: kind.size for name, kind in categories.items()}
    if sum(sizes.values()) > MOST_LEVELS:
        told = ", ".join(f"{name} {size}" for name, size in sorted(sizes.items(), key=lambda item: -item[1]))
        raise ValueError(
            f"the categories have {sum(sizes.values())} levels in all, more than {MOST_LEVELS} ({told}): drop a "
            "column, or put rare levels together"
        )


def _support(bounds: tuple[float, float]) -> Any:
    """Return bounds as the field `support` has them."""
    low, high = bounds
    if np.isfinite(high):
        return "bounded", low, high
    return "positive" if np.isfinite(low) else "real"


def _of_numbers(fields: TableFields, names: Sequence[str], places: Sequence[int]) -> TableFields:
    """Return the fields of the columns that are no categories."""
    every = support_bounds(fields.support, names)
    own = {name: getattr(fields, name) for name in TableFields.__dataclass_fields__}
    return TableFields(**{**own, "support": [_support(every[place]) for place in places]})
