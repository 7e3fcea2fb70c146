r"""Multi-scale flows over images: squeeze, transform, and leave out half of the channels, scale by scale.

Channels that are left out have reached the base and move no further (RealNVP, Dinh et al. 2017; FFJORD, section 3). So
each continuous transform acts on the whole image, and moves a set S of its elements alone:

    dx_i / dt = f(t, squeeze(x_S))_i for i in S,    0 elsewhere;    d log|det| / dt = tr of the Jacobian within S.

Only the vector field knows of scales: trace, solver, time and gradients are those of any continuous transform.

References:
    Dinh et al. 2017, RealNVP, https://arxiv.org/abs/1605.08803.
    Grathwohl et al. 2019, FFJORD, https://arxiv.org/abs/1810.01367.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ffjord_kit.ode import Solver
from ffjord_kit.transforms.base import Transform
from ffjord_kit.transforms.cnf import CNF


def squeeze(x: Tensor) -> Tensor:
    """Turn squares of 2 by 2 pixels into channels.

    Args:
        x: Images, shape (batch, c, h, w).

    Returns:
        Images, shape (batch, 4 c, h / 2, w / 2), the four pixels of a channel side by side.

    Raises:
        ValueError: If the height or the width is odd.

    Example:
        >>> squeeze(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 12, 4, 4])
    """
    batch, channels, height, width = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"squeeze needs an even height and width; got {height} x {width}: crop or pad the images")
    squares = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 1, 3, 5, 2, 4).reshape(batch, 4 * channels, height // 2, width // 2)


def unsqueeze(x: Tensor) -> Tensor:
    """Undo `squeeze`.

    Args:
        x: Images, shape (batch, 4 c, h, w).

    Returns:
        Images, shape (batch, c, 2 h, 2 w).

    Raises:
        ValueError: If the number of channels is not a multiple of four.

    Example:
        >>> x = torch.rand(1, 3, 8, 8)
        >>> bool((unsqueeze(squeeze(x)) == x).all())
        True
    """
    batch, channels, height, width = x.shape
    if channels % 4:
        raise ValueError(f"unsqueeze needs four channels, or a multiple; got {channels}")
    squares = x.reshape(batch, channels // 4, 2, 2, height, width)
    return squares.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels // 4, 2 * height, 2 * width)


class Squeeze(Transform):
    """Squeeze as a transform: images (c, h, w) at the data's side, (4 c, h / 2, w / 2) at the base's; log|det| = 0.

    Args:
        event_shape: Shape (c, h, w) of an image at the data's side, h and w even.

    Example:
        >>> z, log_det = Squeeze((1, 2, 2)).to_base(torch.arange(4.0).reshape(1, 1, 2, 2))
        >>> z.flatten(1).tolist(), z.shape, log_det.tolist()
        ([[0.0, 1.0, 2.0, 3.0]], torch.Size([1, 4, 1, 1]), [0.0])

    References:
        Dinh et al. 2017, RealNVP, section 3.6, https://arxiv.org/abs/1605.08803.
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = event_shape
        self.event_shape = (4 * channels, height // 2, width // 2)

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return squeeze(x), x.new_zeros(len(x))

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return unsqueeze(z), z.new_zeros(len(z))


class PartialDynamics(nn.Module):
    """A vector field that moves some elements of an event, and is zero elsewhere.

    Args:
        dynamics: Vector field over the moving elements.
        indices: Indices of the moving elements in the flattened event, in the order of `shape`, shape (k,).
        shape: Shape of the events of `dynamics`, of k elements.

    Example:
        >>> from ffjord_kit.nn import ConcatDynamics
        >>> field = PartialDynamics(ConcatDynamics((2,)), torch.tensor([0, 2]), (2,))
        >>> (field(torch.tensor(0.5), torch.ones(1, 3)) == 0).tolist()
        [[False, True, False]]
    """

    indices: Tensor

    def __init__(self, dynamics: nn.Module, indices: Tensor, shape: Sequence[int]) -> None:
        super().__init__()
        self.dynamics, self.shape = dynamics, tuple(shape)
        self.register_buffer("indices", indices)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the velocity.

        Args:
            t: Time, () or (batch,).
            x: States, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            dx/dt, shape (batch, *event).
        """
        flat = x.flatten(1)
        moved = self.dynamics(t, flat[:, self.indices].reshape(len(x), *self.shape), context)
        return torch.zeros_like(flat).index_copy(1, self.indices, moved.flatten(1).to(flat.dtype)).reshape(x.shape)


def multi_scale(
    event_shape: Sequence[int],
    make_dynamics: Callable[[tuple[int, ...]], nn.Module],
    *,
    scales: int = 2,
    blocks: int = 1,
    solver: Solver | None = None,
    end_time: float = 1.0,
    learn_end_time: bool = False,
) -> list[CNF]:
    """Return the continuous transforms of a multi-scale flow over images, from data to base.

    At each scale the image is squeezed and moved by `blocks` transforms; half of its channels are then left out. Train
    them by maximum likelihood: the straight lines of flow matching move every pixel until the end.

    Args:
        event_shape: Shape (c, h, w) of an image.
        make_dynamics: From the shape of a squeezed image to a vector field over it.
        scales: Number of scales.
        blocks: Transforms of each scale.
        solver: Solver of each transform; `AdaptiveSolver()` if None.
        end_time: End time of each transform.
        learn_end_time: Whether the end times are learned.

    Returns:
        scales * blocks transforms.

    Raises:
        ValueError: If the height or the width is not a multiple of 2^scales.

    Example:
        >>> from ffjord_kit.nn import ConcatDynamics
        >>> transforms = multi_scale((1, 4, 4), lambda shape: ConcatDynamics(shape), scales=2)
        >>> [transform.dynamics.shape for transform in transforms]  # squeezed; half of the channels stay behind
        [(4, 2, 2), (8, 1, 1)]
    """
    channels, height, width = event_shape
    if scales < 1 or height % 2**scales or width % 2**scales:
        raise ValueError(
            f"{scales} scales need sides that are multiples of {2 ** max(scales, 0)}; got {height} x {width}"
        )
    make = partial(CNF, event_shape=event_shape, solver=solver, end_time=end_time, learn_end_time=learn_end_time)
    indices, transforms = torch.arange(math.prod(event_shape)).reshape(1, channels, height, width), []
    for _ in range(scales):
        indices = squeeze(indices)
        shape = tuple(indices.shape[1:])
        transforms += [make(PartialDynamics(make_dynamics(shape), indices.flatten(), shape)) for _ in range(blocks)]
        indices = indices[:, : shape[0] // 2]
    return transforms
