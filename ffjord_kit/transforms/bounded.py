r"""Transforms of bounded elements to the whole line, and of grey levels.

    Logit         z = log(x - lower) - log(upper - x)          data in (lower, upper)
    Softplus      z = log(exp(x - lower) - 1)                  data above `lower`; softplus(z) + lower = x
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ffjord_kit.ode.field import is_transformed
from ffjord_kit.transforms.affine import Standardize
from ffjord_kit.transforms.base import Transform

ALPHA = 1e-6  # default margin of the logit of grey levels


class Logit(Transform):
    """Open bounded elements of the event to the whole line; elements with infinite bounds pass unchanged.

    Shapes: lower, upper (*event), both finite or both infinite for each element.
    Raises ValueError for data outside its bounds.
    """

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        super().__init__()
        self.event_shape = tuple(lower.shape)
        bounded = lower.isfinite()
        if not bool((lower < upper).all()):
            raise ValueError("every lower bound must be below its upper one")
        self.register_buffer("bounded", bounded)
        self.register_buffer("lower", torch.where(bounded, lower, 0.0))
        self.register_buffer("upper", torch.where(bounded, upper, 1.0))

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds, infinite where there are none, each (*event,)."""
        infinite = torch.full_like(self.lower, torch.inf)
        return torch.where(self.bounded, self.lower, -infinite), torch.where(self.bounded, self.upper, infinite)

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        inner = torch.where(self.bounded, x, (self.lower + self.upper) / 2)
        _check_inside((inner > self.lower) & (inner < self.upper), "strictly between the bounds")
        z = torch.where(self.bounded, (inner - self.lower).log() - (self.upper - inner).log(), x)
        return z, -self._log_slope(z)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = _inside(torch.lerp(self.lower, self.upper, z.sigmoid()), self.lower, self.upper)
        return torch.where(self.bounded, x, z), self._log_slope(z)

    def _log_slope(self, z: Tensor) -> Tensor:
        """log|dx/dz| = log width + log sigmoid(z) + log sigmoid(-z), which neither over- nor underflows."""
        slope = (self.upper - self.lower).log() + F.logsigmoid(z) + F.logsigmoid(-z)
        return torch.where(self.bounded, slope, 0.0).reshape(len(z), -1).sum(1)


class Softplus(Transform):
    """Open elements above a lower bound to the whole line; elements with an infinite bound pass unchanged.

    Shapes: lower (*event), finite or -inf for each element.
    Raises ValueError for data at or below its bound.
    """

    def __init__(self, lower: Tensor) -> None:
        super().__init__()
        self.event_shape = tuple(lower.shape)
        self.register_buffer("bounded", lower.isfinite())
        self.register_buffer("lower", torch.where(lower.isfinite(), lower, 0.0))

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds, infinite where there are none, each (*event,)."""
        infinite = torch.full_like(self.lower, torch.inf)
        return torch.where(self.bounded, self.lower, -infinite), infinite

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        above = torch.where(self.bounded, x - self.lower, 1.0)
        _check_inside(above > 0, "above the lower bound")
        z = torch.where(self.bounded, above + (-torch.expm1(-above)).log(), x)
        return z, -self._log_slope(z)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = _inside(
            self.lower + torch.logaddexp(z, torch.zeros_like(z)), self.lower, torch.full_like(self.lower, torch.inf)
        )
        return torch.where(self.bounded, x, z), self._log_slope(z)

    def _log_slope(self, z: Tensor) -> Tensor:
        return torch.where(self.bounded, F.logsigmoid(z), 0.0).reshape(len(z), -1).sum(1)


def logit_layer(event_shape: Sequence[int], *, bits: int = 8, alpha: float = ALPHA) -> Logit:
    """The logit of grey levels 0 <= x < L, with the margin alpha. Raises ValueError unless 0 < alpha < 1/2."""
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 1/2; got {alpha}")
    levels = 2**bits
    margin = torch.full(tuple(event_shape), alpha * levels / (1 - 2 * alpha), dtype=torch.float64)
    return Logit(-margin, levels + margin)


def scale_layer(event_shape: Sequence[int], *, bits: int = 8, alpha: float = ALPHA) -> Standardize:
    """Plain scaling of grey levels 0 <= x < L to -1 <= z < 1; it has no margin to use alpha for."""
    half = torch.full(tuple(event_shape), 2.0 ** (bits - 1), dtype=torch.float64)
    return Standardize(half, half.clone())


def _inside(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """x, where rounding took it to an open bound, a last digit inside it: a sample can be mapped back."""
    return torch.clamp(x, torch.nextafter(lower, upper), torch.nextafter(upper, lower))


def _check_inside(inside: Tensor, where: str) -> None:
    if not is_transformed(inside) and not bool(inside.all()):
        row, *element = (~inside).nonzero()[0].tolist()
        raise ValueError(f"data must lie {where}; row {row}, element {tuple(element)} does not")


IMAGE_SCALINGS = {"logit": logit_layer, "plain": scale_layer}
