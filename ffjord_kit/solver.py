r"""Solver: how the initial value problem dy/dt = rhs(t, y), y(t_0) = y_0 is integrated.

The only file that knows torchdiffeq. An adaptive method holds its own estimate of each step's error below
atol + rtol |y|, judged by the worst row (fehlberg2's estimate is a hundred times too kind: prefer another); a fixed
one takes a number of steps that is always said. Every requested time is a step's end, so nothing is interpolated
(scipy_solver alone does), and no field is evaluated outside the interval. Gradients run back through the solver's own
steps, or through the adjoint equation, whose memory does not grow with the steps (Chen et al. 2018, section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from ffjord_kit.steppers import State, StepUnderflow, dopri5_by_row

RightHandSide = Callable[[Tensor, State], State]
Part = Callable[[Tensor], RightHandSide]  # from the numbers of rows, (m,), to the right-hand side of these rows alone


class SolveError(RuntimeError):
    """An integration that cannot go on; its text says when, why and what to do."""


@dataclass
class Evaluations:
    """How often the right-hand side was evaluated, forward and (by the adjoint, later) backward."""

    forward: int = 0
    backward: int = 0


class Solution(NamedTuple):
    """The states at every requested time, each (T, ...), and the evaluations that they took."""

    states: State
    evaluations: Evaluations


@dataclass(frozen=True)
class Solver:
    """A method of integration: adaptive by tolerance, or of a fixed number of steps over the whole interval.

    Raises ValueError for an unknown method, a fixed one without `steps`, or an adaptive one with them.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int | None = None
    adjoint: bool = False
    max_nfe: int = 10_000

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}")
        fixed = METHODS[self.method] in (_fixed, _adams)
        if fixed and (self.steps is None or self.steps < 1):
            raise ValueError(f"method {self.method!r} takes a fixed number of steps: pass steps >= 1; got {self.steps}")
        if not fixed and self.steps is not None:
            raise ValueError(f"method {self.method!r} adapts its steps: pass rtol and atol, not steps={self.steps}")
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"rtol and atol must be positive; got {self.rtol} and {self.atol}")
        if self.max_nfe < 1:
            raise ValueError(f"max_nfe must be at least 1; got {self.max_nfe}")
        if self.adjoint and self.method == "dopri5_by_row":
            raise ValueError("method 'dopri5_by_row' has no adjoint: pass adjoint=False, or method='dopri5'")

    def solve(
        self,
        rhs: RightHandSide,
        state: State,
        times: Tensor,
        *,
        params: Sequence[Tensor] = (),
        steering: int | None = None,
        part: Part | None = None,
    ) -> Solution:
        """Integrate from times[0] through every other time; `params` are the tensors that the adjoint differentiates.

        Only the first `steering` parts of the state steer the step size (all, if None). `part` lets a method that
        steps by row leave those behind that have arrived.
        Shapes: every part of the state (batch, ...); times (T,), strictly monotonic, T >= 2.
        Raises SolveError on a non-finite field, a vanishing step, or more than max_nfe evaluations; ValueError for
        times that do not run one way.
        """
        self._check(state, times)
        times = times.to(state[0].device, _clock_dtype(state[0]))
        counted = _Counted(rhs, part, self.max_nfe, times)
        try:
            states = METHODS[self.method](self, counted, state, times, tuple(params), steering)
        except (AssertionError, StepUnderflow) as error:  # torchdiffeq's guard, and our own stepper's
            raise SolveError(
                f"the step size vanished after {counted.evaluations.forward} evaluations ({error}): the field is too "
                f"stiff for {self.method!r} at rtol={self.rtol:g}. Loosen the tolerance, or solve in float64"
            ) from error
        counted.turn_back()
        return Solution(tuple(states), counted.evaluations)

    def _check(self, state: State, times: Tensor) -> None:
        steps = times.diff()
        if times.dim() != 1 or len(times) < 2 or not bool((steps > 0).all() | (steps < 0).all()):
            raise ValueError(f"times must be strictly monotonic, two or more; got {times.tolist()}")
        if self.steps is None and self.rtol < 4 * torch.finfo(state[0].dtype).eps:
            raise ValueError(
                f"rtol={self.rtol:g} is finer than {state[0].dtype} resolves: "
                f"solve in float64 (flow.double(), x.double()), or loosen it"
            )


