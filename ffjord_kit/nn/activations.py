r"""Activations with their derivatives in closed form, so that tangents are carried through a network layer by layer.

y = a(u),    dy = a'(u) du;    with sigma the logistic function, Phi and phi the standard normal's, a and a' are

silu        u sigma(u)              sigma(u) + y (1 - sigma(u))
tanh        tanh(u)                 1 - y^2
softplus    log(1 + exp(u))         sigma(u)
elu         u, or exp(u) - 1        1, or exp(u)            for u > 0, and below
gelu        u Phi(u)                Phi(u) + u phi(u)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """A function y = a(u), element by element, with its derivative.

    Args:
        value: The function a.
        slope: The derivative a' as a function of u and y.

    Example:
        >>> y, slope = ACTIVATIONS["tanh"].with_slope(torch.zeros(1))
        >>> y.item(), slope.item()
        (0.0, 1.0)
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]

    def __call__(
        self, u: Tensor, tangents: Tensor | None = None, scale: Tensor | float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """Apply the function, and its derivative to tangents.

        Args:
            u: Inputs, of any shape.
            tangents: Tangents du / scale, of a shape that broadcasts against that of u; or None.
            scale: Factor of the tangents.

        Returns:
            y, of the shape of u, and the tangents dy, or None where there are none.
        """
        y = self.value(u)
        return y, None if tangents is None else tangents * (self.slope(u, y) * scale)

    def with_slope(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the function and its derivative.

        Args:
            u: Inputs, of any shape.

        Returns:
            y and a'(u), both of the shape of u.
        """
        y = self.value(u)
        return y, self.slope(u, y)


def _silu_slope(u: Tensor, y: Tensor) -> Tensor:
    gate = u.sigmoid()
    return torch.addcmul(gate, y, 1 - gate)


def _gelu_slope(u: Tensor, y: Tensor) -> Tensor:
    normal = torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi)
    return torch.addcmul(torch.special.ndtr(u), u, normal)


def _tanh_slope(u: Tensor, y: Tensor) -> Tensor:
    return 1 - y.square()


def _softplus_slope(u: Tensor, y: Tensor) -> Tensor:
    return u.sigmoid()


def _elu_slope(u: Tensor, y: Tensor) -> Tensor:
    return torch.where(u > 0, 1.0, y + 1)


# Named functions, not lambdas: workers copy a model by pickling it.
ACTIVATIONS: dict[str, Activation] = {
    "silu": Activation(F.silu, _silu_slope),
    "tanh": Activation(torch.tanh, _tanh_slope),
    "softplus": Activation(partial(F.softplus, threshold=50.0), _softplus_slope),  # above: linear, to rounding
    "elu": Activation(F.elu, _elu_slope),
    "gelu": Activation(F.gelu, _gelu_slope),
}
