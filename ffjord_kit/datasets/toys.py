"""Toys in the plane with a density in closed form: circles, Gaussian arms, squares.

A circle of radius R, uniform in angle, plus Gaussian noise of deviation s in both directions, with r = |x|:

    p(x) = exp(-(r - R)^2 / 2 s^2) * i0e(r R / s^2) / (2 pi s^2),      i0e(k) = exp(-k) I_0(k).

A Gaussian arm stands at distance R along a direction; twisting the plane by an angle w |x| turns every circle about
the origin rigidly, so it preserves area, and p(x) is the density of the arms at the untwisted point.

The shapes and sizes follow the toys of Grathwohl et al., "FFJORD" (2019), arXiv:1810.01367, whose data stand in
|x| < 4; the pinwheel twists by the radius (theirs by the coordinate along the arm, which does not preserve area).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import i0e, logsumexp

from ffjord_kit.datasets.density import Density

LOG_TWO_PI = np.log(2 * np.pi)


@dataclass(frozen=True)
class NoisyCircles(Density):
    """Concentric circles of equal weight, blurred by isotropic Gaussian noise of deviation `noise`."""

    radii: tuple[float, ...]
    noise: float

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n independent points, (n, 2)."""
        radius = rng.choice(self.radii, size=n)
        points = radius[:, None] * _directions(2 * np.pi * rng.random(n))
        return points + self.noise * rng.standard_normal((n, 2))

    def _log_prob(self, x: np.ndarray) -> np.ndarray:
        r, radii = np.hypot(*x.T)[:, None], np.array(self.radii)
        variance = self.noise**2
        terms = -((r - radii) ** 2) / (2 * variance) + np.log(i0e(r * radii / variance))
        return logsumexp(terms, axis=1) - LOG_TWO_PI - np.log(variance * len(radii))


@dataclass(frozen=True)
class GaussianArms(Density):
    """Gaussians at `radius` along equally spaced directions, then twisted by `twist` radians per unit of |x|.

    `radial` and `tangential` are the deviations along an arm and across it, in units of x.
    """

    arms: int
    radius: float
    radial: float
    tangential: float
    twist: float = 0.0

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n independent points, (n, 2)."""
        along_across = rng.standard_normal((n, 2)) * [self.radial, self.tangential] + [self.radius, 0.0]
        directions = 2 * np.pi * rng.integers(self.arms, size=n) / self.arms
        return _rotate(along_across, directions + self.twist * np.hypot(*along_across.T))

    def _log_prob(self, x: np.ndarray) -> np.ndarray:
        untwisted = _rotate(x, -self.twist * np.hypot(*x.T))
        terms = [self._arm(untwisted, 2 * np.pi * arm / self.arms) for arm in range(self.arms)]
        return logsumexp(terms, axis=0) - LOG_TWO_PI - np.log(self.radial * self.tangential * self.arms)

    def _arm(self, x: np.ndarray, direction: float) -> np.ndarray:
        along, across = _rotate(x, -direction).T
        return -0.5 * (((along - self.radius) / self.radial) ** 2 + (across / self.tangential) ** 2)


@dataclass(frozen=True)
class Checkerboard(Density):
    """Uniform on the black squares of a board of `squares` by `squares`, each of side `side`, centred at 0.

    The square at the lower left is black, and `squares` is even, so that half of them are.
    """

    squares: int = 4
    side: float = 2.0

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n independent points, (n, 2)."""
        column = rng.integers(self.squares, size=n)
        row = 2 * rng.integers(self.squares // 2, size=n) + column % 2
        corner = np.stack([column, row], axis=1) - self.squares / 2
        return self.side * (corner + rng.random((n, 2)))

    def _log_prob(self, x: np.ndarray) -> np.ndarray:
        cell = np.floor(x / self.side + self.squares / 2)
        black = np.all((cell >= 0) & (cell < self.squares), axis=1) & (cell.sum(axis=1) % 2 == 0)
        return np.where(black, -np.log(self.squares**2 / 2 * self.side**2), -np.inf)


def circles() -> Density:
    """Two circles, one inside the other."""
    return NoisyCircles(radii=(1.5, 3.0), noise=0.24)


def rings() -> Density:
    """Four thin circles."""
    return NoisyCircles(radii=(0.75, 1.5, 2.25, 3.0), noise=0.08)


def eight_gaussians() -> Density:
    """Eight round Gaussians on a circle."""
    return GaussianArms(arms=8, radius=2.0 * np.sqrt(2), radial=0.25 * np.sqrt(2), tangential=0.25 * np.sqrt(2))


def pinwheel() -> Density:
    """Five Gaussian arms, twisted."""
    return GaussianArms(arms=5, radius=2.0, radial=0.6, tangential=0.2, twist=0.4)


def checkerboard() -> Density:
    """Eight squares of side two."""
    return Checkerboard()


def _directions(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _rotate(x: np.ndarray, angle: np.ndarray | float) -> np.ndarray:
    (first, second), cos, sin = x.T, np.cos(angle), np.sin(angle)
    return np.stack([cos * first - sin * second, sin * first + cos * second], axis=-1)
