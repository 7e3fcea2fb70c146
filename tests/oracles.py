r"""Closed forms against which the tests compare the package.

Linear dynamics  x' = s(t) (A x + u),  u = b + C c,  s(t) = 1 + rate t,  reach tau = int s dt from t_0 to t_1, with

    x(t_1) = E x(t_0) + F u,    [[E, F], [0, I]] = exp([[A, I], [0, 0]] tau),    int tr J dt = tau tr A,

and an estimated trace integrates to tau sum_k v_k^T A v_k.
"""

import math

import torch
from torch import Tensor, nn

from ffjord_kit.flow import Flow
from ffjord_kit.ode import ADJOINTS, Solver
from ffjord_kit.transforms import CNF, Softplus, Standardize, Transform, Whiten

F64 = torch.float64
ADAPTIVE_ADJOINTS = tuple(word for word in ADJOINTS if word != "reversible")  # which needs fixed steps


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Draw standard normal numbers in float64 from a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def affine_flow(a: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Return E and F, each (D, D), of x(t_1) = E x(t_0) + F u."""
    size = len(a)
    top = torch.cat([a, torch.eye(size, dtype=a.dtype)], 1)
    both = torch.matrix_exp(torch.cat([top, torch.zeros_like(top)]) * reach)
    return both[:size, :size], both[:size, size:]


class LinearDynamics(nn.Module):
    """x' = s(t) (A x + b + C context) on flattened events, with its exact flow."""

    def __init__(self, a: Tensor, b: Tensor | None = None, c: Tensor | None = None, *, rate: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(a.clone())
        self.b = nn.Parameter((torch.zeros(len(a), dtype=a.dtype) if b is None else b).clone())
        self.c = None if c is None else nn.Parameter(c.clone())
        self.rate = rate

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        slope = x.reshape(len(x), -1) @ self.a.T + self.drift(context)
        return ((1 + self.rate * t).reshape(-1, 1) * slope).reshape(x.shape)

    def drift(self, context: Tensor | None = None) -> Tensor:
        return self.b if context is None else self.b + context @ self.c.T

    def reach(self, start: float, end: float) -> float:
        return end - start + self.rate * (end**2 - start**2) / 2

    def flow(self, x: Tensor, start: float, end: float, context: Tensor | None = None) -> Tensor:
        """Return the exact state at `end` of x, the state at `start`."""
        growth, shift = affine_flow(self.a, self.reach(start, end))
        moved = x.reshape(len(x), -1) @ growth.T + self.drift(context) @ shift.T
        return moved.reshape(x.shape)

    def log_det(self, start: float, end: float, probes: Tensor | None = None) -> Tensor:
        """Return the integral of the trace: exact, (), or estimated by probes (probe, batch, *event), (batch,)."""
        if probes is None:
            return self.reach(start, end) * self.a.trace()
        v = probes.flatten(2)
        return self.reach(start, end) * torch.einsum("kbi,ij,kbj->b", v, self.a, v)

    def log_prob(self, x: Tensor, end: float, context: Tensor | None = None, probes: Tensor | None = None) -> Tensor:
        """Return the log-density at x of the flow from a standard normal at 0 to `end`, (batch,)."""
        return standard_normal(self.flow(x, end, 0.0, context)) - self.log_det(0.0, end, probes)


def standard_normal(z: Tensor) -> Tensor:
    """Return the log-density of the standard normal over events, (batch,)."""
    z = z.reshape(len(z), -1)
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))


def linear(size: int, *, context_dim: int = 0, rate: float = 0.0, seed: int = 0) -> LinearDynamics:
    """Make random linear dynamics of moderate strength, with a shift and, for context_dim > 0, a context."""
    c = 0.5 * randn(size, context_dim, seed=seed + 3) if context_dim else None
    return LinearDynamics(randn(size, size, seed=seed + 1) / math.sqrt(size), randn(size, seed=seed + 2), c, rate=rate)


