r"""Flow: layers over a base distribution.

    log p(x) = log p_base(z) + log|det dz/dx|,    z = to_base(x)

Conventions: base at t = 0, data at t = 1, the continuous layers share the time between in proportion to their own
end times, and exact layers take none. States along the way are shown in the units of the data: p_t is the law of a
sample whose continuous layers were stopped at t, so p_1 is the model and p_0 the base seen through the exact layers
alone. Log-densities are (batch,) and in the units of the data; costs are >= 0 in both directions; noise comes from a
generator, never from the global state; a call leaves nothing behind on a module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ffjord_kit.accuracy import Asked, LogDensity, log_density
from ffjord_kit.base import Base, StandardNormal, as_base
from ffjord_kit.cnf import Integration
from ffjord_kit.layers import Layer
from ffjord_kit.route import Leg, between, descent, layer_at, to_base_legs, upward
from ffjord_kit.solver import Evaluations, Solver
from ffjord_kit.trace import ExactTrace, TraceEstimator


class Moved(NamedTuple):
    """A state after its way through layers: log_det (batch,) or None, costs name -> (batch,)."""

    x: Tensor
    log_det: Tensor | None
    costs: dict[str, Tensor]
    evaluations: tuple[Evaluations, ...]

    @property
    def nfe(self) -> int:
        """Evaluations of the dynamics on the way forward, over all layers."""
        return sum(e.forward for e in self.evaluations)


@dataclass(frozen=True)
class Trajectory:
    """States and their log-densities under p_t at the times: times (T,), x (T, batch, *event), log_prob (T, batch)."""

    times: Tensor
    x: Tensor
    log_prob: Tensor
    nfe: int


class Flow(nn.Module):
    """A distribution: layers, listed from data to base, over a base distribution.

    The base is standard normal if None; any `torch.distributions` object is accepted. `context_dim` is the length of
    the vectors that a conditional flow is given (0: unconditional); `context_layer` maps them first (to standardize).
    Deterministic unless a stochastic trace estimator is passed.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        base: Base | Distribution | None = None,
        context_dim: int = 0,
        context_layer: Layer | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.base = StandardNormal(_event_shape(layers)) if base is None else as_base(base)
        self.context_dim = context_dim
        self.context_layer = context_layer

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one event."""
        return self.base.event_shape

    def log_prob(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        time: float = 1.0,
        trace: TraceEstimator | None = None,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Log-density of x under p_time, (batch,), in nats per event and the units of the data.

        Shapes: x (batch, *event), context (batch, context_dim). Exact trace if `trace` is None.
        """
        how = Integration(trace=trace or ExactTrace(), solver=solver, generator=generator)
        return self.evaluate_log_prob(x, context, time=time, integration=how)[0]

    def evaluate_log_prob(
        self, x: Tensor, context: Tensor | None = None, *, time: float = 1.0, integration: Integration | None = None
    ) -> tuple[Tensor, Moved]:
        """The log-density (batch,), and the way to the base that gave it: z, log_det, costs and evaluations."""
        self.check(x, context)
        _check_times([time])
        moved = self._carry(x, to_base_legs(self.layers, time), context, integration or Integration())
        return self.base.log_prob(moved.x) + moved.log_det, moved

    def evaluate(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        time: float = 1.0,
        tolerance: float = 1e-5,
        probes: int | None = None,
        error: float | None = None,
        generator: torch.Generator | None = None,
        max_nfe: int = 10_000,
        forgiving: bool = False,
    ) -> LogDensity:
        """Log-densities under p_time, nats in the units of the data, each with its error; no gradients.

        Each row by adaptive steps of its own at the tolerance; the exact trace, or `probes` of Hutchinson's. Where an
        `error` is asked for, tolerance and probes follow, row by row, until it is met; the result says where it is not.
        A row whose solve cannot go on raises SolveError; with `forgiving` its value is NaN, and the others are solved.
        Shapes: x (batch, *event), context (batch, context_dim).
        Raises ValueError for what cannot be asked.
        """
        self.check(x, context)
        _check_times([time])
        asked, legs = Asked(tolerance, probes, error, max_nfe, forgiving), to_base_legs(self.layers, time)

        def way(x: Tensor, context: Tensor | None, how: Integration) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            moved, none = self._carry(x, legs, context, how), torch.zeros(len(x), dtype=torch.long, device=x.device)
            taken = sum((evaluations.taken for evaluations in moved.evaluations), none)
            refused = sum((evaluations.refused for evaluations in moved.evaluations), none)
            return moved.x, moved.log_det, taken, refused

        with torch.inference_mode(False), torch.no_grad():
            context = None if context is None else context.clone()
            return log_density(way, self.base, x.clone(), context, asked, generator)

    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        *,
        time: float = 1.0,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw (n, *event) from p_time; one context (context_dim,) for all, or one for each (n, context_dim)."""
        _check_times([time])
        z, context = self._draw(n, context, generator)
        how = Integration(trace=None, solver=solver)
        return self._carry(z, upward(to_base_legs(self.layers, time)), context, how).x

    def sample_with_log_prob(
        self,
        n: int,
        context: Tensor | None = None,
        *,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw (n, *event) with their log-densities (n,), in one solve."""
        z, context = self._draw(n, context, generator)
        moved = self._carry(z, upward(to_base_legs(self.layers)), context, Integration(solver=solver))
        return moved.x, self.base.log_prob(z) - moved.log_det

    def to_base(
        self, x: Tensor, context: Tensor | None = None, *, integration: Integration | None = None
    ) -> tuple[Tensor, Tensor]:
        """z and log|det dz/dx|, (batch,), for x (batch, *event)."""
        self.check(x, context)
        return self._carry(x, to_base_legs(self.layers), context, integration or Integration())[:2]

    def to_data(
        self,
        z: Tensor,
        context: Tensor | None = None,
        *,
        time: float = 1.0,
        integration: Integration | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x, or its state at `time`, and log|det dx/dz|, (batch,), for z (batch, *event)."""
        self.check(z, context)
        _check_times([time])
        return self._carry(z, upward(to_base_legs(self.layers, time)), context, integration or Integration())[:2]

    def trajectory(
        self,
        x: Tensor,
        times: Sequence[float],
        context: Tensor | None = None,
        *,
        trace: TraceEstimator | None = None,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
    ) -> Trajectory:
        """Follow x, a state at times[0] in the units of the data, through the times, with log p_t along the way.

        Shapes: x (batch, *event), times (T,) within [0, 1], context (batch, context_dim).
        Raises ValueError for times outside [0, 1].
        """
        self.check(x, context)
        _check_times(times)
        how = Integration(trace=trace or ExactTrace(), solver=solver, generator=generator)
        log_prob, first = self.evaluate_log_prob(x, context, time=times[0], integration=how)
        states, log_probs, nfe = [x], [log_prob], first.nfe
        for start, end in zip(times[:-1], times[1:], strict=True):
            moved = self._carry(states[-1], between(self.layers, start, end), context, how)
            states.append(moved.x)
            log_probs.append(log_probs[-1] - moved.log_det)
            nfe += moved.nfe
        return Trajectory(torch.as_tensor(times), torch.stack(states), torch.stack(log_probs), nfe)

    def velocity(self, x: Tensor, time: float, context: Tensor | None = None) -> Tensor:
        """dx/dt, (batch, *event), of the state x at `time`, both in the units of the data; it carries no gradient."""
        self.check(x, context)
        _check_times([time])
        legs, stop = descent(self.layers, time, time), layer_at(self.layers, time)
        with torch.inference_mode(False), torch.enable_grad():
            context = self.scaled_context(None if context is None else context.clone())
            inner = self._pass(x.clone(), legs, context)
            slope = stop.layer.dynamics(torch.as_tensor(stop.clock).to(x), inner, context) * stop.rate
            return torch.autograd.functional.jvp(lambda y: self._pass(y, upward(legs), context), inner, slope)[1]

    def grad_log_prob(
        self, x: Tensor, context: Tensor | None = None, *, solver: Solver | None = None, create_graph: bool = False
    ) -> Tensor:
        """The score d log p(x) / dx, (batch, *event); differentiable again with `create_graph`."""
        with torch.inference_mode(False), torch.enable_grad():
            point = x if x.requires_grad and create_graph else x.detach().clone().requires_grad_()
            total = self.log_prob(point, None if context is None else context.clone(), solver=solver).sum()
            return torch.autograd.grad(total, point, create_graph=create_graph)[0]

    def check(self, x: Tensor, context: Tensor | None) -> None:
        """Raise ValueError unless x is a tensor (batch, *event), batch >= 1, and context what this flow takes."""
        if not all(isinstance(value, Tensor) for value in (x, x if context is None else context)):
            raise ValueError("a flow takes torch tensors: pass torch.as_tensor(...), or use FFJORD for arrays")
        if tuple(x.shape[1:]) != self.event_shape or x.dim() == 0 or len(x) == 0:
            expected = ", ".join(map(str, ("batch >= 1", *self.event_shape)))
            raise ValueError(f"expected events of shape ({expected}); got {tuple(x.shape)}")
        given = None if context is None else tuple(context.shape)
        if not self.context_dim and given is not None:
            raise ValueError(f"this flow takes no context; got one of shape {given}: leave it out")
        if self.context_dim and given != (len(x), self.context_dim):
            raise ValueError(f"context must have shape {(len(x), self.context_dim)}; got {given}")

    def _draw(self, n: int, context: Tensor | None, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        if n < 1:
            raise ValueError(f"the number of samples must be at least 1; got {n}")
        z = self.base.sample(n, generator)
        if context is not None and context.dim() == 1:
            context = context.expand(n, -1)
        self.check(z, context)
        return z, context

    def _carry(self, x: Tensor, legs: Sequence[Leg], context: Tensor | None, how: Integration) -> Moved:
        context = self.scaled_context(context)
        log_det, costs, evaluations = x.new_zeros((len(x), 1) if how.apart else len(x)), {}, []
        for leg in legs:
            if leg.times is None:
                x, step = leg.map(x, context)
                step = step[:, None] if how.apart else step
            else:
                path = leg.layer.transport(x, leg.times, context=context, integration=how)
                x, step = path.x[-1], None if path.log_det is None else path.log_det[-1]
                costs = {name: cost + costs.get(name, 0.0) for name, cost in path.costs.items()}
                evaluations.append(path.evaluations)
            log_det = None if log_det is None or step is None else log_det + step
        return Moved(x, log_det, costs, tuple(evaluations))

    def _pass(self, x: Tensor, legs: Sequence[Leg], context: Tensor | None) -> Tensor:
        for leg in legs:
            x = leg.map(x, context)[0]
        return x

    def scaled_context(self, context: Tensor | None) -> Tensor | None:
        """The context as the layers see it, (batch, context_dim)."""
        if context is None or self.context_layer is None:
            return context
        return self.context_layer.to_base(context)[0]


def _check_times(times: Sequence[float]) -> None:
    if not all(0 <= float(time) <= 1 for time in times):
        raise ValueError(f"times must lie in [0, 1], from base to data; got {[float(time) for time in times]}")


def _event_shape(layers: Sequence[Layer]) -> tuple[int, ...]:
    shapes = [layer.event_shape for layer in layers if layer.event_shape is not None]
    if not shapes:
        raise ValueError("no layer knows its event_shape: pass base=, a distribution with one")
    return shapes[-1]
