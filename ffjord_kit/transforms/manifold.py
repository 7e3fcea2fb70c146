"""Transforms beside circles and spheres: angles to radians, and transforms of the real columns alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ffjord_kit.transforms.base import Transform


class Angles(Transform):
    """Scale some columns to radians, z = 2 pi (x - start) / period - pi; draws come back within their range.

    Args:
        columns: Columns of angles.
        start: Least angle of each, in its unit, shape (c,).
        period: Period of each, > 0, shape (c,).
        size: Number of columns.

    Example:
        >>> transform = Angles([0], torch.tensor([0.0]), torch.tensor([360.0]), 1)
        >>> transform.to_base(torch.tensor([[180.0]]))[0].item()
        0.0
        >>> round(transform.to_data(torch.tensor([[1.5 * math.pi]]))[0].item(), 3)
        90.0
    """

    start: Tensor
    period: Tensor
    columns: Tensor

    def __init__(self, columns: Sequence[int], start: Tensor, period: Tensor, size: int) -> None:
        super().__init__()
        self.event_shape = (size,)
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.register_buffer("start", start)
        self.register_buffer("period", period)

    def flaw(self) -> str:
        return "" if bool((self.period > 0).all()) else "a period that is not positive"

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        angles = 2 * math.pi * (x[:, self.columns] - self.start) / self.period - math.pi
        return x.index_copy(1, self.columns, angles.to(x)), self._log_det(x)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        turns = (z[:, self.columns] + math.pi) / (2 * math.pi)
        angles = self.start + self.period * (turns - turns.floor())
        return z.index_copy(1, self.columns, angles.to(z)), -self._log_det(z)

    def _log_det(self, x: Tensor) -> Tensor:
        return (2 * math.pi / self.period).log().sum().to(x).expand(len(x))


class OnColumns(Transform):
    """A transform of some columns, which leaves the others as they are.

    Args:
        transform: Transform of events of as many elements as there are columns.
        columns: The columns.
        size: Number of all columns.

    Example:
        >>> from ffjord_kit.transforms import Standardize
        >>> inner = Standardize(torch.zeros(1), torch.full((1,), 2.0))
        >>> OnColumns(inner, [1], 2).to_base(torch.ones(1, 2))
        (tensor([[1.0000, 0.5000]]), tensor([-0.6931]))
    """

    columns: Tensor

    def __init__(self, transform: Transform, columns: Sequence[int], size: int) -> None:
        super().__init__()
        self.transform, self.event_shape = transform, (size,)
        self.register_buffer("columns", torch.tensor(columns), persistent=False)

    def flaw(self) -> str:
        return self.transform.flaw()

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        some, log_det = self.transform.to_base(x[:, self.columns], context)
        return x.index_copy(1, self.columns, some), log_det

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        some, log_det = self.transform.to_data(z[:, self.columns], context)
        return z.index_copy(1, self.columns, some), log_det
