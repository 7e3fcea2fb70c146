r"""The planar field: M planar functions side by side, each with a gate in time.

    dx/dt = sum_n s_n(t) u_n a(w_n.x + b_n),    tr J = sum_n s_n(t) (u_n.w_n) a'(w_n.x + b_n),    0 < s_n < 1

The continuous limit of planar transforms, whose trace costs no more than the velocity; capacity grows with the width M,
where a planar flow's grows with its depth.

References:
    Chen et al. 2018, Neural ordinary differential equations, sec. 4, https://arxiv.org/abs/1806.07366.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffjord_kit.nn.activations import ACTIVATIONS
from ffjord_kit.nn.base import join_context, time_column
from ffjord_kit.nn.mlp import FlattenedField, Tangents

GATE_WIDTH = 32  # of the network of the gates


class PlanarDynamics(FlattenedField):
    """A sum of M planar functions, each opened and closed in time (and by the context).

    It starts at zero, so an untrained flow is the identity. It is one hidden layer, so it has a width instead of the
    widths that the words of DYNAMICS take.

    Args:
        event_shape: Shape of an event.
        width: Number M of planar functions.
        context_dim: Length of the context vectors, which the gates see; 0 for none.
        activation: Activation a, a word of ACTIVATIONS.

    Raises:
        ValueError: If the width is below 1.

    Example:
        >>> field = PlanarDynamics((2,), width=8)
        >>> dx, trace = field.divergence(torch.tensor(0.5), torch.ones(3, 2))
        >>> dx.shape, trace.tolist()
        (torch.Size([3, 2]), [0.0, 0.0, 0.0])
    """

    def __init__(
        self, event_shape: Sequence[int], *, width: int = 32, context_dim: int = 0, activation: str = "tanh"
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, the number of planar functions; got {width}")
        size = math.prod(event_shape)
        self.activation = ACTIVATIONS[activation]
        self.input_layer = nn.Linear(size, width)
        nn.init.normal_(self.input_layer.weight, std=size**-0.5)
        nn.init.normal_(self.input_layer.bias)
        self.directions = nn.Parameter(torch.zeros(width, size))
        self.gates = nn.Sequential(nn.Linear(1 + context_dim, GATE_WIDTH), nn.Tanh(), nn.Linear(GATE_WIDTH, width))

    def divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, slope = self.activation.with_slope(self.input_layer(x.flatten(1)))
        gate = self._gate(t, x, context)
        products = (self.input_layer.weight * self.directions).sum(1)
        return ((gate * y) @ self.directions).reshape(x.shape), (gate * slope) @ products

    def _propagate(self, t: Tensor, h: Tensor, dh: Tangents, context: Tensor | None) -> tuple[Tensor, Tangents]:
        gate = self._gate(t, h, context)
        inner = None if dh is None else F.linear(dh, self.input_layer.weight)
        y, dy = self.activation(self.input_layer(h), inner, gate)
        return (gate * y) @ self.directions, None if dy is None else dy @ self.directions

    def _gate(self, t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        """Return the gates, (1 or batch, M)."""
        return self.gates(join_context(time_column(t).to(x), x, context)).sigmoid()
