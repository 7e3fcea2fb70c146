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

from ffjord_kit.cnf import CNF
from ffjord_kit.images.squeeze import squeeze


class Part(nn.Module):
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
        layers += [CNF(Part(make(shape), order.flatten(), shape), event_shape, **options) for _ in range(blocks)]
        order = order[:, : shape[0] // 2]
    return layers