class _Counted:
    """The right-hand side, counted and guarded: it stops a solve that would never end, or that has left the reals."""

    def __init__(self, rhs: RightHandSide, part: Part | None, limit: int, times: Tensor) -> None:
        self.rhs, self.part, self.limit = rhs, part, limit
        self.first, self.last = float(times.min()), float(times.max())
        self.evaluations, self.backward = Evaluations(), False

    def __call__(self, t: Tensor, state: State, rows: Tensor | None = None) -> State:
        self._count(t)
        # torchdiffeq probes for its first step beyond the end, where no field was ever trained.
        t = t.clamp(self.first, self.last)
        slopes = (self.rhs if rows is None else self.part(rows))(t, state)
        if not all(bool(slope.isfinite().all()) for slope in slopes):
            raise SolveError(_nonfinite(t, slopes, rows))
        return _linked(slopes, state) if torch.is_grad_enabled() else slopes

    def turn_back(self) -> None:
        self.backward = True

    def _count(self, t: Tensor) -> None:
        self.evaluations.backward += self.backward
        self.evaluations.forward += not self.backward
        if (self.evaluations.backward if self.backward else self.evaluations.forward) > self.limit:
            raise SolveError(
                f"more than max_nfe={self.limit} evaluations by t = {float(t.detach().min()):.4g}: loosen the "
                "tolerance, raise max_nfe, or regularize the dynamics (kinetic, jacobian)"
            )


def _nonfinite(t: Tensor, slopes: State, live: Tensor | None) -> str:
    bad = torch.stack([~slope.detach().reshape(len(slope), -1).isfinite().all(1) for slope in slopes]).any(0)
    rows = (bad.nonzero().flatten() if live is None else live[bad]).tolist()
    at = float(t.detach().min())
    return (
        f"the dynamics became NaN or infinite at t = {at:.4g} in {len(rows)} of {len(bad)} rows (first: "
        f"{rows[:5]}): check those rows for outliers; in training lower the learning rate or clip the gradient"
    )


def _linked(slopes: State, state: State) -> State:
    """Slopes that depend on nothing (a constant field) tied to the state by zero: the adjoint asks for a graph."""
    if any(slope.requires_grad for slope in slopes):
        return slopes
    return tuple(slope + 0 * part for slope, part in zip(slopes, state, strict=True))


def _clock_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.device.type == "mps" else torch.float64


def _worst_row(parts: State) -> Tensor:
    """The largest row's root mean square: no row hides its error behind the others. Step sizes carry no gradient."""
    return torch.stack([part.detach().reshape(len(part), -1).square().mean(1).amax().sqrt() for part in parts]).amax()


def _integrate(
    solver: Solver, rhs: _Counted, state: State, times: Tensor, params: tuple[Tensor, ...], options: dict
) -> State:
    common = {"rtol": solver.rtol, "atol": options.pop("atol", solver.atol), "method": solver.method}
    if not solver.adjoint:
        return odeint(rhs, state, times, options=options, **common)
    back = {key: value for key, value in options.items() if key != "norm"}
    if "step_t" in back:  # torchdiffeq turns a falling clock round, but not these
        back["step_t"] = torch.cat([times, -times]).unique()
    states = odeint_adjoint(
        rhs,
        state,
        times,
        options=options,
        adjoint_params=params,
        adjoint_options=back,
        adjoint_atol=solver.atol,
        **common,
    )
    return tuple(_OnceDifferentiable.apply(part) for part in states)


def _adaptive(
    solver: Solver, rhs: _Counted, state: State, times: Tensor, params: tuple[Tensor, ...], steering: int | None
) -> State:
    options = {"norm": lambda parts: _worst_row(parts[:steering]), "step_t": times, "dtype": times.dtype}
    return _integrate(solver, rhs, state, times, params, options)


