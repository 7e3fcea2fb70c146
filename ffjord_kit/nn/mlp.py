r"""Fully connected vector fields, which flatten the event and see time in one of three ways.

    residual        h <- h + W silu(h (1 + s(t)) + b(t)),   s, b from sinusoids of t (FiLM), h_0 from x and the context
    concat_squash   h <- act((W h + c) sigmoid(g(t)) + b(t))                          (FFJORD, Grathwohl et al. 2019)
    concat          h <- act(W [h, t] + c)

Each layer carries tangents along with the state, which makes the trace cheaper than automatic differentiation does.

References:
    Grathwohl et al. 2019, FFJORD, https://arxiv.org/abs/1810.01367.
    Perez et al. 2018, FiLM, https://arxiv.org/abs/1709.07871.
    Tancik et al. 2020, Fourier features, https://arxiv.org/abs/2006.10739.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffjord_kit.nn.activations import ACTIVATIONS
from ffjord_kit.nn.base import SinusoidalEmbedding, VectorField, gates_and_shifts, join_context, time_column
from ffjord_kit.nn.multiscale import MultiscaleLinear

Tangents = Tensor | None
MODULATION_WIDTH = 32  # of the network of time; 128 costs more than the layers that it modulates, and gains nothing
CONTEXT_WIDTH = 64  # of the network of the context
EDGE = 5.0  # Fourier features see |x| up to here, and level off beyond it, where they would cost ever more steps
ANYWHERE = 1e30  # reach of data that are not known


class FlattenedField(VectorField):
    """A network on the flattened event, whose one method propagates the state and, on request, tangents."""

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the velocity.

        Args:
            t: Time, () or (batch,).
            x: States, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            dx/dt, shape (batch, *event).
        """
        return self._propagate(t, x.flatten(1), None, context)[0].reshape(x.shape)

    def jvp(self, t: Tensor, x: Tensor, tangents: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        dx, products = self._propagate(t, x.flatten(1), tangents.flatten(2), context)
        return dx.reshape(x.shape), cast(Tensor, products).reshape(len(tangents), *x.shape)

    @abstractmethod
    def _propagate(self, t: Tensor, h: Tensor, dh: Tangents, context: Tensor | None) -> tuple[Tensor, Tangents]:
        """Map states h (batch, size) and tangents dh (probe, 1 or batch, size) to the velocity and its tangents."""


class ResidualDynamics(FlattenedField):
    r"""Residual network whose layers are scaled and shifted by an embedding of time.

        h_0 = U [q, sin(2^k pi r), cos(2^k pi r)] + MLP(context),    q = r = x near the data,
        h_i = h_{i-1} + W_i a(h_{i-1} (1 + s_i) + b_i) + c_i,    (s_i, b_i) = MLP([sin(w t), cos(w t)]),
        dx/dt = V a(h_n) + c

    The context enters beside x, not beside the time: so it is learnt sooner, and the scales and shifts of one time
    serve all rows. Masks, which say what x means, better scale and shift each layer (`gated_by_context`). The output
    starts at zero, so an untrained flow is the identity. Where two widths differ, a matrix replaces the identity of the
    skip connection. A network learns low frequencies first; Fourier features of x make high ones low.

    Fourier features see r = x where |x| <= 5, and farther out a value that levels off, so that a far row is as cheap as
    any. Once the data are known (`set_reach`), the network sees q = x as far as they reach, and farther out a value
    that grows as log |x|: a velocity that grows as |x| throws a row of a hole in the data out ever faster, and makes
    explicit steps fold far from the rows.

    Args:
        event_shape: Shape of an event.
        context_dim: Length of the context vectors; 0 for none.
        hidden: Widths of the hidden layers.
        activation: Activation a, a word of ACTIVATIONS.
        fourier_features: Number of frequencies 2^k pi of x, k = 0, 1, ...; 0 for none.
        input_scales: Number of scales 1, 2, 4, ... at which equal parts of the first layer see x (MscaleDNN).
        max_frequency: Largest angular frequency w of the sinusoids of time.
        gated_by_context: Whether the context scales and shifts each layer, and does not enter beside x.

    Example:
        >>> field = ResidualDynamics((2,), context_dim=1, hidden=(16, 16))
        >>> field(torch.tensor(0.5), torch.ones(3, 2), torch.zeros(3, 1)).tolist()
        [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]

    References:
        Perez et al. 2018, https://arxiv.org/abs/1709.07871; Tancik et al. 2020, https://arxiv.org/abs/2006.10739;
        Liu et al. 2020, https://arxiv.org/abs/2007.11207.
    """

    added_later: ClassVar[tuple[str, ...]] = ("reach",)  # see `buffers_added_later`

    fourier_frequencies: Tensor
    reach: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        context_dim: int = 0,
        hidden: Sequence[int] = (128, 128, 128),
        activation: str = "silu",
        fourier_features: int = 0,
        input_scales: int = 1,
        max_frequency: float = 100.0,
        gated_by_context: bool = False,
    ) -> None:
        super().__init__()
        size, widths = math.prod(event_shape), [hidden[0], *hidden]
        self.time_embedding = SinusoidalEmbedding(max_frequency=max_frequency)
        self.activation = ACTIVATIONS[activation]
        features = 2 * len(self.time_embedding.frequencies) + (context_dim if gated_by_context else 0)
        self.modulation = nn.Sequential(
            nn.Linear(features, MODULATION_WIDTH), nn.SiLU(), nn.Linear(MODULATION_WIDTH, 2 * sum(widths[:-1]))
        )
        enters = context_dim > 0 and not gated_by_context
        self.context_embedding = _context_embedding(context_dim, widths[0]) if enters else None
        self.gated_by_context = gated_by_context
        self.register_buffer("fourier_frequencies", math.pi * 2.0 ** torch.arange(fourier_features))
        self.register_buffer("reach", torch.full((size,), ANYWHERE))
        inputs = size * (1 + 2 * fourier_features)
        self.input_layer = (
            MultiscaleLinear(inputs, widths[0], input_scales) if input_scales > 1 else nn.Linear(inputs, widths[0])
        )
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.layers = _linear_layers(pairs)
        self.skip_layers = nn.ModuleList(nn.Identity() if a == b else nn.Linear(a, b, bias=False) for a, b in pairs)
        self.output_layer = nn.Linear(widths[-1], size)
        nn.init.zeros_(self.output_layer.weight)
        nn.init.zeros_(self.output_layer.bias)

    def divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the velocity and the exact trace; in closed form for one hidden layer without Fourier features.

        This form holds as far as the data reach; other batches take the tangents.

        With U the input layer, V the hidden and W the output one, and d, e the slopes of the inner and outer
        activations, J = W e (1 + V d) U, so that tr J = e^T (diag(U W) + (V * (U W)^T) d): one product with a matrix,
        independent of the number of dimensions.

        Args:
            t: Time, () or (batch,).
            x: States, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            dx/dt, shape (batch, *event), and tr J, shape (batch,).
        """
        if len(self.layers) > 1 or len(self.fourier_frequencies) or not self._is_near(x):
            return super().divergence(t, x, context)
        (layer,), loop = self.layers, self.input_layer.weight @ self.output_layer.weight
        ((scale, shift),) = self._scales_and_shifts(t, x, context)
        h, _ = self._enter(x.flatten(1), None, context)
        y, inner = self.activation.with_slope(torch.addcmul(shift, h, 1 + scale))
        y, outer = self.activation.with_slope(h + layer(y))
        trace = (outer * F.linear(inner * (1 + scale), layer.weight * loop.T, loop.diagonal())).sum(1)
        return self.output_layer(y).reshape(x.shape), trace

    def _propagate(self, t: Tensor, h: Tensor, dh: Tangents, context: Tensor | None) -> tuple[Tensor, Tangents]:
        scales_and_shifts = self._scales_and_shifts(t, h, context)
        h, dh = self._enter(h, dh, context)
        for layer, skip, (scale, shift) in zip(self.layers, self.skip_layers, scales_and_shifts, strict=True):
            y, dy = self.activation(torch.addcmul(shift, h, 1 + scale), dh, 1 + scale)
            y, dy = _linear(layer, y, dy)
            h, dh = skip(h) + y, None if dh is None else skip(dh) + dy
        return _linear(self.output_layer, *self.activation(h, dh))

    def _enter(self, x: Tensor, dx: Tangents, context: Tensor | None) -> tuple[Tensor, Tangents]:
        """Return the first hidden state, which alone sees x, and its tangents."""
        h, dh = _linear(self.input_layer, *self._fourier_features(x, dx))
        return (h if self.context_embedding is None else h + self.context_embedding(context)), dh

    def _scales_and_shifts(self, t: Tensor, x: Tensor, context: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Return the scale and the shift of each layer, each (1 or batch, width)."""
        features = join_context(self.time_embedding(time_column(t)), x, context if self.gated_by_context else None)
        widths = [width for layer in self.layers for width in (layer.in_features, layer.in_features)]
        chunks = self.modulation(features).split(widths, dim=1)
        return list(zip(chunks[::2], chunks[1::2], strict=True))

    def _fourier_features(self, x: Tensor, dx: Tangents) -> tuple[Tensor, Tangents]:
        """Return x, drawn near where it is far, with sines and cosines of x, and their tangents."""
        drawn, rate = self._drawn_near(x)
        moved = None if dx is None else dx * rate
        if not len(self.fourier_frequencies):
            return drawn, moved
        near, slope = _within_edge(x)
        angles = (near[..., None] * self.fourier_frequencies).flatten(-2)
        sine, cosine = angles.sin(), angles.cos()
        if dx is not None:
            rates = ((dx * slope)[..., None] * self.fourier_frequencies).flatten(-2)
            moved = torch.cat([dx * rate, rates * cosine, -rates * sine], dim=-1)
        return torch.cat([drawn, sine, cosine], dim=-1), moved

    def _drawn_near(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x within reach, beyond it a smooth value that grows as log |x|, and the slope of this function."""
        held = torch.clamp(x, -self.reach, self.reach)
        beyond = (x - held) / self.reach
        return held + self.reach * beyond.asinh(), (1 + beyond.square()).rsqrt()

    def _is_near(self, x: Tensor) -> bool:
        """Say whether all x are within reach; False where a transform of torch.func does not let one look."""
        try:
            return bool((x.flatten(1).abs() <= self.reach).all())
        except RuntimeError:
            return False


def set_reach(model: nn.Module, x: Tensor) -> None:
    """Let the residual networks of a model see elements as they are as far as those of some rows reach.

    Networks of other events, which are masked or on a manifold, stay as they are, and all do where cells are missing.

    Args:
        model: Model; its networks are changed.
        x: Rows as the networks see them, shape (n, *event).
    """
    reach = x.flatten(1).abs().amax(0).clamp(min=EDGE)
    for field in model.modules():
        if isinstance(field, ResidualDynamics) and field.reach.shape == reach.shape and bool(reach.isfinite().all()):
            field.reach.copy_(reach)


class ConcatSquashDynamics(FlattenedField):
    r"""The network of the FFJORD paper: each layer is gated and shifted by time (and context).

        h_i = (W_i a(h_{i-1}) + c_i) sigmoid(g_i [t, context] + e_i) + b_i [t, context]

    Args:
        event_shape: Shape of an event.
        context_dim: Length of the context vectors; 0 for none.
        hidden: Widths of the hidden layers.
        activation: Activation a, a word of ACTIVATIONS.

    Example:
        >>> field = ConcatSquashDynamics((2,), hidden=(16, 16))
        >>> dx, trace = field.divergence(torch.tensor(0.5), torch.ones(3, 2))
        >>> dx.shape, trace.shape
        (torch.Size([3, 2]), torch.Size([3]))

    References:
        Grathwohl et al. 2019, appendix B.1, https://arxiv.org/abs/1810.01367.
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
        self.activation = ACTIVATIONS[activation]
        self.layers = _linear_layers(pairs)
        self.gates, self.shifts = gates_and_shifts([b for _, b in pairs], context_dim)

    def _propagate(self, t: Tensor, h: Tensor, dh: Tangents, context: Tensor | None) -> tuple[Tensor, Tangents]:
        features = join_context(time_column(t), h, context)
        for i, (layer, gate, shift) in enumerate(zip(self.layers, self.gates, self.shifts, strict=True)):
            h, dh = (h, dh) if i == 0 else self.activation(h, dh)
            h, dh = _linear(layer, h, dh)
            opening = gate(features).sigmoid()
            h, dh = torch.addcmul(shift(features), h, opening), None if dh is None else dh * opening
        return h, dh


class ConcatDynamics(FlattenedField):
    r"""Plain layers that see time (and context) as extra inputs.

        h_i = W_i [a(h_{i-1}), t, context] + c_i

    Args:
        event_shape: Shape of an event.
        context_dim: Length of the context vectors; 0 for none.
        hidden: Widths of the hidden layers.
        activation: Activation a, a word of ACTIVATIONS.

    Example:
        >>> field = ConcatDynamics((1, 4, 4), hidden=(16,))
        >>> field(torch.linspace(0, 1, 3), torch.zeros(3, 1, 4, 4)).shape
        torch.Size([3, 1, 4, 4])
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
        self.activation = ACTIVATIONS[activation]
        self.layers = _linear_layers([(a + 1 + context_dim, b) for a, b in zip(widths[:-1], widths[1:], strict=True)])

    def _propagate(self, t: Tensor, h: Tensor, dh: Tangents, context: Tensor | None) -> tuple[Tensor, Tangents]:
        features = join_context(time_column(t), h, context).expand(len(h), -1)
        for i, layer in enumerate(self.layers):
            h, dh = (h, dh) if i == 0 else self.activation(h, dh)
            dh = None if dh is None else dh @ layer.weight[:, : h.shape[1]].T
            h = layer(torch.cat([h, features], dim=1))
        return h, dh


def _within_edge(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x where |x| <= EDGE, beyond it a smooth value below EDGE + 1, and the slope of this function."""
    held = x.clamp(-EDGE, EDGE)
    beyond = (x - held).tanh()
    return held + beyond, 1 - beyond.square()


def _context_embedding(context_dim: int, width: int) -> nn.Sequential:
    """Make a network from a context to a term of the first hidden state."""
    return nn.Sequential(
        nn.Linear(context_dim, CONTEXT_WIDTH), nn.SiLU(), nn.Linear(CONTEXT_WIDTH, CONTEXT_WIDTH), nn.SiLU(),
        nn.Linear(CONTEXT_WIDTH, width, bias=False),
    )  # fmt: skip


def _linear_layers(shapes: Sequence[tuple[int, int]]) -> Sequence[nn.Linear]:
    """Make linear layers, from pairs of input and output widths, as a `ModuleList` of a known element type."""
    return cast(Sequence[nn.Linear], nn.ModuleList(nn.Linear(a, b) for a, b in shapes))


def _linear(layer: nn.Linear | MultiscaleLinear, h: Tensor, dh: Tangents) -> tuple[Tensor, Tangents]:
    """Apply a linear layer to a state and to its tangents."""
    return layer(h), None if dh is None else F.linear(dh, layer.weight)
