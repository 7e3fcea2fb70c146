"""Rows as users hold them: arrays of any precision, tensors, frames of pandas and polars; sparse ones are refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

CELL_SHOWN = 20  # characters of a bad cell that a message shows
CHUNK_BYTES = 1 << 24  # read at once
NUMBERS = "biuf"  # kinds of NumPy's types: truth values, whole numbers and floats


def as_rows(x: Any, name: str = "X") -> Any:
    """Return rows that NumPy and scikit-learn can read, with the names that a frame gives them.

    Args:
        x: An array, a tensor on any device, a frame, or anything else that NumPy reads.
        name: Name of the argument, for messages.

    Returns:
        The array of a tensor; anything else as it is.

    Raises:
        ValueError: If the rows are sparse, or a column of a frame holds text or dates.
    """
    if _is_sparse(x):
        raise ValueError(f"{name} is sparse, and a density needs every cell: pass {name}.{_dense(x)}()")
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        return (x.double() if x.is_floating_point() else x).numpy()
    if is_frame(x):
        _check_numbers(x, name)
    return x


def is_frame(x: Any) -> bool:
    """Return whether rows are a frame of pandas or polars, or of a library that reads like them.

    Args:
        x: Rows.

    Returns:
        True for a frame.
    """
    return getattr(x, "columns", None) is not None and hasattr(x, "to_numpy")


def take_columns(x: Any, places: Sequence[int]) -> Any:
    """Return some columns of a frame.

    Args:
        x: Frame of pandas or polars.
        places: Positions of the columns, in the order wanted.

    Returns:
        A frame of these columns.
    """
    return x.iloc[:, list(places)] if hasattr(x, "iloc") else x[[x.columns[place] for place in places]]


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


def frame_of(columns: Mapping[str, np.ndarray]) -> Any:
    """Return a frame of pandas.

    Args:
        columns: Values of each column, shape (n,), by name.

    Returns:
        The frame.
    """
    import pandas as pd

    return pd.DataFrame(dict(columns))


def _is_sparse(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.layout is not torch.strided
    return hasattr(x, "toarray") and hasattr(x, "nnz")


def _dense(x: Any) -> str:
    return "to_dense" if isinstance(x, Tensor) else "toarray"


def _check_numbers(frame: Any, name: str) -> None:
    """Refuse a frame with a column of anything but numbers."""
    kinds = [getattr(dtype, "kind", "O") for dtype in getattr(frame, "dtypes", ["O"] * len(frame.columns))]
    for place in (place for place, kind in enumerate(kinds) if kind not in NUMBERS):
        column, cells = str(frame.columns[place]), np.asarray(take_columns(frame, [place]).to_numpy()).ravel()
        if cells.dtype.kind in NUMBERS:
            continue
        bad = next((row for row, cell in enumerate(cells.tolist()) if not _is_number(cell)), None)
        if cells.dtype.kind in "Mm" or bad is not None:
            raise ValueError(
                f"{name}: column {column!r} must hold numbers; got {str(cells[bad or 0])[:CELL_SHOWN]!r} in row "
                f"{bad or 0} (counted from 0): drop it, or write it as numbers"
            )


def _is_number(cell: Any) -> bool:
    """Return whether a cell is a number, or missing."""
    try:
        float(cell)
    except (TypeError, ValueError):
        return cell is None or str(cell) == "<NA>"
    return not isinstance(cell, str)
