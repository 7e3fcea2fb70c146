r"""Vector fields that are the gradient of a potential, after OT-Flow (Onken, Wu Fung, Li and Ruthotto 2021).

With s = (x, t, context), and log cosh, the antiderivative of tanh, as activation,

    f(t, x) = -dPhi/dx,    Phi = w^T h_M + 1/2 |A s|^2 + b^T x,
    h_0 = log cosh(p_0),   p_0 = K_0 s + c_0;    h_i = S_i h_{i-1} + log cosh(p_i),   p_i = K_i h_{i-1} + c_i

(S_i the identity, or a matrix where widths differ). The gradient is backpropagated by hand,

    g_M = w,    g_{i-1} = S_i^T g_i + K_i^T (tanh(p_i) g_i),    dPhi/ds = K_0^T (tanh(p_0) g_0) + A^T A s + b,

and with the tangents dp_i of p_i, the products with the Hessian follow by differentiating these lines:

    dg_M = 0,   dg_{i-1} = S_i^T dg_i + K_i^T (tanh(p_i) dg_i + (1 - tanh(p_i)^2) dp_i g_i).

The Jacobian is -d^2Phi/dx^2, symmetric, so its trace over the basis vectors is the exact Laplacian; an optimal
transport has this form (Brenier). A function of t alone in Phi does not change the field; the network may learn one.

References:
    Onken et al. 2021, OT-Flow, https://arxiv.org/abs/2006.00104.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffjord_kit.nn.base import VectorField

MAX_RANK = 10  # of the quadratic form


class Potential(VectorField):
    """A vector field f = -dPhi/dx whose potential Phi is known."""

    @abstractmethod
    def potential(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the potential Phi.

        Args:
            t: Time, () or (batch,).
            x: States, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            Phi, shape (batch,).
        """


