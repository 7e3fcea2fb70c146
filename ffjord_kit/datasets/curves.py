"""Toys in the plane made of curves blurred by Gaussian noise: moons, spirals, Swiss roll.

Every curve is an arm of a spiral about its own centre c, with direction e(t) = (cos t, sin t) turned by an angle,

    x = c + rho(t) e(t + turn) + s N(0, I),      rho(t) = radius + growth t,      start <= t <= end,

and t = start + (end - start) u^(1/power) for a uniform u. The density is an integral over t of Gaussians:

    p(x) = integral w(t) exp(-f(t) / 2 s^2) dt / (2 pi s^2),     f(t) = |x - c|^2 - 2 |x - c| rho cos(a) + rho^2,

with a the angle between the arm at t and x. It is computed by Gauss-Legendre quadrature. Far from the curve the
integrand is a spike much thinner than any fixed spacing of nodes. So each arm is cut into quarter turns, and each
quarter turn at the point t* nearest to x; the nodes lie only where the exponent is within CUTOFF of its value at t*.
The sum runs over exp(-(f(t) - f(t*)) / 2 s^2), with the difference in a form free of cancellation, so that the
quadrature holds at any distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import logsumexp

from ffjord_kit.datasets.dataset import Density

CUTOFF = 37.0  # exp(-37) is 1e-16, one rounding error of the sum
TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Arm:
    """An arm of a spiral: x(t) = centre + rho(t) e(t + turn) with rho(t) = radius + growth t.

    Args:
        start: First value of t, in radians.
        end: Last value of t, in radians.
        radius: Distance rho from the centre at t = 0.
        growth: Increase of rho per radian.
        turn: Angle by which the arm is turned about its centre.
        centre: Point about which the arm turns.

    Example:
        >>> Arm(0.0, np.pi, radius=2.0).at(np.array([0.0]))
        array([[2., 0.]])
    """

    start: float
    end: float
    radius: float = 0.0
    growth: float = 0.0
    turn: float = 0.0
    centre: tuple[float, float] = (0.0, 0.0)

    def at(self, t: np.ndarray) -> np.ndarray:
        """Return points of the curve.

        Args:
            t: Parameters, shape (n,).

        Returns:
            Points, shape (n, 2).
        """
        rho, angle = self.radius + self.growth * t, t + self.turn
        return self.centre + rho[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


@dataclass(frozen=True)
class NoisyArms(Density):
    """Arms of equal weight, blurred by isotropic Gaussian noise.

    Along each arm t = start + (end - start) u^(1 / power) for a uniform u.

    Args:
        arms: The arms.
        noise: Standard deviation s of the noise along each axis.
        power: Exponent of the distribution along an arm; 2 makes a spiral nearly uniform in length.
        nodes: Nodes of the quadrature in each half of a quarter turn.

    Example:
        >>> circle = NoisyArms((Arm(0.0, 2 * np.pi, radius=1.0),), noise=0.1)
        >>> circle.log_prob(np.array([[1.0, 0.0]])).round(3)
        array([-0.453])
    """

    arms: tuple[Arm, ...]
    noise: float
    power: int = 1
    nodes: int = 20

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw independent points, shape (n, 2)."""
        chosen, u = rng.integers(len(self.arms), size=n), rng.random(n) ** (1 / self.power)
        points = self.noise * rng.standard_normal((n, 2))
        for index, arm in enumerate(self.arms):
            mine = chosen == index
            points[mine] += arm.at(arm.start + (arm.end - arm.start) * u[mine])
        return points

    def _log_prob(self, x: np.ndarray) -> np.ndarray:
        turns = [piece for arm in self.arms for piece in _quarter_turns(arm)]
        terms = [self._log_mass(x, arm, start, end) for arm, start, end in turns]
        return logsumexp(terms, axis=0) - np.log(2 * np.pi * self.noise**2 * len(self.arms))

    def _log_mass(self, x: np.ndarray, arm: Arm, start: float, end: float) -> np.ndarray:
        """Return the logarithm of the integral of w(t) exp(-f(t) / 2 s^2) from start to end."""
        distance = _distance(x, arm, 2 * self.noise**2)
        nearest = distance.nearest(start, end)
        mass = sum(self._mass(distance, arm, nearest, side - nearest) for side in (start, end))
        with np.errstate(divide="ignore"):  # on the far side of its centre a turn may weigh nothing
            return (np.log(mass) - distance(nearest))[:, 0]

    def _mass(self, distance: Distance, arm: Arm, nearest: np.ndarray, reach: np.ndarray) -> np.ndarray:
        """Integrate from `nearest` to `nearest + reach`, relative to the exponential at `nearest`."""
        nodes, weights = _gauss_legendre(self.nodes)
        reach = distance.shorten(nearest, reach)
        step = reach * nodes
        integrand = self._weight(arm, nearest + step) * np.exp(-distance.rise(nearest, step))
        return np.abs(reach) * (integrand @ weights)[:, None]

    def _weight(self, arm: Arm, t: np.ndarray) -> np.ndarray:
        length = arm.end - arm.start
        return self.power * ((t - arm.start) / length) ** (self.power - 1) / length


