r"""Gaussianize: a monotone map of each element of the event that makes its marginal distribution nearly normal.

    z = s(x),    log|det dz/dx| = sum log s'(x)

The map takes the quantiles of a sample to those of the standard normal distribution at KNOTS equally spaced z, by a
monotone rational-quadratic spline with one continuous derivative (Gregory and Delbourgo 1982; Durkan et al. 2019), and
continues linearly. It is marginal Gaussianization (Chen and Gopinath 2000): edges, skew and heavy tails of single
columns are removed before a network sees them, and the network learns how the columns depend on each other.

Between two knots, with t = (x - x_k) / (x_{k+1} - x_k), rise r = (z_{k+1} - z_k) / (x_{k+1} - x_k), and slopes d_k,

    z = z_k + (z_{k+1} - z_k) (r t^2 + d_k t (1 - t)) / (r + (d_{k+1} + d_k - 2 r) t (1 - t)).

References:
    Chen and Gopinath 2000, Gaussianization, NeurIPS 13.
    Durkan et al. 2019, Neural spline flows, https://arxiv.org/abs/1906.04032.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ffjord_kit.transforms.base import Transform
from ffjord_kit.weights import resampled

KNOTS = 33
MAX_KNOT = 3.5  # z of the outermost knots, where rows suffice
TAIL_ROWS = 3  # rows beyond each of the outermost knots
MAX_SLOPE = 100.0  # of the map, relative to one over the column's scale: tied values would make it infinite
TAIL_CHORDS = ((0, 6), (-7, -1))  # knots whose chord gives the slope of a tail: two neighbours would be too noisy


class Gaussianize(Transform):
    """A monotone rational-quadratic spline for each element, linear beyond its knots.

    Args:
        x: Increasing knots on the data's side, shape (*event, knots).
        z: Increasing knots on the base's side, shape (*event, knots).

    Example:
        >>> x = torch.linspace(0, 1, 1000, dtype=torch.float64)[:, None]  # uniform
        >>> z, _ = Gaussianize.of(x).to_base(x)
        >>> print(f"{z.mean().item():.2f} {z.std().item():.2f}")
        0.00 1.00

    References:
        Chen and Gopinath 2000; Durkan et al. 2019, https://arxiv.org/abs/1906.04032.
    """

    x: Tensor
    z: Tensor

    def __init__(self, x: Tensor, z: Tensor) -> None:
        super().__init__()
        self.event_shape = tuple(x.shape[:-1])
        self.register_buffer("x", x)
        self.register_buffer("z", z)

    @classmethod
    def of(cls, x: Tensor, weight: Tensor | None = None) -> Gaussianize:
        """Fit the transform that makes each element of data nearly standard normal.

        Args:
            x: Data, shape (n, *event).
            weight: Weights of the rows, by which they are drawn for the fit, shape (n,), or None.

        Returns:
            The transform.
        """
        x = resampled(x, weight)
        max_knot = min(MAX_KNOT, float(torch.special.ndtri(torch.tensor(1 - TAIL_ROWS / max(len(x), 12)))))
        z = torch.linspace(-max_knot, max_knot, KNOTS, dtype=x.dtype)
        knots = _quantiles(x.flatten(1), torch.special.ndtr(z)).T
        min_rise = _robust_scale(x.flatten(1))[:, None] / MAX_SLOPE * (z - z[0])
        knots = torch.cummax(knots - min_rise, dim=1).values + min_rise
        return cls(knots.reshape(*x.shape[1:], KNOTS), z.expand(*x.shape[1:], KNOTS).clone())

    @classmethod
    def identity(cls, zeros: Tensor) -> Gaussianize:
        """Return the identity.

        Args:
            zeros: A tensor of the shape (*event) and dtype of an event.

        Returns:
            The transform.
        """
        z = torch.linspace(-MAX_KNOT, MAX_KNOT, KNOTS, dtype=zeros.dtype).expand(*zeros.shape, KNOTS)
        return cls(z.clone(), z.clone())

    def flaw(self) -> str:
        increasing = all(bool((knots.diff(dim=-1) > 0).all()) for knots in (self.x, self.z))
        return "" if increasing else "knots that do not increase"

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        low, high, start, end, left, right = self._bin(x, self.x)
        rise = (end - start) / (high - low)
        fraction = ((x - low) / (high - low)).clamp(0, 1)
        z, slope = _spline(fraction, rise, left, right)
        z = start + (end - start) * z
        z, slope = _extrapolate(x, z, slope, (low, start, left), (high, end, right))
        return z, slope.log().reshape(len(x), -1).sum(1)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        low, high, start, end, left, right = self._bin(z, self.z)
        rise = (end - start) / (high - low)
        fraction = _inverse_spline(((z - start) / (end - start)).clamp(0, 1), rise, left, right)
        slope = _spline(fraction, rise, left, right)[1]
        x = low + (high - low) * fraction
        x, slope = _extrapolate(z, x, 1 / slope, (start, low, 1 / left), (end, high, 1 / right))
        return x, slope.log().reshape(len(z), -1).sum(1)

    def _bin(self, values: Tensor, knots: Tensor) -> tuple[Tensor, ...]:
        """Return for each value the ends of its bin in x, those in z, and the slopes there."""
        steps = self.z.diff(dim=-1) / self.x.diff(dim=-1)
        inside = (steps[..., 1:] * steps[..., :-1]).sqrt()
        low, high = ((self.z[..., j] - self.z[..., i]) / (self.x[..., j] - self.x[..., i]) for i, j in TAIL_CHORDS)
        slopes = torch.cat([low[..., None], inside, high[..., None]], -1)
        inner = knots[..., 1:-1].contiguous()
        columns = torch.movedim(values, 0, -1).contiguous()
        bins = torch.searchsorted(inner, columns, right=True)

        def look_up(table: Tensor, index: Tensor) -> Tensor:
            return torch.movedim(table.gather(-1, index), -1, 0)

        return tuple(look_up(table, index) for table in (self.x, self.z, slopes) for index in (bins, bins + 1))


def _robust_scale(x: Tensor) -> Tensor:
    """Return the scale of each column of x (n, d) by its quartiles, or its deviation where these coincide, (d,)."""
    low, high = _quantiles(x, x.new_tensor([0.25, 0.75]))
    deviation = x.std(0, correction=0)
    scale = torch.where(high > low, (high - low) / 1.349, deviation)
    min_scale = torch.finfo(x.dtype).eps * 1e4 * x.abs().amax(0)  # knots must differ in the digits that x has
    return torch.maximum(torch.where(scale > 0, scale, 1.0), min_scale)


def _quantiles(x: Tensor, probabilities: Tensor) -> Tensor:
    """Return quantiles of each column of x (n, d), (probabilities, d), as `torch.quantile`, which bounds n."""
    position = probabilities * (len(x) - 1)
    below = position.long().clamp(max=max(len(x) - 2, 0))
    rows = x.sort(0).values
    return torch.lerp(rows[below], rows[(below + 1).clamp(max=len(x) - 1)], (position - below)[:, None])


def _spline(t: Tensor, rise: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the fraction of a bin's height at the fraction t of its width, in [0, 1], and the slope dz/dx there."""
    mixed = t * (1 - t)
    denominator = rise + (left + right - 2 * rise) * mixed
    height = (rise * t.square() + left * mixed) / denominator
    slope = (rise / denominator).square() * (right * t.square() + 2 * rise * mixed + left * (1 - t).square())
    return height, slope


def _inverse_spline(height: Tensor, rise: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Invert `_spline`: return the root in [0, 1] of a quadratic, in the form without cancellation."""
    bend = height * (left + right - 2 * rise)
    a, b, c = rise - left + bend, left - bend, -rise * height
    return 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())


def _extrapolate(
    x: Tensor, y: Tensor, slope: Tensor, low: tuple[Tensor, Tensor, Tensor], high: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Continue linearly outside the bins: `low` and `high` are a bin's end, the map's value, and its slope there."""
    for outside, (end, value, end_slope) in ((x < low[0], low), (x > high[0], high)):
        y = torch.where(outside, value + end_slope * (x - end), y)
        slope = torch.where(outside, end_slope, slope)
    return y, slope
