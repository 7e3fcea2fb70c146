r"""Dynamics: networks f(t, x, context) that give dx/dt.

Any `nn.Module` with this signature is a dynamics:

    forward(t, x, context=None) -> dx/dt      t: () or (batch,); x: (batch, *event); context: (batch, context_dim)

A row of the output depends on the same row of the inputs alone (no batch normalisation): the trace of the Jacobian
is taken row by row. One that is also a `VectorField` carries tangents through its layers itself, which makes the trace
cheaper than automatic differentiation does. The networks here flatten the event, and see time in one of three ways:

    residual        h <- h + W silu(h (1 + s(t)) + b(t)),   s, b from sinusoids of t and the context (FiLM)
    concat_squash   h <- act((W h + c) sigmoid(g(t)) + b(t))                          (FFJORD, Grathwohl et al. 2019)
    concat          h <- act(W [h, t] + c)
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffjord_kit.nn.activations import ACTIVATIONS
from ffjord_kit.nn.base import SinusoidalEmbedding, VectorField, gates_and_shifts, join_context, time_column

Tangents = Tensor | None
MODULATION_WIDTH = 32  # of the network of time: 128 costs more than the layers that it modulates, and gains nothing


class Network(VectorField):
    """A network on the flattened event, written once: the same lines carry the state and, where asked, tangents."""

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self._run(t, x.flatten(1), None, context)[0].reshape(x.shape)

    def jvp(self, t: Tensor, x: Tensor, tangents: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        dx, moved = self._run(t, x.flatten(1), tangents.flatten(2), context)
        return dx.reshape(x.shape), moved.reshape(len(tangents), *x.shape)

    @abstractmethod
    def _run(self, t: Tensor, h: Tensor, dh: Tangents, context: Tensor | None) -> tuple[Tensor, Tangents]:
        """Velocity (batch, size), tangents (probe, batch, size); from h (batch, size), dh (probe, 1 or batch, size)."""


class ResidualDynamics(Network):
    """Residual network whose layers are scaled and shifted by an embedding of time and context.

    The output starts at zero, so an untrained flow is the identity. The scale and shift of each layer come from one
    small network of the sinusoids of t (feature-wise linear modulation, Perez et al. 2018). `fourier_features` adds the sines
    and cosines of pi x, 2 pi x, 4 pi x, ... of each element to the input: a network learns low frequencies first, and
    so sees high ones as low (MscaleDNN, Liu, Cai & Xu 2020; Tancik et al. 2020). `max_frequency` is that of the sinusoids'
    angular frequencies.

    Shapes: t () or (batch,), x (batch, *event), context (batch, context_dim) -> (batch, *event).
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        context_dim: int = 0,
        hidden: Sequence[int] = (128, 128, 128),
        activation: str = "silu",
        fourier_features: int = 0,
        max_frequency: float = 100.0,
    ) -> None:
        super().__init__()
        size, widths = math.prod(event_shape), [hidden[0], *hidden]
        self.time = SinusoidalEmbedding(max_frequency=max_frequency)
        self.act = ACTIVATIONS[activation]
        features = 2 * len(self.time.frequencies) + context_dim
        self.modulation = nn.Sequential(
            nn.Linear(features, MODULATION_WIDTH), nn.SiLU(), nn.Linear(MODULATION_WIDTH, 2 * sum(widths[:-1]))
        )
        self.register_buffer("waves", math.pi * 2.0 ** torch.arange(fourier_features))
        self.inward = nn.Linear(size * (1 + 2 * fourier_features), widths[0])
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.skips = nn.ModuleList(nn.Identity() if a == b else nn.Linear(a, b, bias=False) for a, b in pairs)
        self.outward = nn.Linear(widths[-1], size)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def _run(self, t: Tensor, h: Tensor, dh: Tangents, context: Tensor | None) -> tuple[Tensor, Tangents]:
        scales_and_shifts = self._modulate(join_context(self.time(time_column(t)), h, context))
        h, dh = _linear(self.inward, *self._features(h, dh))
        for layer, skip, (scale, shift) in zip(self.layers, self.skips, scales_and_shifts, strict=True):
            y, dy = self.act(torch.addcmul(shift, h, 1 + scale), dh, 1 + scale)
            y, dy = _linear(layer, y, dy)
            h, dh = skip(h) + y, None if dh is None else skip(dh) + dy
        return _linear(self.outward, *self.act(h, dh))

    def divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The velocity and the exact trace; of one hidden layer V, without fourier_features, in closed form.

        With U inward, W outward, and d, e the slopes of the inner and outer activations, J = W e (1 + V d) U, so that
        tr J = e^T (diag(U W) + (V * (U W)^T) d): one product with a matrix, whatever the number of dimensions.
        """
        if len(self.layers) > 1 or len(self.waves):
            return super().divergence(t, x, context)
        (layer,), loop = self.layers, self.inward.weight @ self.outward.weight
        ((scale, shift),) = self._modulate(join_context(self.time(time_column(t)), x, context))
        h = self.inward(x.flatten(1))
        y, inner = self.act(torch.addcmul(shift, h, 1 + scale), 1 + scale)
        y, outer = self.act(h + layer(y), torch.ones_like(h[:1]))
        trace = (outer * F.linear(inner, layer.weight * loop.T, loop.diagonal())).sum(1)
        return self.outward(y).reshape(x.shape), trace

    def _modulate(self, features: Tensor) -> list[tuple[Tensor, Tensor]]:
        widths = [width for layer in self.layers for width in (layer.in_features, layer.in_features)]
        parts = self.modulation(features).split(widths, dim=1)
        return list(zip(parts[::2], parts[1::2], strict=True))

    def _features(self, x: Tensor, dx: Tangents) -> tuple[Tensor, Tangents]:
        if not len(self.waves):
            return x, dx
        angles = (x[..., None] * self.waves).flatten(-2)
        sine, cosine = angles.sin(), angles.cos()
        if dx is not None:
            turns = (dx[..., None] * self.waves).flatten(-2)
            dx = torch.cat([dx.expand(-1, len(x), -1), turns * cosine, -turns * sine], dim=-1)
        return torch.cat([x, sine, cosine], dim=-1), dx


class ConcatSquashDynamics(Network):
    """The network of the FFJORD paper: each layer is gated and shifted by time (and context).

    Shapes: t () or (batch,), x (batch, *event), context (batch, context_dim) -> (batch, *event).
    Source: Grathwohl et al. 2019, appendix B.1.
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
        size = math.prod(event_shape)
        widths = [size, *hidden, size]
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.act = ACTIVATIONS[activation]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.gates, self.shifts = gates_and_shifts([b for _, b in pairs], context_dim)

    def _run(self, t: Tensor, h: Tensor, dh: Tangents, context: Tensor | None) -> tuple[Tensor, Tangents]:
        side = join_context(time_column(t), h, context)
        for i, (layer, gate, shift) in enumerate(zip(self.layers, self.gates, self.shifts, strict=True)):
            h, dh = (h, dh) if i == 0 else self.act(h, dh)
            h, dh = _linear(layer, h, dh)
            opening = gate(side).sigmoid()
            h, dh = torch.addcmul(shift(side), h, opening), None if dh is None else dh * opening
        return h, dh


class ConcatDynamics(Network):
    """Plain layers that see time (and context) as extra inputs.

    Shapes: t () or (batch,), x (batch, *event), context (batch, context_dim) -> (batch, *event).
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
        size = math.prod(event_shape)
        widths = [size, *hidden, size]
        self.act = ACTIVATIONS[activation]
        self.layers = nn.ModuleList(
            nn.Linear(a + 1 + context_dim, b) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )

    def _run(self, t: Tensor, h: Tensor, dh: Tangents, context: Tensor | None) -> tuple[Tensor, Tangents]:
        side = join_context(time_column(t), h, context).expand(len(h), -1)
        for i, layer in enumerate(self.layers):
            h, dh = (h, dh) if i == 0 else self.act(h, dh)
            dh = None if dh is None else dh @ layer.weight[:, : h.shape[1]].T
            h = layer(torch.cat([h, side], dim=1))
        return h, dh


def _linear(layer: nn.Linear, h: Tensor, dh: Tangents) -> tuple[Tensor, Tangents]:
    return layer(h), None if dh is None else F.linear(dh, layer.weight)
