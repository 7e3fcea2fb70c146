"""Tables with columns of categories beside the others: a density of the others given these, and their probability.

    log p(x, c | u) = log p(x | c, u) + log p(c | u)

The columns of categories c are, as one-hot codes, the end of the contexts of a flow over the other columns x, behind
the user's own contexts u; the probability of c is a transform of its preprocessing (`transforms/categorical.py`), so
that every figure of the flow has it. In an array of the table a column of texts holds the places of its levels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.columns.types import Types
from ffjord_kit.data import Batch
from ffjord_kit.estimator.data import Arrays, TrainingData, refuse_not_finite, tensor
from ffjord_kit.estimator.fields import TableFields
from ffjord_kit.estimator.tables.categories import CategoriesDomain
from ffjord_kit.estimator.tables.names import in_order
from ffjord_kit.estimator.tables.probability import fit_categories
from ffjord_kit.estimator.tables.table import Header
from ffjord_kit.flow import Flow
from ffjord_kit.transforms import Categorical, Transform
from ffjord_kit.transforms.categorical import categorical_of
from ffjord_kit.weights import resampled

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True)
class MixedDomain(CategoriesDomain):
    """Tables with columns of categories, all cells of which are there."""

    @classmethod
    def of(cls, fields: TableFields, x: np.ndarray, header: Header, found: Types) -> Self:
        refuse_not_finite(x, "X", header.columns)
        return super().of(fields, x, header, found)

    @property
    def code_dim(self) -> int:
        return sum(self.sizes)

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
        return self._with_places(rows, inside, self._codes(x[:, self.category_places]))

    def joined(self, batch: Batch) -> Batch:
        places = batch.x[:, self.size :].numpy()
        codes = tensor(self._one_hot_of(places))
        context = codes if batch.context is None else torch.cat([batch.context, codes], dim=1)
        return replace(batch, x=batch.x[:, : self.size], context=context)

    def with_drawn_categories(
        self, flow: Flow, context: Tensor | None, n: int, generator: torch.Generator
    ) -> Tensor | None:
        user = flow.context_dim - self.code_dim
        if user and context is None:
            raise ValueError(f"this model is conditional: pass context=, {user} values for each draw")
        codes = torch.zeros(n, self.code_dim, dtype=torch.float64)
        given = codes if context is None else torch.cat([context, codes], dim=1)
        scaled = cast(Tensor, flow.preprocess.scale_context(given, given))
        given[:, user:] = categorical_of(flow).sample(scaled[:, :user], generator)
        return given

    def drawn(self, x: np.ndarray, context: Tensor | None) -> np.ndarray:
        if context is None:
            raise ValueError("draws of a table with categories need the codes of these")
        return self._with_levels(self.restore(x), context[:, context.shape[1] - self.code_dim :])

    def context_names(self, dim: int) -> list[str]:
        codes = [f"{name}={level}" for name, kind in self.categories.items() for level in kind.levels or ()]
        user = max(dim - len(codes), 0)
        return [*super().context_names(user)[:user], *codes][:dim] if user else codes[:dim]
