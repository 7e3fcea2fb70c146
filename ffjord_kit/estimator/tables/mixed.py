"""Tables with columns of categories beside the others: a density of the others given these, and their probability.

    log p(x, c | u) = log p(x | c, u) + log p(c | u)

The columns of categories c are, as one-hot codes, the end of the contexts of a flow over the other columns x, behind
the user's own contexts u; the probability of c is a transform of its preprocessing (`transforms/categorical.py`), so
that every figure of the flow has it. In an array of the table a column of texts holds the places of its levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.grid import Grid
from ffjord_kit.estimator.data import Arrays, TrainingData, refuse_not_finite, tensor
from ffjord_kit.estimator.fields import TableFields
from ffjord_kit.estimator.tables.names import in_order
from ffjord_kit.estimator.tables.probability import fit_categories
from ffjord_kit.estimator.tables.table import Header, TableDomain
from ffjord_kit.flow import Flow
from ffjord_kit.transforms import Categorical, Preprocess, Transform
from ffjord_kit.weights import resampled

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True)
class MixedDomain(TableDomain):
    """Tables with columns of categories; the fields of a table's domain are those of its other columns.

    Args:
        table: Names of all columns, in their order.
        categories: Types of the columns of categories, by names.
    """

    table: tuple[str, ...] = ()
    categories: Mapping[str, Category] = field(default_factory=dict)

    @classmethod
    def of(cls, fields: TableFields, x: np.ndarray, header: Header, found: Types) -> Self:
        refuse_not_finite(x, "X", header.columns)
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
    def code_dim(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Number of levels of each category."""
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

    def training_data(self, arrays: Arrays, fraction: float, seed: int) -> TrainingData:
        codes = self._one_hot(np.asarray(arrays.x[:, self.category_places], np.float64))
        context = codes if arrays.context is None else np.concatenate([arrays.context, codes], axis=1)
        own = replace(arrays, x=np.asarray(arrays.x[:, self.places]), context=context)
        return super().training_data(own, fraction, seed)

    def split(self, x: Any, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return self._split(len(x), fraction, seed, streamed=False)

    def _completed(self, data: TrainingData) -> TrainingData:
        """Return the data with all that follows their contexts: location, scale, and probability of the categories."""
        scaled = data.scaled_context
        if scaled is None:
            raise ValueError("rows of a table with categories need the codes of these")
        user = scaled.shape[1] - self.code_dim
        drawn = resampled(scaled, data.fitting.weight)
        fitted = data.categorical or fit_categories(drawn[:, :user], drawn[:, user:], self.sizes)
        return replace(super()._completed(data), categorical=fitted)

    def preprocess(self, data: TrainingData, scaling: str) -> list[Transform]:
        return [*super().preprocess(data, scaling), *filter(None, [data.categorical])]

    def blank_preprocess(self, scaling: str, context_dim: int) -> list[Transform]:
        blank = Categorical.blank(self.sizes, context_dim - self.code_dim)
        return [*super().blank_preprocess(scaling, context_dim), blank]

    @property
    def all_columns(self) -> tuple[str, ...]:
        return self.table

    @property
    def all_types(self) -> Types:
        return {**self.types, **{(name,): kind for name, kind in self.categories.items()}}

    def rows(self, x: Any) -> tuple[Tensor, np.ndarray]:
        """Check rows of the table; those with a level that the fit has not seen lie outside the support.

        Args:
            x: Rows, shape (n, d).

        Returns:
            The rows within the support, followed by the places of their levels, shape (k, size + categories), and a
            mask of these among all, shape (n,).

        Raises:
            ValueError: If the data are not of the domain.
        """
        x = np.asarray(in_order(self.coded(x), self.table), dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.n_features or not len(x):
            raise ValueError(f"expected rows of shape (n >= 1, {self.n_features}); got {x.shape}")
        refuse_not_finite(x, "X", self.table)
        rows, inside = super().rows(x[:, self.places])
        codes = self._codes(x[:, self.category_places])
        known = np.all(codes >= 0, axis=1)
        places = torch.from_numpy(codes[inside & known])
        return torch.cat([rows[torch.from_numpy(known[inside])], places], dim=1), inside & known

    def with_codes(self, x: Any) -> tuple[np.ndarray, np.ndarray | None]:
        rows = np.asarray(in_order(self.coded(x), self.table), dtype=np.float64)
        codes = self._codes(rows[:, self.category_places])
        unknown = np.flatnonzero((codes < 0).any(1))
        if len(unknown):
            name = list(self.categories)[int((codes[unknown[0]] < 0).argmax())]
            raise ValueError(
                f"row {unknown[0]} has a level of {name!r} that the fit has not seen: no change of numbers mends it; "
                "leave such rows out"
            )
        return to_internal(rows[:, self.places], self.types, self.columns), self._one_hot_of(codes)

    def joined(self, batch: Batch) -> Batch:
        places = batch.x[:, self.size :].numpy()
        codes = tensor(self._one_hot_of(places))
        context = codes if batch.context is None else torch.cat([batch.context, codes], dim=1)
        return replace(batch, x=batch.x[:, : self.size], context=context)

    def given_categories(self, flow: Flow) -> Flow:
        kept = [each for each in flow.preprocess.transforms if not isinstance(each, Categorical)]
        return Flow(
            cast("list[Transform]", list(flow.transforms)), base=flow.base,
            preprocess=Preprocess(kept, flow.preprocess.context), context_dim=flow.context_dim,
        )  # fmt: skip

    def drawn(self, x: np.ndarray, context: Tensor | None) -> np.ndarray:
        if context is None:
            raise ValueError("draws of a table with categories need the codes of these")
        rows, start = np.empty((len(x), len(self.table))), context.shape[1] - self.code_dim
        rows[:, self.places] = self.restore(x)
        for place, kind in zip(self.category_places, self.categories.values(), strict=True):
            places = context[:, start : start + kind.size].argmax(1).numpy()
            rows[:, place] = kind.numbers(places.astype(np.float64))
            start += kind.size
        return rows

    def context_names(self, dim: int) -> list[str]:
        codes = [f"{name}={level}" for name, kind in self.categories.items() for level in kind.levels or ()]
        user = max(dim - len(codes), 0)
        return [*super().context_names(user)[:user], *codes][:dim] if user else codes[:dim]

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
    places = [place for place, name in enumerate(names) if name not in categories]
    if not places:
        raise ValueError(
            f"all {len(names)} columns are categories: a flow needs a column of numbers; count the rows of each "
            "combination instead"
        )
    return places


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
