r"""Networks with a block in their middle: outputs = head(block([stem(x), 0, .., 0])).

The zeros are augmented dimensions. Without them the block of an ODE-Net is a homeomorphism of the space of stem(x),
which cannot take a set out of another that surrounds it (Dupont et al. 2019).

    table     stem: none              field: two hidden layers of tanh          head: linear
    images    stem: two convolutions  field: two convolutions between norms       head: norm, mean over pixels, linear
              of stride 2             (Chen et al. 2018)

References:
    Chen et al. 2018, Neural ordinary differential equations, https://arxiv.org/abs/1806.07366.
    Dupont et al. 2019, Augmented neural ODEs, https://arxiv.org/abs/1904.01681.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ffjord_kit.models.blocks import Block, MakeField
from ffjord_kit.nn import ConcatDynamics
from ffjord_kit.ode import Solver, SolverStats

GROUPS = 8  # of channels that are normalised together, at most
SMALLEST_SIDE = 4  # pixels, which the stem makes one


class ODENet(nn.Module):
    """A network with a block in its middle.

    Args:
        event_shape: Shape of a row: (columns,), or (channels, height, width).
        outputs: Number of outputs.
        make_block: From a maker of vector fields to the block.
        width: Width of the field's hidden layers; of images, the channels after the stem.
        augmented: Number of columns or channels of zeros that are appended.

    Raises:
        ValueError: If images have less than 4 pixels a side.

    Example:
        >>> from ffjord_kit.models.blocks import ODEBlock
        >>> from ffjord_kit.ode import FixedSolver
        >>> net = ODENet((2,), 3, lambda make: ODEBlock(make(), FixedSolver("rk4", 2)), width=8, augmented=1)
        >>> outputs, stats = net(torch.zeros(5, 2))
        >>> tuple(outputs.shape), stats.nfe
        ((5, 3), 8)
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        outputs: int,
        make_block: Callable[[MakeField], Block],
        *,
        width: int,
        augmented: int,
    ) -> None:
        super().__init__()
        self.augmented = augmented
        if len(event_shape) == 1:
            size = event_shape[0] + augmented
            self.stem: nn.Module = nn.Identity()
            make: MakeField = partial(ConcatDynamics, (size,), hidden=(width, width), activation="tanh")
            self.head: nn.Module = nn.Linear(size, outputs)
        else:
            self.stem = _image_stem(event_shape, width)
            make = partial(ConvolutionField, width + augmented)
            self.head = _image_head(width + augmented, outputs)
        self.block = make_block(make)

    def forward(self, x: Tensor, solver: Solver | None = None) -> tuple[Tensor, SolverStats]:
        """Return the outputs.

        Args:
            x: Rows, shape (batch, *event).
            solver: Solver of the block; its own if None.

        Returns:
            Outputs, shape (batch, outputs), and the counts of evaluations.
        """
        h = self.stem(x)
        h = torch.cat([h, h.new_zeros(len(h), self.augmented, *h.shape[2:])], dim=1)
        h, stats = self.block(h, solver)
        return self.head(h), stats


class ConvolutionField(nn.Module):
    """Two convolutions of 3 by 3 that see time as a further channel, each before and after a norm of groups.

    Args:
        channels: Number of channels.

    Example:
        >>> ConvolutionField(4)(torch.tensor(0.5), torch.zeros(2, 4, 6, 6)).shape
        torch.Size([2, 4, 6, 6])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_norm(channels) for _ in range(3))
        self.convolutions = nn.ModuleList(nn.Conv2d(channels + 1, channels, 3, padding=1) for _ in range(2))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the velocity.

        Args:
            t: Time, ().
            x: States, shape (batch, channels, height, width).

        Returns:
            dx/dt, shape (batch, channels, height, width).
        """
        time = t.to(x).expand(len(x), 1, *x.shape[2:])
        for norm, convolution in zip(self.norms[:2], self.convolutions, strict=True):
            x = convolution(torch.cat([norm(x).relu(), time], dim=1))
        return self.norms[2](x)


def _image_stem(event_shape: Sequence[int], width: int) -> nn.Module:
    channels, *sides = event_shape
    if min(sides) < SMALLEST_SIDE:
        raise ValueError(
            f"expected images of at least {SMALLEST_SIDE} pixels a side; got {sides[0]} x {sides[1]}: pass them as a "
            "table, X.reshape(len(X), -1)"
        )
    first, second = nn.Conv2d(channels, width, 4, 2, 1), nn.Conv2d(width, width, 4, 2, 1)
    return nn.Sequential(first, _norm(width), nn.ReLU(), second)


def _image_head(channels: int, outputs: int) -> nn.Module:
    mean = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(_norm(channels), nn.ReLU(), mean, nn.Flatten(), nn.Linear(channels, outputs))


def _norm(channels: int) -> nn.GroupNorm:
    """Normalise groups of channels, as many as divide them."""
    return nn.GroupNorm(max(g for g in range(1, GROUPS + 1) if channels % g == 0), channels)
