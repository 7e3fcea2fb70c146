"""Measurement errors of the cells of a table: their deviations, checked once before a fit, and told in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ffjord_kit.rows import as_rows

NOISE = "noise_std"  # entry of config.json of a fit with measurement errors: their mean deviations by column


def check_noise_std(noise: Any, shape: tuple[int, int], names: Sequence[str]) -> np.ndarray | None:
    """Return the deviation of the error of each cell.

    Args:
        noise: A number, one for each column (d,), one for each cell (n, d), or None.
        shape: Shape (n, d) of the rows.
        names: Names of the columns.

    Returns:
        Deviations in float64, shape (n, d), or None.

    Raises:
        ValueError: If they have another shape, or one is text, NaN, infinite or negative, or all are 0.
    """
    if noise is None:
        return None
    given = np.asarray(as_rows(noise, "noise_std"))
    if given.dtype.kind not in "biuf":
        raise ValueError(f"noise_std must be numbers; got {given.ravel()[:1].tolist()} ({given.dtype})")
    if given.shape not in ((), (shape[1],), shape):
        raise ValueError(
            f"noise_std must be a number, {shape[1]} of them, one for each column, or of the shape {shape}, one for "
            f"each cell; got {given.shape}"
        )
    every = np.ascontiguousarray(np.broadcast_to(given.astype(np.float64), shape))
    bad = ~(np.isfinite(every) & (every >= 0))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"noise_std must not be negative, NaN or infinite; got {every[row, column]:g} in row {row}, column "
            f"{names[column]!r}"
        )
    if not every.any():
        raise ValueError("noise_std is 0 in every cell: leave it out")
    return every


def noise_text(record: Mapping[str, Any]) -> str:
    """Return the measurement errors of a fit.

    Args:
        record: Content of config.json.

    Returns:
        The text.

    Example:
        >>> noise_text({"columns": ["a", "b"], "noise_std": [0.5, 0.0]})
        'a ± 0.5, b ± 0 on average, removed; scores and samples are of true values'
    """
    shown = [f"{name} ± {size:.3g}" for name, size in zip(record["columns"], record[NOISE], strict=True)]
    more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
    return f"{', '.join(shown[:8])}{more} on average, removed; scores and samples are of true values"
