"""Tables: columns are checked, opened from their support and scaled; columns of equal steps get noise.

A row of values k on a grid of step h is trained on as k + h (u - 1/2), u uniform, drawn once by the seed; draws are put
back on the grid. The probability of a value is then about the density there times h: log P(k) = log p(k) + log h, of
all such columns together (uniform dequantisation, Theis et al. 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ffjord_kit.data import Batch, StreamedRows
from ffjord_kit.diagnostics.columns import check_columns
from ffjord_kit.distributions import BASES, Base, outliers_inflate_scale
from ffjord_kit.estimator.data import (
    Arrays,
    Domain,
    TrainingData,
    held_out_count,
    in_order,
    refuse_not_finite,
    shared_tensor,
    tensor,
)  # fmt: skip
from ffjord_kit.estimator.fields import TableFields, choice
from ffjord_kit.nn import DYNAMICS
from ffjord_kit.objectives import FlowMatching, Objective
from ffjord_kit.trace import ExactTrace, TraceEstimator
from ffjord_kit.transforms import CNF, SCALINGS, Logit, Softplus, Transform
from ffjord_kit.transforms.affine import gaussian_total_correlation

FEW_COLUMNS = 3
NARROW, WIDE = (64, 64, 64), (128, 128, 128)  # default widths for few columns, and for more
LARGEST_VALIDATION_SET = 2_000
VALIDATION_ELEMENTS, VALIDATION_ROWS = 8_192, 200  # fewer rows where a row is long, as its exact trace is dear
FITTED_ROWS = 100_000  # of a longer table, for scalings and trials
SMALL = 1000  # rows: fewer are cross-validated, for a part of them judges badly
GAUSSIANIZED_FROM = 200  # rows: fewer say little of the quantiles
WHITENED_UP_TO = 32  # columns: with 63 it led by ten nats after 240 steps, and after 2,500 by nothing
SCALING_MARGIN = 0.02  # nats a column by which another scaling must win
ON_GRID, MOST_OFF_GRID = 1e-3, 0.05  # of a step; the latter where values are rounded to float32
DISTINCT = 0.5  # largest share of distinct values of a column that "auto" takes for one of steps

Bounds = tuple[tuple[float, float], ...]


class Grid(NamedTuple):
    """Steps and offsets of the columns.

    Attributes:
        step: Step of each column, 0 where it has none, d of them.
        offset: A value of each column's grid, d of them.
        counts: Whether each column holds whole steps from 0 on, and nothing below; d of them.
    """

    step: list[float]
    offset: list[float]
    counts: list[bool]

    @classmethod
    def from_record(cls, content: Mapping[str, Any], columns: int) -> Grid:
        """Return the grid that a run keeps.

        Args:
            content: Steps and offsets.
            columns: Number of columns.

        Returns:
            The grid.

        Raises:
            ValueError: If they make no sense.
        """
        grid = cls(**{"counts": [False] * columns, **content})
        sound = all(len(part) == columns and np.isfinite(np.array(part, np.float64)).all() for part in grid)
        if not sound or min(grid.step) < 0:
            raise ValueError(f"grid must give a step and an offset for each of {columns} columns; got {content}")
        return grid

    def add_noise(self, x: np.ndarray, seed: int) -> np.ndarray:
        """Add noise as wide as the steps; rows without any stay as they are, in their file too.

        Args:
            x: Rows, shape (n, d).
            seed: Seed of the noise.

        Returns:
            Rows with noise.
        """
        if not any(self.step):
            return x
        return x + np.array(self.step) * (np.random.default_rng(seed).random(x.shape) - 0.5)

    def round(self, x: np.ndarray) -> np.ndarray:
        """Put rows back on the grid, and counts that fell below 0 to 0.

        Args:
            x: Rows, shape (n, d).

        Returns:
            Rounded rows.
        """
        if not any(self.step):
            return x
        stepped = np.array(self.step) > 0
        step, offset = np.array(self.step)[stepped], np.array(self.offset)[stepped]
        rounded = x.copy()
        rounded[:, stepped] = offset + step * np.round((x[:, stepped] - offset) / step)
        rounded[:, self.counts] = np.maximum(rounded[:, self.counts], 0.0)
        return rounded


@dataclass(frozen=True)
class TableDomain(Domain):
    """Tables of continuous columns.

    Args:
        columns: Names of the columns.
        named: Whether the data came with these names.
        bounds: Support of each column, (lower, upper), infinite where it is open.
        grid: Steps of the columns.
        base_word: Word of BASES.
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

    @classmethod
    def of(cls, fields: TableFields, x: np.ndarray, columns: Sequence[str] | None, *, named: bool) -> TableDomain:
        """Return the domain of a table to be fitted.

        Args:
            fields: Fields.
            x: Rows, shape (n, d).
            columns: Names of the columns; x0, x1, ... if None.
            named: Whether the data came with these names.

        Returns:
            The domain.

        Raises:
            ValueError: If a value is not finite, or names, support or grid do not suit the columns.
        """
        refuse_not_finite(x, "X")
        names = column_names(columns, x.shape[1])
        grid = find_grid(fields.dequantize, x, names)
        return cls(names, named, support_bounds(fields.support, len(names)), grid, fields.base)

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
        """
        names = tuple(record["columns"])
        if not names:
            raise ValueError("columns must name 1 column or more")
        bounds, grid = support_bounds(fields.support, len(names)), Grid.from_record(record["grid"], len(names))
        return cls(names, bool(record["named"]), bounds, grid, fields.base)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape (d,) of a row."""
        return (len(self.columns),)

    @property
    def few_columns(self) -> bool:
        """Whether a solve with the exact trace is cheap."""
        return len(self.columns) <= FEW_COLUMNS

    def record(self) -> dict[str, Any]:
        return {"columns": self.columns, "named": self.named, "grid": self.grid._asdict()}

    def defaults(self) -> dict[str, Any]:
        return {
            "schedule": [("flow_matching", 4000)], "time_density": "uniform",
            "scaling": "robust" if self.base_word == "student" else "standardize", "dynamics": "residual",
            "solver": "dopri5", "adjoint": "backprop", "learning_rate": 8e-3, "batch_size": 512, "fourier_features": 0,
            "base": "normal", "hidden": NARROW if self.few_columns else WIDE,
        }  # fmt: skip

    def search_options(self, x: Tensor, rows: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
        small = self.is_small(rows)
        yield "time_density", ("uniform", "likelihood") if small else ("likelihood", "uniform")
        yield "scaling", self._scalings(x, rows)
        if self.few_columns:
            yield "fourier_features", (0, 2) if small else (2, 0)
        if small:
            yield "base", ("normal", "mixture")
            yield "hidden", (NARROW,)

    def is_small(self, rows: int) -> bool:
        return rows < SMALL

    def reason_not_to_search(self) -> str:
        return ""

    def check_schedule(self, objectives: Sequence[str]) -> None:
        """Accept every objective."""

    def matching(self, objective: FlowMatching) -> Objective:
        return objective

    def trace(self, *, reported: bool) -> TraceEstimator:
        return ExactTrace()

    def training_data(self, arrays: Arrays, fraction: float, seed: int) -> TrainingData:
        x = self.grid.add_noise(arrays.x, seed)
        check_columns(x, self.columns, heavy_tails=self.base_word == "student")
        check_support(x, self.bounds, self.columns)
        kept, held_out = self._split(len(x), fraction, seed, arrays.streamed)
        judges = Batch(tensor(x[held_out]).double(), arrays.contexts(held_out)) if len(held_out) else None
        context = arrays.contexts(kept)
        if not arrays.streamed:
            every = Batch(tensor(x[kept]).double(), context)
            return TrainingData(every.x, context, every[_spread(len(kept), FITTED_ROWS)], judges)
        streamed = StreamedRows(shared_tensor(x), torch.from_numpy(held_out))
        some = _spread(len(kept), FITTED_ROWS)
        fitting = Batch(streamed.fetch(some), None if context is None else context[some])
        return TrainingData(streamed, context, fitting, judges)

    def split(self, x: Any, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return self._split(len(x), fraction, seed, isinstance(x, np.memmap))

    def preprocess(self, x: Tensor, scaling: str) -> list[Transform]:
        transforms = self._support_transforms()
        for transform in transforms:
            x, _ = transform.to_base(x)
        return [*transforms, *(make(x) for make in choice("scaling", scaling, SCALINGS)[:1])]

    def blank_preprocess(self, scaling: str) -> list[Transform]:
        zeros = torch.zeros(self.event_shape, dtype=torch.float64)
        return [*self._support_transforms(), *(make(zeros) for make in choice("scaling", scaling, SCALINGS)[1:])]

    def base(self, z: Tensor | None, fields: Any) -> Base:
        fitted, blank = choice("base", fields.base, BASES)
        return blank(self.event_shape) if z is None else fitted(z)

    def continuous(
        self, network: Callable[[tuple[int, ...]], nn.Module], blocks: int, options: Mapping[str, Any]
    ) -> list[CNF]:
        return [CNF(network(self.event_shape), self.event_shape, **options) for _ in range(blocks)]

    def largest_weight(self, hidden: Sequence[int], inputs: int, context_dim: int) -> int:
        widths = [(self.size + context_dim) * inputs, *hidden, self.size]
        return max(a * b for a, b in zip(widths[:-1], widths[1:], strict=True))

    def rows(self, x: Any) -> tuple[Tensor, np.ndarray]:
        x = np.asarray(in_order(x, self.columns), dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.size or not len(x):
            raise ValueError(f"expected rows of shape (n >= 1, {self.size}); got {x.shape}")
        refuse_not_finite(x, "X")
        inside = np.all(inside_support(x, self.bounds), axis=1)
        return tensor(x[inside]), inside

    def restore(self, x: np.ndarray) -> np.ndarray:
        return self.grid.round(x)

    def add_noise(self, x: np.ndarray, seed: int) -> np.ndarray:
        return self.grid.add_noise(x, seed)

    def _split(self, rows: int, fraction: float, seed: int, streamed: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the rows to train on, ascending, and of those to hold out."""
        most = min(LARGEST_VALIDATION_SET, max(VALIDATION_ROWS, VALIDATION_ELEMENTS // self.size))
        count, rng = held_out_count(rows, fraction, most), np.random.default_rng(seed)
        if streamed:
            held_out = np.sort(rng.choice(rows, count, replace=False))
            return np.delete(np.arange(rows), held_out), held_out
        order = rng.permutation(rows)
        return np.sort(order[count:]), order[:count]

    def _support_transforms(self) -> list[Transform]:
        """Return the transforms that open the support to the whole line."""
        lower, upper = torch.tensor(self.bounds, dtype=torch.float64).unbind(1)
        bounded, positive = upper.isfinite(), lower.isfinite() & ~upper.isfinite()
        transforms: list[Transform] = []
        if bool(bounded.any()):
            transforms.append(Logit(torch.where(bounded, lower, -math.inf), upper))
        if bool(positive.any()):
            transforms.append(Softplus(torch.where(positive, lower, -math.inf)))
        return transforms

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
        some = FEW_COLUMNS < self.size <= WHITENED_UP_TO
        return some and SCALING_MARGIN * self.size < gaussian_total_correlation(x) < math.inf


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


def support_bounds(support: Any, columns: int) -> Bounds:
    """Read the support of the columns.

    Args:
        support: "real", "positive" or ("bounded", low, high), for all columns; or a list of these, one for each.
        columns: Number of columns.

    Returns:
        Bounds (lower, upper) of each column, infinite where it is open.

    Raises:
        ValueError: If the support cannot be read, or does not have one entry for each column.
    """
    single = isinstance(support, str) or (isinstance(support, Sequence) and tuple(support[:1]) == ("bounded",))
    if not single and not isinstance(support, Sequence):
        raise _support_error(support)
    entries = [support] if single else list(support)
    if len(entries) not in (1, columns):
        raise ValueError(f"support must have one word for all {columns} columns, or one each; got {len(entries)}")
    bounds = tuple(_bounds(entry) for entry in entries)
    return bounds * columns if len(bounds) == 1 else bounds


def find_grid(dequantize: Any, x: np.ndarray, names: Sequence[str]) -> Grid:
    """Return the grid of a table's columns.

    Args:
        dequantize: None for no steps, "auto" to find them, names of columns, or steps by name (None: to be found).
        x: Rows, shape (n, d).
        names: Names of the columns.

    Returns:
        The grid.

    Raises:
        ValueError: If a column is not there, a step is not positive, or values do not lie on a grid.
    """
    steps = _steps(dequantize, x, names)
    counts = [
        step > 0 and bool(column.min() >= 0) and _on_grid(np.append(0.0, column), step)
        for step, column in zip(steps, x.T, strict=True)
    ]
    return Grid(steps, [float(value) for value in x[0]], counts)


def _steps(dequantize: Any, x: np.ndarray, names: Sequence[str]) -> list[float]:
    """Return the step of each column, 0 where it has none."""
    if isinstance(dequantize, str) and dequantize == "auto":
        stepped = [len(np.unique(column)) <= DISTINCT * len(column) for column in x.T]
        return [_find_step(column) if some else 0.0 for some, column in zip(stepped, x.T, strict=True)]
    steps = _requested_steps(dequantize, names)
    if not steps:
        return [0.0] * len(names)
    return [
        _checked_step(name, column, steps[name]) if name in steps else 0.0
        for name, column in zip(names, x.T, strict=True)
    ]


def inside_support(x: np.ndarray, bounds: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return which values lie strictly between the bounds of their columns.

    Args:
        x: Rows, shape (n, d).
        bounds: Bounds of each column.

    Returns:
        A mask, shape (n, d).
    """
    lower, upper = np.array(bounds).T
    return (x > lower) & (x < upper)


def check_support(x: np.ndarray, bounds: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Check that rows lie within their support.

    Args:
        x: Rows, shape (n, d).
        bounds: Bounds of each column.
        names: Names of the columns.

    Raises:
        ValueError: If some do not; it names the first such column and row.
    """
    if not np.isfinite(bounds).any():
        return
    for column, (low, high) in enumerate(bounds):
        rows = np.flatnonzero(~inside_support(x[:, [column]], [bounds[column]]))
        if not len(rows):
            continue
        raise ValueError(
            f"column {names[column]!r} has {len(rows)} of {len(x)} rows outside its support, {low:g} to {high:g} with "
            f"both ends left out (first: row {rows[0]}, {x[rows[0], column]:g}): give it another support, or drop them"
        )


def _bounds(entry: Any) -> tuple[float, float]:
    """Read the support of one column."""
    if entry == "real":
        return -math.inf, math.inf
    if entry == "positive":
        return 0.0, math.inf
    if isinstance(entry, str) or not isinstance(entry, Sequence) or len(entry) != 3 or entry[0] != "bounded":
        raise _support_error(entry)
    low, high = entry[1:]
    if not all(isinstance(limit, Real) and math.isfinite(limit) for limit in (low, high)) or not low < high:
        raise _support_error(entry)
    return float(low), float(high)


def _support_error(support: Any) -> ValueError:
    return ValueError(f"support must be 'real', 'positive' or ('bounded', LOW, HIGH); got {support!r}")


def _requested_steps(dequantize: Any, names: Sequence[str]) -> dict[str, float | None]:
    """Read the columns to dequantize, and their steps, None where they are to be found."""
    if dequantize is None:
        return {}
    if isinstance(dequantize, (str, bytes)) or not isinstance(dequantize, (Mapping, Sequence)):
        raise _dequantize_error(dequantize)
    steps = dict(dequantize) if isinstance(dequantize, Mapping) else dict.fromkeys(map(str, dequantize))
    for name, step in steps.items():
        if name not in names:
            raise ValueError(f"dequantize names a column {name!r} that is not there; there are {', '.join(names)}")
        if step is not None and not (isinstance(step, Real) and 0 < float(step) < math.inf):
            raise _dequantize_error({name: step})
    return steps


def _dequantize_error(dequantize: Any) -> ValueError:
    return ValueError(
        f"dequantize must be 'auto', names such as ['age'], or positive steps such as {{'score': 0.5}}; "
        f"got {dequantize!r}"
    )


def _checked_step(name: str, column: np.ndarray, requested: float | None) -> float:
    """Return the step of a column, which is found if none is requested."""
    step = requested or _find_step(column)
    if not step or not _on_grid(column, step):
        of_step = f" of {step:g}" if step else ""
        raise ValueError(
            f"column {name!r} has no values of equal steps{of_step}: give its step, e.g. {name}:0.5 "
            f"(in Python dequantize={{{name!r}: 0.5}}), or leave it out"
        )
    return step


def _find_step(column: np.ndarray) -> float:
    """Return the least gap between values, averaged over their span, if all are multiples of it apart, else 0."""
    values = np.unique(column)
    if len(values) < 2:
        return 0.0
    span = values[-1] - values[0]
    step = float(span / np.round(span / np.diff(values).min()))
    return step if _on_grid(values, step) else 0.0


def _on_grid(values: np.ndarray, step: float) -> bool:
    """Say whether values are multiples of a step apart, as far as single precision can tell."""
    multiples = (values - values[0]) / step
    rounding = np.finfo(np.float32).eps * np.abs(values).max() / step
    return bool((np.abs(multiples - np.round(multiples)) <= min(ON_GRID + rounding, MOST_OFF_GRID)).all())
