"""Base distributions: what each has, the standard normal, and any `torch.distributions` object."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from ffjord_kit.geometry import Geometry
from ffjord_kit.noise import fresh_generator, standard_normal


class Base(nn.Module, ABC):
    """A distribution over events, with a density and reproducible samples.

    Attributes:
        event_shape: Shape of an event.
    """

    event_shape: tuple[int, ...]

    @property
    def geometry(self) -> Geometry:
        """Which elements are angles, and which are points on a sphere: none, but of a `ProductBase`."""
        return Geometry(math.prod(self.event_shape))

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Return log-densities.

        Args:
            z: Events, shape (batch, *event).

        Returns:
            Log-densities, shape (batch,), nats.
        """

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw events.

        Args:
            n: Number of draws.
            generator: Source of the noise; None for a fresh one.

        Returns:
            Draws, shape (n, *event).
        """

    def project(self, z: Tensor) -> Tensor:
        """Bring points at or near the base into the form that its draws have.

        Args:
            z: Points, shape (batch, *event).

        Returns:
            The points, as they are but for angles beyond half a turn and for points off a sphere.
        """
        return z


class StandardNormal(Base):
    """The standard normal distribution, log p(z) = -1/2 (|z|^2 + D log 2 pi), D elements of an event.

    Args:
        event_shape: Shape of an event.

    Example:
        >>> base = StandardNormal((2,))
        >>> base.log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
        >>> base.sample(3, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])
    """

    anchor: Tensor  # of the dtype and on the device of the draws

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.register_buffer("anchor", torch.zeros(()), persistent=False)

    def log_prob(self, z: Tensor) -> Tensor:
        constant = math.prod(self.event_shape) * math.log(2 * math.pi)
        return -0.5 * (z.square().reshape(len(z), -1).sum(1) + constant)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return standard_normal((n, *self.event_shape), self.anchor, generator)


class DistributionBase(Base):
    """Any `torch.distributions` object without a batch shape.

    Its tensors are copied, and move and cast with the flow.

    Args:
        distribution: The distribution.

    Raises:
        ValueError: If the distribution has a batch shape: wrap it in `torch.distributions.Independent`.

    Example:
        >>> base = DistributionBase(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        >>> base.event_shape, base.log_prob(torch.zeros(1, 2))
        ((2,), tensor([-1.8379]))
    """

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        if distribution.batch_shape:
            raise ValueError(
                f"the base must have an empty batch shape; got {tuple(distribution.batch_shape)}: "
                "wrap it in torch.distributions.Independent"
            )
        self.distribution = copy.deepcopy(distribution)  # the caller's neither moves nor casts
        self.event_shape = tuple(distribution.event_shape)

    def log_prob(self, z: Tensor) -> Tensor:
        return self.distribution.log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        # torch.distributions draw from the global state alone: seed it from the generator, then restore it.
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
    """Wrap a `torch.distributions` object as a base.

    Args:
        base: Base, or distribution without a batch shape.

    Returns:
        The base itself, or the wrapped distribution.

    Example:
        >>> as_base(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))).log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """
    return base if isinstance(base, Base) else DistributionBase(base)


def _map_tensors(holder: Distribution | Transform, fn: Callable[[Tensor], Tensor]) -> None:
    """Apply `fn` (a move or a cast) to every tensor of a distribution and of its components."""
    for name, value in list(vars(holder).items()):
        if isinstance(value, Tensor) and value.is_floating_point():
            setattr(holder, name, fn(value))
        for component in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(component, (Distribution, Transform)):
                _map_tensors(component, fn)
