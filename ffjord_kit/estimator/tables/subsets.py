"""Tables of which any columns can be asked for, given any others; cells may be missing.

The flow has one field for all questions (see `ffjord_kit.nn.masked`). Rows come to training with their observed columns
modelled, and objectives ask random questions of them. Cells are taken to be missing at random: whether one is missing
may depend on the observed cells of its row, and not on its own value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ffjord_kit.columns.frames import checked_marks, unmarked
from ffjord_kit.columns.rows import check_support, to_internal
from ffjord_kit.columns.types import Types
from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.columns import check_columns
from ffjord_kit.diagnostics.sample_weight import split_weights
from ffjord_kit.estimator.data import Arrays, TrainingData, refuse_not_finite, tensor
from ffjord_kit.estimator.fields import TableFields
from ffjord_kit.estimator.tables.names import in_order
from ffjord_kit.estimator.tables.table import Header, TableDomain, with_unit_weights
from ffjord_kit.nn import VectorField
from ffjord_kit.nn.masked import MaskedField, QuestionContext
from ffjord_kit.objectives import FlowMatching, Objective
from ffjord_kit.objectives.subsets import ask, on_questions
from ffjord_kit.transforms import AskedCategorical, ContextScaling, Transform
from ffjord_kit.transforms.subsets import Elementwise, QuestionScaling, SubsetScaling

if TYPE_CHECKING:
    from typing import Self

SCALINGS = ("standardize", "robust", "gaussianize")  # of each column by itself
FOR_TAILS = "pass scaling='gaussianize' (--scaling gaussianize), for heavy tails"
NETWORKS = ("residual", "concat_squash", "concat")
# Fields that have one value with questions beside an open one, and why.
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "scaling": (("auto", *SCALINGS), "each column is scaled by itself"),
    "base": (("auto", "normal"), "the base is normal, column by column"),
    "dynamics": (("auto", *NETWORKS), "the field must be masked column by column"),
    "coupling": (("auto", "independent"), "each row has a question of its own"),
    "transforms": ((None, (), []), "exact transforms mix the columns"),
    "watch": ((None, "condensation"), "a spectrum is that of whole rows"),
    "robust": ((None,), "the worst neighbours of a row belong to one question"),
}


@dataclass(frozen=True)
class SubsetTrainingData(TrainingData):
    """Training data whose contexts are the questions of all observed columns; rows hold some value where none was.

    Attributes:
        sizes: Number of levels of each category.
        probabilities: Probability of the categories, by the scaling of the numbers that they are given.
    """

    sizes: tuple[int, ...] = ()
    probabilities: dict[str, AskedCategorical] = field(default_factory=dict)

    @property
    def context_scaling(self) -> ContextScaling | None:  # type: ignore[override]
        """None: questions are scaled as the rows are."""
        return None

    @property
    def scaled_context(self) -> Tensor | None:  # type: ignore[override]
        """Questions of `fitting`, which give no values that a scaling would change, shape (n, 3 d)."""
        return self.fitting.context

    def examined(self, judges: Batch) -> Batch:
        """Return the rows, half of them with random questions, since steps may fold for some questions alone."""
        asked = ask(judges[1::2], torch.Generator().manual_seed(0), self.sizes) if len(judges) > 1 else judges
        whole = judges[::2]
        return Batch(torch.cat([whole.x, asked.x]), torch.cat([cast(Tensor, each.context) for each in (whole, asked)]))


@dataclass(frozen=True)
class SubsetDomain(TableDomain):
    """Tables of which any subset of the columns is modelled, given any other; NaN stands for a missing cell.

    Args:
        fields: Fields of the fit, which name further marks of missing cells.
    """

    fields: TableFields = field(default_factory=TableFields)

    @classmethod
    def of(cls, fields: TableFields, x: np.ndarray, header: Header, found: Types) -> Self:
        _check_fields(fields)
        _check_cells(x, header.columns)
        domain = super().of(fields, with_all_cells(x), header, found)
        if domain.geometry.spheres:
            raise ValueError("subsets=True takes no spheres, only circles: leave out their type, or subsets")
        return replace(domain, fields=fields)

    @classmethod
    def from_record(cls, fields: TableFields, record: Mapping[str, Any]) -> Self:
        return replace(super().from_record(fields, record), fields=fields)

    def record(self) -> dict[str, Any]:
        return {**super().record(), "subsets": True}

    def search_options(self, data: TrainingData, seconds: float) -> Iterator[tuple[str, tuple[Any, ...]]]:
        for name, values in super().search_options(replace(data, context=None, conditional=None), seconds):
            kept = tuple(value for value in values if name not in FIXED or value in FIXED[name][0])
            if name != "weight_decay" and kept:
                yield name, kept

    def asked(self, objective: Objective[Any]) -> Objective[Any]:
        return on_questions(objective, self.sizes)

    def matching(self, objective: FlowMatching) -> Objective:
        return on_questions(super().matching(objective), self.sizes)

    def training_data(self, arrays: Arrays, fraction: float, seed: int) -> TrainingData:
        if arrays.streamed:
            raise ValueError(
                "missing cells (NaN) and subsets=True need a table in memory; got a numpy.memmap: pass np.array(X), or "
                "some rows"
            )
        if arrays.context is not None:
            raise ValueError(
                "subsets=True takes no context: leave these columns in the table, and condition on them by given(...)"
            )
        numbers = self.numbers(arrays.x)
        x = self.add_noise(with_all_cells(numbers), seed)
        holed = bool(np.isnan(numbers).any())
        check_columns(x, self.columns, filled=holed, angles=self.geometry.circles, for_tails=FOR_TAILS)
        check_support(x, self.bounds, self.columns)
        x = to_internal(x, self.types, self.columns)
        kept, held_out = self._split(len(x), fraction, seed, streamed=False)
        context = self.questions_of(arrays.x)
        weights = split_weights(arrays.weight, kept, held_out)
        every, judges = (
            Batch(tensor(x[rows]).double(), tensor(context[rows]), weight)
            for rows, weight in zip((kept, held_out), weights, strict=True)
        )
        return self._questioned(every, judges if len(held_out) else None)

    def _questioned(self, every: Batch, judges: Batch | None) -> SubsetTrainingData:
        """Return training data of rows with their questions."""
        return SubsetTrainingData(every.x, every.context, every, judges, weight=every.weight, sizes=tuple(self.sizes))

    def numbers(self, x: np.ndarray) -> np.ndarray:
        """Return the columns that are no categories.

        Args:
            x: Rows of the table, shape (n, d).

        Returns:
            Their columns of numbers, shape (n, size).
        """
        return x

    def questions_of(self, x: np.ndarray) -> np.ndarray:
        """Return the contexts that model all observed cells of rows.

        Args:
            x: Rows of the table, NaN where a cell is missing, shape (n, d).

        Returns:
            Contexts, shape (n, context_dim).
        """
        return self.question(~np.isnan(x))

    def question(
        self, modelled: np.ndarray, given: np.ndarray | None = None, values: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the contexts that ask for some columns, given others.

        Args:
            modelled: Whether a column is modelled, shape (n, d).
            given: Whether it is given, shape (n, d); None for none.
            values: Values of the given columns, shape (n, d).

        Returns:
            Contexts, shape (n, context_dim).
        """
        known = None if given is None or values is None else np.where(given, values, 0.0)
        return question_of(modelled, given, known)

    def fold(self, data: TrainingData, rows: Tensor, judges: Tensor) -> SubsetTrainingData:
        return with_unit_weights(self._questioned(data.fitting[rows], data.fitting[judges]))

    def preprocess(self, data: TrainingData, scaling: str) -> list[Transform]:
        plain = replace(data, context=None, conditional=None, fitting=replace(data.fitting, context=None))
        return [self._of_subsets(super().preprocess(plain, scaling))]

    def blank_preprocess(self, scaling: str, context_dim: int) -> list[Transform]:
        return [self._of_subsets(super().blank_preprocess(scaling, 0))]

    def _of_subsets(self, transforms: Sequence[Transform]) -> SubsetScaling:
        """Return transforms of each column by itself as one of the modelled columns."""
        return SubsetScaling(Elementwise(transforms, self.size, self.geometry.circles))

    def context_preprocess(
        self, scaling: ContextScaling | None, preprocess: Sequence[Transform]
    ) -> tuple[Transform | ContextScaling | None, int]:
        categories = sum(self.sizes) + len(self.sizes)
        return QuestionScaling(cast(SubsetScaling, preprocess[0]).scaling, categories), 3 * self.size + categories

    @property
    def residual_options(self) -> dict[str, Any]:
        return {"gated_by_context": True}  # by masks

    def _field(self, network: Callable[..., nn.Module]) -> nn.Module:
        codes = sum(self.sizes)
        inner = super()._field(lambda shape: network(shape, context_dim=2 * self.size + codes))
        return MaskedField(cast(VectorField, inner), codes)

    def rows(self, x: Any) -> tuple[Tensor, np.ndarray]:
        x = self.observed_cells(x)
        return super().rows(np.where(np.isnan(x), self.inside, x) if x.shape[1:] == (self.size,) else x)

    def implied_context(self, x: Any) -> np.ndarray | None:
        x = self.observed_cells(x)
        return self.question(~np.isnan(x)) if np.isnan(x).any() else None

    def coded(self, x: Any) -> Any:
        return super().coded(unmarked(x, self.fields.missing))

    def observed_cells(self, x: Any) -> np.ndarray:
        """Return rows with their columns in the order of the fit, and NaN where a cell is missing.

        Args:
            x: Rows, shape (n, d).

        Returns:
            The rows, in float64.
        """
        return marked(np.asarray(in_order(self.coded(x), self.all_columns), dtype=np.float64), self.fields)

    def contexts(self, context: Any, rows: int, dim: int | None) -> np.ndarray | None:
        everything = self.question(np.ones((rows, len(self.all_columns)), dtype=bool))
        return everything if context is None else super().contexts(context, rows, dim)

    def context_names(self, dim: int) -> list[str]:
        return [f"{name} {word}" for word in ("given", "value", "modelled") for name in self.columns]

    @property
    def inside(self) -> np.ndarray:
        """A value of each column within its support, for cells that are not looked at, shape (d,)."""
        middles = [(low + high) / 2 if np.isfinite(high) else low + 1 for low, high in self.bounds]
        return np.array([middle if np.isfinite(middle) else 0.0 for middle in middles])


