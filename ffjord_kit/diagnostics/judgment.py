"""Judgment: rows, a score that they must not fall below, and what of them may change.

A change s of the k allowed columns, in units of their scales, moves a row x to x + scale * s; the other columns stay.
A point passes where its margin is not negative: log p - threshold of a density, the score of the wanted class less the
highest other one of a classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Judge = Callable[[Tensor, Tensor], Tensor]  # points (m, d) and the row of each (m,), to margins (m,), differentiable

POINTS_AT_ONCE = 4096
LOWEST = -1e9  # margin where the score is undefined: a row outside the support
ONE_DEVIATION = (0.1587, 0.8413)  # quantiles that lie one deviation from the mean of a normal law


@dataclass(frozen=True, eq=False)
class Allowed:
    """Columns that may change, within bounds, and their scales.

    Attributes:
        names: Names of the k columns.
        columns: Their places among the d columns, shape (k,).
        scale: Their scales in the units of the data, shape (k,).
        lower: Least values that a change may lead to, shape (k,).
        upper: Greatest values, shape (k,).

    Example:
        >>> rows = np.array([[0.0, 10.0], [1.0, 20.0]])
        >>> allowed = Allowed.of(rows, ["dose", "age"], ["dose"], {"dose": (0, 3)})
        >>> allowed.names, allowed.lower.tolist(), allowed.upper.tolist()
        (('dose',), [0.0], [3.0])
    """

    names: tuple[str, ...]
    columns: Tensor
    scale: Tensor
    lower: Tensor
    upper: Tensor

    @classmethod
    def of(
        cls,
        reference: np.ndarray,
        names: Sequence[str],
        allow: Sequence[str | int] | None = None,
        bounds: Mapping[str, tuple[float, float]] | None = None,
    ) -> Allowed:
        """Say what may change: by default every column, within the range of the reference rows.

        The scale of a column is half the distance of its 16 % and 84 % quantiles: the standard deviation of a normal
        law.

        Args:
            reference: Rows that are as they should be, shape (n, d).
            names: Names of the d columns.
            allow: Columns that may change, by name or number; all if None.
            bounds: Least and greatest value of some of these columns, in their units.

        Returns:
            What may change.

        Raises:
            ValueError: If a column is not there or named twice, or bounds are no interval.
        """
        columns = [find_column(word, names) for word in (names if allow is None else allow)]
        if not columns or len(set(columns)) < len(columns):
            raise ValueError(f"allow must name one column or more, each once; got {', '.join(map(str, allow or ()))}")
        chosen = reference[:, columns]
        lower, upper = chosen.min(0), chosen.max(0)
        for word, (low, high) in (bounds or {}).items():
            place = find_column(word, names)
            if place not in columns or not low <= high:
                raise ValueError(f"bounds of {word} must be LOW <= HIGH of a column that may change; got {low}, {high}")
            lower[columns.index(place)], upper[columns.index(place)] = low, high
        values = (torch.as_tensor(part, dtype=torch.float64) for part in (_scales(chosen), lower, upper))
        return cls(tuple(names[i] for i in columns), torch.tensor(columns), *values)


@dataclass(frozen=True, eq=False)
class Judgment:
    """Rows, the judge of them, and the changes that are allowed.

    Args:
        judge: Gives the margins of points (m, d), each a change of the row (m,) beside it; differentiable.
        rows: Rows, float64, shape (n, d).
        allowed: What may change.
        verify: A dearer judge that decides what passes, while the first one guides; the same if None.

    Example:
        >>> allowed = Allowed.of(np.array([[0.0, 0.0], [2.0, 2.0]]), ["a", "b"], ["b"], {"b": (0, 9)})
        >>> judgment = Judgment(lambda x, row: x.sum(1) - 5, torch.ones(1, 2).double(), allowed)
        >>> judgment.margins(torch.tensor([[3.0]]).double() / allowed.scale, torch.tensor([0]))
        tensor([0.], dtype=torch.float64)
    """

    judge: Judge
    rows: Tensor
    allowed: Allowed
    verify: Judge | None = None

    def of(self, chosen: Tensor) -> Judgment:
        """Return the judgment of some of the rows.

        Args:
            chosen: Numbers of the rows, shape (n,).

        Returns:
            The judgment, in which these rows count from 0.
        """
        verify = self.verify and _renumbered(self.verify, chosen)
        return Judgment(_renumbered(self.judge, chosen), self.rows[chosen], self.allowed, verify)

    @property
    def lower(self) -> Tensor:
        """Least change of each row, at most 0 as a row may stay where it is, shape (n, k)."""
        return ((self.allowed.lower - self._values) / self.allowed.scale).clamp(max=0)

    @property
    def upper(self) -> Tensor:
        """Greatest change of each row, at least 0, shape (n, k)."""
        return ((self.allowed.upper - self._values) / self.allowed.scale).clamp(min=0)

    def points(self, change: Tensor, row: Tensor) -> Tensor:
        """Return changed rows.

        Args:
            change: Changes in units of the scales, shape (m, k).
            row: Row of each, shape (m,).

        Returns:
            Points in the units of the data, shape (m, d).
        """
        return self.rows[row].index_add(1, self.allowed.columns, change * self.allowed.scale)

    def changes(self, values: Tensor, row: Tensor) -> Tensor:
        """Return the changes that give the allowed columns some values.

        Args:
            values: Values in the units of the data, shape (m, k).
            row: Row of each, shape (m,).

        Returns:
            Changes in units of the scales, shape (m, k), within the bounds.
        """
        change = (values - self._values[row]) / self.allowed.scale
        return change.clamp(self.lower[row], self.upper[row])

    @torch.no_grad()
    def margins(self, change: Tensor, row: Tensor) -> Tensor:
        """Return the margins of changed rows.

        Args:
            change: Changes in units of the scales, shape (m, k).
            row: Row of each, shape (m,).

        Returns:
            Margins, shape (m,); LOWEST where they are undefined.
        """
        parts = zip(change.split(POINTS_AT_ONCE), row.split(POINTS_AT_ONCE), strict=True)
        judge = self.verify or self.judge
        return torch.cat([change.new_empty(0), *(self._judged(judge, s, r) for s, r in parts)])

    def slopes(self, change: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """Return the margins of changed rows by the guide, and their gradients by the change.

        Args:
            change: Changes in units of the scales, shape (m, k).
            row: Row of each, shape (m,).

        Returns:
            Margins, shape (m,), and gradients, shape (m, k); 0 where they are undefined.
        """
        margins, gradients = [change.new_empty(0)], [change.new_empty(0, change.shape[1])]
        for part, r in zip(change.split(POINTS_AT_ONCE), row.split(POINTS_AT_ONCE), strict=True):
            with torch.inference_mode(False), torch.enable_grad():
                s = part.detach().clone().requires_grad_()
                margin = self._judged(self.judge, s, r)
                gradients.append(torch.autograd.grad(margin.sum(), s)[0].nan_to_num(0.0, 0.0, 0.0))
            margins.append(margin.detach())
        return torch.cat(margins), torch.cat(gradients)

    @property
    def _values(self) -> Tensor:
        return self.rows[:, self.allowed.columns]

    def _judged(self, judge: Judge, change: Tensor, row: Tensor) -> Tensor:
        margins = judge(self.points(change, row), row).to(change)
        return margins.nan_to_num(LOWEST, neginf=LOWEST).clamp(min=LOWEST)


def find_column(word: str | int, names: Iterable[str]) -> int:
    """Return the place of a column.

    Args:
        word: Its name, or its number from 0.
        names: Names of all columns.

    Returns:
        The number.

    Raises:
        ValueError: If there is no such column.
    """
    names = list(names)
    if str(word) in names:
        return names.index(str(word))
    if str(word).isdecimal() and int(word) < len(names):
        return int(word)
    raise ValueError(f"no column {word!r}; the columns are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}")


def _renumbered(judge: Judge, chosen: Tensor) -> Judge:
    return lambda points, row: judge(points, chosen[row])


def _scales(values: np.ndarray) -> np.ndarray:
    """Return half the distance of two quantiles, else the standard deviation, else 1."""
    low, high = np.quantile(values, ONE_DEVIATION, axis=0)
    scale = np.where(high > low, (high - low) / 2, values.std(0))
    return np.where(scale > 0, scale, 1.0)
