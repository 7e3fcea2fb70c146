r"""Base distributions, where a flow is at t = 0.

The standard normal is the default; `DistributionBase` holds any `torch.distributions` object and moves with the flow.

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

Beside circles and spheres the base is a product: any of these for the real elements, and uniform ones.

A mixture of normal distributions has full covariances; its number of components minimises the BIC (Schwarz 1978).

References:
    Jaini et al. 2020, Tails of Lipschitz triangular flows, https://arxiv.org/abs/1907.04481.
    Liu and Rubin 1995, ML estimation of the t distribution using EM and its extensions, Statistica Sinica 5.
    Pickands 1975, Statistical inference using extreme order statistics, Annals of Statistics 3.
    Bailey 1994, Polar generation of random variates with the t-distribution, Mathematics of Computation 62.
    Schwarz 1978, Estimating the dimension of a model, Annals of Statistics 6.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from ffjord_kit.geometry import Geometry
from ffjord_kit.noise import fresh_generator, standard_normal
from ffjord_kit.weights import resampled

DF_GRID = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0, 50.0)  # degrees of freedom among which the fit chooses
EM_STEPS, FIT_ROWS = 30, 20_000
TAIL_SHARE, TAIL_ROWS = 0.05, 100  # of the rows, which tell the power of a tail, and how many at least
MAX_SHRINKAGE = 100.0  # of the scale relative to the interquartile range: tied values would shrink it to 0
OUTLIER_INFLATION = 10.0
MIXTURE_COMPONENTS, ROWS_OF_A_COMPONENT = 8, 10
MIXTURE_RIDGE = 1e-3  # added to the variances
EM_STARTS = 3  # EM ends in local optima
QUARTILE = 0.6744897501960817  # of the standard normal


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


class GaussianMixture(Base):
    r"""A mixture of normal distributions, p(z) = sum_k w_k N(z; m_k, C_k), which training leaves as it is.

    Args:
        event_shape: Shape of an event of d elements.
        weights: Weights w, shape (k,), k <= MIXTURE_COMPONENTS; one standard normal distribution if None.
        means: Means m, shape (k, d).
        covariances: Covariances C, shape (k, d, d).

    Raises:
        ValueError: If there are too many components.

    Example:
        >>> base = GaussianMixture((1,), torch.tensor([0.5, 0.5]), torch.tensor([[-2.0], [2.0]]), torch.ones(2, 1, 1))
        >>> print(f"{base.log_prob(torch.full((1, 1), 2.0)).item():.4f}")
        -1.6118
    """

    weights: Tensor
    means: Tensor
    factors: Tensor  # L^-1 with C = L L^T

    def __init__(
        self,
        event_shape: Sequence[int],
        weights: Tensor | None = None,
        means: Tensor | None = None,
        covariances: Tensor | None = None,
    ) -> None:
        super().__init__()
        size, most = math.prod(event_shape), MIXTURE_COMPONENTS
        self.event_shape = tuple(event_shape)
        if weights is None or means is None or covariances is None:
            weights, means, covariances = torch.ones(1), torch.zeros(1, size), torch.eye(size)[None]
        if len(weights) > most:
            raise ValueError(f"a mixture has at most {most} components; got {len(weights)}")
        eye = torch.eye(size, dtype=means.dtype).repeat(most, 1, 1)
        unused = (0, most - len(weights))  # weight 0: a state of one shape for every number of components
        self.register_buffer("weights", nn.functional.pad(weights, unused))
        self.register_buffer("means", nn.functional.pad(means, (0, 0, *unused)))
        inverse = torch.linalg.solve_triangular(torch.linalg.cholesky(covariances), eye[: len(weights)], upper=False)
        self.register_buffer("factors", torch.cat([inverse, eye[len(weights) :]]))

    @classmethod
    def of(cls, z: Tensor, weight: Tensor | None = None) -> GaussianMixture:
        """Fit a mixture to rows by the EM algorithm, with the number and kind of components of lowest BIC.

        Args:
            z: Rows, shape (n, *event).
            weight: Weights of the rows, by which they are drawn for the fit, shape (n,), or None.

        Returns:
            The mixture.
        """
        z = resampled(z, weight)
        return cls(z.shape[1:], *(part.to(torch.get_default_dtype()) for part in fit_mixture(z.flatten(1))))

    def log_prob(self, z: Tensor) -> Tensor:
        offsets = z.reshape(len(z), 1, -1) - self.means
        whitened = (self.factors @ offsets[..., None]).squeeze(-1)
        log_dets = self.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = 0.5 * whitened.shape[-1] * math.log(2 * math.pi)
        parts = self.weights.log() + log_dets - 0.5 * whitened.square().sum(-1) - constant
        return parts.logsumexp(1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        generator = generator or fresh_generator()
        which = self.weights.to(generator.device).multinomial(n, replacement=True, generator=generator)
        which = which.to(self.means.device)
        noise = standard_normal((n, self.means.shape[1], 1), self.means, generator)
        scaled = torch.linalg.solve_triangular(self.factors[which], noise, upper=False).squeeze(-1)
        return (self.means[which] + scaled).reshape(n, *self.event_shape)


def fit_mixture(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a mixture of normal distributions by EM, of lowest BIC among full and diagonal covariances.

    Args:
        x: Rows, shape (n, d), of a scale near 1.

    Returns:
        Weights (k,), means (k, d) and covariances (k, d, d).

    Example:
        >>> x = torch.randn(400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> weights, means, _ = fit_mixture(torch.cat([x / 10 - 1, x / 10 + 1]))
        >>> [round(weight, 3) for weight in weights.tolist()], means.flatten().sort().values.round(decimals=1).tolist()
        ([0.5, 0.5], [-1.0, 1.0])
    """
    from sklearn.mixture import GaussianMixture as Mixture  # only here: torch alone starts faster
    from threadpoolctl import threadpool_limits

    rows = x[:: max(1, -(-len(x) // FIT_ROWS))].double().cpu().numpy()
    most = min(MIXTURE_COMPONENTS, max(1, len(rows) // ROWS_OF_A_COMPONENT))
    with threadpool_limits(1):
        fits = [
            Mixture(k, covariance_type=kind, reg_covar=MIXTURE_RIDGE, n_init=EM_STARTS, random_state=0).fit(rows)
            for k in range(1, most + 1)
            for kind in ("full", "diag")
        ]
    best = min(fits, key=lambda fit: fit.bic(rows))
    spread = best.covariances_ if best.covariances_.ndim == 3 else np.stack([np.diag(c) for c in best.covariances_])
    weights, means, covariances = (torch.as_tensor(part).to(x) for part in (best.weights_, best.means_, spread))
    return weights, means, covariances


class ProductBase(Base):
    r"""A base of the real elements, times the uniform distributions of angles and of points on spheres.

        log p(z) = log p_real(z_real) - (number of circles) log(2 pi) - (number of spheres) log(4 pi)

    It is constant along a circle, so that an angle counts wherever on the line it stands, and per area on a sphere.

    Args:
        geometry: Which elements are angles, and which are points on a sphere.
        real: Base of the real elements; None where there are none.

    Example:
        >>> base = ProductBase(Geometry(2, circles=(1,)), StandardNormal((1,)))
        >>> base.log_prob(torch.tensor([[0.0, 7.0]]))
        tensor([-2.7568])
        >>> base.sample(3, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])
    """

    anchor: Tensor

    def __init__(self, geometry: Geometry, real: Base | None) -> None:
        super().__init__()
        self._geometry, self.real, self.event_shape = geometry, real, (geometry.size,)
        self.register_buffer("anchor", torch.zeros(()), persistent=False)
        circles, spheres = len(geometry.circles), len(geometry.spheres)
        self.constant = -circles * math.log(2 * math.pi) - spheres * math.log(4 * math.pi)

    @property
    def geometry(self) -> Geometry:
        """Which elements are angles, and which are points on a sphere."""
        return self._geometry

    def log_prob(self, z: Tensor) -> Tensor:
        real, angles, points = self.geometry.split(z)
        flat = 0 * (angles.sum(-1) + points.flatten(-2).sum(-1))  # which has a gradient, and is NaN where z is
        return self.constant + (flat if self.real is None else flat + self.real.log_prob(real))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        generator, (_, circles, size) = generator or fresh_generator(), self.geometry.parts
        real = self.anchor.new_zeros(n, 0) if self.real is None else self.real.sample(n, generator)
        share = torch.rand((n, circles), generator=generator, device=generator.device, dtype=torch.float64)
        points = standard_normal((n, size // 3, 3), self.anchor, generator)
        angles = (2 * math.pi * (share - 0.5)).to(real)
        return self.geometry.project(self.geometry.join(real, angles, points.to(real)))

    def project(self, z: Tensor) -> Tensor:
        return self.geometry.project(z)


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


# Two constructors each: fitted to rows at the base (n, *event) and, if there are any, to their weights (n,); and blank
# for an event shape, to load values into.
BASES: dict[str, tuple[Callable[..., Base], Callable[[Sequence[int]], Base]]] = {
    "normal": (lambda z, weight=None: StandardNormal(z.shape[1:]), StandardNormal),
    "mixture": (GaussianMixture.of, GaussianMixture),
    "student": (AsinhStudentT.of, AsinhStudentT),
}
