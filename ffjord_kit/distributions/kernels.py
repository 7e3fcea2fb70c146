r"""Kernels at places on a sphere, each as wide as its neighbours are far.

    p(u) = e / (4 pi) + (1 - e) sum_j w_j f(u; m_j, s_j)
    f(u; m, s) = exp((u . m - 1) / s^2) / (2 pi s^2 (1 - exp(-2 / s^2)))        (von Mises-Fisher)

m_j are the places of the rows, w_j the shares of rows there, and a place has two kernels: of width s_j = c times the
distance to the k-th nearest other place, and of 4 s_j, with 0.6 and 0.4 of its share. k, c and the uniform share e have
the highest likelihood in cross-validation, by which no place judges kernels that know of it, nor of its copies.

Places cluster by orders of magnitude: of 12,809 fires the fourth neighbour is at 0.17 degrees, half of the time. No
network of some seconds resolves that, and kernels do; see `benchmarks/earth.py`.

Draws are exact: u . m = 1 + s^2 log(v + (1 - v) exp(-2 / s^2)), v uniform (Ulrich 1984).

References:
    Breiman, Meisel and Purcell 1977, Variable kernel estimates of multivariate densities, Technometrics 19.
    Hall, Watson and Cabrera 1987, Kernel density estimation with spherical data, Biometrika 74.
    Ulrich 1984, Computer generation of distributions on the m-sphere, Applied Statistics 33.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ffjord_kit.distributions.base import Base
from ffjord_kit.geometry import Geometry, great_circle, unit
from ffjord_kit.noise import fresh_generator, standard_normal

MOST_KERNELS = 32_768  # of more places than half of this so many are taken, evenly among the rows
NEIGHBOURS, FACTORS, UNIFORM_SHARES = (2, 4, 8), (0.25, 0.35, 0.5, 0.7, 1.0), (1e-3, 1e-2)
# Of the wide kernels. With them five splits of earthquakes have a mean NLL of -0.48, and without -0.35; floods 0.40 and
# 0.41.
WIDE_SHARE, WIDE_FACTOR = 0.4, 4.0
LEAST_SCALE = 1e-5  # radians: 64 m on the Earth
LEAST_PLACES, FOLDS, JUDGES = 10, 5, 1_000  # of cross-validation; places of all folds that judge
NEAR = 512  # kernels that a judge looks at
CHUNK_ELEMENTS = 2**18  # events times kernels at once, which caches hold


class Kernels(NamedTuple):
    """Kernels at places.

    Attributes:
        weights: Shares of the rows, shape (k,).
        places: Unit vectors, shape (k, 3).
        scales: Widths in radians, shape (k,).
        uniform: Share of the uniform distribution.
    """

    weights: Tensor
    places: Tensor
    scales: Tensor
    uniform: float


class SphereKernels(Base):
    """A mixture of von Mises-Fisher distributions at places on the unit sphere, and a uniform one.

    Training leaves it as it is. Densities are per steradian.

    Args:
        event_shape: (3,), a unit vector.
        weights: Shares of the kernels, positive, of sum 1, shape (k,), k <= MOST_KERNELS; the uniform distribution
            alone if None.
        places: Unit vectors, shape (k, 3).
        scales: Widths in radians, shape (k,).
        uniform: Share of the uniform distribution.

    Raises:
        ValueError: If there are too many kernels, or events are no points in space.

    Example:
        >>> north = torch.tensor([[0.0, 0.0, 1.0]])
        >>> base = SphereKernels((3,), torch.ones(1), north, torch.tensor([0.1]), 0.01)
        >>> [round(each, 3) for each in base.log_prob(torch.cat([north, -north])).tolist()]
        [2.757, -7.136]
    """

    weights: Tensor
    places: Tensor
    scales: Tensor
    uniform: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        weights: Tensor | None = None,
        places: Tensor | None = None,
        scales: Tensor | None = None,
        uniform: float = 1.0,
    ) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        if self.event_shape != (3,):
            raise ValueError(f"kernels are at points on one sphere, of shape (3,); got events of {self.event_shape}")
        if weights is None or places is None or scales is None:
            weights, places, scales, uniform = torch.ones(0), torch.ones(0, 3), torch.ones(0), 1.0
        if len(weights) > MOST_KERNELS:
            raise ValueError(f"there may be at most {MOST_KERNELS} kernels; got {len(weights)}")
        unused = (0, MOST_KERNELS - len(weights))  # weight 0: a state of one shape for every number of kernels
        self.register_buffer("weights", nn.functional.pad(weights, unused))
        self.register_buffer("places", nn.functional.pad(places, (0, 0, *unused), value=1.0))
        self.register_buffer("scales", nn.functional.pad(scales, unused, value=1.0))
        self.register_buffer("uniform", torch.tensor(uniform, dtype=weights.dtype))

    @property
    def geometry(self) -> Geometry:
        """One sphere."""
        return Geometry(3, spheres=((0, 1, 2),))

    @classmethod
    def of(cls, z: Tensor, weight: Tensor | None = None) -> SphereKernels:
        """Set kernels at rows, with widths of the highest likelihood of each place under the others.

        Args:
            z: Rows, shape (n, 3), with LEAST_PLACES or more that differ.
            weight: Weights of the rows, not negative, shape (n,), or None.

        Returns:
            The mixture.

        Raises:
            ValueError: If a weight is negative, or fewer than LEAST_PLACES places differ.
        """
        found = fit_kernels(z, weight)
        weights, places, scales = (part.to(torch.get_default_dtype()) for part in found[:3])
        return cls((3,), weights, places, scales, found.uniform)

    def log_prob(self, z: Tensor) -> Tensor:
        weights, places, scales = self._used()
        log_uniform = (self.uniform.double() / (4 * math.pi)).log()
        if not len(weights):
            return (log_uniform + 0 * z.sum(1)).to(z)
        constants = ((1 - self.uniform.double()) * weights).log() + _log_peak(scales) - scales.pow(-2)
        factors = (places / scales.square()[:, None]).T
        parts = [
            torch.logaddexp(torch.addmm(constants, unit(part.double()), factors).logsumexp(1), log_uniform)
            for part in z.split(max(1, CHUNK_ELEMENTS // len(weights)))
        ]
        return torch.cat(parts).to(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        generator, (weights, places, scales) = generator or fresh_generator(), self._used()
        anywhere = unit(standard_normal((n, 3), self.weights, generator))
        if not len(weights):
            return anywhere
        which = weights.to(generator.device).multinomial(n, replacement=True, generator=generator).to(places.device)
        share, alone = torch.rand((2, n), generator=generator, device=generator.device, dtype=torch.float64).to(places)
        s2 = scales[which].square()
        height = -s2 * (share + (1 - share) * (-2 / s2).exp()).log()  # 1 - u . m, without rounding of the near ones
        angle = 2 * (height / 2).sqrt().clamp(max=1).asin()
        aside = _aside(places[which], unit(standard_normal((n, 3), self.weights, generator)).double())
        turned, _ = great_circle(places[which], aside, (angle / (math.pi / 2))[:, None])
        return torch.where((alone < self.uniform.double())[:, None], anywhere.double(), turned).to(self.weights)

    def project(self, z: Tensor) -> Tensor:
        return unit(z)

    def _used(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights, places and scales of the kernels in float64."""
        count = int((self.weights > 0).sum())
        return self.weights[:count].double(), unit(self.places[:count].double()), self.scales[:count].double()


