"""Concat-squash convolutions: the vector field of the FFJORD paper for images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ffjord_kit.nn.activations import ACTIVATIONS
from ffjord_kit.nn.base import gates_and_shifts, join_context, time_column


class ConvolutionDynamics(nn.Module):
    r"""Convolutions of 3 by 3 at one resolution, each gated and shifted by time (and context).

        h_i = (K_i * a(h_{i-1}) + c_i) sigmoid(g_i [t, context] + e_i) + b_i [t, context]

    Args:
        event_shape: Shape of an image, (channels, height, width); the convolutions take any height and width.
        context_dim: Length of the context vectors; 0 for none.
        hidden: Channels of the hidden layers.
        activation: Activation a, a word of ACTIVATIONS.

    Example:
        >>> import torch
        >>> field = ConvolutionDynamics((1, 8, 8), hidden=(4,))
        >>> field(torch.tensor(0.5), torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 1, 8, 8])

    References:
        Grathwohl et al. 2019, appendix B.1, https://arxiv.org/abs/1810.01367.
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
        self.activation = ACTIVATIONS[activation]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        self.gates, self.shifts = gates_and_shifts([b for _, b in pairs], context_dim)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the velocity.

        Args:
            t: Time, () or (batch,).
            x: Images, shape (batch, channels, height, width).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            dx/dt, shape (batch, channels, height, width).
        """
        features = join_context(time_column(t).to(x), x, context)
        for i, (layer, gate, shift) in enumerate(zip(self.layers, self.gates, self.shifts, strict=True)):
            x = layer(x if i == 0 else self.activation(x)[0])
            x = x * gate(features).sigmoid()[..., None, None] + shift(features)[..., None, None]
        return x
