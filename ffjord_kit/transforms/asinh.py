r"""Asinh: a map that is linear near 0 and logarithmic far out, so that heavy tails become light ones.

    z = asinh(x),    log|det dz/dx| = -sum log cosh z

A tail that falls as a power, p(x) ~ |x|^-(nu + 1), becomes one that falls exponentially, p(z) ~ exp(-nu |z|). Far out a
shift of z is a factor of x, so that a field which shifts z by bounded amounts keeps the power of each element's tail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ffjord_kit.transforms.base import Transform


class Asinh(Transform):
    """Map each element to its inverse hyperbolic sine, z = asinh(x).

    Args:
        event_shape: Shape of an event.

    Example:
        >>> z, log_det = Asinh((1,)).to_base(torch.tensor([[0.0], [1e10]]))
        >>> [round(value, 3) for value in z.flatten().tolist()]
        [0.0, 23.719]
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = x.asinh()
        return z, -_log_slope(z)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z.sinh(), _log_slope(z)


def _log_slope(z: Tensor) -> Tensor:
    """Return log|dx/dz| = log cosh z, added over the elements, (batch,)."""
    return (torch.logaddexp(z, -z) - math.log(2)).reshape(len(z), -1).sum(1)
