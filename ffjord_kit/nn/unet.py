r"""A small U-Net: coarse levels relate distant parts of an image, fine levels near ones.

Residual blocks, whose channels are scaled and shifted by an embedding of time and context (FiLM, Perez et al. 2018),
go down by averages of 2 by 2 pixels and up again, concatenated with the features of the same size from the way down
(Ronneberger et al. 2015); at the coarsest level each position attends to all others (as in Ho et al. 2020).
Normalisation is within groups of a row's channels, so rows do not mix.

References:
    Ronneberger et al. 2015, U-Net, https://arxiv.org/abs/1505.04597.
    Ho et al. 2020, https://arxiv.org/abs/2006.11239.
    Wu and He 2018, group normalisation, https://arxiv.org/abs/1803.08494.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffjord_kit.nn.base import SinusoidalEmbedding, join_context, time_column

GROUPS, EPSILON = 8, 1e-5


class UNetDynamics(nn.Module):
    """A U-Net as a vector field over images; the output starts at zero, so an untrained flow is the identity.

    Args:
        event_shape: Shape of an image, (channels, height, width); the network takes any height and width.
        context_dim: Length of the context vectors; 0 for none.
        hidden: Channels of each level, from fine to coarse, multiples of 8.
        attention: Whether positions attend to each other at the coarsest level.
        max_frequency: Largest angular frequency of the sinusoids of time.

    Raises:
        ValueError: If `hidden` is empty or its channels are not multiples of 8.

    Example:
        >>> field = UNetDynamics((1, 8, 8), hidden=(8, 16))
        >>> dx = field(torch.tensor(0.5), torch.randn(2, 1, 8, 8))
        >>> dx.shape, dx.abs().max().item()
        (torch.Size([2, 1, 8, 8]), 0.0)

    References:
        Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597.
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
        channels, embedding_dim = event_shape[0], 4 * hidden[0]
        self.time_embedding = SinusoidalEmbedding(max_frequency=max_frequency)
        features = 2 * len(self.time_embedding.frequencies) + context_dim
        self.embedding = nn.Sequential(
            nn.Linear(features, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim), nn.SiLU()
        )
        self.input_layer = nn.Conv2d(channels, hidden[0], 3, padding=1)
        finer = [hidden[0], *hidden[:-1]]
        self.down = nn.ModuleList(ResidualBlock(a, b, embedding_dim) for a, b in zip(finer, hidden, strict=True))
        self.middle = nn.ModuleList([ResidualBlock(hidden[-1], hidden[-1], embedding_dim) for _ in range(2)])
        self.attention = SelfAttention(hidden[-1]) if attention else nn.Identity()
        coarser = [*hidden[1:], hidden[-1]]
        self.up = nn.ModuleList(ResidualBlock(a + b, b, embedding_dim) for a, b in zip(coarser, hidden, strict=True))
        self.output_norm = GroupNorm(hidden[0])
        self.output_layer = nn.Conv2d(hidden[0], channels, 3, padding=1)
        for parameter in self.output_layer.parameters():
            nn.init.zeros_(parameter)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the velocity.

        Args:
            t: Time, () or (batch,).
            x: Images, shape (batch, channels, height, width).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            dx/dt, shape (batch, channels, height, width).
        """
        embedding = self.embedding(join_context(self.time_embedding(time_column(t).to(x)), x, context))
        h, skips = self.input_layer(x), []
        for block in self.down:
            h = block(h, embedding)
            skips.append(h)
            h = F.avg_pool2d(h, 2, ceil_mode=True, count_include_pad=False)
        h = self.middle[1](self.attention(self.middle[0](h, embedding)), embedding)
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            h = F.interpolate(h, size=skip.shape[2:], mode="nearest")
            h = block(torch.cat([h, skip], dim=1), embedding)
        return self.output_layer(F.silu(self.output_norm(h)))


class ResidualBlock(nn.Module):
    """Two convolutions and a skip connection; the channels between them are scaled and shifted by an embedding.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        embedding_dim: Length of the embedding.

    Example:
        >>> ResidualBlock(8, 16, 4)(torch.zeros(2, 8, 4, 4), torch.zeros(1, 4)).shape
        torch.Size([2, 16, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int) -> None:
        super().__init__()
        self.first_conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.second_conv = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norms = nn.ModuleList([GroupNorm(in_channels), GroupNorm(out_channels)])
        self.modulation = nn.Linear(embedding_dim, 2 * out_channels)
        self.skip_layer = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Apply the block.

        Args:
            h: Features, shape (batch, in_channels, height, width).
            embedding: Embedding of time and context, shape (1 or batch, embedding_dim).

        Returns:
            Features, shape (batch, out_channels, height, width).
        """
        scale, shift = self.modulation(embedding)[..., None, None].chunk(2, dim=1)
        y = self.norms[1](self.first_conv(F.silu(self.norms[0](h))))
        return self.skip_layer(h) + self.second_conv(F.silu(torch.addcmul(shift, y, 1 + scale)))


class GroupNorm(nn.Module):
    """Normalise groups of a row's channels to mean 0 and variance 1, then scale and shift each channel.

    Made of plain operations: `torch.nn.GroupNorm` cannot be differentiated in batches of products, which the exact
    trace needs.

    Args:
        channels: Number of channels, a multiple of 8.

    Example:
        >>> GroupNorm(8)(torch.randn(2, 8, 4, 4)).mean().abs().item() < 1e-6
        True

    References:
        Wu and He 2018, https://arxiv.org/abs/1803.08494.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(channels, 1, 1)), nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, h: Tensor) -> Tensor:
        """Normalise features.

        Args:
            h: Features, shape (batch, channels, height, width).

        Returns:
            Normalised features, shape (batch, channels, height, width).
        """
        groups = h.reshape(len(h), GROUPS, -1)
        centred = groups - groups.mean(2, keepdim=True)
        normed = centred * (centred.square().mean(2, keepdim=True) + EPSILON).rsqrt()
        return torch.addcmul(self.shift, normed.reshape(h.shape), self.scale)


class SelfAttention(nn.Module):
    r"""Let each position of an image attend to all positions, beside a skip connection.

        h + W softmax(Q K^T / sqrt(channels)) V,    Q, K, V linear in the normalised features

    Args:
        channels: Number of channels, a multiple of 8.

    Example:
        >>> SelfAttention(8)(torch.zeros(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.output_layer = nn.Conv2d(channels, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        """Apply attention.

        Args:
            h: Features, shape (batch, channels, height, width).

        Returns:
            Features, shape (batch, channels, height, width).
        """
        query, key, value = self.query_key_value(self.norm(h)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        weights = (query @ key.transpose(1, 2) / query.shape[2] ** 0.5).softmax(dim=2)
        return h + self.output_layer((weights @ value).transpose(1, 2).reshape(h.shape))
