"""Data on their way in and out: arrays, contexts, seeds, and held-out rows."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.data import Batch, Rows
from ffjord_kit.diagnostics.measurement import NOISE
from ffjord_kit.diagnostics.sample_weight import EFFECTIVE
from ffjord_kit.rows import as_rows, chunks
from ffjord_kit.transforms import Categorical, ConditionalAffine, ContextScaling
from ffjord_kit.weights import effective_number

SMALLEST_VALIDATION_SET = 5


@dataclass(frozen=True)
class Arrays:
    """Checked data of a fit, as they came.

    Attributes:
        x: Rows (n, d), or images of uint8 (n, c, h, w).
        context: Contexts, shape (n, context_dim), or None.
        streamed: Whether rows stay in a memory-mapped file, from which they are fetched batch by batch.
        weight: Weights of the rows, shape (n,), or None.
        noise: Deviations of the errors of the cells, shape (n, d), or None.
    """

    x: np.ndarray
    context: np.ndarray | None
    streamed: bool = False
    weight: np.ndarray | None = None
    noise: np.ndarray | None = None

    def facts(self) -> dict[str, Any]:
        """Return what a run remembers of its data.

        Returns:
            The number of rows, the length of a context, the SHA-256 of all arrays, and the effective number of
            weighted rows.
        """
        digest = hashlib.sha256()
        for array in (self.x, self.context, self.weight, self.noise):
            for chunk in [] if array is None else chunks(array):
                digest.update(np.ascontiguousarray(chunk).tobytes())
        context_dim = 0 if self.context is None else self.context.shape[1]
        weights = {} if self.weight is None else {EFFECTIVE: effective_number(torch.from_numpy(self.weight))}
        noise = {} if self.noise is None else {NOISE: self.noise.mean(0).tolist()}
        return {"rows": len(self.x), "context_dim": context_dim, "sha256": digest.hexdigest(), **weights, **noise}

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
        weight: Weights of the rows to train on, of mean 1, shape (n,), or None.
        noise: Deviations of their measurement errors, shape (n, d), or None.
        codes: Number of elements at the end of a context that are codes of categories.
        categorical: Probability of the categories; None where there are none.
    """

    x: Tensor | Rows
    context: Tensor | None
    fitting: Batch
    held_out: Batch | None
    conditional: ConditionalAffine | None = None
    weight: Tensor | None = None
    noise: Tensor | None = None
    codes: int = 0
    categorical: Categorical | None = None

    @cached_property
    def effective_rows(self) -> int:
        """Effective number of the rows to train on, by their weights."""
        return len(self.x) if self.weight is None else round(effective_number(self.weight))

    @cached_property
    def context_scaling(self) -> ContextScaling | None:
        """Scaling of the contexts, fitted to `fitting`; None where there are none."""
        return None if self.fitting.context is None else ContextScaling.of(self.fitting.context, plain=self.codes)

    @cached_property
    def scaled_context(self) -> Tensor | None:
        """Scaled contexts of `fitting`, shape (n, context_dim), or None."""
        scaling, context = self.context_scaling, self.fitting.context
        return None if scaling is None or context is None else scaling(context)

    def examined(self, judges: Batch) -> Batch:
        """Return the rows and contexts at which few exact steps are examined.

        Args:
            judges: Held-out rows.

        Returns:
            Rows and contexts.
        """
        return judges


def check_context(context: Any, rows: int, dim: int | None = None) -> np.ndarray | None:
    """Return a context as an array with a row for each row of the data.

    Args:
        context: Contexts (rows, c); one for all rows, (c,) if c is `dim`, or (1, c), or a number; else (rows,), a
            single column.
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
    array = array.reshape(1, 1) if not array.ndim else array
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
            missing = len(columns) and np.isnan(chunk.reshape(len(chunk), -1)[row, column])
            advice = ", or fit with subsets=True (--subsets), which takes missing cells" if missing else ""
            raise ValueError(f"{name} contains NaN or infinity (first in {place}): drop or mend such rows{advice}")
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
