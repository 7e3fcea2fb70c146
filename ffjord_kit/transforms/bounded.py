r"""Transforms from bounded intervals to the whole line, and transforms of grey levels.

Logit         z = log(x - lower) - log(upper - x)          data in (lower, upper)
Softplus      z = log(exp(x - lower) - 1)                  data above `lower`; x = lower + log(1 + exp(z))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ffjord_kit.ode.field import is_transformed
from ffjord_kit.transforms.affine import Standardize
from ffjord_kit.transforms.base import Transform

ALPHA = 1e-6  # default margin of the logit of grey levels


class Logit(Transform):
    """Map elements between two bounds to the whole line, z = log(x - lower) - log(upper - x).

    Elements with infinite bounds stay unchanged.

    Args:
        lower: Lower bounds, finite or -inf, shape (*event).
        upper: Upper bounds, finite where the lower ones are, shape (*event).

    Raises:
        ValueError: If a lower bound is not below its upper one; from `to_base`, if data lie outside the bounds.

    Example:
        >>> transform = Logit(torch.tensor([0.0]), torch.tensor([1.0]))
        >>> transform.to_base(torch.tensor([[0.5]]))
        (tensor([[0.]]), tensor([1.3863]))
    """

    bounded: Tensor
    lower: Tensor
    upper: Tensor

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
        """Lower and upper bounds, infinite where there are none, each of shape (*event)."""
        infinite = torch.full_like(self.lower, torch.inf)
        return torch.where(self.bounded, self.lower, -infinite), torch.where(self.bounded, self.upper, infinite)

    def flaw(self) -> str:
        return "" if bool((self.lower < self.upper).all()) else "a lower bound that is not below its upper one"

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        inner = torch.where(self.bounded, x, (self.lower + self.upper) / 2)
        _check_inside((inner > self.lower) & (inner < self.upper), "strictly between the bounds")
        z = torch.where(self.bounded, (inner - self.lower).log() - (self.upper - inner).log(), x)
        return z, -self._log_slope(z)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = _clamp_inside(torch.lerp(self.lower, self.upper, z.sigmoid()), self.lower, self.upper)
        return torch.where(self.bounded, x, z), self._log_slope(z)

    def _log_slope(self, z: Tensor) -> Tensor:
        """Return log|dx/dz| = log width + log sigmoid(z) + log sigmoid(-z), which neither over- nor underflows."""
        slope = (self.upper - self.lower).log() + F.logsigmoid(z) + F.logsigmoid(-z)
        return torch.where(self.bounded, slope, 0.0).reshape(len(z), -1).sum(1)


class Softplus(Transform):
    """Map elements above a lower bound to the whole line, z = log(exp(x - lower) - 1).

    Elements with an infinite bound stay unchanged.

    Args:
        lower: Lower bounds, finite or -inf, shape (*event).

    Raises:
        ValueError: From `to_base`, if data lie at or below their bound.

    Example:
        >>> transform = Softplus(torch.tensor([0.0, -torch.inf]))
        >>> transform.to_data(torch.zeros(1, 2))
        (tensor([[0.6931, 0.0000]]), tensor([-0.6931]))
    """

    bounded: Tensor
    lower: Tensor

    def __init__(self, lower: Tensor) -> None:
        super().__init__()
        self.event_shape = tuple(lower.shape)
        self.register_buffer("bounded", lower.isfinite())
        self.register_buffer("lower", torch.where(lower.isfinite(), lower, 0.0))

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds, infinite where there are none, each of shape (*event)."""
        infinite = torch.full_like(self.lower, torch.inf)
        return torch.where(self.bounded, self.lower, -infinite), infinite

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        above = torch.where(self.bounded, x - self.lower, 1.0)
        _check_inside(above > 0, "above the lower bound")
        z = torch.where(self.bounded, above + (-torch.expm1(-above)).log(), x)
        return z, -self._log_slope(z)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = _clamp_inside(
            self.lower + torch.logaddexp(z, torch.zeros_like(z)), self.lower, torch.full_like(self.lower, torch.inf)
        )
        return torch.where(self.bounded, x, z), self._log_slope(z)

    def _log_slope(self, z: Tensor) -> Tensor:
        return torch.where(self.bounded, F.logsigmoid(z), 0.0).reshape(len(z), -1).sum(1)


def pixel_logit(event_shape: Sequence[int], *, bits: int = 8, alpha: float = ALPHA) -> Logit:
    """Return the logit of grey levels with a margin, z = logit(alpha + (1 - 2 alpha) x / L).

    Args:
        event_shape: Shape of an event.
        bits: Bits of the grey levels, 0 <= x < L = 2^bits.
        alpha: Margin.

    Returns:
        The transform, in float64.

    Raises:
        ValueError: Unless 0 < alpha < 1/2.

    References:
        Dinh et al. 2017, RealNVP, section 4.1, https://arxiv.org/abs/1605.08803.

    Example:
        >>> z, _ = pixel_logit((1, 1, 1)).to_base(torch.full((1, 1, 1, 1), 128.0))
        >>> z.item()  # half of 256 grey levels
        0.0
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 1/2; got {alpha}")
    levels = 2**bits
    margin = torch.full(tuple(event_shape), alpha * levels / (1 - 2 * alpha), dtype=torch.float64)
    return Logit(-margin, levels + margin)


def pixel_scaling(event_shape: Sequence[int], *, bits: int = 8, alpha: float = ALPHA) -> Standardize:
    """Return the linear scaling of grey levels to -1 <= z < 1, z = 2 x / L - 1.

    Args:
        event_shape: Shape of an event.
        bits: Bits of the grey levels, 0 <= x < L = 2^bits.
        alpha: Ignored; it is there for the signature of IMAGE_SCALINGS.

    Returns:
        The transform, in float64.

    Example:
        >>> z, _ = pixel_scaling((1, 1, 2)).to_base(torch.tensor([0.0, 255.0]).reshape(1, 1, 1, 2))
        >>> z.flatten().tolist()
        [-1.0, 0.9921875]
    """
    half = torch.full(tuple(event_shape), 2.0 ** (bits - 1), dtype=torch.float64)
    return Standardize(half, half.clone())


def _clamp_inside(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Move values that rounding took to an open bound one floating-point number inside, so they can be mapped back."""
    return torch.clamp(x, torch.nextafter(lower, upper), torch.nextafter(upper, lower))


def _check_inside(inside: Tensor, where: str) -> None:
    if not is_transformed(inside) and not bool(inside.all()):
        row, *element = (~inside).nonzero()[0].tolist()
        raise ValueError(f"data must lie {where}; row {row}, element {tuple(element)} does not")


IMAGE_SCALINGS: dict[str, Callable[..., Transform]] = {"logit": pixel_logit, "plain": pixel_scaling}
