r"""Multi-scale flows: squeeze, flow, and leave half of the channels behind, scale by scale (RealNVP; FFJORD, sec. 3).

What is left behind is at the base already: from then on it does not move. So each continuous layer is over the whole
image, and moves a part of it alone:

    dx_i / dt = f(t, squeeze(x_S))_i for i in S,    0 elsewhere;    d log|det| / dt = tr of the part's Jacobian.

Nothing but the dynamics knows of scales: trace, solver, time and gradients are those of any continuous layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ffjord_kit.transforms.base import Transform
from ffjord_kit.transforms.cnf import CNF


def squeeze(x: Tensor) -> Tensor:
    """(batch, c, h, w) as (batch, 4 c, h / 2, w / 2), a channel's four pixels side by side.

    Raises ValueError for an odd height or width.
    """
    batch, channels, height, width = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"squeeze needs an even height and width; got {height} x {width}: crop or pad the images")
    parts = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return parts.permute(0, 1, 3, 5, 2, 4).reshape(batch, 4 * channels, height // 2, width // 2)


def unsqueeze(x: Tensor) -> Tensor:
    """The way back, (batch, 4 c, h, w) as (batch, c, 2 h, 2 w). Raises ValueError for channels that are not fours."""
    batch, channels, height, width = x.shape
    if channels % 4:
        raise ValueError(f"unsqueeze needs four channels, or a multiple; got {channels}")
    parts = x.reshape(batch, channels // 4, 2, 2, height, width)
    return parts.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels // 4, 2 * height, 2 * width)


class Squeeze(Transform):
    """Squeeze as a layer: images (c, h, w) on the data's side, (4 c, h / 2, w / 2) on the base's."""

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = event_shape
        self.event_shape = (4 * channels, height // 2, width // 2)

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return squeeze(x), x.new_zeros(len(x))

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return unsqueeze(z), z.new_zeros(len(z))


class PartialDynamics(nn.Module):
    """Dynamics of some elements of an event, which stand still elsewhere.

    `order` (k,) are the elements, as numbers of the flattened event, in the order of `shape`, that of inner events.
    """

    def __init__(self, dynamics: nn.Module, order: Tensor, shape: Sequence[int]) -> None:
        super().__init__()
        self.dynamics, self.shape = dynamics, tuple(shape)
        self.register_buffer("order", order)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Shapes: t () or (batch,), x (batch, *event), context (batch, context_dim) -> (batch, *event)."""
        flat = x.flatten(1)
        moved = self.dynamics(t, flat[:, self.order].reshape(len(x), *self.shape), context)
        return torch.zeros_like(flat).index_copy(1, self.order, moved.flatten(1).to(flat.dtype)).reshape(x.shape)


def multi_scale(
    event_shape: Sequence[int],
    make: Callable[[tuple[int, ...]], nn.Module],
    *,
    scales: int = 2,
    blocks: int = 1,
    **options: object,
) -> list[CNF]:
    """The continuous layers of a multi-scale flow over images (c, h, w), from data to base.

    At each of `scales` the image is squeezed and moved by `blocks` layers with the dynamics `make(shape)`; half of its
    channels then stay behind. `options` are those of CNF. Train them by maximum likelihood: the straight lines of flow
    matching move every pixel to the end. Raises ValueError for sides that cannot be halved so often.
    """
    channels, height, width = event_shape
    if scales < 1 or height % 2**scales or width % 2**scales:
        raise ValueError(
            f"{scales} scales need sides that are multiples of {2 ** max(scales, 0)}; got {height} x {width}"
        )
    order, layers = torch.arange(math.prod(event_shape)).reshape(1, channels, height, width), []
    for _ in range(scales):
        order = squeeze(order)
        shape = tuple(order.shape[1:])
        layers += [CNF(PartialDynamics(make(shape), order.flatten(), shape), event_shape, **options) for _ in range(blocks)]
        order = order[:, : shape[0] // 2]
    return layers
