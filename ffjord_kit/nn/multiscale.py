r"""A first layer whose neurons see the input at several scales, after MscaleDNN.

    h_j = s_j U_j x + c_j,    s_j = 1, 2, 4, .. in equal parts of the width

A network learns low frequencies first. A neuron of scale s learns structure s times finer at the speed at which others
learn coarse structure.

References:
    Liu, Cai & Xu 2020, MscaleDNN, https://arxiv.org/abs/2007.11207.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiscaleLinear(nn.Module):
    """A linear layer whose rows are scaled by 1, 2, 4, .. in equal parts.

    Args:
        in_features: Number of inputs.
        out_features: Number of neurons.
        scales: Number of scales; neurons that do not divide go to the coarse ones.

    Example:
        >>> MultiscaleLinear(2, 4, 2).factors.tolist()
        [1.0, 1.0, 2.0, 2.0]
    """

    factors: Tensor

    def __init__(self, in_features: int, out_features: int, scales: int) -> None:
        super().__init__()
        plain = nn.Linear(in_features, out_features)
        self.in_features, self.out_features = in_features, out_features
        self.unscaled, self.bias = plain.weight, plain.bias
        groups = torch.arange(scales).repeat_interleave(-(-out_features // scales))[:out_features]
        self.register_buffer("factors", 2.0**groups)

    @property
    def weight(self) -> Tensor:
        """Weights with their scales, shape (out_features, in_features)."""
        return self.unscaled * self.factors[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs.

        Args:
            x: Inputs, shape (batch, in_features).

        Returns:
            Outputs, shape (batch, out_features).
        """
        return F.linear(x, self.weight, self.bias)
