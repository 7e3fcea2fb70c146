r"""CNF, the continuous transform: state, log-determinant and costs, integrated jointly.

    dx/dt = f(t, x),    d log|det dx(t)/dx(t_0)| / dt = tr(df/dx),    d cost/dt = r(x(t), t)

(instantaneous change of variables, Chen et al. 2018, theorem 1; FFJORD, Grathwohl et al. 2019). The transform's clock
runs from 0 at the base to `end_time` at the data. A learned end time T leaves the clock as it is and scales the field,

    dx/ds = k f(k s, x),    s from 0 to end_time,    T = k end_time,    k = exp(log_pace) > 0,

so transforms share the flow's time as before, and costs are integrals over the clock: a longer T is not cheaper.

References:
    Chen et al. 2018, Neural ordinary differential equations, https://arxiv.org/abs/1806.07366.
    Grathwohl et al. 2019, FFJORD, https://arxiv.org/abs/1810.01367.
    Behl et al. 2020, STEER, https://arxiv.org/abs/2006.10711.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ffjord_kit.nn.base import VectorField
from ffjord_kit.nn.potential import Potential, potential_of
from ffjord_kit.noise import fresh_generator
from ffjord_kit.ode import AdaptiveSolver, Solver, SolverStats
from ffjord_kit.ode.field import RightHandSide, State
from ffjord_kit.regularizers import Regularizer
from ffjord_kit.trace import ExactTrace, TraceEstimator, evaluate_field
from ffjord_kit.transforms.base import Transform


@dataclass(frozen=True)
class Path:
    """States and log-determinants at each time of a solve, and the costs along the path.

    Attributes:
        times: Times, shape (T,).
        x: States, shape (T, batch, *event).
        log_det: log|det dx(t)/dx(t_0)|, shape (T, batch), or (T, batch, probe) per probe; None without a trace.
        costs: Costs, >= 0, by name, each of shape (batch,).
        stats: Counts of evaluations and steps.
    """

    times: Tensor
    x: Tensor
    log_det: Tensor | None
    costs: dict[str, Tensor]
    stats: SolverStats

    @property
    def nfe(self) -> int:
        """Evaluations of the dynamics on the way forward."""
        return self.stats.nfe


@dataclass(frozen=True)
class SolveOptions:
    """Options for the integration of continuous transforms.

    Args:
        trace: Trace estimator; None for no log-determinant.
        solver: Solver; the transform's own if None.
        regularizers: Costs along the path, by name.
        generator: Source of the probes' and the end time's noise; None for a fresh one.
        steer: Half-width s of U(T - s T, T + s T), from which the end time T of each solve that begins or ends there is
            drawn (STEER).
        per_probe: Whether each probe has a log-determinant of its own.

    Example:
        >>> from ffjord_kit.nn import ResidualDynamics
        >>> options = SolveOptions(trace=None, solver=AdaptiveSolver("dopri5", rtol=1e-3, atol=1e-3))
        >>> path = CNF(ResidualDynamics((2,)), (2,)).integrate(torch.ones(4, 2), [0.0, 1.0], options=options)
        >>> path.x.shape, path.log_det is None
        (torch.Size([2, 4, 2]), True)

    References:
        Behl et al. 2020, STEER, https://arxiv.org/abs/2006.10711.
    """

    trace: TraceEstimator | None = field(default_factory=ExactTrace)
    solver: Solver | None = None
    regularizers: Mapping[str, Regularizer] = field(default_factory=dict)
    generator: torch.Generator | None = None
    steer: float = 0.0
    per_probe: bool = False

    def steered(self, clock: Tensor, end_time: float) -> Tensor:
        """Draw the end time of a solve at random where `steer` is positive.

        Args:
            clock: Times of the solve, shape (T,).
            end_time: The transform's end time.

        Returns:
            The times, shape (T,), with the end time replaced.
        """
        if not self.steer:
            return clock
        generator = self.generator or fresh_generator()
        shift = 2 * float(torch.rand((), generator=generator, device=generator.device)) - 1
        return torch.where(clock == end_time, end_time * (1 + self.steer * shift), clock)


class PacedField(Potential):
    """A vector field at a learned pace k, k f(k t, x, context); its potential, if f has one, is k Phi(k t, x, context).

    Args:
        dynamics: Vector field f.

    Example:
        >>> from ffjord_kit.nn import ResidualDynamics
        >>> PacedField(ResidualDynamics((2,))).pace.item()
        1.0
    """

    def __init__(self, dynamics: nn.Module) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.log_pace = nn.Parameter(torch.zeros(()))

    @property
    def pace(self) -> Tensor:
        """Pace k > 0, ()."""
        return self.log_pace.exp()

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the velocity.

        Args:
            t: Reading of the clock, () or (batch,).
            x: States, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            dx/ds, shape (batch, *event).
        """
        return self.pace * self.dynamics(self.pace * t, x, context)

    def jvp(self, t: Tensor, x: Tensor, tangents: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        point = evaluate_field(self.dynamics, self.pace * t, x, tangents, context)
        return self.pace * point.dx, self.pace * point.products

    def potential(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.pace * potential_of(self.dynamics)(self.pace * t, x, context)


class CNF(Transform):
    r"""A continuous transform: the flow of dx/dt = f(t, x, context) from t = 0 at the base to T at the data.

        log|det dx(T)/dx(0)| = integral of tr(df/dx) dt from 0 to T

    Args:
        dynamics: Vector field f, any `nn.Module` with f(t, x, context) -> dx/dt.
        event_shape: Shape of an event.
        solver: Solver; `AdaptiveSolver()` if None.
        end_time: End time T, > 0.
        learn_end_time: Whether T is learned, starting from `end_time`.

    Raises:
        ValueError: If `end_time` is not positive; from a solve, if a shape does not fit.
        SolveError: From a solve that cannot go on.

    Example:
        >>> class Decay(nn.Module):
        ...     def forward(self, t, x, context=None):
        ...         return -x
        >>> with torch.no_grad():
        ...     CNF(Decay(), (2,)).to_data(torch.ones(1, 2))  # exp(-1), and the trace -2 integrated over [0, 1]
        (tensor([[0.3679, 0.3679]]), tensor([-2.0000]))

    References:
        Grathwohl et al. 2019, FFJORD, https://arxiv.org/abs/1810.01367.
    """

    event_shape: tuple[int, ...]

    def __init__(
        self,
        dynamics: nn.Module,
        event_shape: Sequence[int],
        *,
        solver: Solver | None = None,
        end_time: float = 1.0,
        learn_end_time: bool = False,
    ) -> None:
        super().__init__()
        if not end_time > 0:
            raise ValueError(f"end_time must be positive; got {end_time}")
        self.dynamics = PacedField(dynamics) if learn_end_time else dynamics
        self.event_shape = tuple(event_shape)
        self.solver = solver or AdaptiveSolver()
        self.method = (
            self.solver.method if isinstance(self.solver.method, nn.Module) else None
        )  # learned with the field
        self.end_time = self.duration = end_time

    @property
    def learned_end_time(self) -> Tensor:
        """End time T of the dynamics, (), with a gradient where it is learned."""
        pace = self.dynamics.pace if isinstance(self.dynamics, PacedField) else torch.ones(())
        return self.end_time * pace

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        path = self.integrate(x, [self.end_time, 0.0], context=context)
        return path.x[-1], cast(Tensor, path.log_det)[-1]

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        path = self.integrate(z, [0.0, self.end_time], context=context)
        return path.x[-1], cast(Tensor, path.log_det)[-1]

    def integrate(
        self,
        x: Tensor,
        times: Sequence[float] | Tensor,
        *,
        context: Tensor | None = None,
        options: SolveOptions | None = None,
    ) -> Path:
        """Integrate from times[0] through every other time; the order of the times is the direction.

        Args:
            x: States at times[0], shape (batch, *event).
            times: Readings of the clock, shape (T,), strictly monotonic, T >= 2.
            context: Contexts, shape (batch, context_dim), or None.
            options: Trace, solver, costs and noise; exact trace and the transform's solver if None.

        Returns:
            States, log-determinants and costs along the path.

        Raises:
            ValueError: If a shape does not fit or the times do not run one way.
            SolveError: If the solve cannot go on.
        """
        options = options or SolveOptions()
        if torch.is_inference_mode_enabled():  # where autograd, which gives the trace, cannot record
            with torch.inference_mode(False), torch.no_grad():
                context = None if context is None else context.clone()
                return self.integrate(x.clone(), times, context=context, options=options)
        clock = torch.as_tensor(times, dtype=torch.float32 if x.device.type == "mps" else torch.float64)
        clock = options.steered(clock, self.end_time)
        for_rows, state = self._initial_value_problem(x, context, options, 1.0 if clock[-1] > clock[0] else -1.0)
        params = [*self.dynamics.parameters(), *([] if context is None else [context])]
        solver = options.solver or self.solver
        states, stats = solver.solve(for_rows(None), state, clock, params=params, error_components=2, for_rows=for_rows)
        log_det = None if options.trace is None else states[1]
        costs = {name: values[-1] for name, values in zip(options.regularizers, states[2:], strict=True)}
        return Path(clock, states[0], log_det, costs, stats)

    def _initial_value_problem(
        self, x: Tensor, context: Tensor | None, options: SolveOptions, sign: float
    ) -> tuple[Callable[[Tensor | None], RightHandSide], State]:
        """Return the right-hand side of some rows (None for all), and the initial state; draw the probes, once."""
        if options.trace is None:
            return partial(self._velocity_of_rows, context), (x,)
        probes = options.trace.draw(x, options.generator)
        costs = [x.new_zeros(len(x)) for _ in options.regularizers]
        log_det = x.new_zeros(len(x), len(probes)) if options.per_probe else x.new_zeros(len(x))
        return partial(self._joint_field_of_rows, context, probes, options, sign), (x, log_det, *costs)

    def _velocity_of_rows(self, context: Tensor | None, rows: Tensor | None) -> RightHandSide:
        own = _select(context, rows)
        return lambda t, state: (self.dynamics(t, state[0], own),)

    def _joint_field_of_rows(
        self,
        context: Tensor | None,
        probes: Tensor,
        options: SolveOptions,
        sign: float,
        rows: Tensor | None,
    ) -> RightHandSide:
        """Return the joint right-hand side of rows; `sign` is that of time, so that costs grow in both directions."""
        own, own_probes = _select(context, rows), probes if rows is None or probes.shape[1] == 1 else probes[:, rows]
        dynamics, only_trace = self.dynamics, not (options.per_probe or options.regularizers)
        if only_trace and isinstance(options.trace, ExactTrace) and isinstance(dynamics, VectorField):
            return lambda t, state: dynamics.divergence(t, state[0], own)

        def rhs(t: Tensor, state: State) -> State:
            point = evaluate_field(dynamics, t, state[0], own_probes, own)
            traces = point.traces if options.per_probe else point.trace
            return (point.dx, traces, *(sign * cost(point) for cost in options.regularizers.values()))

        return rhs


def _select(context: Tensor | None, rows: Tensor | None) -> Tensor | None:
    return context if context is None or rows is None else context[rows]
