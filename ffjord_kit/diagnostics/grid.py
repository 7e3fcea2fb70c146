"""Columns of equal steps: their grid is found before a fit; rows get noise as wide, and draws go back on it.

A row of values k on a grid of step h is trained on as k + h (u - 1/2), u uniform, drawn once by the seed; draws are put
back on the grid. The probability of a value is then about the density there times h: log P(k) = log p(k) + log h, of
all such columns together (uniform dequantisation, Theis et al. 2016).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

ON_GRID, MOST_OFF_GRID = 1e-3, 0.05  # of a step; the latter where values are rounded to float32
DECIMAL, MOST_DIGITS = 1e-6, 4  # share of a step by which it may differ from a decimal number; digits of that
DISTINCT = 0.5  # largest share of distinct values of a column that "auto" takes for one of steps


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
        if not sound or min(grid.step, default=0.0) < 0:
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
        for column, decimals in enumerate(self.decimals):
            if decimals is not None:  # 177.9, not the sum of steps 177.89999999999964
                rounded[:, column] = np.round(rounded[:, column], decimals)
        return rounded

    @property
    def decimals(self) -> list[int | None]:
        """Decimals of each column, None where it has no steps or is no grid of decimal numbers, e.g. one of thirds."""
        return [_decimals(step, offset) for step, offset in zip(self.step, self.offset, strict=True)]


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
        return [find_step(column) if some else 0.0 for some, column in zip(stepped, x.T, strict=True)]
    steps = _requested_steps(dequantize, names)
    if not steps:
        return [0.0] * len(names)
    return [
        _checked_step(name, column, steps[name]) if name in steps else 0.0
        for name, column in zip(names, x.T, strict=True)
    ]


def _requested_steps(dequantize: Any, names: Sequence[str]) -> dict[str, float | None]:
    """Read the columns to dequantize, and their steps, None where they are to be found."""
    if dequantize is None:
        return {}
    if isinstance(dequantize, (str, bytes)) or not isinstance(dequantize, (Mapping, Sequence)):
        raise _dequantize_error(dequantize)
    steps = dict(dequantize) if isinstance(dequantize, Mapping) else dict.fromkeys(map(str, dequantize))
    known, first = set(names), ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    for name, step in steps.items():
        if name not in known:
            raise ValueError(f"dequantize names a column {name!r} that is not there; there are {first}")
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
    step = requested or find_step(column)
    if not step or not _on_grid(column, step):
        of_step = f" of {step:g}" if step else ""
        raise ValueError(
            f"column {name!r} has no values of equal steps{of_step}: give its step, e.g. {name}:0.5 "
            f"(in Python dequantize={{{name!r}: 0.5}}), or leave it out"
        )
    return step


def _decimals(step: float, offset: float) -> int | None:
    """Return the decimals that a grid is written with, of a step of up to four digits; None if there are none."""
    if not step:
        return None
    for decimals in range(max(0, MOST_DIGITS - math.floor(math.log10(step)))):
        if (
            abs(step - round(step, decimals)) <= DECIMAL * step
            and abs(offset - round(offset, decimals)) <= ON_GRID * step
        ):
            return decimals
    return None


def find_step(column: np.ndarray) -> float:
    """Return the step of a column: the least gap between values, averaged over their span.

    Args:
        column: Values, shape (n,).

    Returns:
        The step, if all values are multiples of it apart, else 0.
    """
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
