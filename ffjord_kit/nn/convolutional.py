"""Concat-squash convolutions: the dynamics of the FFJORD paper for images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ffjord_kit.nn.activations import ACTIVATIONS
from ffjord_kit.nn.base import gates_and_shifts, join_context, time_column


class ConvolutionDynamics(nn.Module):
    """Convolutions of 3 by 3 at one size, each gated and shifted by time (and context).

    Shapes: t () or (batch,), x (batch, c, h, w), context (batch, context_dim) -> (batch, c, h, w).
    Source: Grathwohl et al. 2019, appendix B.1.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        context_dim: int = 0,
        hidden: Sequence[int] = (64, 64, 64),
        activation: str = "softplus",
    ) -> None:
        super().__init__()
        widths = [event_shape[0], *hidden, event_shape[0]]
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.act = ACTIVATIONS[activation]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        self.gates, self.shifts = gates_and_shifts([b for _, b in pairs], context_dim)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        side = join_context(time_column(t).to(x), x, context)
        for i, (layer, gate, shift) in enumerate(zip(self.layers, self.gates, self.shifts, strict=True)):
            x = layer(x if i == 0 else self.act(x, None)[0])
            x = x * gate(side).sigmoid()[..., None, None] + shift(side)[..., None, None]
        return x
