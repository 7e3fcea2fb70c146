r"""Student's t distribution, whose tails a flow keeps; its fit, and the power of tails.

Student's t distribution has heavy tails,

    t_nu(z) = Gamma((nu + 1) / 2) / (Gamma(nu / 2) sqrt(nu pi)) (1 + z^2 / nu)^(-(nu + 1) / 2).

A flow of bounded steepness keeps the tails of its base, so one over a normal distribution cannot have heavier ones
(Jaini et al. 2020); here each element has degrees of freedom nu of its own, which likelihood training goes on to learn.
A field also mixes the tails of its elements: over two Cauchy columns, p falls along an axis as v^-4 instead of v^-2. So
a flow for heavy tails acts on z = asinh(x), where shifts are factors of x far out, over the distribution of asinh(y):

    p(z) = t_nu(sinh z) cosh z ~ exp(-nu |z|)

The location m, scale s and nu of largest likelihood are found by the EM algorithm (Liu and Rubin 1995), whose weights
downweight outliers:

    w_i = (nu + 1) / (nu + (x_i - m)^2 / s^2),    m = sum w x / sum w,    s^2 = sum w (x - m)^2 / n.

Draws are exact, by the polar method: z = sqrt(nu (u^(-2 / nu) - 1)) cos(2 pi v), u and v uniform (Bailey 1994).

References:
    Jaini et al. 2020, Tails of Lipschitz triangular flows, https://arxiv.org/abs/1907.04481.
    Liu and Rubin 1995, ML estimation of the t distribution using EM and its extensions, Statistica Sinica 5.
    Pickands 1975, Statistical inference using extreme order statistics, Annals of Statistics 3.
    Bailey 1994, Polar generation of random variates with the t-distribution, Mathematics of Computation 62.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ffjord_kit.distributions.base import Base
from ffjord_kit.noise import fresh_generator
from ffjord_kit.weights import resampled

DF_GRID = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0, 50.0)  # degrees of freedom among which the fit chooses
EM_STEPS, FIT_ROWS = 30, 20_000
TAIL_SHARE, TAIL_ROWS = 0.05, 100  # of the rows, which tell the power of a tail, and how many at least
MAX_SHRINKAGE = 100.0  # of the scale relative to the interquartile range: tied values would shrink it to 0
OUTLIER_INFLATION = 10.0
QUARTILE = 0.6744897501960817  # of the standard normal


class StudentFit(NamedTuple):
    """Student's t distributions fitted to the columns of a table.

    Attributes:
        loc: Locations, shape (d,).
        scale: Scales, shape (d,).
        df: Degrees of freedom, shape (d,).

    Example:
        >>> x = torch.distributions.StudentT(torch.tensor([2.0])).sample((100,))
        >>> fit_student(x)._fields, fit_student(x).df.shape
        (('loc', 'scale', 'df'), torch.Size([1]))
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
        return (_log_peak(df) - 0.5 * (df + 1) * (z.square() / df).log1p()).reshape(len(z), -1).sum(1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        generator, df = generator or fresh_generator(), self.df.detach()
        shape = (2, n, *self.event_shape)
        u, v = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
        ratio = torch.special.expm1(-2 / df.double().to(u) * torch.log1p(-u))  # 1 - u is uniform too, and never 0
        return (ratio * df.to(u)).sqrt().mul(torch.cos(2 * math.pi * v)).to(df)


class AsinhStudentT(Base):
    r"""The distribution of asinh(y) for y of Student's t distribution; its tails fall as exp(-nu |z|).

        p(z) = t_nu(sinh z) cosh z

    Args:
        event_shape: Shape of an event.
        df: Initial degrees of freedom, > 0, of a shape that broadcasts to the event's.

    Raises:
        ValueError: If `df` is not positive.

    Example:
        >>> base = AsinhStudentT((1,), df=2.0)
        >>> far = base.log_prob(torch.tensor([[20.0], [21.0]]))
        >>> print(f"{(far[0] - far[1]).item():.4f}")
        2.0000
    """

    def __init__(self, event_shape: Sequence[int], df: Tensor | float = 10.0) -> None:
        super().__init__()
        self.student = StudentT(event_shape, df)
        self.event_shape = self.student.event_shape

    @classmethod
    def of(cls, z: Tensor, weight: Tensor | None = None) -> AsinhStudentT:
        """Fit the degrees of freedom to rows: the fewer of those that suit whole columns and those that suit the tails.

        Args:
            z: Rows, shape (n, *event).
            weight: Weights of the rows, by which they are drawn for the fit, shape (n,), or None.

        Returns:
            The distribution.
        """
        rows = resampled(z, weight).flatten(1).sinh()
        return cls(z.shape[1:], torch.minimum(fit_student(rows).df, fit_tails(rows)).reshape(z.shape[1:]))

    @property
    def df(self) -> Tensor:
        """Degrees of freedom, shape (*event)."""
        return self.student.df

    def log_prob(self, z: Tensor) -> Tensor:
        df, far = self.df, z.abs()
        decay = (-2 * far).exp()
        log_slope = far + decay.log1p() - math.log(2)  # log cosh z
        # log(1 + sinh^2 z / nu), which does not overflow
        tail = 2 * far + ((1 - decay).square() + 4 * df * decay).log() - (4 * df).log()
        return (_log_peak(df) - 0.5 * (df + 1) * tail + log_slope).reshape(len(z), -1).sum(1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.student.sample(n, generator).asinh()


def fit_student(x: Tensor) -> StudentFit:
    """Fit Student's t distribution to each column by maximum likelihood, nu among DF_GRID.

    Args:
        x: Rows, shape (n, d).

    Returns:
        Location, scale and degrees of freedom of each column; a constant column gets scale 1.

    Example:
        >>> levels = torch.linspace(0, 1, 1001, dtype=torch.float64)[1:-1, None]
        >>> cauchy = 3 + 2 * (math.pi * (levels - 0.5)).tan()
        >>> [round(float(part), 1) for part in fit_student(cauchy)]  # location, scale and degrees of freedom
        [3.0, 2.0, 1.0]
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


def fit_tails(x: Tensor) -> Tensor:
    """Fit the power nu of each column's tails, P(|x| > w) ~ w^-nu, by the peaks over a threshold.

    The largest |x| exceed the threshold by w, of the generalised Pareto distribution (1 + w / (nu s))^-(nu + 1) / s,
    whatever the bulk of the column looks like. Likelihood chooses nu, at its best scale s.

    Args:
        x: Rows, shape (n, d).

    Returns:
        Powers among DF_GRID, shape (d,).

    Example:
        >>> levels = torch.linspace(0, 1, 10_002, dtype=torch.float64)[1:-1, None]
        >>> fit_tails(levels**-0.5).tolist()  # P(x > w) = w^-2
        [2.0]

    References:
        Pickands 1975, Statistical inference using extreme order statistics, Annals of Statistics 3.
    """
    rows = x[:: max(1, -(-len(x) // FIT_ROWS))].abs()
    count = min(max(TAIL_ROWS, int(TAIL_SHARE * len(rows))), len(rows) // 4)
    largest = rows.topk(count + 1, dim=0).values
    excess = largest[:-1] - largest[-1]
    return x.new_tensor(DF_GRID)[torch.stack([_pareto_log_likelihood(excess, nu) for nu in DF_GRID]).argmax(0)]


def _pareto_log_likelihood(excess: Tensor, nu: float) -> Tensor:
    """Return the mean log-likelihood of excesses (n, d) at the best scale, (d,)."""
    scale, least = excess.mean(0), torch.finfo(excess.dtype).tiny  # ties have no excess
    for _ in range(EM_STEPS):
        scale = (nu + 1) / nu * (excess / (1 + excess / (nu * scale.clamp(min=least)))).mean(0)
    scale = scale.clamp(min=least)
    return -scale.log() - (nu + 1) * (excess / (nu * scale)).log1p().mean(0)


def outliers_inflate_scale(x: Tensor) -> bool:
    """Say whether outliers inflate the standard deviation of a column far beyond its robust scale.

    Args:
        x: Rows, shape (n, d).

    Returns:
        Whether the standard deviation of any column exceeds 10 times the scale of its Student fit.

    Example:
        >>> x = torch.linspace(-2, 2, 100)[:, None]
        >>> outliers_inflate_scale(x), outliers_inflate_scale(torch.cat([x, torch.tensor([[1e4]])]))
        (False, True)
    """
    return bool((x.std(0, correction=0) > OUTLIER_INFLATION * fit_student(x).scale).any())


def _log_peak(df: Tensor) -> Tensor:
    """Return the log-density of Student's t distribution at 0."""
    return torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (df * math.pi).log()


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