def marked(x: np.ndarray, fields: TableFields) -> np.ndarray:
    """Return rows with NaN where a number marks a missing cell.

    Args:
        x: Rows, shape (n, d).
        fields: Fields; their words mark cells of files and frames, which hold none here any more.

    Returns:
        The rows, in a new array if they have such cells.

    Raises:
        ValueError: If there are marks, and no cell may be missing.
    """
    given = checked_marks(fields.missing)
    marks = [float(mark) for mark in given if not isinstance(mark, str)]
    if given and fields.subsets is False:
        raise ValueError(f"missing={fields.missing!r} marks cells that subsets=False refuses: leave one of them out")
    found = np.isin(x, marks) if marks else np.zeros(1, dtype=bool)
    return np.where(found, np.nan, x) if found.any() else x


def question_of(modelled: np.ndarray, given: np.ndarray | None = None, values: np.ndarray | None = None) -> np.ndarray:
    """Return the contexts that ask for some columns, given others.

    Args:
        modelled: Whether a column is modelled, shape (n, d).
        given: Whether it is given, shape (n, d); None for none.
        values: Values of the given columns, shape (n, d).

    Returns:
        Contexts [g, v, m], shape (n, 3 d).
    """
    nothing = np.zeros(modelled.shape)
    parts = (nothing if given is None else given, nothing if values is None else values, modelled)
    return QuestionContext(*(torch.from_numpy(np.asarray(part, dtype=np.float64)) for part in parts)).context.numpy()


