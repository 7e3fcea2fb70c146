"""Tables: columns are checked, opened from their support and scaled; columns of equal steps get noise."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ffjord_kit.categories import Date
from ffjord_kit.column_types import Bounded, Circle, Integer, Sphere, Types, read_types, types_as_text
from ffjord_kit.data import Batch, StreamedRows
from ffjord_kit.diagnostics.columns import check_columns, check_contexts
from ffjord_kit.diagnostics.grid import Grid, find_grid
from ffjord_kit.distributions import BASES, Base, ProductBase, outliers_inflate_scale
from ffjord_kit.estimator.data import (
    Arrays,
    Domain,
    TrainingData,
    check_context,
    held_out_count,
    refuse_not_finite,
    shared_tensor,
    tensor,
)  # fmt: skip
from ffjord_kit.estimator.fields import TableFields, choice
from ffjord_kit.geometry import Geometry
from ffjord_kit.mixed_columns import cells_of
from ffjord_kit.mixed_frames import code_frame, presented
from ffjord_kit.nn import DYNAMICS, ManifoldDynamics, VectorField
from ffjord_kit.objectives import FlowMatching, ManifoldMatching, Objective
from ffjord_kit.rows import as_rows, is_frame, take_columns
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
from ffjord_kit.typed_rows import (
    Bounds,
    check_support,
    curved_columns,
    geometry_of,
    inside_support,
    refuse_two_supports,
    settled_types,
    shortened,
    spread_ends,
    support_bounds,
    to_internal,
    to_table,
    with_bounds_of_types,
    wrapped,
)  # fmt: skip

FEW_COLUMNS = 3
NARROW, WIDE = (64, 64, 64), (128, 128, 128)  # default widths for few columns, and for more
LARGEST_VALIDATION_SET = 2_000
VALIDATION_ELEMENTS, VALIDATION_ROWS = 8_192, 200  # fewer rows where a row is long, as its exact trace is dear
FITTED_ROWS = 100_000  # of a longer table, for scalings and trials
MOST_STEPPED_COLUMNS = 64  # a step's frame has a tangent for each
DECAY, DECAY_ROWS = 0.3, 9000  # weight decay where contexts tell rows apart, up to these rows; beyond as 1 / rows
SMALL = 1000  # rows: fewer are cross-validated, for a part of them judges badly
GAUSSIANIZED_FROM = 200  # rows: fewer say little of the quantiles
WHITENED_UP_TO = 32  # columns: with 63 it led by ten nats after 240 steps, and after 2,500 by nothing
SCALING_MARGIN = 0.02  # nats a column by which another scaling must win


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

    @classmethod
    def of(
        cls,
        fields: TableFields,
        x: np.ndarray,
        columns: Sequence[str] | None,
        *,
        named: bool,
        context_columns: Sequence[str] = (),
        types: Types | None = None,
    ) -> TableDomain:
        """Return the domain of a table to be fitted.

        Args:
            fields: Fields.
            x: Rows, shape (n, d).
            columns: Names of the columns; x0, x1, ... if None.
            named: Whether the data came with these names.
            context_columns: Names of the contexts; none where they have none.
            types: Settled types by names; None for those that the fields give.

        Returns:
            The domain.

        Raises:
            ValueError: If a value is not finite, or names, support or grid do not suit the columns.
        """
        names = column_names(columns, x.shape[1])
        refuse_not_finite(x, "X", names)
        types = settled_types(fields.columns, x, names) if types is None else types
        refuse_two_supports(fields.support, types)
        refuse_on_manifolds(fields, types)
        grid = grid_with_types(fields.dequantize, types, x, names)
        bounds = with_bounds_of_types(support_bounds(fields.support, names), types, names)
        return cls(names, named, bounds, grid, fields.base, tuple(context_columns), types)

    @classmethod
    def from_record(cls, fields: TableFields, record: Mapping[str, Any]) -> TableDomain:
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
        if not names:
            raise ValueError("columns must name 1 column or more")
        types, grid = read_types(record.get("types"), names), Grid.from_record(record["grid"], len(names))
        bounds = with_bounds_of_types(support_bounds(fields.support, names), types, names)
        contexts = tuple(record.get("context_columns", ()))
        return cls(names, bool(record["named"]), bounds, grid, fields.base, contexts, types)

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
        contexts = {"context_columns": self.context_columns} if self.context_columns else {}
        tails = {"asinh": True} if self.base_word == "student" else {}
        types = {"types": types_as_text(self.types)} if self.types else {}
        return {"columns": self.columns, "named": self.named, "grid": self.grid._asdict(), **contexts, **tails, **types}

    def defaults(self) -> dict[str, Any]:
        return {
            "schedule": [("flow_matching", 4000)], "time_density": "uniform",
            "scaling": "robust" if self.base_word == "student" else "standardize", "dynamics": "residual",
            "solver": "dopri5", "adjoint": "backprop", "learning_rate": 8e-3, "batch_size": 512, "fourier_features": 0,
            "base": "normal", "hidden": NARROW if self.few_columns else WIDE, "weight_decay": 0.0,
        }  # fmt: skip

    def search_options(self, data: TrainingData) -> Iterator[tuple[str, tuple[Any, ...]]]:
        follows, small = data.conditional is not None and not data.conditional.is_identity, self.is_small(len(data.x))
        yield "time_density", ("uniform", "likelihood") if small else ("likelihood", "uniform")
        if self.geometry.real:
            x = self._unscaled(data)[0] if follows else data.fitting.x
            yield "scaling", self._scalings(x[:, list(self.geometry.real)] if self.types else x, len(data.x))
        if self.few_columns:
            yield "fourier_features", (0, 2) if small else (2, 0)
        if small:
            if self.geometry.real:
                yield "base", ("normal", "mixture")
            yield "hidden", (NARROW,)
        elif data.context is not None:
            yield "weight_decay", (DECAY * min(1.0, DECAY_ROWS / len(data.x)),)

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
        check_columns(x, self.columns, heavy_tails=self.base_word == "student", angles=angles)
        check_support(x, self.bounds, self.columns)
        x = to_internal(x, self.types, self.columns)
        if arrays.context is not None:
            check_contexts(arrays.context, self.context_names(arrays.context.shape[1]))
        kept, held_out = self._split(len(x), fraction, seed, arrays.streamed)
        judges = Batch(tensor(x[held_out]).double(), arrays.contexts(held_out)) if len(held_out) else None
        context = arrays.contexts(kept)
        if not arrays.streamed:
            every = Batch(tensor(x[kept]).double(), context)
            fitting = every[_spread(len(kept), FITTED_ROWS)]
            return self._completed(TrainingData(every.x, context, fitting, judges, codes=self.code_dim))
        streamed = StreamedRows(shared_tensor(x), torch.from_numpy(held_out))
        some = _spread(len(kept), FITTED_ROWS)
        fitting = Batch(streamed.fetch(some), None if context is None else context[some])
        return self._completed(TrainingData(streamed, context, fitting, judges))

    def split(self, x: Any, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return self._split(len(x), fraction, seed, isinstance(x, np.memmap))

    def preprocess(self, data: TrainingData, scaling: str) -> list[Transform]:
        makers = choice("scaling", scaling, SCALINGS)[:1] if self.geometry.real else ()
        if not makers:
            return [*self._support_transforms(), *self._tail_transforms()]
        x, transforms = self._unscaled(data)
        scalings = [self._on_real(make(self._real(x))) for make in makers]
        return [*transforms, *scalings, *self._tail_transforms()]

    def blank_preprocess(self, scaling: str, context_dim: int) -> list[Transform]:
        zeros = torch.zeros(len(self.geometry.real), dtype=torch.float64)
        makers = choice("scaling", scaling, SCALINGS)[1:] if self.geometry.real else ()
        conditional = [ConditionalAffine.identity(zeros, context_dim)] if context_dim and makers else []
        scalings = [self._on_real(each) for each in (*conditional, *(make(zeros) for make in makers))]
        return [*self._support_transforms(), *scalings, *self._tail_transforms()]

    def base(self, z: Tensor | None, fields: Any) -> Base:
        fitted, blank = choice("base", fields.base, BASES)
        if self.geometry.is_flat:
            return blank(self.event_shape) if z is None else fitted(z)
        size = len(self.geometry.real)
        real = None if not size else blank((size,)) if z is None else fitted(self._real(z))
        return ProductBase(self.geometry, real)

    def continuous(
        self, network: Callable[[tuple[int, ...]], nn.Module], blocks: int, options: Mapping[str, Any]
    ) -> list[CNF]:
        return [CNF(self._field(network), self.event_shape, **options) for _ in range(blocks)]

    def largest_weight(self, hidden: Sequence[int], inputs: int, context_dim: int) -> int:
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

    def contexts(self, context: Any, rows: int, dim: int | None) -> np.ndarray | None:
        return check_context(context_in_order(context, self.context_columns), rows, dim)

    def context_names(self, dim: int) -> list[str]:
        return list(self.context_columns) or super().context_names(dim)

    def coded(self, x: Any) -> Any:
        return code_frame(x, self.all_types) if is_frame(x) else x

    def presented(self, draws: np.ndarray) -> Any:
        return presented(draws, self.all_columns, self.all_types)

    @property
    def cells(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        return cells_of(self.all_types)

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
        most = min(LARGEST_VALIDATION_SET, max(VALIDATION_ROWS, VALIDATION_ELEMENTS // self.size))
        count, rng = held_out_count(rows, fraction, most), np.random.default_rng(seed)
        if streamed:
            held_out = np.sort(rng.choice(rows, count, replace=False))
            return np.delete(np.arange(rows), held_out), held_out
        order = rng.permutation(rows)
        return np.sort(order[count:]), order[:count]

    def fold(self, data: TrainingData, rows: Tensor, judges: Tensor) -> TrainingData:
        return self._completed(super().fold(data, rows, judges))

    def _completed(self, data: TrainingData) -> TrainingData:
        """Return the data with the location and scale that follow their contexts."""
        if data.scaled_context is None:
            return data
        if not self.geometry.real:
            return data
        return replace(data, conditional=ConditionalAffine.of(self._real(self._unscaled(data)[0]), data.scaled_context))

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
        return ManifoldDynamics(cast(VectorField, embedded), self.geometry)

    def _support_transforms(self) -> list[Transform]:
        """Return the transforms that open the support to the whole line, and bring angles to radians."""
        free = ((-math.inf, math.inf),) * (self.size - len(self.bounds))
        lower, upper = torch.tensor((*self.bounds, *free), dtype=torch.float64).unbind(1)
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


def _spread(rows: int, most: int) -> Tensor:
    """Return indices of at most some number of rows, evenly spread."""
    return torch.linspace(0, rows - 1, min(rows, most), dtype=torch.float64).long()


def column_names(columns: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Return the names of columns for messages and files.

    Args:
        columns: Names; x0, x1, ... if None.
        count: Number of columns.

    Returns:
        The names.

    Raises:
        ValueError: If their number is not that of the columns.
    """
    names = tuple(f"x{i}" for i in range(count)) if columns is None else tuple(map(str, columns))
    if len(names) != count:
        raise ValueError(f"columns must name {count} columns; got {len(names)}: {', '.join(names[:5])}")
    return names