def _fixed(
    solver: Solver, rhs: _Counted, state: State, times: Tensor, params: tuple[Tensor, ...], steering: int | None
) -> State:
    width = float((times[-1] - times[0]).abs()) / solver.steps
    options = {"grid_constructor": lambda _, __, asked: _grid(asked, width)}
    if METHODS[solver.method] is _adams:
        options["max_order"] = 5  # torchdiffeq's own 12 is unstable for an explicit formula
    return _integrate(solver, rhs, state, times, params, options)


def _adams(
    solver: Solver, rhs: _Counted, state: State, times: Tensor, params: tuple[Tensor, ...], steering: int | None
) -> State:
    """Multistep formulas hold for equal steps alone: each interval between requested times is a solve of its own."""
    width = float((times[-1] - times[0]).abs()) / solver.steps
    solution = [state]
    for pair in zip(times[:-1], times[1:], strict=True):
        part = replace(solver, steps=_count(*pair, width))
        last = _fixed(part, rhs, solution[-1], torch.stack(pair), params, steering)
        solution.append(tuple(values[-1] for values in last))
    return _stacked(solution)


def _scipy(
    solver: Solver, rhs: _Counted, state: State, times: Tensor, params: tuple[Tensor, ...], steering: int | None
) -> State:
    if not solver.adjoint and torch.is_grad_enabled() and any(p.requires_grad for p in (*state, *params)):
        raise ValueError("method 'scipy_solver' is not differentiable: pass adjoint=True, or use torch.no_grad()")
    # LSODA knows tolerances, not norms: a part that must not steer gets one that it always meets.
    count = len(state) if steering is None else steering
    atol = tuple(solver.atol if i < count else 1e30 for i in range(len(state)))
    return _integrate(solver, rhs, state, times, params, {"solver": "LSODA", "atol": atol})


def _by_row(
    solver: Solver, rhs: _Counted, state: State, times: Tensor, params: tuple[Tensor, ...], steering: int | None
) -> State:
    leaving = rhs.part is not None
    solution = dopri5_by_row(rhs, state, times, rtol=solver.rtol, atol=solver.atol, steering=steering, leaving=leaving)
    return _stacked(solution)


def _stacked(solution: Sequence[State]) -> State:
    return tuple(torch.stack(parts) for parts in zip(*solution, strict=True))


def _count(start: Tensor, end: Tensor, width: float) -> int:
    return max(1, round(float((end - start).abs()) / width))


def _grid(times: Tensor, width: float) -> Tensor:
    """Equal steps of about `width` between each pair of times; every time is on the grid, to the bit."""
    pieces = [
        torch.linspace(float(a), float(b), _count(a, b, width) + 1, dtype=times.dtype, device=times.device)[1:-1]
        for a, b in zip(times[:-1], times[1:], strict=True)
    ]
    inner = [part for piece, b in zip(pieces, times[1:], strict=True) for part in (piece, b.reshape(1))]
    return torch.cat([times[:1], *inner])


class _OnceDifferentiable(torch.autograd.Function):
    """The identity, which refuses a second derivative: the adjoint would leave terms of it out without a word."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise SolveError("the adjoint gives first derivatives only: use Solver(adjoint=False) for a second one")
        return grad


METHODS: dict[str, Callable[..., State]] = {
    "dopri5": _adaptive,
    "dopri8": _adaptive,
    "bosh3": _adaptive,
    "fehlberg2": _adaptive,
    "adaptive_heun": _adaptive,
    "euler": _fixed,
    "midpoint": _fixed,
    "heun2": _fixed,
    "heun3": _fixed,
    "rk4": _fixed,
    "explicit_adams": _adams,
    "implicit_adams": _adams,
    "fixed_adams": _adams,
    "scipy_solver": _scipy,
    "dopri5_by_row": _by_row,
}
