r"""Base distributions: what the flow is made of at t = 0.

The standard normal is the default; `DistributionBase` holds any `torch.distributions` object and moves with the flow.

Student's law gives heavy tails,

    t_nu(z) = Gamma((nu + 1) / 2) / (Gamma(nu / 2) sqrt(nu pi)) (1 + z^2 / nu)^(-(nu + 1) / 2).

A flow of bounded steepness keeps the tails of its base, so one over a normal law cannot have heavier ones (Jaini et al.
2020); here each coordinate has degrees of freedom nu of its own, which likelihood training goes on to learn. A place m,
width s and nu of most likelihood are found by the EM algorithm (Liu & Rubin 1995), whose weights forget outliers:

    w_i = (nu + 1) / (nu + (x_i - m)^2 / s^2),    m = sum w x / sum w,    s^2 = sum w (x - m)^2 / n.

Draws are by the polar method, exact: z = sqrt(nu (u^(-2 / nu) - 1)) cos(2 pi v), u and v uniform (Bailey 1994).
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


DEGREES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0, 50.0)
EM_STEPS, ROWS = 30, 20_000
COLLAPSED = 100.0  # times narrower than the middle half: ties are no width
WIDENED = 10.0
QUARTILE = 0.6744897501960817  # of the standard normal


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
        return standard_normal((n, *self.event_shape), self.anchor, generator)


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


class StudentFit(NamedTuple):
    """Place, width and degrees of freedom of each column, each (d,)."""

    place: Tensor
    width: Tensor
    df: Tensor


class StudentT(Base):
    """Student's law for each element of an event, with degrees of freedom that are learned.

    Shapes: df (*event), > 0. Raises ValueError for others.
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
        """Degrees of freedom, (*event)."""
        return self.log_df.exp()

    def log_prob(self, z: Tensor) -> Tensor:
        df = self.df
        constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (df * math.pi).log()
        return (constant - 0.5 * (df + 1) * (z.square() / df).log1p()).reshape(len(z), -1).sum(1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        generator, df = generator or fresh_generator(), self.df.detach()
        shape = (2, n, *self.event_shape)
        u, v = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
        wide = torch.special.expm1(-2 / df.double().to(u) * torch.log1p(-u))  # 1 - u is uniform too, and never 0
        return (wide * df.to(u)).sqrt().mul(torch.cos(2 * math.pi * v)).to(df)


def fit_student(x: Tensor) -> StudentFit:
    """Student's law of most likelihood for each column of x (n, d), nu among DEGREES; a constant keeps width 1."""
    some = x[:: max(1, -(-len(x) // ROWS))]
    place, wide = some.median(0).values, some.quantile(torch.tensor([0.25, 0.75], dtype=x.dtype), dim=0)
    width = (wide[1] - wide[0]) / (2 * QUARTILE)
    fallback = some.std(0, correction=0)
    width = torch.where(width > 0, width, torch.where(fallback > 0, fallback, torch.ones_like(width)))
    fits = [_at(some, place, width, nu) for nu in DEGREES]
    best = torch.stack([likelihood for _, _, likelihood in fits]).argmax(0)
    places, widths = (torch.stack([fit[i] for fit in fits]).gather(0, best[None])[0] for i in (0, 1))
    widths = torch.where(fallback > 0, widths, torch.ones_like(widths))
    return StudentFit(places, widths, torch.tensor(DEGREES, dtype=x.dtype)[best])


def widened(x: Tensor) -> bool:
    """Whether a few rows make the deviation of a column of x (n, d) much wider than the column is."""
    return bool((x.std(0, correction=0) > WIDENED * fit_student(x).width).any())


def _at(x: Tensor, place: Tensor, width: Tensor, nu: float) -> tuple[Tensor, Tensor, Tensor]:
    """Place and width of most likelihood at nu degrees of freedom, and that likelihood, each (d,)."""
    least = width / COLLAPSED
    for _ in range(EM_STEPS):
        weights = (nu + 1) / (nu + ((x - place) / width).square())
        place = (weights * x).sum(0) / weights.sum(0)
        width = (weights * (x - place).square()).mean(0).sqrt().maximum(least)
    constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu * math.pi)
    tail = 0.5 * (nu + 1) * (((x - place) / width).square() / nu).log1p().mean(0)
    return place, width, constant - width.log() - tail


# Made from rows at the base (n, *event), and blank for an event's shape, to load weights into.
BASES: dict[str, tuple[Callable[[Tensor], Base], Callable[[Sequence[int]], Base]]] = {
    "normal": (lambda z: StandardNormal(z.shape[1:]), StandardNormal),
    "student": (lambda z: StudentT(z.shape[1:], fit_student(z.flatten(1)).df.reshape(z.shape[1:])), StudentT),
}
