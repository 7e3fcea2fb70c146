"""Tables: columns are checked, opened from their support and scaled; columns of equal steps get noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ffjord_kit.columns.categories import Category, Dated
from ffjord_kit.columns.circles import Circle
from ffjord_kit.columns.frames import code_frame, presented
from ffjord_kit.columns.mixed import cells_of, describe
from ffjord_kit.columns.rows import (
    Bounds,
    check_support,
    curved_columns,
    geometry_of,
    inside_support,
    refuse_two_supports,
    settled_types,
    spread_ends,
    support_bounds,
    to_internal,
    to_table,
    with_bounds_of_types,
    wrapped,
)  # fmt: skip
from ffjord_kit.columns.types import Types, read_types, types_as_text
from ffjord_kit.data import Batch, StreamedRows
from ffjord_kit.diagnostics.columns import check_columns, check_contexts
from ffjord_kit.diagnostics.grid import Grid
from ffjord_kit.diagnostics.sample_weight import split_weights
from ffjord_kit.distributions import Base, ProductBase, outliers_inflate_scale
from ffjord_kit.estimator.data import Arrays, TrainingData, check_context, held_out_count, refuse_not_finite, tensor
from ffjord_kit.estimator.domain import Domain
from ffjord_kit.estimator.fields import TableFields, choice
from ffjord_kit.estimator.tables.contexts import coded_contexts, coded_names
from ffjord_kit.estimator.tables.names import context_in_order, in_order
from ffjord_kit.estimator.tables.own import base_makers
from ffjord_kit.estimator.tables.settled import is_paired, needs_width, takes_muon, weight_decay
from ffjord_kit.estimator.tables.typed import grid_with_types, refuse_on_manifolds
from ffjord_kit.geometry import Geometry
from ffjord_kit.nn import DYNAMICS, ManifoldDynamics, VectorField
from ffjord_kit.objectives import FlowMatching, ManifoldMatching, Objective
from ffjord_kit.rows import is_frame, shared_tensor
from ffjord_kit.run import RunError
from ffjord_kit.trace import ExactTrace, TraceEstimator
from ffjord_kit.transforms import (
    CNF,
    SCALINGS,
    Angles,
    Asinh,
    ConditionalAffine,
    Logit,
    OnColumns,
    Softplus,
    Transform,
)  # fmt: skip
from ffjord_kit.transforms.affine import gaussian_total_correlation
from ffjord_kit.weights import resampled

if TYPE_CHECKING:
    from typing import Self

FEW_COLUMNS = 3
# Default widths: for few columns, for more, and for many with rows and time enough.
NARROW, WIDE, WIDEST = (64, 64, 64), (128, 128, 128), (256, 256, 256)
LARGEST_VALIDATION_SET = 2_000
VALIDATION_ELEMENTS, VALIDATION_ROWS = 8_192, 200  # fewer rows where a row is long, as its exact trace is dear
FITTED_ROWS = 100_000  # of a longer table, for scalings and trials
MOST_STEPPED_COLUMNS = 64  # a step's frame has a tangent for each
SMALL = 1000  # rows: fewer are cross-validated, for a part of them judges badly
GAUSSIANIZED_FROM = 200  # rows: fewer say little of the quantiles
PLACES_OF_KERNELS = 100  # on a sphere: fewer have no kernels, so that each fold has some
FEATURES_OF_SPHERES = 4  # octaves: coasts are fine on a unit sphere (benchmarks/earth.py)
WHITENED_UP_TO = 32  # columns: with 63 it led by ten nats after 240 steps, and after 2,500 by nothing
COLUMNWISE = ("standardize", "robust")  # scalings under which the errors of a column stay its own
SCALING_MARGIN = 0.02  # nats a column by which another scaling must win

Fold = TypeVar("Fold", bound=TrainingData)


class Header(NamedTuple):
    """Names of a table to be fitted.

    Attributes:
        columns: Names of the columns.
        named: Whether the data came with these names.
        context_columns: Names of the contexts; none where they have none.
        context_types: Categories among the contexts, by names.
    """

    columns: tuple[str, ...]
    named: bool
    context_columns: tuple[str, ...] = ()
    context_types: Types = {}


@dataclass(frozen=True)
class TableDomain(Domain):
    """Tables of continuous columns.

    Args:
        columns: Names of the columns.
        named: Whether the data came with these names.
        bounds: Support of each column, (lower, upper), infinite where it is open.
        grid: Steps of the columns.
        base_word: Word of BASES.
        context_columns: Names of the contexts; none where they have none.
        types: Types of columns by names, of those that have one.
        context_types: Categories among the contexts, by names.
    """

    noun: ClassVar[str] = "table"
    networks: ClassVar[Mapping[str, Callable[..., nn.Module]]] = DYNAMICS
    dtype: ClassVar[torch.dtype] = torch.float64
    certify_probes: ClassVar[int | None] = None

    columns: tuple[str, ...]
    named: bool
    bounds: Bounds
    grid: Grid
    base_word: str
    context_columns: tuple[str, ...] = ()
    types: Types = field(default_factory=dict)
    context_types: Types = field(default_factory=dict)

    @classmethod
    def of(cls, fields: TableFields, x: np.ndarray, header: Header, found: Types) -> Self:
        """Return the domain of a table to be fitted.

        Args:
            fields: Fields.
            x: Rows, shape (n, d).
            header: Names.
            found: Types that the data showed, by names.

        Returns:
            The domain.

        Raises:
            ValueError: If a value is not finite, or types, support or grid do not suit the columns.
        """
        refuse_not_finite(x, "X", header.columns)
        types = settled_types(fields.columns, x, header.columns, found)
        refuse_two_supports(fields.support, types)
        return cls.of_types(fields, x, header, types)

    @classmethod
    def of_types(cls, fields: TableFields, x: np.ndarray, header: Header, types: Types) -> Self:
        """Return the domain of a table whose types are settled.

        Args:
            fields: Fields.
            x: Rows, shape (n, d).
            header: Names.
            types: Settled types by names.

        Returns:
            The domain.

        Raises:
            ValueError: If support or grid do not suit the columns.
        """
        names, named, context_columns, context_types = header
        refuse_on_manifolds(fields, types, geometry_of(types, names))
        grid = grid_with_types(fields.dequantize, types, x, names)
        bounds = with_bounds_of_types(support_bounds(fields.support, names), types, names)
        return cls(names, named, bounds, grid, fields.base, context_columns, types, context_types)

    @classmethod
    def from_record(cls, fields: TableFields, record: Mapping[str, Any]) -> Self:
        """Return the domain that a run keeps.

        Args:
            fields: Fields of the run.
            record: Config of the run.

        Returns:
            The domain.

        Raises:
            ValueError: If the record makes no sense.
            RunError: If an earlier version fitted it to heavy tails.
        """
        if fields.base == "student" and not record.get("asinh"):
            raise RunError(
                "this run is of an earlier version, in which the columns of base='student' mixed their tails: fit again"
            )
        names = tuple(record["columns"])
        types, grid = read_types(record.get("types"), names), Grid.from_record(record["grid"], len(names))
        bounds = with_bounds_of_types(support_bounds(fields.support, names), types, names)
        contexts = tuple(record.get("context_columns", ()))
        context_types = read_types(record.get("context_types"), contexts)
        return cls(names, bool(record["named"]), bounds, grid, fields.base, contexts, types, context_types)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of a row as the flow has it: one element for each column, and one more for each sphere."""
        return (self.geometry.size,)

    @cached_property
    def geometry(self) -> Geometry:
        """Which elements of a row are angles, and which are points on a sphere."""
        return geometry_of(self.types, self.columns)

    @property
    def few_columns(self) -> bool:
        """Whether a solve with the exact trace is cheap."""
        return len(self.columns) <= FEW_COLUMNS

    def record(self) -> dict[str, Any]:
        contexts: dict[str, Any] = {"context_columns": self.context_columns} if self.context_columns else {}
        if self.context_types:
            contexts["context_types"] = types_as_text(self.context_types)
        tails = {"asinh": True} if self.base_word == "student" else {}
        types = {"types": types_as_text(self.types)} if self.types else {}
        return {"columns": self.columns, "named": self.named, "grid": self.grid._asdict(), **contexts, **tails, **types}

    def defaults(self) -> dict[str, Any]:
        return {
            "schedule": [("flow_matching", 4000)], "time_density": "uniform", "coupling": "independent",
            "scaling": "robust" if self.base_word == "student" else "standardize", "dynamics": "residual",
            "solver": "dopri5", "adjoint": "backprop", "learning_rate": 8e-3, "batch_size": 512, "fourier_features": 0,
            "base": "normal", "hidden": NARROW if self.few_columns else WIDE, "optimizer": "adamw",
            "weight_decay": 0.0,
        }  # fmt: skip

    def search_options(self, data: TrainingData, seconds: float) -> Iterator[tuple[str, tuple[Any, ...]]]:
        rows = data.effective_rows
        follows, small = data.conditional is not None and not data.conditional.is_identity, self.is_small(rows)
        yield "time_density", ("uniform", "likelihood") if small else ("likelihood", "uniform")
        if self.geometry.real:
            unscaled = self._real(self._unscaled(data)[0] if follows else data.fitting.x)
            words = self._scalings(resampled(unscaled, data.fitting.weight), rows)
            yield "scaling", tuple(word for word in words if data.noise is None or word in COLUMNWISE)
        if self.few_columns:
            some = FEATURES_OF_SPHERES if self.geometry.spheres else 2
            yield "fourier_features", (0, some) if small else (some, 0)
        if small:
            bases = ("mixture",) if self.geometry.real else self.untrained_bases(data)
            if bases:
                yield "base", ("normal", *bases)
            yield "hidden", (NARROW,)
        else:
            yield from self._settled(data, seconds)

    def _settled(self, data: TrainingData, seconds: float) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Yield the fields that need no trial, for the numbers of rows and columns settle them."""
        if takes_muon(self.size, data.effective_rows, contexts=data.context is not None):
            yield "optimizer", ("muon",)
        if decay := weight_decay(data.effective_rows, contexts=data.context is not None):
            yield "weight_decay", (decay,)
        plain = data.context is None and data.fitting.weight is None and self.geometry.is_flat
        if plain and is_paired(self.size):
            yield "coupling", ("optimal_transport",)
        if needs_width(self.size, data.effective_rows, seconds):
            yield "hidden", (WIDEST,)

    def untrained_bases(self, data: TrainingData) -> tuple[str, ...]:
        weight = data.fitting.weight
        suits = data.context is None and (weight is None or bool((weight >= 0).all()))
        if not (suits and self.geometry.is_one_sphere):
            return ()
        return ("kernels",) if len(data.fitting.x.unique(dim=0)) >= PLACES_OF_KERNELS else ()

    def is_small(self, rows: int) -> bool:
        return rows < SMALL

    def reason_not_to_search(self) -> str:
        return ""

    def reason_not_to_step(self) -> str:
        return f"more than {MOST_STEPPED_COLUMNS} columns" if self.size > MOST_STEPPED_COLUMNS else ""

    def check_schedule(self, objectives: Sequence[str]) -> None:
        if "steps" in objectives and self.size > MOST_STEPPED_COLUMNS:
            raise ValueError(
                f"a phase 'steps' carries a tangent for each column, which pays up to {MOST_STEPPED_COLUMNS} columns; "
                f"got {self.size}: leave it out"
            )

    def matching(self, objective: FlowMatching) -> Objective:
        if self.geometry.is_flat:
            return objective
        return ManifoldMatching(objective.time_density, objective.coupling, geometry=self.geometry)

    def trace(self, *, reported: bool) -> TraceEstimator:
        return ExactTrace()

    def training_data(self, arrays: Arrays, fraction: float, seed: int) -> TrainingData:
        x = self.add_noise(arrays.x, seed)
        angles = [place for place in range(len(self.columns)) if place not in self.geometry.real]
        check_columns(x, self.columns, heavy_tails=self.base_word == "student", angles=angles, context=arrays.context)
        check_support(x, self.bounds, self.columns)
        x = to_internal(x, self.types, self.columns)
        if arrays.context is not None and self.base_word == "kernels":
            raise ValueError("base='kernels' knows no contexts or categories: leave them out, or choose another base")
        if arrays.context is not None:
            check_contexts(arrays.context, self.context_names(arrays.context.shape[1]))
        kept, held_out = self._split(len(x), fraction, seed, arrays.streamed)
        weight, judging = split_weights(arrays.weight, kept, held_out)
        noise, unseen = (None if arrays.noise is None else tensor(arrays.noise[rows]) for rows in (kept, held_out))
        held = Batch(tensor(x[held_out]).double(), arrays.contexts(held_out), judging, unseen)
        judges = held if len(held_out) else None
        context = arrays.contexts(kept)
        some = _spread(len(kept), FITTED_ROWS)
        if not arrays.streamed:
            every = Batch(tensor(x[kept]).double(), context, weight, noise)
            return self._completed(
                TrainingData(every.x, context, every[some], judges, weight=weight, noise=noise, codes=self._plain)
            )
        streamed = StreamedRows(shared_tensor(x), torch.from_numpy(held_out))
        fitting = Batch(streamed.fetch(some), *(None if part is None else part[some] for part in (context, weight)))
        return self._completed(TrainingData(streamed, context, fitting, judges, weight=weight))

    def split(self, x: Any, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return self._split(len(x), fraction, seed, isinstance(x, np.memmap))

    def preprocess(self, data: TrainingData, scaling: str) -> list[Transform]:
        makers = choice("scaling", scaling, SCALINGS)[:1] if self.geometry.real else ()
        if not makers:
            return [*self._support_transforms(), *self._tail_transforms()]
        x, transforms = self._unscaled(data)
        scalings = [self._on_real(make(self._real(x), *_weights_of(data.fitting))) for make in makers]
        return [*transforms, *scalings, *self._tail_transforms()]

    def blank_preprocess(self, scaling: str, context_dim: int) -> list[Transform]:
        zeros = torch.zeros(len(self.geometry.real), dtype=torch.float64)
        makers = choice("scaling", scaling, SCALINGS)[1:] if self.geometry.real else ()
        conditional = [ConditionalAffine.identity(zeros, context_dim)] if context_dim and makers else []
        scalings = [self._on_real(each) for each in (*conditional, *(make(zeros) for make in makers))]
        return [*self._support_transforms(), *scalings, *self._tail_transforms()]

    def base(self, z: Tensor | None, fields: Any, weight: Tensor | None = None) -> Base:
        fitted, blank = base_makers(fields.base)
        if self.geometry.is_flat or fields.base == "kernels":
            return blank(self.event_shape) if z is None else fitted(z, weight)
        size = len(self.geometry.real)
        real = None if not size else blank((size,)) if z is None else fitted(self._real(z), weight)
        return ProductBase(self.geometry, real)

    def continuous(
        self, network: Callable[[tuple[int, ...]], nn.Module], blocks: int, options: Mapping[str, Any]
    ) -> list[CNF]:
        return [CNF(self._field(network), self.event_shape, **options) for _ in range(blocks if self.size else 0)]

    def largest_weight(self, hidden: Sequence[int], inputs: int, context_dim: int) -> int:
        if not self.size:  # no network
            return 0
        widths = [(self.size + context_dim) * inputs, *hidden, self.size]
        return max(a * b for a, b in zip(widths[:-1], widths[1:], strict=True))

    def rows(self, x: Any) -> tuple[Tensor, np.ndarray]:
        x = np.asarray(in_order(self.coded(x), self.columns), dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.columns) or not len(x):
            raise ValueError(f"expected rows of shape (n >= 1, {len(self.columns)}); got {x.shape}")
        refuse_not_finite(x, "X", self.columns)
        x = spread_ends(x, self.types, self.columns, None)
        inside = np.all(inside_support(x, self.bounds), axis=1)
        return tensor(to_internal(x, self.types, self.columns)[inside]), inside

    @property
    def _plain(self) -> int:
        """Number of elements at the end of the flow's contexts that are codes."""
        return self.code_dim + sum(kind.size for kind in self.context_types.values() if isinstance(kind, Category))

    def coded_context(self, context: Any) -> Any:
        return coded_contexts(context, self.context_columns, self.context_types)

    def all_rows(self, x: Any) -> Tensor:
        """Return rows in the form of `rows`, those outside the support too.

        Args:
            x: Rows of the table without missing cells, shape (n, d), or a frame.

        Returns:
            The rows, followed by the places of their levels, shape (n, size + categories).

        Raises:
            ValueError: If a row has a level that the fit has not seen.
        """
        rows = np.asarray(in_order(self.coded(x), self.columns), dtype=np.float64)
        return tensor(to_internal(rows, self.types, self.columns))

    def contexts(self, context: Any, rows: int, dim: int | None) -> np.ndarray | None:
        coded = self.coded_context(context)
        return check_context(context_in_order(coded, self.context_columns), rows, dim)

    def context_names(self, dim: int) -> list[str]:
        return coded_names(self.context_columns, self.context_types) or super().context_names(dim)

    def coded(self, x: Any) -> Any:
        return code_frame(x, self.all_types) if is_frame(x) else x

    def presented(self, draws: np.ndarray) -> Any:
        return presented(draws, self.all_columns, self.all_types)

    @property
    def found(self) -> str:
        looked = {own[0]: kind for own, kind in self.all_types.items() if isinstance(kind, (Category, Dated))}
        return "; ".join(describe(name, kind) for name, kind in looked.items())

    @property
    def cells(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        return cells_of(self.all_types)

    @property
    def sizes(self) -> list[int]:
        """Number of levels of each category: none in a table of numbers."""
        return []

    @property
    def all_columns(self) -> tuple[str, ...]:
        """Names of all columns of the table, categories among them."""
        return self.columns

    @property
    def all_types(self) -> Types:
        """Types of all columns of the table that have one."""
        return self.types

    def restore(self, x: np.ndarray) -> np.ndarray:
        if self.geometry.is_flat:
            return self.grid.round(x)
        rounded = self.grid.round(to_table(x, self.types, self.columns))
        return wrapped(rounded, self.types, self.columns)

    def frame(self, x: np.ndarray) -> np.ndarray:
        return x if self.geometry.is_flat else to_table(x, self.types, self.columns)

    def add_noise(self, x: np.ndarray, seed: int) -> np.ndarray:
        columns = len(self.columns)
        noisy = self.grid.add_noise(spread_ends(x[:, :columns], self.types, self.columns, seed), seed)
        return noisy if x.shape[1] == columns else np.concatenate([noisy, x[:, columns:]], axis=1)

    @property
    def curved(self) -> str:
        return ", ".join(curved_columns(self.types))

    def _split(self, rows: int, fraction: float, seed: int, streamed: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the rows to train on, ascending, and of those to hold out."""
        most = min(LARGEST_VALIDATION_SET, max(VALIDATION_ROWS, VALIDATION_ELEMENTS // max(1, self.size)))
        count, rng = held_out_count(rows, fraction, most), np.random.default_rng(seed)
        if streamed:
            held_out = np.sort(rng.choice(rows, count, replace=False))
            return np.delete(np.arange(rows), held_out), held_out
        order = rng.permutation(rows)
        return np.sort(order[count:]), order[:count]

    def fold(self, data: TrainingData, rows: Tensor, judges: Tensor) -> TrainingData:
        return self._completed(with_unit_weights(super().fold(data, rows, judges)))

    def _completed(self, data: TrainingData) -> TrainingData:
        """Return the data with the location and scale that follow their contexts."""
        if data.scaled_context is None:
            return data
        if not self.geometry.real:
            return data
        unscaled, weight = self._real(self._unscaled(data)[0]), data.fitting.weight
        return replace(data, conditional=ConditionalAffine.of(unscaled, data.scaled_context, weight))

    def _unscaled(self, data: TrainingData) -> tuple[Tensor, list[Transform]]:
        """Return the rows that the scaling is fitted to, and the transforms that lead to them."""
        conditional = [self._on_real(each) for each in filter(None, [data.conditional])]
        x, transforms = data.fitting.x, [*self._support_transforms(), *conditional]
        for transform in transforms:
            x, _ = transform.to_base(x, data.scaled_context)
        return x, transforms

    def _real(self, x: Tensor) -> Tensor:
        """Return the real elements of rows."""
        return x if self.geometry.is_flat else x[:, list(self.geometry.real)]

    def _on_real(self, transform: Transform) -> Transform:
        """Return a transform of the real elements as one of rows."""
        return transform if self.geometry.is_flat else OnColumns(transform, self.geometry.real, self.size)

    def _field(self, network: Callable[[tuple[int, ...]], nn.Module]) -> nn.Module:
        """Return an untrained vector field on rows."""
        if self.geometry.is_flat:
            return network(self.event_shape)
        embedded = network((self.geometry.embedded_size,))
        if not isinstance(embedded, VectorField):
            raise ValueError(f"{self.curved}: circles and spheres need dynamics derived from VectorField, with jvp")
        return ManifoldDynamics(embedded, self.geometry)

    def _support_transforms(self) -> list[Transform]:
        """Return the transforms that open the support to the whole line, and bring angles to radians."""
        free = ((-math.inf, math.inf),) * (self.size - len(self.bounds))
        lower, upper = torch.tensor((*self.bounds, *free), dtype=torch.float64).reshape(-1, 2).unbind(1)
        bounded, positive = upper.isfinite(), lower.isfinite() & ~upper.isfinite()
        circles = [kind for kind in self.types.values() if isinstance(kind, Circle)]
        transforms: list[Transform] = []
        if circles:
            starts, periods = ([getattr(kind, name) for kind in circles] for name in ("start", "period"))
            start, period = (torch.tensor(values, dtype=torch.float64) for values in (starts, periods))
            transforms.append(Angles(self.geometry.circles, start, period, self.size))
        if bool(bounded.any()):
            transforms.append(Logit(torch.where(bounded, lower, -math.inf), upper))
        if bool(positive.any()):
            transforms.append(Softplus(torch.where(positive, lower, -math.inf)))
        return transforms

    def _tail_transforms(self) -> list[Transform]:
        """Return the transform that makes heavy tails light ones, which no field mixes."""
        if self.base_word != "student" or not self.geometry.real:
            return []
        return [self._on_real(Asinh((len(self.geometry.real),)))]

    def _scalings(self, x: Tensor, rows: int) -> tuple[str, ...]:
        """Return the scalings to try out, the likelier first."""
        if self.base_word == "student":
            return ("robust",)
        words: tuple[str, ...] = ("robust",) if outliers_inflate_scale(x) else ("standardize",)
        if words == ("standardize",) and self._worth_whitening(x):
            words = ("standardize", "half_whiten")
        return (*words, "gaussianize") if rows >= GAUSSIANIZED_FROM else words

    def _worth_whitening(self, x: Tensor) -> bool:
        """Say whether correlations are worth a margin, can be removed, and a trial would show it."""
        size = x.shape[1]
        some = FEW_COLUMNS < size <= WHITENED_UP_TO
        return some and SCALING_MARGIN * size < gaussian_total_correlation(x) < math.inf


def with_unit_weights(fold: Fold) -> Fold:
    """Return a fold of cross-validation whose rows to train on have weights of mean 1.

    Args:
        fold: The fold.

    Returns:
        The fold; without weights as it is.

    Raises:
        ValueError: If the weights of a part sum to 0 or less.
    """
    if fold.weight is None or fold.held_out is None or fold.held_out.weight is None:
        return fold
    if not (fold.weight.sum() > 0 and fold.held_out.weight.sum() > 0):
        raise ValueError(
            "the weights of a fold of cross-validation sum to 0 or less: pass a schedule, e.g. "
            "[('flow_matching', 1000)], or more rows"
        )
    weight = fold.weight / fold.weight.mean()
    return replace(fold, weight=weight, fitting=replace(fold.fitting, weight=weight))


def _weights_of(rows: Batch) -> tuple[Tensor, ...]:
    """Return the weights of rows as an argument to pass on, or none."""
    return () if rows.weight is None else (rows.weight,)


def _spread(rows: int, most: int) -> Tensor:
    """Return indices of at most some number of rows, evenly spread."""
    return torch.linspace(0, rows - 1, min(rows, most), dtype=torch.float64).long()
