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

from ffjord_kit.datasets.dataset import Density

LOG_TWO_PI = np.log(2 * np.pi)


@dataclass(frozen=True)
class NoisyCircles(Density):
    """Concentric circles of equal weight, blurred by isotropic Gaussian noise.

    The density is the mean over the circles of p(x) = exp(-(r - R)^2 / 2 s^2) i0e(r R / s^2) / (2 pi s^2).

    Args:
        radii: Radius R of each circle.
        noise: Standard deviation s of the noise along each axis.

    Example:
        >>> NoisyCircles(radii=(1.0,), noise=0.1).log_prob(np.array([[1.0, 0.0]])).round(3)
        array([-0.453])
    """

    radii: tuple[float, ...]
    noise: float

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw independent points, shape (n, 2)."""
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
    """Gaussian arms of equal weight along equally spaced directions, then twisted about the origin.

    The twist turns each circle about the origin by w |x|, so that it preserves area: p(x) is the mean of the Gaussians
    at the untwisted point.

    Args:
        arms: Number of arms.
        radius: Distance R of the centre of each arm from the origin.
        radial: Standard deviation along an arm.
        tangential: Standard deviation across an arm.
        twist: Angle w in radians per unit of |x|.

    Example:
        >>> GaussianArms(arms=1, radius=1.0, radial=1.0, tangential=1.0).log_prob(np.array([[1.0, 0.0]])).round(3)
        array([-1.838])
    """

    arms: int
    radius: float
    radial: float
    tangential: float
    twist: float = 0.0

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw independent points, shape (n, 2)."""
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
    """Uniform density on the black squares of a board centred at the origin.

    The square at the lower left is black; with side a and m by m squares, p(x) = 2 / (m a)^2 on black ones.

    Args:
        squares: Number m of squares along each axis, an even number, so that half of all squares are black.
        side: Side a of a square, in units of x.

    Example:
        >>> Checkerboard(squares=2, side=1.0).log_prob(np.array([[-0.5, -0.5], [0.5, -0.5]]))
        array([-0.69314718,        -inf])
    """

    squares: int = 4
    side: float = 2.0

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw independent points, shape (n, 2)."""
        column = rng.integers(self.squares, size=n)
        row = 2 * rng.integers(self.squares // 2, size=n) + column % 2
        corner = np.stack([column, row], axis=1) - self.squares / 2
        return self.side * (corner + rng.random((n, 2)))

    def _log_prob(self, x: np.ndarray) -> np.ndarray:
        cell = np.floor(x / self.side + self.squares / 2)
        black = np.all((cell >= 0) & (cell < self.squares), axis=1) & (cell.sum(axis=1) % 2 == 0)
        return np.where(black, -np.log(self.squares**2 / 2 * self.side**2), -np.inf)


def circles() -> Density:
    """Return the density of two circles, one inside the other.

    Returns:
        The density.

    Example:
        >>> circles().log_prob(np.array([[1.5, 0.0], [0.0, 0.0]])).round(1)  # on the inner circle, and at its centre
        array([ -2.4, -19.2])
    """
    return NoisyCircles(radii=(1.5, 3.0), noise=0.24)


def rings() -> Density:
    """Return the density of four thin circles.

    Returns:
        The density.
    """
    return NoisyCircles(radii=(0.75, 1.5, 2.25, 3.0), noise=0.08)


def eight_gaussians() -> Density:
    """Return the density of eight round Gaussians on a circle.

    Returns:
        The density.

    Example:
        >>> eight_gaussians().sample(4, np.random.default_rng(0)).shape
        (4, 2)
    """
    return GaussianArms(arms=8, radius=2.0 * np.sqrt(2), radial=0.25 * np.sqrt(2), tangential=0.25 * np.sqrt(2))


def pinwheel() -> Density:
    """Return the density of five Gaussian arms, twisted.

    Returns:
        The density.
    """
    return GaussianArms(arms=5, radius=2.0, radial=0.6, tangential=0.2, twist=0.4)


def checkerboard() -> Density:
    """Return the uniform density on eight squares of side two.

    Returns:
        The density.

    Example:
        >>> checkerboard().log_prob(np.array([[1.0, 1.0], [1.0, -1.0]])).round(3)  # eight squares of area four
        array([-3.466,   -inf])
    """
    return Checkerboard()


def _directions(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _rotate(x: np.ndarray, angle: np.ndarray | float) -> np.ndarray:
    (first, second), cos, sin = x.T, np.cos(angle), np.sin(angle)
    return np.stack([cos * first - sin * second, sin * first + cos * second], axis=-1)