def in_order(x: Any, columns: Sequence[str]) -> Any:
    """Bring the columns of a frame into the order of the fit, by their names.

    Args:
        x: Rows; those of a frame carry names.
        columns: Names of the fit's columns.

    Returns:
        The rows; an array, or a frame without any of the names, comes back as it is.

    Raises:
        ValueError: If a frame has some of the names and lacks others.
    """
    x = as_rows(x)
    places = {name: i for i, name in enumerate(names_of(x))}
    missing = [name for name in columns if name not in places]
    if not places or len(missing) == len(columns):
        return x
    if missing:
        raise ValueError(f"X lacks columns of the fit: {shortened(missing)}; it has {shortened(list(places))}")
    return take_columns(x, [places[name] for name in columns])


def refuse_repeated(names: Iterable[Any]) -> None:
    """Refuse columns of the same name.

    Args:
        names: Names of the columns.

    Raises:
        ValueError: If a name is repeated; the message has the first one.
    """
    repeated = [name for name, times in Counter(map(str, names)).items() if times > 1]
    if repeated:
        raise ValueError(f"two columns are called {repeated[0]!r}: give each its own name")


def context_in_order(context: Any, columns: Sequence[str]) -> Any:
    """Bring the columns of a frame of contexts into the order of the fit, by their names.

    Args:
        context: Contexts; those of a frame carry names.
        columns: Names of the fit's contexts; none where it had none.

    Returns:
        The contexts; an array comes back as it is.

    Raises:
        ValueError: If a frame lacks columns, or has others.
    """
    names = names_of(context)
    if not names or not columns:
        return context
    if sorted(names) != sorted(columns):
        raise ValueError(
            f"context must have the columns of the fit, {', '.join(columns)}; got {', '.join(names)}: name them so"
        )
    return take_columns(context, [names.index(name) for name in columns])