def potential_of(dynamics: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the potential of a vector field.

    Args:
        dynamics: Vector field.

    Returns:
        The function Phi(t, x, context).

    Raises:
        ValueError: If the field has no potential.
    """
    if not isinstance(dynamics, Potential):
        kind = type(dynamics).__name__
        raise ValueError(f"the cost 'hjb' needs dynamics with a potential; got {kind}: choose dynamics='potential'")
    return dynamics.potential


def log_cosh(u: Tensor) -> Tensor:
    """Return log cosh(u) without overflow, smooth in every derivative (a formula with |u| is not).

    Args:
        u: Numbers, of any shape.

    Returns:
        log cosh(u), of the same shape.

    Example:
        >>> log_cosh(torch.tensor([0.0, 1000.0], dtype=torch.float64)).round(decimals=3).tolist()  # without overflow
        [0.0, 999.307]
    """
    return F.softplus(2 * u, threshold=50.0) - u - math.log(2)  # above the threshold linear, to rounding


class PotentialDynamics(Potential):
    r"""The negative gradient of a potential: a residual network and a quadratic form of x, t and the context.

        f(t, x) = -dPhi/dx,    Phi = w^T h_M(s) + 1/2 |A s|^2 + b^T x,    s = (x, t, context)

    The flow starts close to the identity. The activation of the potential is log cosh, so that of the field is tanh.

    Args:
        event_shape: Shape of an event.
        context_dim: Length of the context vectors; 0 for none.
        hidden: Widths of the hidden layers.
        activation: "tanh", the activation of the field.

    Raises:
        ValueError: If another activation is requested.

    Example:
        >>> field = PotentialDynamics((2,), hidden=(8, 8))
        >>> t, x = torch.tensor(0.5), torch.ones(3, 2, requires_grad=True)
        >>> (gradient,) = torch.autograd.grad(field.potential(t, x).sum(), x)
        >>> torch.allclose(field(t, x), -gradient)
        True

    References:
        Onken et al. 2021, equations 8 to 12, https://arxiv.org/abs/2006.00104.
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
        self.input_layer = nn.Linear(inputs, hidden[0])
        self.layers = cast(Sequence[nn.Linear], nn.ModuleList(nn.Linear(a, b) for a, b in pairs))
        self.skip_layers = nn.ModuleList(nn.Identity() if a == b else nn.Linear(a, b, bias=False) for a, b in pairs)
        self.output_weight = nn.Parameter(torch.zeros(hidden[-1]))
        self.quadratic_factor = nn.Parameter(0.01 * torch.randn(min(MAX_RANK, inputs), inputs))
        self.linear_weight = nn.Parameter(torch.zeros(self.size))

    def potential(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        s = _network_input(t, x, context)
        h = log_cosh(self.input_layer(s))
        for layer, skip in zip(self.layers, self.skip_layers, strict=True):
            h = skip(h) + log_cosh(layer(h))
        quadratic = 0.5 * F.linear(s, self.quadratic_factor).square().sum(1)
        return h @ self.output_weight + quadratic + s[:, : self.size] @ self.linear_weight

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the velocity -dPhi/dx.

        Args:
            t: Time, () or (batch,).
            x: States, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            dx/dt, shape (batch, *event).
        """
        s = _network_input(t, x, context)
        return -self._gradient(s, self._forward_pass(s, None))[0].reshape(x.shape)

    def jvp(self, t: Tensor, x: Tensor, tangents: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        s, v = _network_input(t, x, context), tangents.flatten(2)
        gradient, products = self._gradient(s, self._forward_pass(s, v))
        factor = self.quadratic_factor[:, : self.size]
        products = cast(Tensor, products) + F.linear(v, factor) @ factor
        return -gradient.reshape(x.shape), -products.reshape(len(tangents), *x.shape)

    def _forward_pass(self, s: Tensor, v: Tensor | None) -> _ForwardPass:
        """Propagate inputs s (batch, inputs) and tangents v (probe, 1 or batch, size) through the layers."""
        p, dp = self.input_layer(s), None if v is None else F.linear(v, self.input_layer.weight[:, : self.size])
        saved = _ForwardPass([p.tanh()], [dp])
        h, dh = log_cosh(p), _scaled(saved.slopes[0], dp)
        for layer, skip in zip(self.layers, self.skip_layers, strict=True):
            p, dp = layer(h), None if dh is None else F.linear(dh, layer.weight)
            saved.slopes.append(p.tanh())
            saved.tangents.append(dp)
            h, dh = skip(h) + log_cosh(p), None if dh is None else skip(dh) + _scaled(saved.slopes[-1], dp)
        return saved

    def _gradient(self, s: Tensor, saved: _ForwardPass) -> tuple[Tensor, Tensor | None]:
        """Return dPhi/dx, (batch, size), and its tangents (probe, batch, size) but for the quadratic form's."""
        g: Tensor = self.output_weight
        dg: Tensor | None = None
        for i in reversed(range(len(self.layers))):
            q, dq = _backpropagate(saved.slopes[i + 1], saved.tangents[i + 1], g, dg)
            g, dg = self._layer_gradient(i, g, q), None if dq is None else self._layer_gradient(i, dg, dq)
        q, dq = _backpropagate(saved.slopes[0], saved.tangents[0], g, dg)
        weight, factor = self.input_layer.weight[:, : self.size], self.quadratic_factor[:, : self.size]
        gradient = q @ weight + F.linear(s, self.quadratic_factor) @ factor + self.linear_weight
        return gradient, None if dq is None else dq @ weight

    def _layer_gradient(self, i: int, g: Tensor | None, q: Tensor) -> Tensor:
        """Return S_i^T g + K_i^T q; None for g stands for zero."""
        product, skip = q @ self.layers[i].weight, self.skip_layers[i]
        if g is None:
            return product
        return product + (g @ skip.weight if isinstance(skip, nn.Linear) else g)


class _ForwardPass(NamedTuple):
    """Values that the backward pass needs of each layer: tanh(p), and tangents dp (probe, batch, width) or None."""

    slopes: list[Tensor]
    tangents: list[Tensor | None]


def _network_input(t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
    """Return the inputs (x, t, context), (batch, size + 1 + context_dim)."""
    columns = [x.flatten(1), t.reshape(-1, 1).expand(len(x), 1)]
    return torch.cat(columns if context is None else [*columns, context], dim=1)


def _scaled(slope: Tensor, tangents: Tensor | None) -> Tensor | None:
    return None if tangents is None else slope * tangents


def _backpropagate(slope: Tensor, dp: Tensor | None, g: Tensor, dg: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return q = tanh(p) g and its tangents; None for dg stands for zero."""
    if dp is None:
        return slope * g, None
    dq = (1 - slope.square()) * g * dp
    return slope * g, dq if dg is None else torch.addcmul(dq, slope, dg)
