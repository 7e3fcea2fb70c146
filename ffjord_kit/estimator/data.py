"""Data on their way in and out: arrays, contexts, seeds, held-out rows, and the domain that they come from.

A `Domain` is the one place where tables and images differ. It checks data, fits the preprocessing and the base, gives
the defaults of open fields, and brings draws back to the form of the data.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ffjord_kit.data import Batch, Rows
from ffjord_kit.distributions import Base
from ffjord_kit.flow import Flow
from ffjord_kit.forms import Forms
from ffjord_kit.objectives import FlowMatching, Objective
from ffjord_kit.rows import as_rows
from ffjord_kit.trace import TraceEstimator
from ffjord_kit.transforms import CNF, Categorical, ConditionalAffine, ContextScaling, Transform

SMALLEST_VALIDATION_SET = 5
CHUNK_BYTES = 1 << 24  # read at once


@dataclass(frozen=True)
class Arrays:
    """Checked data of a fit, as they came.

    Attributes:
        x: Rows (n, d), or images of uint8 (n, c, h, w).
        context: Contexts, shape (n, context_dim), or None.
        streamed: Whether rows stay in a memory-mapped file, from which they are fetched batch by batch.
    """

    x: np.ndarray
    context: np.ndarray | None
    streamed: bool = False

    def facts(self) -> dict[str, Any]:
        """Return what a run remembers of its data.

        Returns:
            The number of rows, the length of a context, and the SHA-256 of both arrays.
        """
        digest = hashlib.sha256()
        for array in (self.x, self.context):
            for chunk in [] if array is None else chunks(array):
                digest.update(np.ascontiguousarray(chunk).tobytes())
        context_dim = 0 if self.context is None else self.context.shape[1]
        return {"rows": len(self.x), "context_dim": context_dim, "sha256": digest.hexdigest()}

    def contexts(self, rows: np.ndarray) -> Tensor | None:
        """Return the contexts of some rows.

        Args:
            rows: Indices, shape (k,).

        Returns:
            Contexts, shape (k, context_dim), or None.
        """
        return None if self.context is None else tensor(self.context[rows])


@dataclass(frozen=True)
class TrainingData:
    """Training data after validation.

    Attributes:
        x: Rows to train on, in memory or fetched batch by batch, shape (n, *event).
        context: Their contexts, shape (n, context_dim), or None.
        fitting: Rows that preprocessing and base are fitted to.
        held_out: Rows held out for validation; None if there are too few.
        conditional: Location and scale that follow the context; None where there is none.
        codes: Number of elements at the end of a context that are codes of categories.
        categorical: Probability of the categories; None where there are none.
    """

    x: Tensor | Rows
    context: Tensor | None
    fitting: Batch
    held_out: Batch | None
    conditional: ConditionalAffine | None = None
    codes: int = 0
    categorical: Categorical | None = None

    @cached_property
    def context_scaling(self) -> ContextScaling | None:
        """Scaling of the contexts, fitted to `fitting`; None where there are none."""
        return None if self.fitting.context is None else ContextScaling.of(self.fitting.context, plain=self.codes)

    @cached_property
    def scaled_context(self) -> Tensor | None:
        """Scaled contexts of `fitting`, shape (n, context_dim), or None."""
        scaling, context = self.context_scaling, self.fitting.context
        return None if scaling is None or context is None else scaling(context)


class Domain(Forms):
    """A kind of data: how it is checked, preprocessed, trained on, reported and given back.

    Attributes:
        noun: Name of the data in messages.
        networks: Networks by their words.
        dtype: Type in which tolerances of reports must be resolved.
        certify_probes: Least number of probes of log-densities with errors; None for the exact trace.
    """

    noun: ClassVar[str]
    networks: ClassVar[Mapping[str, Callable[..., nn.Module]]]
    dtype: ClassVar[torch.dtype]
    certify_probes: ClassVar[int | None]

    @property
    @abstractmethod
    def event_shape(self) -> tuple[int, ...]:
        """Shape of a row or an image."""

    @property
    def size(self) -> int:
        """Number of columns, or of pixels."""
        return math.prod(self.event_shape)

    @property
    @abstractmethod
    def few_columns(self) -> bool:
        """Whether a solve with the exact trace is cheap."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Return what a run's config keeps of the domain.

        Returns:
            Entries of config.json.
        """

    @abstractmethod
    def defaults(self) -> dict[str, Any]:
        """Return the values of open fields where nothing is tried out.

        Returns:
            Values by field.
        """

    @abstractmethod
    def search_options(self, data: TrainingData) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Yield the fields that schedule auto may try out, and the values to try, the likelier first.

        Args:
            data: Training data.

        Yields:
            Fields and values.
        """

    @abstractmethod
    def is_small(self, rows: int) -> bool:
        """Say whether all rows must judge in schedule auto, by cross-validation.

        Args:
            rows: Number of rows to train on.

        Returns:
            Whether a part of them would judge badly.
        """

    def fold(self, data: TrainingData, rows: Tensor, judges: Tensor) -> TrainingData:
        """Return a fold of cross-validation, to which all that is fitted is fitted anew.

        Args:
            data: Training data in memory.
            rows: Indices of the rows to train on.
            judges: Indices of those to judge by.

        Returns:
            The fold.
        """
        part = data.fitting[rows]
        categorical = data.categorical  # which moves all settings alike
        judging = data.fitting[judges]
        return TrainingData(part.x, part.context, part, judging, codes=data.codes, categorical=categorical)

    @abstractmethod
    def reason_not_to_search(self) -> str:
        """Return why schedule auto tries nothing out.

        Returns:
            The reason; empty if it does.
        """

    @abstractmethod
    def reason_not_to_step(self) -> str:
        """Return why the flow is not trained in few explicit steps.

        Returns:
            The reason; empty if it is.
        """

    @abstractmethod
    def check_schedule(self, objectives: Sequence[str]) -> None:
        """Check that the flow can be trained by some objectives.

        Args:
            objectives: Words of OBJECTIVES.

        Raises:
            ValueError: If it cannot.
        """

    @abstractmethod
    def matching(self, objective: FlowMatching) -> Objective:
        """Return flow matching as it suits the data.

        Args:
            objective: Flow matching.

        Returns:
            The objective.
        """

    @abstractmethod
    def trace(self, *, reported: bool) -> TraceEstimator:
        """Return the trace of reports, or of validations.

        Args:
            reported: Whether a report is made.

        Returns:
            The estimator.
        """

    @abstractmethod
    def training_data(self, arrays: Arrays, fraction: float, seed: int) -> TrainingData:
        """Check data for training, add their noise, and hold some of them out.

        Args:
            arrays: Data.
            fraction: Part of the rows to hold out, in [0, 1).
            seed: Seed of the noise and of the rows held out.

        Returns:
            Training data.

        Raises:
            ValueError: If no density can be fitted to the data, or the fraction is out of range.
        """

    @abstractmethod
    def split(self, x: Any, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the rows that a fit trains on, and of those that it holds out.

        Args:
            x: Data of the fit, shape (n, ...).
            fraction: Part of the rows to hold out.
            seed: Seed of the fit.

        Returns:
            Two arrays of indices.
        """

    @abstractmethod
    def preprocess(self, data: TrainingData, scaling: str) -> list[Transform]:
        """Fit the preprocessing.

        Args:
            data: Training data.
            scaling: Word of the scaling.

        Returns:
            Transforms, from data to base.

        Raises:
            ValueError: If the word is unknown, or the data do not suit it.
        """

    @abstractmethod
    def blank_preprocess(self, scaling: str, context_dim: int) -> list[Transform]:
        """Return the preprocessing before any data, to load weights into.

        Args:
            scaling: Word of the scaling.
            context_dim: Length of a context.

        Returns:
            Transforms, from data to base.
        """

    @abstractmethod
    def base(self, z: Tensor | None, fields: Any) -> Base:
        """Return the base distribution.

        Args:
            z: Preprocessed rows to fit it to, shape (n, *event); None for one to load weights into.
            fields: Settled fields.

        Returns:
            The base.
        """

    @abstractmethod
    def continuous(
        self, network: Callable[[tuple[int, ...]], nn.Module], blocks: int, options: Mapping[str, Any]
    ) -> list[CNF]:
        """Make the continuous transforms.

        Args:
            network: Maker of a network for an event's shape.
            blocks: Number of transforms in a row.
            options: Options of each CNF.

        Returns:
            Transforms, from data to base.
        """

    @abstractmethod
    def largest_weight(self, hidden: Sequence[int], inputs: int, context_dim: int) -> int:
        """Return a lower bound of the elements of the network's largest weight, by the fields alone.

        Args:
            hidden: Widths.
            inputs: Times that each element of the event enters the network.
            context_dim: Length of a context.

        Returns:
            Number of elements.
        """

    @property
    def depth_factor(self) -> int:
        """Number of groups of continuous transforms."""
        return 1

    def lay_out(self, flow: Flow) -> Flow:
        """Return a flow in the memory layout that the fields name.

        Args:
            flow: The flow.

        Returns:
            The same flow.
        """
        return flow

    @abstractmethod
    def rows(self, x: Any) -> tuple[Tensor, np.ndarray]:
        """Check data to be scored.

        Args:
            x: Data, shape (n, ...), in the form of the fit's.

        Returns:
            The rows within the support in float64, shape (k, *event), and a mask of these among all, shape (n,).

        Raises:
            ValueError: If the data are not of the domain.
        """

    def contexts(self, context: Any, rows: int, dim: int | None) -> np.ndarray | None:
        """Check contexts.

        Args:
            context: One context for all, or one for each row; labels of classes where the fit was given labels.
            rows: Number of rows.
            dim: Length of a context; None before the fit.

        Returns:
            Contexts, shape (rows, dim), or None.

        Raises:
            ValueError: If they do not fit.
        """
        return check_context(context, rows, dim)

    def context_names(self, dim: int) -> list[str]:
        """Return the names of the contexts for messages.

        Args:
            dim: Length of a context.

        Returns:
            The names; c0, c1, ... where they have none.
        """
        return [f"c{i}" for i in range(dim)]

    def frame(self, x: np.ndarray) -> np.ndarray:
        """Give states the axes of the data.

        Args:
            x: States, shape (..., *event).

        Returns:
            The states.
        """
        return x

    def add_noise(self, x: np.ndarray, seed: int) -> np.ndarray:
        """Add the noise that makes a density of discrete columns.

        Args:
            x: Rows, shape (n, d).
            seed: Seed of the noise.

        Returns:
            Rows with noise.
        """
        return x

    @property
    def curved(self) -> str:
        """Names of the columns that are a circle, a sphere or a category; empty where there are none."""
        return ""

    def require_real(self, verb: str, alternative: str) -> None:
        """Refuse a request that circles, spheres and categories do not suit.

        Args:
            verb: The method's name.
            alternative: Advice.

        Raises:
            ValueError: If the data have any.
        """
        if self.curved:
            raise ValueError(
                f"{verb} is for real columns, and {self.curved} is a circle, a sphere or a category: {alternative}"
            )

    def require_table(self, verb: str, alternative: str) -> None:
        """Refuse a request that is for tables alone.

        Args:
            verb: The method's name.
            alternative: Advice.

        Raises:
            ValueError: If the data are images.
        """
        if len(self.event_shape) != 1:
            raise ValueError(f"{verb} is for tables, and this model is of images: {alternative}")


def check_context(context: Any, rows: int, dim: int | None = None) -> np.ndarray | None:
    """Return a context as an array with a row for each row of the data.

    Args:
        context: Contexts (rows, c); one for all rows, (c,) if c is `dim`, or (1, c); else (rows,), a single column.
        rows: Number of rows.
        dim: Length of a context, if it is known.

    Returns:
        Contexts in float64, shape (rows, c), or None.

    Raises:
        ValueError: If the shape does not fit, or a value is text, NaN or infinite.
    """
    if context is None:
        return None
    array = np.asarray(as_rows(context, "context"), dtype=np.float64)
    refuse_not_finite(array, "context")
    if array.ndim == 1:
        one_for_all = dim is not None and dim == len(array) and (dim > 1 or rows == 1 or len(array) != rows)
        array = np.tile(array, (rows, 1)) if one_for_all else array[:, None]
    if array.ndim == 2 and len(array) == 1 and dim is not None:
        array = np.tile(array, (rows, 1))
    if array.ndim != 2 or len(array) != rows:
        raise ValueError(f"context must have shape ({rows}, c), a row for each row of the data; got {array.shape}")
    return array


def refuse_not_finite(array: np.ndarray, name: str, columns: Sequence[str] = ()) -> None:
    """Refuse values that are NaN or infinite.

    Args:
        array: Values, shape (n, ...).
        name: Their name, for the message.
        columns: Names of the d columns of values (n, d), for the message; none where they have none.

    Raises:
        ValueError: If there are any.
    """
    start = 0
    for chunk in chunks(array):
        finite = np.isfinite(chunk)
        if not finite.all():
            row, column = np.argwhere(~finite.reshape(len(chunk), -1))[0]
            place = f"row {start + row}" + (f", column {columns[column]!r}" if len(columns) else "")
            raise ValueError(f"{name} contains NaN or infinity (first in {place}): drop or mend such rows")
        start += len(chunk)


def seed_from(random_state: Any) -> int:
    """Return a seed.

    Args:
        random_state: A whole number, a random state or generator of NumPy, or None for the operating system's choice.

    Returns:
        The seed.

    Raises:
        ValueError: If it is none of these.
    """
    if random_state is None:
        return secrets.randbits(31)
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31 - 1))
    if not isinstance(random_state, Integral) or not 0 <= int(random_state) < 2**32:
        raise ValueError(f"random_state must be a whole number from 0 to 2^32 - 1, or None; got {random_state!r}")
    return int(random_state)


def held_out_count(rows: int, fraction: float, most: int) -> int:
    """Return the number of rows to hold out; none of a very small set.

    Args:
        rows: Number of rows.
        fraction: Part of them to hold out, in [0, 1).
        most: Largest number.

    Returns:
        The number.

    Raises:
        ValueError: If the fraction is out of range.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1); got {fraction}")
    count = min(int(fraction * rows), most)
    return 0 if count < SMALLEST_VALIDATION_SET else count


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of an array in pieces of bounded memory.

    Args:
        array: Array, shape (n, ...).

    Yields:
        Consecutive pieces.
    """
    rows = max(1, CHUNK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def shared_tensor(array: np.ndarray) -> Tensor:
    """Return a tensor on the memory of an array, which must not be written to.

    Args:
        array: Array.

    Returns:
        The tensor.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a file opened for reading cannot be written
        return torch.from_numpy(array)


def tensor(array: np.ndarray) -> Tensor:
    """Return a copy of an array of any strides.

    Args:
        array: Array.

    Returns:
        The tensor.
    """
    return torch.tensor(np.ascontiguousarray(array))


def to_numpy(values: Tensor) -> np.ndarray:
    """Return values in float64 on the host.

    Args:
        values: Tensor.

    Returns:
        The array.
    """
    return values.detach().cpu().double().numpy()
