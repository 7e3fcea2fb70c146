"""Base distributions: what the flow is made of at t = 0.

The standard normal is the default; `DistributionBase` holds any `torch.distributions` object and moves with the flow.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from ffjord_kit.trace import fresh_generator, normal


class Base(nn.Module, ABC):
    """A distribution over events, with a density and reproducible samples."""

    event_shape: tuple[int, ...]

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density, (batch,), at z (batch, *event)."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws (n, *event), reproducible by the generator."""


class StandardNormal(Base):
    """The standard normal of a given event shape."""

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.register_buffer("anchor", torch.zeros(()), persistent=False)

    def log_prob(self, z: Tensor) -> Tensor:
        constant = math.prod(self.event_shape) * math.log(2 * math.pi)
        return -0.5 * (z.square().reshape(len(z), -1).sum(1) + constant)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return normal((n, *self.event_shape), self.anchor, generator)


class DistributionBase(Base):
    """Any `torch.distributions` object with an event; its batch shape must be empty.

    Raises ValueError for a distribution with a batch shape: wrap it in `Independent`.
    """

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        if distribution.batch_shape:
            raise ValueError(
                f"the base must have an empty batch shape; got {tuple(distribution.batch_shape)}: "
                "wrap it in torch.distributions.Independent"
            )
        self.distribution = copy.deepcopy(distribution)  # it moves and casts with the flow; the caller's does not
        self.event_shape = tuple(distribution.event_shape)

    def log_prob(self, z: Tensor) -> Tensor:
        return self.distribution.log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        # torch.distributions know the global state alone: it is set aside, and seeded from the generator.
        generator = generator or fresh_generator()
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.distribution.sample((n,))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistributionBase:
        super()._apply(fn, recurse)
        _map_tensors(self.distribution, fn)
        return self


def as_base(base: Base | Distribution) -> Base:
    """The base itself, or a `torch.distributions` object wrapped as one."""
    return base if isinstance(base, Base) else DistributionBase(base)


def _map_tensors(holder: Distribution | Transform, fn: Callable[[Tensor], Tensor]) -> None:
    """Apply `fn` (a move or a cast) to every tensor that a distribution, and what it is made of, holds."""
    for name, value in list(vars(holder).items()):
        if isinstance(value, Tensor) and value.is_floating_point():
            setattr(holder, name, fn(value))
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, (Distribution, Transform)):
                _map_tensors(part, fn)