@dataclass(frozen=True)
class Distance:
    """Squared distances f(t) / 2 s^2 of n points to an arm, called with t of shape (n, k).

    Args:
        r: Distances of the points from the arm's centre, shape (n, 1).
        angle: Angles of the points about the centre, from the arm's direction, shape (n, 1).
        arm: The arm.
        scale: The divisor 2 s^2.

    Example:
        >>> distance = Distance(np.array([[3.0]]), np.array([[0.0]]), Arm(0.0, 1.0, radius=1.0), scale=2.0)
        >>> distance(np.array([[0.0]]))
        array([[2.]])
    """

    r: np.ndarray
    angle: np.ndarray
    arm: Arm
    scale: float

    def rho(self, t: np.ndarray) -> np.ndarray:
        """Return the distance of the arm from its centre.

        Args:
            t: Parameters, shape (n, k).

        Returns:
            Distances, shape (n, k).
        """
        return self.arm.radius + self.arm.growth * t

    def __call__(self, t: np.ndarray) -> np.ndarray:
        """Return the squared distances in units of 2 s^2, shape (n, k)."""
        rho = self.rho(t)
        return ((self.r - rho) ** 2 + 4 * self.r * rho * np.sin((t - self.angle) / 2) ** 2) / self.scale

    def rise(self, t: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Return the value at t + step less the value at t, without cancellation.

        Args:
            t: Parameters, shape (n, 1).
            step: Increments of t, shape (n, k).

        Returns:
            Differences, shape (n, k).
        """
        away, rho, growth = t - self.angle, self.rho(t), self.arm.growth * step
        longer = growth * (2 * rho + growth - 2 * self.r * np.cos(away + step))
        turned = 4 * self.r * rho * np.sin(away + step / 2) * np.sin(step / 2)
        return (longer + turned) / self.scale

    def nearest(self, start: float, end: float) -> np.ndarray:
        """Find the nearest point of a quarter turn: the best of nine, then Newton between its neighbours.

        Args:
            start: First t of the quarter turn.
            end: Last t of the quarter turn.

        Returns:
            The t of the smallest distance, shape (n, 1).
        """
        coarse = np.linspace(start, end, 9)
        best = coarse[np.argmin(self(coarse), axis=1)][:, None]
        low, high = np.maximum(best - coarse[1] + start, start), np.minimum(best + coarse[1] - start, end)
        for _ in range(6):
            best = np.clip(best - self._newton_step(best), low, high)
        return best

    def _newton_step(self, t: np.ndarray) -> np.ndarray:
        cos, sin = np.cos(t - self.angle), np.sin(t - self.angle)
        rho, growth = self.rho(t), self.arm.growth
        slope = growth * (rho - self.r * cos) + self.r * rho * sin
        curvature = growth**2 + 2 * growth * self.r * sin + self.r * rho * cos
        return slope / np.maximum(np.abs(curvature), TINY)  # the absolute value keeps the step downhill

    def shorten(self, t: np.ndarray, reach: np.ndarray) -> np.ndarray:
        """Shorten a range of integration to the part where the integrand matters.

        The value rises at most quadratically, so that a step by the square root never goes below CUTOFF.

        Args:
            t: Start of the range, shape (n, 1).
            reach: Signed length of the range, shape (n, 1).

        Returns:
            Lengths over which the value rises from t by CUTOFF to twice CUTOFF, or `reach` where it rises less.
        """
        while np.any((rise := self.rise(t, reach)) > 2 * CUTOFF):
            reach = np.where(rise > 2 * CUTOFF, reach * np.sqrt(CUTOFF / np.maximum(rise, CUTOFF)), reach)
        return reach


def moons() -> Density:
    """Return the density of two half circles, each reaching into the other.

    Returns:
        The density.

    Example:
        >>> density = moons()
        >>> x = density.sample(5, np.random.default_rng(0))
        >>> density.log_prob(x).shape
        (5,)
    """
    upper = Arm(0.0, np.pi, radius=2.0, centre=(-1.0, -0.4))
    lower = Arm(0.0, np.pi, radius=2.0, turn=np.pi, centre=(1.0, 0.4))
    return NoisyArms((upper, lower), noise=0.2)


def spirals() -> Density:
    """Return the density of two arms of one turn and a half, nearly uniform in length.

    Returns:
        The density.
    """
    arms = tuple(Arm(0.0, 3 * np.pi, growth=1 / 3, turn=turn) for turn in (0.0, np.pi))
    return NoisyArms(arms, noise=0.1, power=2)


def swissroll() -> Density:
    """Return the density of one arm of a turn and a half, uniform in angle, so that it is denser inside.

    Returns:
        The density.
    """
    return NoisyArms((Arm(1.5 * np.pi, 4.5 * np.pi, growth=0.2),), noise=0.2)


@cache
def _gauss_legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2


def _quarter_turns(arm: Arm) -> list[tuple[Arm, float, float]]:
    pieces = int(np.ceil((arm.end - arm.start) / (np.pi / 2) - 1e-9))
    ends = np.linspace(arm.start, arm.end, pieces + 1)
    return [(arm, start, end) for start, end in zip(ends[:-1], ends[1:], strict=True)]


def _distance(x: np.ndarray, arm: Arm, scale: float) -> Distance:
    first, second = (x - arm.centre).T[:, :, None]
    return Distance(np.hypot(first, second), np.arctan2(second, first) - arm.turn, arm, scale)
