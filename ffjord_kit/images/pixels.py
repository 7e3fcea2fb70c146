r"""Pixels: whole grey levels k of 0 .. L - 1 as a density sees them, and the layers next to them.

Uniform dequantisation trains on k + u, u uniform on [0, 1), drawn anew for every batch: then

    E_u[log p(k + u)] <= log P(k),    P(k) = the integral of p over [k, k + 1)      (Theis et al. 2016).

The logit with margin alpha, z = logit(alpha + (1 - 2 alpha) x / L) (RealNVP), is the logit between bounds a little
further out, -a and L + a with a = alpha L / (1 - 2 alpha).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffjord_kit.layers import Logit, Standardize
from ffjord_kit.trace import own_noise
from ffjord_kit.training import Rows

ALPHA = 1e-6


@dataclass(frozen=True)
class Pixels(Rows):
    """Images (n, *event) of 8 bits as rows for training: coarser where `bits` are fewer, with the noise of each batch.

    They stay as they are, a byte for each pixel. Raises ValueError for other types than uint8, or bits beyond 1 to 8.
    """

    images: Tensor
    bits: int = 8

    def __post_init__(self) -> None:
        if self.images.dtype is not torch.uint8:
            raise ValueError(f"images must be of type uint8, 0 to 255; got {self.images.dtype}")
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be 1 to 8; got {self.bits}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, *event)."""
        return tuple(self.images.shape)

    @property
    def levels(self) -> int:
        """L, the number of grey levels."""
        return 2**self.bits

    def level(self, rows: Tensor | slice) -> Tensor:
        """Grey levels of some rows, (batch, *event), whole numbers in float64."""
        return (self.images[rows] >> (8 - self.bits)).double()

    def fetch(self, rows: Tensor | slice, generator: torch.Generator | None = None) -> Tensor:
        """The same with uniform noise: without a generator that which each image has of its own."""
        level = self.level(rows)
        if generator is None:
            return level + self.own_noise(rows)
        return level + torch.rand(level.shape, generator=generator, dtype=level.dtype).to(level.device)

    def own_noise(self, rows: Tensor | slice, draw: int = 0) -> Tensor:
        """The noise of some rows, (batch, *event), that their pixels and the number of the draw seed."""
        return own_noise(self.images[rows], 1, draw)[0].to(self.images.device)


@dataclass(frozen=True)
class Chosen(Rows):
    """Some of other rows, whose numbers are `which` (k,); each image of them flipped left to right, or not, by chance.

    Without `flip`, and where no generator comes, they stay as they are.
    """

    rows: Rows
    which: Tensor
    flip: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(k, *event)."""
        return (len(self.which), *self.rows.shape[1:])

    def fetch(self, rows: Tensor | slice, generator: torch.Generator | None = None) -> Tensor:
        x = self.rows.fetch(self.which[rows], generator)
        if not self.flip or generator is None:
            return x
        turned = torch.rand(len(x), 1, 1, 1, generator=generator).to(x.device) < 0.5
        return torch.where(turned, x.flip(-1), x)


def logit_layer(event_shape: Sequence[int], *, bits: int = 8, alpha: float = ALPHA) -> Logit:
    """The logit of grey levels 0 <= x < L, with the margin alpha. Raises ValueError unless 0 < alpha < 1/2."""
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 1/2; got {alpha}")
    levels = 2**bits
    margin = torch.full(tuple(event_shape), alpha * levels / (1 - 2 * alpha), dtype=torch.float64)
    return Logit(-margin, levels + margin)


def scale_layer(event_shape: Sequence[int], *, bits: int = 8, alpha: float = ALPHA) -> Standardize:
    """Plain scaling of grey levels 0 <= x < L to -1 <= z < 1; it has no margin to use alpha for."""
    half = torch.full(tuple(event_shape), 2.0 ** (bits - 1), dtype=torch.float64)
    return Standardize(half, half.clone())


IMAGE_SCALINGS = {"logit": logit_layer, "plain": scale_layer}
