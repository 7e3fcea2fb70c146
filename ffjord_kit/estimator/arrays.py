"""Arrays on their way in: the context, the seed, the rows held out, and the facts that a run remembers."""

from __future__ import annotations

import hashlib
import secrets
import warnings
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_array
from torch import Tensor

from ffjord_kit.training import Streamed

LARGEST_VALIDATION_SET = 2_000
VALIDATION_ELEMENTS, VALIDATION_ROWS = 8_192, 200  # fewer rows where a row is long, as its exact trace is dear
SMALLEST_VALIDATION_SET = 5

FITTED_ROWS = 100_000  # of a streamed table, to fit layers to
PART = 1 << 24  # bytes read at once

Rows = tuple[Tensor | Streamed, Tensor | None]


def check_context(context: Any, rows: int, dim: int | None = None) -> np.ndarray | None:
    """The context as (rows, c) float64; one row (c,) serves all where c = `dim`, else (rows,) is a single column.

    Raises ValueError for another number of rows, text, or values that are not finite.
    """
    if context is None:
        return None
    context = check_array(context, dtype=np.float64, ensure_2d=False, allow_nd=True, input_name="context")
    if context.ndim == 1:
        one_for_all = dim == len(context) and (dim > 1 or rows == 1 or len(context) != rows)
        context = np.tile(context, (rows, 1)) if one_for_all else context[:, None]
    if context.ndim != 2 or len(context) != rows:
        raise ValueError(f"context must have shape ({rows}, c), a row for each row of the data; got {context.shape}")
    return context


def seed_from(random_state: Any) -> int:
    """A seed from what scikit-learn calls a random_state; None asks the operating system."""
    if random_state is None:
        return secrets.randbits(31)
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31 - 1))
    if not isinstance(random_state, Integral) or not 0 <= random_state < 2**32:
        raise ValueError(f"random_state must be a whole number from 0 to 2^32 - 1, or None; got {random_state!r}")
    return int(random_state)


def facts(x: np.ndarray, context: np.ndarray | None) -> dict[str, Any]:
    """What a run remembers of its data: the rows, the width of the context, and the SHA-256 of both."""
    digest = hashlib.sha256()
    for array in (x, context):
        for part in [] if array is None else parts(array):
            digest.update(np.ascontiguousarray(part).tobytes())
    width = 0 if context is None else context.shape[1]
    return {"rows": len(x), "context_dim": width, "sha256": digest.hexdigest()}


def is_streamed(x: Any) -> bool:
    """Whether an array lies in a file that is mapped into memory, from which rows are to be taken batch by batch."""
    return isinstance(x, np.memmap)


def parts(x: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of x (n, ...) in parts that memory bears."""
    rows = max(1, PART // max(1, x[:1].nbytes))
    for start in range(0, len(x), rows):
        yield x[start : start + rows]


def fitting_rows(rows: Rows) -> tuple[Tensor, Tensor | None]:
    """Rows to fit layers to: all, or a hundred thousand of those that are streamed, spread over the table."""
    x, context = rows
    if not isinstance(x, Streamed):
        return x, context
    some = torch.linspace(0, len(x) - 1, min(len(x), FITTED_ROWS), dtype=torch.float64).long()
    return x.fetch(some), None if context is None else context[some]


def held_out_rows(
    x: np.ndarray, context: np.ndarray | None, fraction: float, seed: int, *, stream: bool = False
) -> tuple[Rows, Rows | None]:
    """The rows to train on and those held out, which the seed picks; none is held out of a very small table.

    With `stream` the former stay where they are.

    Raises ValueError for a fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1); got {fraction}")
    most = min(LARGEST_VALIDATION_SET, max(VALIDATION_ROWS, VALIDATION_ELEMENTS // x.shape[1]))
    count = min(int(fraction * len(x)), most)
    count, rng = 0 if count < SMALLEST_VALIDATION_SET else count, np.random.default_rng(seed)
    if stream:
        held_out = np.sort(rng.choice(len(x), count, replace=False))
        given = None if context is None else tensor(np.delete(context, held_out, axis=0))
        kept = Streamed(shared(x), torch.from_numpy(held_out)), given
    else:
        order = rng.permutation(len(x))
        held_out, kept = order[:count], _rows(x, context, np.sort(order[count:]))
    return kept, _rows(x, context, held_out) if count else None


def _rows(x: np.ndarray, context: np.ndarray | None, which: np.ndarray) -> tuple[Tensor, Tensor | None]:
    return tensor(x[which]).double(), None if context is None else tensor(context[which])


def shared(x: np.ndarray) -> Tensor:
    """A tensor on the same memory, which nobody writes to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a file opened for reading cannot be written
        return torch.from_numpy(x)


def tensor(array: np.ndarray) -> Tensor:
    """A copy, whatever the strides."""
    return torch.tensor(np.ascontiguousarray(array))
