r"""A small U-Net: what is far apart in an image meets at the coarse levels, what is near at the fine ones.

Residual blocks, whose channels are scaled and shifted by an embedding of time and context (FiLM, Perez et al. 2018),
go down by averages of 2 by 2 pixels and up again beside what they left (Ronneberger et al. 2015); at the coarsest level
each place attends to all others (as in Ho et al. 2020). Norms are within a row's groups of channels, so no row knows
of another. The output starts at zero: an untrained flow is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffjord_kit.nn.base import SinusoidalEmbedding, join_context, time_column


GROUPS, EPSILON = 8, 1e-5


class UNetDynamics(nn.Module):
    """A U-Net of `hidden` channels at each level, from fine to coarse; `attention` at the coarsest.

    Shapes: t () or (batch,), x (batch, c, h, w) of any size, context (batch, context_dim) -> (batch, c, h, w).
    Raises ValueError for channels that are not multiples of 8.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        context_dim: int = 0,
        hidden: Sequence[int] = (32, 64, 64),
        attention: bool = True,
        max_frequency: float = 100.0,
    ) -> None:
        super().__init__()
        if not hidden or any(width < 1 or width % GROUPS for width in hidden):
            raise ValueError(f"hidden must be widths that are multiples of {GROUPS}; got {tuple(hidden)}")
        channels, embedding = event_shape[0], 4 * hidden[0]
        self.time = SinusoidalEmbedding(max_frequency=max_frequency)
        features = 2 * len(self.time.frequencies) + context_dim
        self.embed = nn.Sequential(
            nn.Linear(features, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.inward = nn.Conv2d(channels, hidden[0], 3, padding=1)
        finer = [hidden[0], *hidden[:-1]]
        self.down = nn.ModuleList(Block(a, b, embedding) for a, b in zip(finer, hidden, strict=True))
        self.middle = nn.ModuleList([Block(hidden[-1], hidden[-1], embedding) for _ in range(2)])
        self.attend = Attention(hidden[-1]) if attention else nn.Identity()
        coarser = [*hidden[1:], hidden[-1]]
        self.up = nn.ModuleList(Block(a + b, b, embedding) for a, b in zip(coarser, hidden, strict=True))
        self.norm = GroupNorm(hidden[0])
        self.outward = nn.Conv2d(hidden[0], channels, 3, padding=1)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        side = self.embed(join_context(self.time(time_column(t).to(x)), x, context))
        h, left = self.inward(x), []
        for block in self.down:
            h = block(h, side)
            left.append(h)
            h = F.avg_pool2d(h, 2, ceil_mode=True, count_include_pad=False)
        h = self.middle[1](self.attend(self.middle[0](h, side)), side)
        for block, fine in zip(reversed(self.up), reversed(left), strict=True):
            h = F.interpolate(h, size=fine.shape[2:], mode="nearest")
            h = block(torch.cat([h, fine], dim=1), side)
        return self.outward(F.silu(self.norm(h)))


class Block(nn.Module):
    """Two convolutions beside a skip; the first one's channels are scaled and shifted by an embedding."""

    def __init__(self, inward: int, outward: int, embedding: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inward, outward, 3, padding=1), nn.Conv2d(outward, outward, 3, padding=1)
        self.norms = nn.ModuleList([GroupNorm(inward), GroupNorm(outward)])
        self.modulation = nn.Linear(embedding, 2 * outward)
        self.skip = nn.Identity() if inward == outward else nn.Conv2d(inward, outward, 1)

    def forward(self, h: Tensor, side: Tensor) -> Tensor:
        """h (batch, inward, h, w), side (1 or batch, embedding) -> (batch, outward, h, w)."""
        scale, shift = self.modulation(side)[..., None, None].chunk(2, dim=1)
        y = self.norms[1](self.first(F.silu(self.norms[0](h))))
        return self.skip(h) + self.second(F.silu(torch.addcmul(shift, y, 1 + scale)))


class GroupNorm(nn.Module):
    """Groups of a row's channels at mean 0 and variance 1, then a scale and shift for each channel (Wu & He 2018).

    Of plain operations: torch's own is not differentiated in batches of products, which the exact trace needs.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(channels, 1, 1)), nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, h: Tensor) -> Tensor:
        """(batch, channels, h, w) -> the same."""
        groups = h.reshape(len(h), GROUPS, -1)
        centred = groups - groups.mean(2, keepdim=True)
        normed = centred * (centred.square().mean(2, keepdim=True) + EPSILON).rsqrt()
        return torch.addcmul(self.shift, normed.reshape(h.shape), self.scale)


class Attention(nn.Module):
    """Each place of an image attends to all places, beside a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.inward, self.outward = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        """(batch, channels, h, w) -> the same."""
        query, key, value = self.inward(self.norm(h)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        weights = (query @ key.transpose(1, 2) / query.shape[2] ** 0.5).softmax(dim=2)
        return h + self.outward((weights @ value).transpose(1, 2).reshape(h.shape))
