r"""Base distributions, where a flow is at t = 0.

The standard normal is the default; `DistributionBase` holds any `torch.distributions` object and moves with the flow.

Student's t distribution has heavy tails,

    t_nu(z) = Gamma((nu + 1) / 2) / (Gamma(nu / 2) sqrt(nu pi)) (1 + z^2 / nu)^(-(nu + 1) / 2).

A flow of bounded steepness keeps the tails of its base, so one over a normal distribution cannot have heavier ones
(Jaini et al. 2020); here each element has degrees of freedom nu of its own, which likelihood training goes on to learn.
The location m, scale s and nu of largest likelihood are found by the EM algorithm (Liu and Rubin 1995), whose weights
downweight outliers:

    w_i = (nu + 1) / (nu + (x_i - m)^2 / s^2),    m = sum w x / sum w,    s^2 = sum w (x - m)^2 / n.

Draws are exact, by the polar method: z = sqrt(nu (u^(-2 / nu) - 1)) cos(2 pi v), u and v uniform (Bailey 1994).

References:
    Jaini et al. 2020, Tails of Lipschitz triangular flows, https://arxiv.org/abs/1907.04481.
    Liu and Rubin 1995, ML estimation of the t distribution using EM and its extensions, Statistica Sinica 5.
    Bailey 1994, Polar generation of random variates with the t-distribution, Mathematics of Computation 62.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from ffjord_kit.noise import fresh_generator, standard_normal

DF_GRID = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0, 50.0)  # degrees of freedom among which the fit chooses
EM_STEPS, FIT_ROWS = 30, 20_000
MAX_SHRINKAGE = 100.0  # of the scale relative to the interquartile range: tied values would shrink it to 0
OUTLIER_INFLATION = 10.0
QUARTILE = 0.6744897501960817  # of the standard normal


class Base(nn.Module, ABC):
    """A distribution over events, with a density and reproducible samples.

    Attributes:
        event_shape: Shape of an event.
    """

    event_shape: tuple[int, ...]

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


class StudentFit(NamedTuple):
    """Student's t distributions fitted to the columns of a table.

    Attributes:
        loc: Locations, shape (d,).
        scale: Scales, shape (d,).
        df: Degrees of freedom, shape (d,).
    """

    loc: Tensor
    scale: Tensor
    df: Tensor


class StudentT(Base):
    r"""Student's t distribution for each element of an event, with degrees of freedom nu that are learned.

        t_nu(z) = Gamma((nu + 1) / 2) / (Gamma(nu / 2) sqrt(nu pi)) (1 + z^2 / nu)^(-(nu + 1) / 2)

    Args:
        event_shape: Shape of an event.
        df: Initial degrees of freedom, > 0, of a shape that broadcasts to the event's.

    Raises:
        ValueError: If `df` is not positive.

    Example:
        >>> base = StudentT((2,), df=1.0)  # the Cauchy distribution
        >>> print(f"{base.log_prob(torch.zeros(1, 2)).exp().item() * math.pi**2:.4f}")
        1.0000

    References:
        Jaini et al. 2020, https://arxiv.org/abs/1907.04481; Bailey 1994 (sampling).
    """

    def __init__(self, event_shape: Sequence[int], df: Tensor | float = 10.0) -> None:
        super().__init__()
        df = torch.as_tensor(df, dtype=torch.get_default_dtype()).expand(tuple(event_shape))
        if not bool((df > 0).all()):
            raise ValueError(f"df must be positive; got {df.tolist()}")
        self.event_shape = tuple(event_shape)
        self.log_df = nn.Parameter(df.log())

    @property
    def df(self) -> Tensor:
        """Degrees of freedom, shape (*event)."""
        return self.log_df.exp()

    def log_prob(self, z: Tensor) -> Tensor:
        df = self.df
        constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (df * math.pi).log()
        return (constant - 0.5 * (df + 1) * (z.square() / df).log1p()).reshape(len(z), -1).sum(1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        generator, df = generator or fresh_generator(), self.df.detach()
        shape = (2, n, *self.event_shape)
        u, v = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
        ratio = torch.special.expm1(-2 / df.double().to(u) * torch.log1p(-u))  # 1 - u is uniform too, and never 0
        return (ratio * df.to(u)).sqrt().mul(torch.cos(2 * math.pi * v)).to(df)


def fit_student(x: Tensor) -> StudentFit:
    """Fit Student's t distribution to each column by maximum likelihood, nu among DF_GRID.

    Args:
        x: Rows, shape (n, d).

    Returns:
        Location, scale and degrees of freedom of each column; a constant column gets scale 1.
    """
    rows = x[:: max(1, -(-len(x) // FIT_ROWS))]
    loc, quartiles = rows.median(0).values, rows.quantile(torch.tensor([0.25, 0.75], dtype=x.dtype), dim=0)
    scale = (quartiles[1] - quartiles[0]) / (2 * QUARTILE)
    deviation = rows.std(0, correction=0)
    scale = torch.where(scale > 0, scale, torch.where(deviation > 0, deviation, torch.ones_like(scale)))
    fits = [_fit_at_df(rows, loc, scale, nu) for nu in DF_GRID]
    best = torch.stack([likelihood for _, _, likelihood in fits]).argmax(0)
    locs, scales = (torch.stack([fit[i] for fit in fits]).gather(0, best[None])[0] for i in (0, 1))
    scales = torch.where(deviation > 0, scales, torch.ones_like(scales))
    return StudentFit(locs, scales, torch.tensor(DF_GRID, dtype=x.dtype)[best])


def outliers_inflate_scale(x: Tensor) -> bool:
    """Say whether outliers inflate the standard deviation of a column far beyond its robust scale.

    Args:
        x: Rows, shape (n, d).

    Returns:
        Whether the standard deviation of any column exceeds 10 times the scale of its Student fit.
    """
    return bool((x.std(0, correction=0) > OUTLIER_INFLATION * fit_student(x).scale).any())


def _fit_at_df(x: Tensor, loc: Tensor, scale: Tensor, nu: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return location and scale of largest likelihood at nu degrees of freedom, and the mean log-likelihood, (d,)."""
    min_scale = scale / MAX_SHRINKAGE
    for _ in range(EM_STEPS):
        weights = (nu + 1) / (nu + ((x - loc) / scale).square())
        loc = (weights * x).sum(0) / weights.sum(0)
        scale = (weights * (x - loc).square()).mean(0).sqrt().maximum(min_scale)
    constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu * math.pi)
    tail = 0.5 * (nu + 1) * (((x - loc) / scale).square() / nu).log1p().mean(0)
    return loc, scale, constant - scale.log() - tail


# Two constructors each: fitted to rows at the base (n, *event), and blank for an event shape, to load weights into.
BASES: dict[str, tuple[Callable[[Tensor], Base], Callable[[Sequence[int]], Base]]] = {
    "normal": (lambda z: StandardNormal(z.shape[1:]), StandardNormal),
    "student": (lambda z: StudentT(z.shape[1:], fit_student(z.flatten(1)).df.reshape(z.shape[1:])), StudentT),
}
