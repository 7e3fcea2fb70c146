r"""Dynamics that are the gradient of a potential, after OT-Flow (Onken, Wu Fung, Li & Ruthotto 2021).

With s = (x, t, context), and log cosh, the antiderivative of tanh, as activation,

    f(t, x) = -dPhi/dx,    Phi = w^T h_M + 1/2 |A s|^2 + b^T x,
    h_0 = log cosh(p_0),   p_0 = K_0 s + c_0;    h_i = S_i h_{i-1} + log cosh(p_i),   p_i = K_i h_{i-1} + c_i

(S_i the identity, or a matrix where widths differ). The gradient goes back through the layers by hand,

    g_M = w,    g_{i-1} = S_i^T g_i + K_i^T (tanh(p_i) g_i),    dPhi/ds = K_0^T (tanh(p_0) g_0) + A^T A s + b,

and with the tangents dp_i of p_i, the products with the Hessian come from the derivative of these lines:

    dg_M = 0,   dg_{i-1} = S_i^T dg_i + K_i^T (tanh(p_i) dg_i + (1 - tanh(p_i)^2) dp_i g_i).

The Jacobian is -d^2Phi/dx^2, symmetric, so its trace over the basis vectors is the exact Laplacian; an optimal
transport has this form (Brenier). A function of t alone in Phi moves nothing, and is left to the network.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffjord_kit.nn.base import VectorField

RANK = 10  # of the quadratic term, at most


class Potential(VectorField):
    """Dynamics f = -dPhi/dx that can be asked for Phi."""

    @abstractmethod
    def potential(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Phi at t () or (batch,), x (batch, *event), context (batch, context_dim): (batch,)."""


def potential_of(dynamics: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The potential of the dynamics. Raises ValueError where they have none."""
    if not isinstance(dynamics, Potential):
        kind = type(dynamics).__name__
        raise ValueError(f"the cost 'hjb' needs dynamics with a potential; got {kind}: choose dynamics='potential'")
    return dynamics.potential


def log_cosh(u: Tensor) -> Tensor:
    """log cosh(u), element by element, without overflow: smooth in every derivative, as |u| in its stead is not."""
    return F.softplus(2 * u, threshold=50.0) - u - math.log(2)  # above the threshold linear, to rounding


class _Layers(NamedTuple):
    """What the way back needs of each layer: tanh(p), and the tangents dp (probe, batch, width) where asked for."""

    slopes: list[Tensor]
    tangents: list[Tensor]


class PotentialDynamics(Potential):
    """The negative gradient of a potential: a residual network and a quadratic form of x, t and the context.

    Starts close to the identity flow. The activation is log cosh in the potential, so 'tanh' in the field: no other.
    Shapes: t () or (batch,), x (batch, *event), context (batch, context_dim) -> (batch, *event).
    Raises ValueError for another activation. Source: Onken et al. 2021, equations 8 to 12.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        context_dim: int = 0,
        hidden: Sequence[int] = (64, 64, 64),
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        if activation != "tanh":
            raise ValueError(
                f"potential dynamics have the activation 'tanh' and no other, for its antiderivative is in the "
                f"potential; got {activation!r}: leave it out"
            )
        self.size = math.prod(event_shape)
        inputs, pairs = self.size + 1 + context_dim, list(zip(hidden[:-1], hidden[1:], strict=True))
        self.inward = nn.Linear(inputs, hidden[0])
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.skips = nn.ModuleList(nn.Identity() if a == b else nn.Linear(a, b, bias=False) for a, b in pairs)
        self.outward = nn.Parameter(torch.zeros(hidden[-1]))
        self.form = nn.Parameter(0.01 * torch.randn(min(RANK, inputs), inputs))
        self.slant = nn.Parameter(torch.zeros(self.size))

    def potential(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        s = _joined(t, x, context)
        h = log_cosh(self.inward(s))
        for layer, skip in zip(self.layers, self.skips, strict=True):
            h = skip(h) + log_cosh(layer(h))
        return h @ self.outward + 0.5 * F.linear(s, self.form).square().sum(1) + s[:, : self.size] @ self.slant

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        s = _joined(t, x, context)
        return -self._gradient(s, self._upward(s, None))[0].reshape(x.shape)

    def jvp(self, t: Tensor, x: Tensor, tangents: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        s, v = _joined(t, x, context), tangents.flatten(2)
        slope, bend = self._gradient(s, self._upward(s, v))
        bend = bend + F.linear(v, self.form[:, : self.size]) @ self.form[:, : self.size]
        return -slope.reshape(x.shape), -bend.reshape(len(tangents), *x.shape)

    def _upward(self, s: Tensor, v: Tensor | None) -> _Layers:
        """The network from below, for inputs s (batch, inputs) and tangents v (probe, 1 or batch, size)."""
        p, dp = self.inward(s), None if v is None else F.linear(v, self.inward.weight[:, : self.size])
        kept = _Layers([p.tanh()], [dp])
        h, dh = log_cosh(p), _times(kept.slopes[0], dp)
        for layer, skip in zip(self.layers, self.skips, strict=True):
            p, dp = layer(h), None if dh is None else F.linear(dh, layer.weight)
            kept.slopes.append(p.tanh())
            kept.tangents.append(dp)
            h, dh = skip(h) + log_cosh(p), None if dh is None else skip(dh) + _times(kept.slopes[-1], dp)
        return kept

    def _gradient(self, s: Tensor, kept: _Layers) -> tuple[Tensor, Tensor | None]:
        """dPhi/dx (batch, size), and the network's part of its tangents (probe, batch, size)."""
        g, dg = self.outward, None
        for i in reversed(range(len(self.layers))):
            q, dq = _back(kept.slopes[i + 1], kept.tangents[i + 1], g, dg)
            g, dg = self._through(i, g, q), None if dq is None else self._through(i, dg, dq)
        q, dq = _back(kept.slopes[0], kept.tangents[0], g, dg)
        inward, form = self.inward.weight[:, : self.size], self.form[:, : self.size]
        return q @ inward + F.linear(s, self.form) @ form + self.slant, None if dq is None else dq @ inward

    def _through(self, i: int, g: Tensor | None, q: Tensor) -> Tensor:
        """S_i^T g + K_i^T q; g None stands for zero."""
        below, skip = q @ self.layers[i].weight, self.skips[i]
        if g is None:
            return below
        return below + (g if isinstance(skip, nn.Identity) else g @ skip.weight)


def _joined(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
    """The inputs (x, t, context), (batch, size + 1 + context_dim)."""
    parts = [x.flatten(1), t.reshape(-1, 1).expand(len(x), 1)]
    return torch.cat(parts if context is None else [*parts, context], dim=1)


def _times(slope: Tensor, tangents: Tensor | None) -> Tensor | None:
    return None if tangents is None else slope * tangents


def _back(slope: Tensor, dp: Tensor | None, g: Tensor, dg: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """q = tanh(p) g, and its tangents; dg None stands for zero."""
    if dp is None:
        return slope * g, None
    dq = (1 - slope.square()) * g * dp
    return slope * g, dq if dg is None else torch.addcmul(dq, slope, dg)
