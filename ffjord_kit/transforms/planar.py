r"""Planar transforms: one direction moves, by a function of one projection.

    y = x + u tanh(w.x + b),    log|det dy/dx| = log(1 + w.u (1 - tanh(w.x + b)^2))

It has an inverse where w.u > -1, so the part of u along w is replaced such that w.u = log(1 + exp(w.u)) - 1 + MARGIN.
The inverse needs one number for each row, v = w.x + b with v + w.u tanh(v) = w.y + b, which is found by bisection; a
last step of Newton's method carries its gradient (of first order alone).

References:
    Rezende & Mohamed 2015, Variational inference with normalizing flows, https://arxiv.org/abs/1505.05770.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffjord_kit.transforms.base import Transform

ENDS = ("data", "base")
MARGIN = 1e-3  # least slope of v + w.u tanh(v)
HALVINGS = 60


class Planar(Transform):
    """A planar transform; K of them in a row make the planar flow of depth K.

    Args:
        event_shape: Shape of an event.
        explicit_from: The end that the closed form begins at: "data" for cheap log-densities, "base" for cheap draws.

    Raises:
        ValueError: If `explicit_from` is another word.

    Example:
        >>> planar = Planar((2,), explicit_from="base")
        >>> z = torch.randn(4, 2)
        >>> x, log_det = planar.to_data(z)
        >>> bool(torch.allclose(planar.to_base(x)[0], z, atol=1e-5)), tuple(log_det.shape)
        (True, (4,))
    """

    event_shape: tuple[int, ...]

    def __init__(self, event_shape: Sequence[int], *, explicit_from: str = "data") -> None:
        super().__init__()
        if explicit_from not in ENDS:
            raise ValueError(f"explicit_from must be one of {', '.join(ENDS)}; got {explicit_from!r}")
        self.event_shape, self.explicit_from = tuple(event_shape), explicit_from
        size = math.prod(event_shape)
        self.direction = nn.Parameter(0.1 * torch.randn(size))
        self.normal = nn.Parameter(torch.randn(size) / math.sqrt(size))
        self.offset = nn.Parameter(torch.randn(()))

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._forward(x) if self.explicit_from == "data" else self._inverse(x)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._forward(z) if self.explicit_from == "base" else self._inverse(z)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u, slope = self._direction_and_slope()
        bend = (x.flatten(1) @ self.normal + self.offset).tanh()
        y = x + (bend[:, None] * u).reshape(x.shape)
        return y, torch.log1p(slope * (1 - bend.square()))

    def _inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        u, slope = self._direction_and_slope()
        bend = _solve(y.flatten(1) @ self.normal + self.offset, slope).tanh()
        x = y - (bend[:, None] * u).reshape(y.shape)
        return x, -torch.log1p(slope * (1 - bend.square()))

    def _direction_and_slope(self) -> tuple[Tensor, Tensor]:
        """Return u, (d,), with an inverse, and w.u, ()."""
        along = self.normal @ self.direction
        slope = F.softplus(along) - 1 + MARGIN
        unit = self.normal / self.normal.square().sum().clamp(min=torch.finfo(along.dtype).tiny)
        return self.direction + (slope - along) * unit, slope


def _solve(target: Tensor, slope: Tensor) -> Tensor:
    """Return v with v + slope tanh(v) = target, (batch,)."""
    with torch.no_grad():
        low, high = target - slope.abs(), target + slope.abs()
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            below = middle + slope * middle.tanh() < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        v = (low + high) / 2
    bend = v.tanh()
    return v - (v + slope * bend - target) / (1 + slope * (1 - bend.square()))