def with_all_cells(x: np.ndarray) -> np.ndarray:
    """Return rows whose missing cells hold values of their columns, spread evenly over those observed.

    So every fit to single columns (scales, quantiles, steps of a grid) sees the distribution of what was observed.

    Args:
        x: Rows with NaN, shape (n, d), some cell of each column observed.

    Returns:
        Rows, shape (n, d).

    Example:
        >>> with_all_cells(np.array([[1.0], [np.nan], [3.0], [2.0]])).tolist()
        [[1.0], [2.0], [3.0], [2.0]]
    """
    x = x.copy()
    for column in x.T:
        missing = np.isnan(column)
        if missing.any():
            known = np.sort(column[~missing])
            count = int(missing.sum())
            column[missing] = known[((np.arange(count) + 0.5) / count * len(known)).astype(int)]
    return x


def _check_fields(fields: TableFields) -> None:
    """Refuse fields that questions leave no choice of."""
    for name, (values, reason) in FIXED.items():
        value = getattr(fields, name)
        if value not in values:
            raise ValueError(f"subsets=True takes {name}={_words(values)}, as {reason}; got {value!r}")


def _words(values: Sequence[Any]) -> str:
    return " or ".join(dict.fromkeys(repr(value) for value in values if value not in ((), [])))


def _check_cells(x: np.ndarray, names: Sequence[str]) -> None:
    """Refuse infinite cells, and rows and columns without any value."""
    missing = np.isnan(x)
    refuse_not_finite(np.where(missing, 0.0, x), "X", names)
    empty = np.flatnonzero(missing.all(0))
    if len(empty):
        raise ValueError(f"column {names[empty[0]]!r} has no value, all its cells are missing: drop it")
    rows = np.flatnonzero(missing.all(1))
    if len(rows):
        raise ValueError(f"{len(rows)} of {len(x)} rows have no value (first: row {rows[0]}): drop them")
