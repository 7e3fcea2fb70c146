"""Columns of whole numbers, or of any equal steps: noise as wide as a step makes a density of them.

A row of values k on a grid of step h is trained on as k + h (u - 1/2), u uniform, drawn once by the seed; draws are put
back on the grid. The probability of a value is then about the density there times h: log P(k) = log p(k) + log h, of
all such columns together (uniform dequantisation, Theis et al. 2016).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

ON_GRID = 1e-3  # of a step
DISTINCT = 0.5  # the largest share of distinct values of a column that 'auto' takes for one of steps


class Grid(NamedTuple):
    """The step of each column, 0 where it has none, and a value of its grid, each (d,)."""

    step: list[float]
    offset: list[float]

    @classmethod
    def kept(cls, content: Mapping[str, Any] | None, columns: int) -> Grid:
        """The grid that a run keeps for so many columns. Raises ValueError where it is none."""
        if content is None:  # a run from before there were any
            return cls([0.0] * columns, [0.0] * columns)
        grid = cls(**content)
        sound = all(len(part) == columns and np.isfinite(np.array(part, np.float64)).all() for part in grid)
        if not sound or min(grid.step) < 0:
            raise ValueError(f"grid must give a step and an offset for each of {columns} columns; got {content}")
        return grid

    def noisy(self, x: np.ndarray, seed: int) -> np.ndarray:
        """The rows x (n, d) with the seed's noise, all in memory; the same where no column has a step."""
        if not any(self.step):
            return x
        return x + np.array(self.step) * (np.random.default_rng(seed).random(x.shape) - 0.5)

    def rounded(self, x: np.ndarray) -> np.ndarray:
        """The rows x (n, d) put back on the grid; the same where no column has a step."""
        if not any(self.step):
            return x
        stepped = np.array(self.step) > 0
        step, offset = np.array(self.step)[stepped], np.array(self.offset)[stepped]
        rounded = x.copy()
        rounded[:, stepped] = offset + step * np.round((x[:, stepped] - offset) / step)
        return rounded


def grid_of(text: str, x: np.ndarray, names: Sequence[str]) -> Grid:
    """The grid of x (n, d) that 'auto', or 'age,score:0.5', asks for; '' is none.

    Raises ValueError for a column that is not there, a step that is not positive, or values that lie on no grid.
    """
    if text.strip() == "auto":
        steps = [_step(column) if len(np.unique(column)) <= DISTINCT * len(column) else 0.0 for column in x.T]
    else:
        asked = dict(_asked(part, names) for part in text.split(",") if part.strip())
        steps = [_settled(name, column, asked.get(name)) for name, column in zip(names, x.T, strict=True)]
    return Grid(steps, [float(value) for value in x[0]])


def _asked(part: str, names: Sequence[str]) -> tuple[str, float]:
    """A column's name and its step, 0 where that is to be found."""
    name, colon, step = (word.strip() for word in part.partition(":"))
    if name not in names:
        raise ValueError(f"dequantize names a column {name!r} that is not there; there are {', '.join(names)}")
    try:
        width = float(step) if colon else 0.0
    except ValueError:
        width = math.nan
    if not (0 < width < math.inf or not colon):
        raise ValueError(f"dequantize must read like 'auto', 'age' or 'age,score:0.5', steps positive; got {part!r}")
    return name, width


def _settled(name: str, column: np.ndarray, asked: float | None) -> float:
    if asked is None:
        return 0.0
    step = asked or _step(column)
    if not step or not _on_grid(column - column[0], step):
        of_that = f" of {step:g}" if step else ""
        raise ValueError(
            f"column {name!r} has no values of equal steps{of_that}: give its step as in dequantize='{name}:0.5', or "
            "leave it out"
        )
    return step


def _step(column: np.ndarray) -> float:
    """The least gap of the values where all others are multiples of it, else 0."""
    values = np.unique(column)
    if len(values) < 2:
        return 0.0
    gaps = np.diff(values)
    return float(gaps.min()) if _on_grid(gaps, gaps.min()) else 0.0


def _on_grid(distances: np.ndarray, step: float) -> bool:
    parts = distances / step
    return bool((np.abs(parts - np.round(parts)) <= ON_GRID).all())
