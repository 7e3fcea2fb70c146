r"""Tables with columns of categories of which any columns can be asked for, given any others; cells may be missing.

With x the columns of numbers and c the categories, of a question for x_M and c_A, given x_G and c_G,

    log p(x_M, c_A | x_G, c_G) = log p(c_A | x_G, c_G) + log p(x_M | x_G, c_G, c_A),

a density with respect to Lebesgue measure for x_M and counting measure for c_A. The first part goes category by
category (`transforms/categorical.py`); the second is the masked flow, to which the levels of c_G and c_A are known.
What a question does not name is absent from both: nothing is summed or integrated, and each answer is normalised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.estimator.data import TrainingData, tensor
from ffjord_kit.estimator.tables.categories import CategoriesDomain
from ffjord_kit.estimator.tables.probability import fit_asked_factors
from ffjord_kit.estimator.tables.subsets import SubsetDomain, SubsetTrainingData, question_of
from ffjord_kit.estimator.tables.table import TableDomain
from ffjord_kit.flow import Flow
from ffjord_kit.nn.masked import QuestionContext
from ffjord_kit.transforms import AskedCategorical, Transform
from ffjord_kit.transforms.categorical import categorical_of
from ffjord_kit.transforms.subsets import SubsetScaling
from ffjord_kit.weights import resampled


@dataclass(frozen=True)
class MixedSubsetDomain(SubsetDomain, CategoriesDomain):
    """Tables with categories of which any subset of the columns is modelled, given any other."""

    def numbers(self, x: np.ndarray) -> np.ndarray:
        return x[:, self.places]

    def questions_of(self, x: np.ndarray) -> np.ndarray:
        observed = ~np.isnan(x)
        context = self.question(observed)
        context[:, self._code_slice] = self._known_codes(x, observed)
        return context

    def question(
        self, modelled: np.ndarray, given: np.ndarray | None = None, values: np.ndarray | None = None
    ) -> np.ndarray:
        given = np.zeros(modelled.shape, dtype=bool) if given is None else given
        values = np.where(given, 0.0 if values is None else values, 0.0)
        numbers = question_of(*(part[:, self.places] for part in (modelled, given, values)))
        return np.concatenate([numbers, self._known_codes(values, given), modelled[:, self.category_places]], axis=1)

    def fold(self, data: TrainingData, rows: Tensor, judges: Tensor) -> SubsetTrainingData:
        probabilities = cast(SubsetTrainingData, data).probabilities
        return replace(super().fold(data, rows, judges), probabilities=probabilities)

    def preprocess(self, data: TrainingData, scaling: str) -> list[Transform]:
        transforms, fitted = super().preprocess(data, scaling), cast(SubsetTrainingData, data).probabilities
        if scaling not in fitted:
            fitted[scaling] = self._probability(data.fitting, cast(SubsetScaling, transforms[0]))
        return [*transforms, fitted[scaling]]

    def _probability(self, rows: Batch, transform: SubsetScaling) -> AskedCategorical:
        """Return the probability of the categories, given any columns, fitted to rows with their questions."""
        rows = rows[resampled(torch.arange(len(rows)), rows.weight)]
        question = QuestionContext.of_context(cast(Tensor, rows.context), self.size)
        codes, observed = cast(Tensor, question.categories).split([sum(self.sizes), len(self.sizes)], dim=1)
        values, _ = transform.scaling.to_base(rows.x)
        circles = self.geometry.circles
        factors = fit_asked_factors(values, question.modelled, codes, observed, self.sizes, circles)
        return AskedCategorical(factors, self.size, circles)

    def blank_preprocess(self, scaling: str, context_dim: int) -> list[Transform]:
        blank = AskedCategorical.blank_for(self.sizes, self.size, self.geometry.circles)
        return [*super().blank_preprocess(scaling, context_dim), blank]

    def rows(self, x: Any) -> tuple[Tensor, np.ndarray]:
        """Check rows of the table; those with a level that the fit has not seen lie outside the support.

        Args:
            x: Rows, NaN where a cell is missing, shape (n, d).

        Returns:
            The rows within the support, followed by the places of their levels, shape (k, size + categories), and a
            mask of these among all, shape (n,).

        Raises:
            ValueError: If the data are not of the domain.
        """
        x = self.observed_cells(x)
        if x.ndim != 2 or x.shape[1] != self.n_features or not len(x):
            raise ValueError(f"expected rows of shape (n >= 1, {self.n_features}); got {x.shape}")
        numbers = self.numbers(x)
        rows, inside = TableDomain.rows(self, np.where(np.isnan(numbers), self.inside, numbers))
        return self._with_places(rows, inside, self._codes(self._with_some_level(x[:, self.category_places])))

    def joined(self, batch: Batch) -> Batch:
        context = cast(Tensor, batch.context).clone()
        asked = context[:, self._code_slice.stop :].repeat_interleave(torch.tensor(self.sizes), dim=1)
        own = tensor(self._one_hot_of(batch.x[:, self.size :].numpy()))
        context[:, self._code_slice] = torch.where(asked > 0, own, context[:, self._code_slice])
        return replace(batch, x=batch.x[:, : self.size], context=context)

    def with_drawn_categories(
        self, flow: Flow, context: Tensor | None, n: int, generator: torch.Generator
    ) -> Tensor | None:
        given = cast(Tensor, context).double().clone()
        scaled = cast(Tensor, flow.preprocess.scale_context(given, given))
        given[:, self._code_slice] = categorical_of(flow).sample(scaled, generator)
        return given

    def drawn(self, x: np.ndarray, context: Tensor | None) -> np.ndarray:
        return self._with_levels(self.restore(x), cast(Tensor, context)[:, self._code_slice])

    def context_names(self, dim: int) -> list[str]:
        codes = [f"{name}={level}" for name, kind in self.categories.items() for level in kind.levels or ()]
        return [*super().context_names(dim), *codes, *(f"{name} modelled" for name in self.categories)]

    @property
    def _code_slice(self) -> slice:
        """Place of the codes of categories in a context."""
        return slice(3 * self.size, 3 * self.size + sum(self.sizes))

    def _known_codes(self, x: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Return the codes of all categories, 0 where none is known, from rows of the table and a mask, (n, d)."""
        there = known[:, self.category_places]
        levels = np.where(there, x[:, self.category_places], np.nan)
        return self._one_hot(self._with_some_level(levels)) * np.repeat(there, self.sizes, axis=1)

    def _with_some_level(self, x: np.ndarray) -> np.ndarray:
        """Return columns of categories with the first level where a cell is missing, shape (n, categories)."""
        first = [float(kind.numbers(np.zeros(1))[0]) for kind in self.categories.values()]
        return np.where(np.isnan(x), first, x)
