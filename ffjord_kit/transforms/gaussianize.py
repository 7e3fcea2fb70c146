r"""Gaussianize: each element of the event through a monotone map that makes it nearly normal.

    z = s(x),    log|det dz/dx| = sum log s'(x)

The map joins the quantiles of a sample to those of the standard normal law at KNOTS equally spaced z by a monotone
rational-quadratic spline with one continuous derivative (Gregory & Delbourgo 1982; Durkan et al. 2019), and goes on
in straight lines. It is marginal Gaussianization (Chen & Gopinath 2000): edges, skew and heavy tails of single columns
are gone before a network sees them, and what is left to learn is how the columns depend on each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ffjord_kit.transforms.base import Transform

KNOTS = 33
HIGHEST = 3.5  # the outermost knots, in deviations of the normal law, where rows suffice
TAIL_ROWS = 3  # beyond each of the outermost knots
STEEPEST = 100.0  # slope of the map, in units of one over the column's scale: ties are no quantiles to follow
TAILS = ((0, 6), (-7, -1))  # the knots whose chord the straight lines go on: single rows would say too little


class Gaussianize(Transform):
    """A monotone spline for each element, from values `x` to values `z` of increasing knots, linear beyond them.

    Shapes: x, z (*event, knots).
    """

    def __init__(self, x: Tensor, z: Tensor) -> None:
        super().__init__()
        self.event_shape = tuple(x.shape[:-1])
        self.register_buffer("x", x)
        self.register_buffer("z", z)

    @classmethod
    def of(cls, x: Tensor) -> Gaussianize:
        """the transform that makes each element of the rows of x (n, *event) nearly standard normal."""
        highest = min(HIGHEST, float(torch.special.ndtri(torch.tensor(1 - TAIL_ROWS / max(len(x), 12)))))
        z = torch.linspace(-highest, highest, KNOTS, dtype=x.dtype)
        values = _quantiles(x.flatten(1), torch.special.ndtr(z)).T
        least = _scale(x.flatten(1))[:, None] / STEEPEST * (z - z[0])
        values = torch.cummax(values - least, dim=1).values + least
        return cls(values.reshape(*x.shape[1:], KNOTS), z.expand(*x.shape[1:], KNOTS).clone())

    @classmethod
    def blank(cls, zeros: Tensor) -> Gaussianize:
        """The identity, for elements of the shape of `zeros`."""
        z = torch.linspace(-HIGHEST, HIGHEST, KNOTS, dtype=zeros.dtype).expand(*zeros.shape, KNOTS)
        return cls(z.clone(), z.clone())

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        low, high, start, end, left, right = self._bin(x, self.x)
        rise = (end - start) / (high - low)
        place = ((x - low) / (high - low)).clamp(0, 1)
        z, slope = _between(place, rise, left, right)
        z = start + (end - start) * z
        z, slope = _beyond(x, z, slope, (low, start, left), (high, end, right))
        return z, slope.log().reshape(len(x), -1).sum(1)

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        low, high, start, end, left, right = self._bin(z, self.z)
        rise = (end - start) / (high - low)
        place = _place(((z - start) / (end - start)).clamp(0, 1), rise, left, right)
        slope = _between(place, rise, left, right)[1]
        x, slope = _beyond(z, low + (high - low) * place, 1 / slope, (start, low, 1 / left), (end, high, 1 / right))
        return x, slope.log().reshape(len(z), -1).sum(1)

    def _bin(self, values: Tensor, knots: Tensor) -> tuple[Tensor, ...]:
        """For each value its bin's ends in x, its ends in z, and the slopes there."""
        steps = self.z.diff(dim=-1) / self.x.diff(dim=-1)
        inside = (steps[..., 1:] * steps[..., :-1]).sqrt()
        low, high = ((self.z[..., j] - self.z[..., i]) / (self.x[..., j] - self.x[..., i]) for i, j in TAILS)
        slopes = torch.cat([low[..., None], inside, high[..., None]], -1)
        inner = knots[..., 1:-1].contiguous()
        columns = torch.movedim(values, 0, -1).contiguous()
        which = torch.searchsorted(inner, columns, right=True)

        def at(table: Tensor, index: Tensor) -> Tensor:
            return torch.movedim(table.gather(-1, index), -1, 0)

        return tuple(at(table, index) for table in (self.x, self.z, slopes) for index in (which, which + 1))


def _scale(x: Tensor) -> Tensor:
    """That of the middle half of each column of x (n, d), which outliers do not move; of all of it where that is 0."""
    low, high = _quantiles(x, x.new_tensor([0.25, 0.75]))
    deviation = x.std(0, correction=0)
    scale = torch.where(high > low, (high - low) / 1.349, deviation)
    least = torch.finfo(x.dtype).eps * 1e4 * x.abs().amax(0)  # knots must differ in the digits that x has
    return torch.maximum(torch.where(scale > 0, scale, 1.0), least)


def _quantiles(x: Tensor, probabilities: Tensor) -> Tensor:
    """Those of each column of x (n, d), (probabilities, d), linear between the rows; `torch.quantile` bounds n."""
    place = probabilities * (len(x) - 1)
    below = place.long().clamp(max=max(len(x) - 2, 0))
    rows = x.sort(0).values
    return torch.lerp(rows[below], rows[(below + 1).clamp(max=len(x) - 1)], (place - below)[:, None])


def _between(place: Tensor, rise: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """How far up a bin, in [0, 1], at a place across it, and the slope there."""
    rest = place * (1 - place)
    below = rise + (left + right - 2 * rise) * rest
    up = (rise * place.square() + left * rest) / below
    slope = (rise / below).square() * (right * place.square() + 2 * rise * rest + left * (1 - place).square())
    return up, slope


def _place(up: Tensor, rise: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The inverse of `_between`: the root in [0, 1] of a quadratic, in the form that does not cancel."""
    bend = up * (left + right - 2 * rise)
    a, b, c = rise - left + bend, left - bend, -rise * up
    return 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())


def _beyond(
    x: Tensor, y: Tensor, slope: Tensor, low: tuple[Tensor, Tensor, Tensor], high: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Straight lines outside the bins: `low` and `high` are a bin's end, the map's value, and its slope there."""
    for outside, (end, value, steep) in ((x < low[0], low), (x > high[0], high)):
        y = torch.where(outside, value + steep * (x - end), y)
        slope = torch.where(outside, steep, slope)
    return y, slope
