r"""CNF, the continuous layer: state, log-determinant and costs, integrated jointly.

    dx/dt = f(t, x),    d log|det dx(t)/dx(t_0)| / dt = tr(df/dx),    d cost/dt = r(x(t), t)

(instantaneous change of variables, Chen et al. 2018, theorem 1; FFJORD, Grathwohl et al. 2019). The layer's own clock
runs from 0 at the base to `end_time` at the data. Where the end time is learned, T, the clock stays as it is, and the
dynamics that it drives are those at another pace, a field like any other:

    dx/ds = k f(k s, x),    s from 0 to end_time,    T = k end_time,    k = exp(log_pace) > 0.

So layers share the flow's time as before, and costs are those of the clock: a longer T is no cheaper way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from ffjord_kit.nn.base import VectorField
from ffjord_kit.nn.potential import Potential, potential_of
from ffjord_kit.noise import fresh_generator
from ffjord_kit.ode import Solver, SolverStats, AdaptiveSolver
from ffjord_kit.ode.field import RightHandSide, RowSelector, State
from ffjord_kit.regularizers import Regularizer
from ffjord_kit.trace import ExactTrace, TraceEstimator, evaluate_field
from ffjord_kit.transforms.base import Transform


@dataclass(frozen=True)
class Path:
    """What one solve returns: states and log-determinants from times[0] on, and the costs of the way.

    Shapes: times (T,), x (T, batch, *event), log_det (T, batch) or None where no trace was asked for, with probes kept
    per_probe (T, batch, probe), costs name -> (batch,), each >= 0.
    """

    times: Tensor
    x: Tensor
    log_det: Tensor | None
    costs: dict[str, Tensor]
    stats: SolverStats

    @property
    def nfe(self) -> int:
        """SolverStats of the dynamics on the way forward."""
        return self.stats.nfe


@dataclass(frozen=True)
class SolveOptions:
    """How continuous layers are integrated: the trace (None: no log-determinant), solver, costs and noise.

    With `steer` each solve that begins or ends at a layer's end time T does so at one from U(T - steer T, T + steer T)
    (Behl et al. 2020). With `per_probe` each probe has a log-determinant of its own.
    """

    trace: TraceEstimator | None = field(default_factory=ExactTrace)
    solver: Solver | None = None
    regularizers: Mapping[str, Regularizer] = field(default_factory=dict)
    generator: torch.Generator | None = None
    steer: float = 0.0
    per_probe: bool = False

    def steered(self, clock: Tensor, end_time: float) -> Tensor:
        """The clock (T,) with its end time drawn anew."""
        if not self.steer:
            return clock
        generator = self.generator or fresh_generator()
        shift = 2 * float(torch.rand((), generator=generator, device=generator.device)) - 1
        return torch.where(clock == end_time, end_time * (1 + self.steer * shift), clock)


class PacedField(Potential):
    """Dynamics at a learned pace k: k f(k t, x, context); it pushes, or has a potential, where they do."""

    def __init__(self, dynamics: nn.Module) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.log_pace = nn.Parameter(torch.zeros(()))

    @property
    def pace(self) -> Tensor:
        """k > 0, ()."""
        return self.log_pace.exp()

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.pace * self.dynamics(self.pace * t, x, context)

    def jvp(self, t: Tensor, x: Tensor, tangents: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        point = evaluate_field(self.dynamics, self.pace * t, x, tangents, context)
        return self.pace * point.dx, self.pace * point.products

    def potential(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.pace * potential_of(self.dynamics)(self.pace * t, x, context)


class CNF(Transform):
    """A continuous layer: the flow of dx/dt = dynamics(t, x, context) for t from 0 to end_time.

    With `learn_end_time` that is where T, a positive parameter, begins; `end_time` remains the reading of the clock.
    Raises ValueError for an end_time that is not positive; SolveError where the options cannot go on.
    """

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
        self.end_time = self.duration = end_time

    @property
    def learned_end_time(self) -> Tensor:
        """T, (): where the dynamics' own time ends; it carries a gradient where it is learned."""
        pace = self.dynamics.pace if isinstance(self.dynamics, PacedField) else torch.ones(())
        return self.end_time * pace

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        path = self.integrate(x, [self.end_time, 0.0], context=context)
        return path.x[-1], path.log_det[-1]

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        path = self.integrate(z, [0.0, self.end_time], context=context)
        return path.x[-1], path.log_det[-1]

    def integrate(
        self,
        x: Tensor,
        times: Sequence[float] | Tensor,
        *,
        context: Tensor | None = None,
        options: SolveOptions | None = None,
    ) -> Path:
        """Carry x, the state at times[0], through every time; the order of `times` is the direction.

        The only method that integrates. Shapes: x (batch, *event), times (T,), context (batch, context_dim).
        """
        options = options or SolveOptions()
        if torch.is_inference_mode_enabled():  # where autograd, which gives the trace, cannot record
            with torch.inference_mode(False), torch.no_grad():
                context = None if context is None else context.clone()
                return self.integrate(x.clone(), times, context=context, options=options)
        clock = torch.as_tensor(times, dtype=torch.float32 if x.device.type == "mps" else torch.float64)
        clock = options.steered(clock, self.end_time)
        for_rows, state = self._problem(x, context, options, 1.0 if clock[-1] > clock[0] else -1.0)
        params = [*self.dynamics.parameters(), *([] if context is None else [context])]
        solver = options.solver or self.solver
        states, stats = solver.solve(for_rows(None), state, clock, params=params, error_components=2, for_rows=for_rows)
        log_det = None if options.trace is None else states[1]
        costs = {name: values[-1] for name, values in zip(options.regularizers, states[2:], strict=True)}
        return Path(clock, states[0], log_det, costs, stats)

    def _problem(self, x: Tensor, context: Tensor | None, options: SolveOptions, forward: float) -> tuple[RowSelector, State]:
        """The right-hand side of some rows (None: of all), and the state of all; probes are drawn here, once."""
        if options.trace is None:
            return partial(self._velocity, context), (x,)
        probes = options.trace.draw(x, options.generator)
        costs = [x.new_zeros(len(x)) for _ in options.regularizers]
        log_det = x.new_zeros(len(x), len(probes)) if options.per_probe else x.new_zeros(len(x))
        return partial(self._joint, context, probes, options, forward), (x, log_det, *costs)

    def _velocity(self, context: Tensor | None, rows: Tensor | None) -> RightHandSide:
        own = _some(context, rows)
        return lambda t, state: (self.dynamics(t, state[0], own),)

    def _joint(
        self,
        context: Tensor | None,
        probes: Tensor,
        options: SolveOptions,
        forward: float,
        rows: Tensor | None,
    ) -> RightHandSide:
        """Velocity, trace and costs; `forward` is the sign of time, so that costs grow in both directions."""
        own, mine = _some(context, rows), probes if rows is None or probes.shape[1] == 1 else probes[:, rows]
        trace_alone = isinstance(options.trace, ExactTrace) and not (options.per_probe or options.regularizers)
        if trace_alone and isinstance(self.dynamics, VectorField):
            return lambda t, state: self.dynamics.divergence(t, state[0], own)

        def rhs(t: Tensor, state: State) -> State:
            point = evaluate_field(self.dynamics, t, state[0], mine, own)
            traces = point.traces if options.per_probe else point.trace
            return (point.dx, traces, *(forward * cost(point) for cost in options.regularizers.values()))

        return rhs


def _some(context: Tensor | None, rows: Tensor | None) -> Tensor | None:
    return context if context is None or rows is None else context[rows]
