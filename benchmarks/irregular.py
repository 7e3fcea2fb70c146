"""Fields that are not smooth on the scale of a step, with their log-densities: for `coverage.py`.

Each function takes a seed, and gives a flow with random places, widths and rates, rows, and their log-densities: in
closed form, but for clipped networks (a solve at 1e-11).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ffjord_kit import CNF, Flow, PerRowSolver

ROWS = 60
NORMAL = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
Problem = tuple[Flow, Tensor, Tensor]


class Field(nn.Module):
    """A velocity given as a function of time, shape (batch, 1), and state."""

    def __init__(self, velocity: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.velocity = velocity

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the velocity."""
        return self.velocity(t.reshape(-1, 1), x)


class ClippedNetwork(nn.Module):
    """Two hidden layers of 16 units clipped to [0, 1]: kinks of the velocity, leaps of its trace."""

    def __init__(self, size: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size + 1, 16), nn.Linear(16, 16), nn.Linear(16, size))
        for p in self.requires_grad_(False).parameters():
            width = scale / math.sqrt(p.shape[1]) if p.dim() > 1 else 0.5 * scale
            nn.init.normal_(p, 0.0, width, generator=generator)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the velocity."""
        h = torch.cat([x, t.reshape(-1, 1).expand(len(x), 1)], dim=1)
        for layer in self.layers[:-1]:
            h = layer(h).clamp(0, 1)
        return self.layers[-1](h)


def pulse(seed: int) -> Problem:
    """dx/dt = 2 g(t) x, with g a normal density at a random time, of width 0.005 to 0.1."""
    random, size = _random(seed), 1 + seed % 2
    place, width = 0.05 + 0.9 * random(), _between(0.005, 0.1, random())
    flow = _flow(lambda t, x: 2 * torch.exp(NORMAL.log_prob((t - place) / width)) / width * x, size)
    ends = NORMAL.cdf(torch.tensor([(1 - place) / width, -place / width], dtype=torch.float64))
    return flow, *_grown(seed, size, 2 * float(ends[0] - ends[1]))


def step(seed: int) -> Problem:
    """dx/dt = (0.5 + a [t > t_0]) x."""
    random = _random(seed)
    time, rate = 0.05 + 0.9 * random(), 3 * random()
    flow = _flow(lambda t, x: (0.5 + rate * (t > time).to(x)) * x, 2)
    return flow, *_grown(seed, 2, 0.5 + rate * (1 - time))


def oscillation(seed: int) -> Problem:
    """dx/dt = w/10 sin(w t) x, w from 10 to 2000."""
    frequency = _between(10.0, 2000.0, _random(seed)())
    flow = _flow(lambda t, x: frequency / 10 * torch.sin(frequency * t) * x, 1)
    return flow, *_grown(seed, 1, 0.1 * (1 - math.cos(frequency)))


def bump(seed: int) -> Problem:
    """dx/dt = 3 + 2 exp(-(x - c)^2 / 2 w^2), w from 0.01 to 0.1; the truth by a quadrature of dx / f."""
    random = _random(seed)
    place, width = 3 * random() - 1.5, _between(0.01, 0.1, random())

    def velocity(_: object, x: Tensor) -> Tensor:
        return 3 + 2 * torch.exp(-0.5 * ((x - place) / width) ** 2)

    x, grid = 1.5 + 1.5 * _rows(seed, 1), torch.linspace(-8, 10, 2_000_001, dtype=torch.float64)
    time = torch.cat([grid.new_zeros(1), torch.cumulative_trapezoid(1 / velocity(None, grid), grid)]).numpy()
    then = np.interp(np.interp(x[:, 0].numpy(), grid.numpy(), time) - 1, time, grid.numpy())
    z = torch.from_numpy(then)[:, None]
    return _flow(velocity, 1), x, _normal(z) + torch.log(velocity(None, z) / velocity(None, x))[:, 0]


def wall(seed: int) -> Problem:
    """dx/dt = 1 + a [x > c], a from 0.1 to 2; the trace of the leap is no derivative that autograd sees."""
    random = _random(seed)
    place, rate = 2 * random() - 1, _between(0.1, 2.0, random())
    x = 1 + _rows(seed, 1)
    beyond = ((x - place) / (1 + rate)).clamp(0, 1)
    z = torch.where(x > place, x - (1 + rate) * beyond - (1 - beyond), x - 1)
    crossed = ((x > place) & (beyond < 1))[:, 0]
    flow = _flow(lambda t, x: 1 + rate * (x > place).to(x) + 0 * x, 1)
    return flow, x, _normal(z) - math.log1p(rate) * crossed.to(x)


def clipped_network(seed: int) -> Problem:
    """A random network of clipped units in one, two or three dimensions."""
    size = 1 + seed % 3
    field = ClippedNetwork(size, (1.5, 2.5)[seed % 2], torch.Generator().manual_seed(seed))
    flow, x = Flow([CNF(field, (size,))]).double(), 2 * _rows(seed, size)
    return flow, x, flow.log_prob(x, solver=PerRowSolver(1e-11, 1e-11, max_nfe=10**7))


IRREGULAR = {
    "pulse in time": pulse,
    "bump in space": bump,
    "step in time": step,
    "oscillation in time": oscillation,
    "leap in space": wall,
    "clipped network": clipped_network,
}


def _random(seed: int) -> Callable[[], float]:
    generator = torch.Generator().manual_seed(1000 + seed)
    return lambda: float(torch.rand((), generator=generator))


def _between(low: float, high: float, share: float) -> float:
    return low * (high / low) ** share


def _rows(seed: int, size: int) -> Tensor:
    return torch.randn(ROWS, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _flow(velocity: Callable[[Tensor, Tensor], Tensor], size: int) -> Flow:
    return Flow([CNF(Field(velocity), (size,))]).double()


def _grown(seed: int, size: int, growth: float) -> tuple[Tensor, Tensor]:
    """Rows of a field that multiplies the state by exp(growth), and their log-densities."""
    x = _rows(seed, size)
    return x, _normal(x * math.exp(-growth)) - size * growth


def _normal(z: Tensor) -> Tensor:
    return NORMAL.log_prob(z).sum(1)