def context_names(context: Any, columns: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the contexts of a fit.

    Args:
        context: Contexts, or None; those of a frame carry names.
        columns: Names of an array's, or None.

    Returns:
        The names; none of an array without.

    Raises:
        ValueError: If they are not one for each column, or one occurs twice.
    """
    names = tuple(names_of(context) or map(str, columns or ()))
    expected = np.shape(context)[1] if np.ndim(context) == 2 else min(np.ndim(context), 1)
    if names and (len(names) != expected or len(set(names)) < len(names)):
        raise ValueError(f"context needs {expected} different names of its columns; got {', '.join(names)}")
    return names


def names_of(x: Any) -> list[str]:
    """Return the names of the columns of a frame.

    Args:
        x: A frame, or an array.

    Returns:
        The names; none of an array.
    """
    return [] if getattr(x, "columns", None) is None else [str(name) for name in x.columns]


def grid_with_types(dequantize: Any, types: Types, x: np.ndarray, names: Sequence[str]) -> Grid:
    """Find the steps of the columns; whole numbers have steps of one, and points on a sphere none.

    Args:
        dequantize: The field `dequantize`.
        types: Types by names.
        x: Rows, shape (n, d).
        names: Names of the columns.

    Returns:
        The grid.

    Raises:
        ValueError: If columns have no such steps.
    """
    places = {name: i for i, name in enumerate(names)}
    whole = {
        own[0]: 1.0
        for own, kind in types.items()
        if isinstance(kind, Integer) or (isinstance(kind, Date) and kind.are_whole(x[:, places[own[0]]]))
    }
    smooth = [name for own, kind in types.items() if isinstance(kind, (Sphere, Bounded)) for name in own]
    named = set(dequantize) if isinstance(dequantize, (Mapping, list, tuple)) else set()
    twice = [name for name in (*whole, *smooth) if name in named]
    if twice:
        raise ValueError(f"column {twice[0]!r} has a type in columns and a step in dequantize: drop the latter")
    found = find_grid(dequantize, x, names)
    if not types:
        return found
    step = [0.0 if name in smooth else whole.get(name, step) for name, step in zip(names, found.step, strict=True)]
    steps = {name: each for name, each in zip(names, step, strict=True) if each}
    return find_grid(steps or None, x, names)


def refuse_on_manifolds(fields: TableFields, types: Types) -> None:
    """Refuse what is made for real columns where there are circles or spheres.

    Args:
        fields: Fields.
        types: Types by names.

    Raises:
        ValueError: If a field asks for it.
    """
    curved = curved_columns(types)
    asked = {
        "transforms": fields.transforms, "robust": fields.robust, "watch": fields.watch,
        "regularizers hjb": "hjb" in (fields.regularizers or {}),
    }  # fmt: skip
    name = next((name for name, value in asked.items() if value), None)
    if curved and name is not None:
        raise ValueError(f"{name} is for real columns, and {curved[0]} is a circle or a sphere: leave one of them out")