class Stack:
    """Two continuous transforms of different length, exact ones around and between them, and the closed form."""

    def __init__(self, solver: Solver) -> None:
        self.outer, self.inner = linear(2, rate=0.5, seed=1), linear(2, rate=-0.2, seed=2)
        self.top = Softplus(torch.tensor([-1.0, -torch.inf], dtype=F64))
        self.between = Whiten(randn(2), torch.tensor([[0.8, 0.0], [0.4, 1.3]], dtype=F64))
        self.bottom = Standardize(randn(2, seed=3), torch.tensor([0.7, 1.6], dtype=F64))
        cnfs = [CNF(self.outer, (2,), solver=solver, end_time=0.7), CNF(self.inner, (2,), solver=solver, end_time=1.8)]
        self.flow = Flow([self.top, cnfs[0], self.between, cnfs[1], self.bottom]).double()

    def at(self, z: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """Return the state at `time`, in the units of the data, of z at the base, and its log-density under p_time."""
        x, low = self.bottom.to_data(z)
        reached = min(time * 2.5, 1.8)
        x, middle = self.between.to_data(self.inner.flow(x, 0.0, reached))
        x, high = self.top.to_data(self.outer.flow(x, 0.0, max(time * 2.5 - 1.8, 0.0)))
        moved = self.inner.log_det(0.0, reached) + self.outer.log_det(0.0, max(time * 2.5 - 1.8, 0.0))
        return x, standard_normal(z) - low - middle - high - moved


class SmoothMLP(nn.Module):
    """A small smooth field of x, t and the context, in float64, with random weights of order one."""

    def __init__(
        self, size: int = 2, *, hidden: int = 6, context_dim: int = 0, seed: int = 0, scale: float = 0.7
    ) -> None:
        super().__init__()
        self.input_weight = nn.Parameter(scale * randn(hidden, size + 1 + context_dim, seed=seed))
        self.bias = nn.Parameter(scale * randn(hidden, seed=seed + 1))
        self.output_weight = nn.Parameter(scale * randn(size, hidden, seed=seed + 2) / math.sqrt(hidden))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        time = t.reshape(-1, 1).to(x).expand(len(x), 1)
        parts = [x.reshape(len(x), -1), time] + ([] if context is None else [context])
        return (torch.tanh(torch.cat(parts, 1) @ self.input_weight.T + self.bias) @ self.output_weight.T).reshape(
            x.shape
        )


class GaussianTransport(nn.Module):
    """The field that carries N(m_0, s_0^2) to N(m_1, s_1^2) along linear paths: f(t, x) = E[x_1 - x_0 | x_t = x].

    With v(t) = (1 - t)^2 s_0^2 + t^2 s_1^2 and the mean m_t of x_t, it is

        m_1 - m_0 + (t s_1^2 - (1 - t) s_0^2) (x - m_t) / v(t),

    and the conditional variance of x_1 - x_0 given x_t is s_0^2 s_1^2 / v(t) for each element.
    """

    def __init__(self, end: tuple[float, float], start: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        self.start, self.end = start, end
        self.shift = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        t = t.reshape(-1, *[1] * (x.dim() - 1)).to(x)
        (m0, s0), (m1, s1) = self.start, self.end
        centred = x - (1 - t) * m0 - t * m1
        return m1 - m0 + self.shift + (t * s1**2 - (1 - t) * s0**2) * centred / self.variance(t)

    def variance(self, t: Tensor) -> Tensor:
        return ((1 - t) * self.start[1]) ** 2 + (t * self.end[1]) ** 2

    def remainder(self, t: Tensor) -> Tensor:
        """Return the least expected squared error of an element at time t."""
        return (self.start[1] * self.end[1]) ** 2 / self.variance(t)


class LearntAffine(Transform):
    """An exact transform with learnable weights: z = (x - shift - context) exp(-log_scale)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.event_shape = (size,)
        self.shift, self.log_scale = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(size))

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift = self.shift if context is None else self.shift + context
        return (x - shift) * (-self.log_scale).exp(), -self.log_scale.sum().expand(len(x))

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift = self.shift if context is None else self.shift + context
        return z * self.log_scale.exp() + shift, self.log_scale.sum().expand(len(z))


class Recorder(nn.Module):
    """Dynamics that also record the times of their evaluations."""

    def __init__(self, dynamics: nn.Module) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.times: list[Tensor] = []

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.times.append(t.detach().clone())
        return self.dynamics(t, x, context)


def gaussian_mixture(means: Tensor, scale: float) -> torch.distributions.MixtureSameFamily:
    """Return an equal mixture of isotropic Gaussians at the means (count, D)."""
    d = torch.distributions
    parts = d.Independent(d.Normal(means, torch.full_like(means, scale)), 1)
    return d.MixtureSameFamily(d.Categorical(torch.ones(len(means), dtype=means.dtype)), parts)


def jacobian(function, x: Tensor) -> Tensor:
    """Return the Jacobian of each row, (batch, D, D), of a row-wise function (batch, *event) -> (batch, *event)."""
    rows = [
        torch.autograd.functional.jacobian(lambda y: function(y.reshape(1, *x.shape[1:])).reshape(-1), row.reshape(-1))
        for row in x
    ]
    return torch.stack(rows)


def difference_along(function, value: Tensor, direction: Tensor, step: float = 1e-5) -> float:
    """Return the central difference of the scalar function() as `value` moves, in place, along `direction`."""
    with torch.no_grad():
        kept = value.clone()
        value.copy_(kept + step * direction)
        above = float(function())
        value.copy_(kept - step * direction)
        below = float(function())
        value.copy_(kept)
    return (above - below) / (2 * step)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-7) -> None:
    """Raise AssertionError unless shapes and dtypes are equal and the values agree, relatively or absolutely."""
    torch.testing.assert_close(got.detach(), expected.detach(), rtol=tolerance, atol=tolerance)