def fit_kernels(z: Tensor, weight: Tensor | None = None) -> Kernels:
    """Choose the widths of kernels at places, and the uniform share, by cross-validation.

    Args:
        z: Points near the unit sphere, shape (n, 3).
        weight: Weights, not negative, shape (n,), or None.

    Returns:
        The kernels, in float64.

    Raises:
        ValueError: If a weight is negative, or fewer than LEAST_PLACES places differ.

    Example:
        >>> z = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> kernels = fit_kernels(z)
        >>> len(kernels.weights), kernels.uniform
        (400, 0.01)
    """
    weights, places = _distinct(z, weight)
    fold = torch.randperm(len(places), generator=torch.Generator().manual_seed(0)).to(places.device) % FOLDS
    scores: dict[tuple[int, float, float], float] = defaultdict(float)
    for own in range(FOLDS):
        judges = torch.nonzero(fold == own)[:, 0]
        judges = judges[:: max(1, len(places) // JUDGES)]
        others = fold != own
        weight_of_each = weights[judges] / weights.sum()
        for choice, log_density in _densities(weights[others], places[others], places[judges]):
            scores[choice] += float((weight_of_each * log_density).sum())
    number, factor, uniform = max(scores, key=scores.__getitem__)
    scales = factor * _distances(places)[number]
    return Kernels(*_two_widths(weights, places, scales), uniform)


def _densities(weights: Tensor, places: Tensor, judges: Tensor) -> Iterator[tuple[tuple[int, float, float], Tensor]]:
    """Yield choices, (number in NEIGHBOURS, factor, uniform share), and the log-densities of other places, (m,).

    The nearest kernels alone are summed: farther ones are many widths away.
    """
    near, _ = _nearest(places, judges, NEAR)
    along = (places[near] @ judges[:, :, None]).squeeze(-1).repeat(1, 2) - 1  # u . m - 1
    near = torch.cat([near, near + len(places)], dim=1)  # both widths
    for (number, distances), factor in itertools.product(enumerate(_distances(places)), FACTORS):
        shares, _, widths = _two_widths(weights / weights.sum(), places, factor * distances)
        scales = widths[near]
        kernels = (along / scales.square() + _log_peak(scales) + shares[near].log()).logsumexp(1)
        for share in UNIFORM_SHARES:
            uniform = kernels.new_tensor(share / (4 * math.pi)).log()
            yield (number, factor, share), torch.logaddexp(kernels + math.log(1 - share), uniform)


def _two_widths(weights: Tensor, places: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, places and scales of narrow and wide kernels at places."""
    narrow = scales.clamp(min=LEAST_SCALE)
    shares = torch.cat([(1 - WIDE_SHARE) * weights, WIDE_SHARE * weights])
    return shares, torch.cat([places, places]), torch.cat([narrow, WIDE_FACTOR * narrow])


def _distinct(z: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the share of the rows at each place, positive, and the places, at most half of MOST_KERNELS."""
    if weight is not None and bool((weight < 0).any()):
        raise ValueError("kernels take no negative weights: choose another base")
    weight = z.new_ones(len(z)) if weight is None else weight
    kept = weight > 0
    rows, weight = unit(z[kept].double()), weight[kept].double()
    some = torch.linspace(0, len(rows) - 1, min(len(rows), MOST_KERNELS // 2), dtype=torch.float64).long()
    places, which = torch.unique(rows[some], dim=0, return_inverse=True)
    if len(places) < LEAST_PLACES:
        raise ValueError(
            f"kernels need {LEAST_PLACES} places or more that differ; got {len(places)}: choose another base"
        )
    weights = weight.new_zeros(len(places)).index_add(0, which, weight[some])
    return weights / weights.sum(), places


def _distances(places: Tensor) -> list[Tensor]:
    """Return the distances of places from their k-th neighbours, for each k."""
    _, found = _nearest(places, places, max(NEIGHBOURS) + 1)  # the nearest is the place itself
    return [found[:, min(k, found.shape[1] - 1)] for k in NEIGHBOURS]


def _nearest(places: Tensor, points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return which places are nearest to points, and their distances, near ones first, each (m, count) or less."""
    from sklearn.neighbors import NearestNeighbors  # only here: torch alone starts faster

    tree = NearestNeighbors(n_neighbors=min(count, len(places))).fit(places.cpu().numpy())
    distances, which = tree.kneighbors(points.cpu().numpy())
    return torch.from_numpy(which).to(places.device), torch.from_numpy(distances).to(places)


def _log_peak(scales: Tensor) -> Tensor:
    """Return log f(m; m, s), the log-density of each kernel at its own place."""
    return -(2 * math.pi * scales.square()).log() - torch.log1p(-(-2 / scales.square()).exp())


def _aside(places: Tensor, directions: Tensor) -> Tensor:
    """Return unit vectors at right angles to places, in the directions of other points."""
    return unit(directions - (directions * places).sum(1, keepdim=True) * places)
