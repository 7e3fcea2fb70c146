"""Weights of the rows of a fit: checked once, divided among its parts, and told in words."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.diagnostics.columns import DegenerateDataWarning
from ffjord_kit.rows import as_rows
from ffjord_kit.weights import effective_number

EFFECTIVE = "effective_rows"  # entry of config.json of a fit with weights


def check_sample_weight(weight: Any, rows: int) -> np.ndarray | None:
    """Return weights of rows as an array, and warn of negative ones.

    Args:
        weight: Weights, one for each row, or None.
        rows: Number of rows.

    Returns:
        Weights in float64, shape (rows,), or None.

    Raises:
        ValueError: If their number is another, a value is text, NaN or infinite, or they do not sum to more than 0.
    """
    if weight is None:
        return None
    given = np.asarray(as_rows(weight, "sample_weight"))
    try:
        array = given.astype(np.float64) if given.dtype.kind in "biufO" else None
    except (TypeError, ValueError):
        array = None
    if array is None:
        raise ValueError(f"sample_weight must be numbers; got {given.ravel()[:1].tolist()} ({given.dtype})")
    array = array[:, 0] if array.shape == (rows, 1) else array
    if array.shape != (rows,):
        raise ValueError(f"sample_weight must have shape ({rows},), a weight for each row; got {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise ValueError(f"sample_weight contains NaN or infinity (first in row {bad[0]}): drop or mend such rows")
    if not array.any():
        raise ValueError("sample_weight is zero in every row: pass positive weights, or none")
    if not array.sum() > 0:
        raise ValueError(f"sample_weight must sum to more than 0; got a sum of {array.sum():.6g}: change their sign?")
    if (array < 0).any():
        _warn_of_negative_weights(array)
    return np.ascontiguousarray(array)


def effective_text(record: Mapping[str, Any]) -> str:
    """Return the effective number of the rows of a fit with weights.

    Args:
        record: Content of config.json.

    Returns:
        The text.

    Example:
        >>> effective_text({"rows": 1000, "effective_rows": 312.52})
        'by their weights 1000 rows count as 312.5'
    """
    return f"by their weights {record['rows']} rows count as {record[EFFECTIVE]:.1f}"


def split_weights(
    weight: np.ndarray | None, kept: np.ndarray, held_out: np.ndarray
) -> tuple[Tensor | None, Tensor | None]:
    """Return the weights of the rows to train on, of mean 1, and those of the rows held out, in the same unit.

    Args:
        weight: Weights of all rows, shape (n,), or None.
        kept: Indices of the rows to train on.
        held_out: Indices of the rows held out.

    Returns:
        Weights of both, each of shape (k,), or None.

    Raises:
        ValueError: If those of either part do not sum to more than 0.
    """
    if weight is None:
        return None, None
    for rows, what in ((kept, "to train on"), (held_out, "held out for validation")):
        if len(rows) and not weight[rows].sum() > 0:
            raise ValueError(
                f"the weights of the {len(rows)} rows {what} sum to {weight[rows].sum():.3g}, and must sum to more "
                "than 0: pass more rows, or another random_state"
            )
    unit = weight[kept].mean()
    return torch.from_numpy(weight[kept] / unit), torch.from_numpy(weight[held_out] / unit)


def _warn_of_negative_weights(weight: np.ndarray) -> None:
    effective = effective_number(torch.from_numpy(np.ascontiguousarray(weight)))
    warnings.warn(
        f"{(weight < 0).sum()} of {len(weight)} rows have negative weights: by their weights the rows count as "
        f"{effective:.1f}, and where weights sum to less than 0 no density can follow them, it goes to 0 there",
        DegenerateDataWarning,
        stacklevel=4,
    )
