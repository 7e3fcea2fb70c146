r"""Solver: how the initial value problem dy/dt = rhs(t, y), y(t_0) = y_0 is integrated.

The only file that knows torchdiffeq. An adaptive method holds its own estimate of each step's error below
atol + rtol |y|, judged by the worst row (fehlberg2's estimate is a hundred times too kind: prefer another); a fixed
one takes a number of steps that is always said, and may grade them, so that they crowd towards the latest time, where
the data are and a trained field is stiffest (grading above 1), or towards the base, where a straightened one has its
forks (below 1). Every requested time is a step's end, so nothing is
interpolated (scipy_solver alone does), and no field is evaluated outside the interval. Gradients run back

    backprop        through the solver's own steps
    checkpointed    the same, each evaluation made again on the way back: less memory for one more forward pass
    adjoint         through the adjoint equation, whose memory does not grow with the steps (Chen et al. 2018, sec. 2)
    seminorm        the same, with steps that ignore the error of the parameters' part, an integral that nothing
                    depends on: fewer steps (Kidger, Chen & Lyons 2021)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from ffjord_kit.evaluations import Checked, Evaluations, Part, RightHandSide, Told
from ffjord_kit.failures import SolveError, StepVanished
from ffjord_kit.grids import count, grid
from ffjord_kit.steppers import State, StepUnderflow, dopri5_by_row

FINEST_SINGLE = 1e-6  # the tolerance that states in float32 deserve


class Solution(NamedTuple):
    """The states at every requested time, each (T, ...), and the evaluations, with steps, that they took."""

    states: State
    evaluations: Evaluations


@dataclass(frozen=True)
class Solver:
    """A method of integration: adaptive by tolerance, or of a fixed number of steps over the whole interval.

    `gradient` is a word of GRADIENTS, the way back. Of dopri5_by_row alone: with `paired` the rows of the second half
    of a batch take the steps of the first half, each as two; with `forgiving` rows that cannot go on end as NaN.
    Raises ValueError for an unknown method or gradient, a fixed method without `steps`, or an adaptive one with them.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int | None = None
    gradient: str = "backprop"
    max_nfe: int = 10_000
    grading: float = 1.0
    paired: bool = False
    forgiving: bool = False

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
        if not 0 < self.grading < math.inf or (self.grading != 1 and not self.gradable):
            raise ValueError(
                f"grading must be positive, and 1 unless the method takes fixed single steps; got {self.grading}"
            )
        if self.max_nfe < 1:
            raise ValueError(f"max_nfe must be at least 1; got {self.max_nfe}")
        if self.gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}; got {self.gradient!r}")
        if self.by_adjoint and self.method == "dopri5_by_row":
            raise ValueError("method 'dopri5_by_row' has no adjoint: pass gradient='backprop', or method='dopri5'")

        if (self.paired or self.forgiving) and self.method != "dopri5_by_row":
            raise ValueError(f"only the rows of 'dopri5_by_row' go in pairs, or are forgiven; got {self.method!r}")

    @property
    def gradable(self) -> bool:
        """Whether the steps may crowd towards one end."""
        return METHODS[self.method] is _fixed

    @property
    def by_adjoint(self) -> bool:
        """Whether the way back is an integration of its own, rather than through the solver's steps."""
        return GRADIENTS[self.gradient] is not _through_steps

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
        times = times.to("cpu", _clock_dtype(state[0]))  # once: no step asks an accelerator for its time
        self._check(state, times)
        patient, recompute = METHODS[self.method] is _fixed, self.gradient == "checkpointed"
        checked = Checked(
            rhs, times, part=part, limit=self.max_nfe, patient=patient, recompute=recompute, forgiving=self.forgiving,
            pairs=len(state[0]) // 2 if self.paired else 0,
        )  # fmt: skip
        try:
            states = METHODS[self.method](self, checked, state, times, tuple(params), steering)
        except (AssertionError, StepUnderflow) as error:  # torchdiffeq's guard, and our own stepper's
            raise self._vanished(checked, error) from error
        return Solution(tuple(states), checked.finish())

    def _vanished(self, checked: Checked, error: Exception) -> SolveError:
        text = (
            f"the step size vanished after {checked.evaluations.forward} evaluations ({error}): the field is too "
            f"stiff for {self.method!r} at rtol={self.rtol:g}. Loosen the tolerance, or solve in float64"
        )
        rows = error.rows if isinstance(error, StepUnderflow) else ()
        return checked.failed(StepVanished, text, checked.clock, rows)

    def _check(self, state: State, times: Tensor) -> None:
        steps = times.diff()
        if times.dim() != 1 or len(times) < 2 or not bool((steps > 0).all() | (steps < 0).all()):
            raise ValueError(f"times must be strictly monotonic, two or more; got {times.tolist()}")
        if self.steps is None and self.rtol < 4 * torch.finfo(state[0].dtype).eps:
            raise ValueError(
                f"rtol={self.rtol:g} is finer than {state[0].dtype} resolves: "
                f"solve in float64 (flow.double(), x.double()), or loosen it"
            )


def _clock_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.device.type == "mps" else torch.float64


def _worst_row(parts: State) -> Tensor:
    """The largest row's root mean square: no row hides its error behind the others. Step sizes carry no gradient."""
    return torch.stack([part.detach().reshape(len(part), -1).square().mean(1).amax().sqrt() for part in parts]).amax()


def _integrate(
    solver: Solver, rhs: Checked, state: State, times: Tensor, params: tuple[Tensor, ...], options: dict
) -> State:
    device = state[0].device
    placed = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in options.items()}
    return GRADIENTS[solver.gradient](solver, rhs, state, times.to(device), params, placed)


def _through_steps(
    solver: Solver, rhs: Checked, state: State, times: Tensor, params: tuple[Tensor, ...], options: dict
) -> State:
    return odeint(rhs, state, times, options=options, **_common(solver, options))


def _adjoint(
    solver: Solver,
    rhs: Checked,
    state: State,
    times: Tensor,
    params: tuple[Tensor, ...],
    options: dict,
    back: Mapping[str, str] = MappingProxyType({}),
) -> State:
    common = _common(solver, options)
    back = {**{key: value for key, value in options.items() if key != "norm"}, **back}
    if "step_t" in back:  # torchdiffeq turns a falling clock round, but not these
        back["step_t"] = torch.cat([times, -times]).unique()
    states = odeint_adjoint(
        rhs, state, times, options=options, adjoint_params=params, adjoint_options=back, adjoint_atol=solver.atol,
        **common,
    )  # fmt: skip
    return tuple(_OnceDifferentiable.apply(part) for part in states)


def _common(solver: Solver, options: dict) -> dict:
    return {"rtol": solver.rtol, "atol": options.pop("atol", solver.atol), "method": solver.method}


def _adaptive(
    solver: Solver, rhs: Checked, state: State, times: Tensor, params: tuple[Tensor, ...], steering: int | None
) -> State:
    options = {"norm": lambda parts: _worst_row(parts[:steering]), "step_t": times, "dtype": times.dtype}
    return _integrate(solver, Told(rhs), state, times, params, options)


def _fixed(
    solver: Solver, rhs: Checked, state: State, times: Tensor, params: tuple[Tensor, ...], steering: int | None
) -> State:
    low, high = float(times.min()), float(times.max())
    options = {"grid_constructor": lambda _, __, asked: grid(asked, low, high, solver.steps, solver.grading)}
    if METHODS[solver.method] is _adams:
        options["max_order"] = 5  # torchdiffeq's own 12 is unstable for an explicit formula
    return _integrate(solver, rhs, state, times, params, options)


def _adams(
    solver: Solver, rhs: Checked, state: State, times: Tensor, params: tuple[Tensor, ...], steering: int | None
) -> State:
    """Multistep formulas hold for equal steps alone: each interval between requested times is a solve of its own."""
    width = float((times[-1] - times[0]).abs()) / solver.steps
    solution = [state]
    for pair in zip(times[:-1], times[1:], strict=True):
        part = replace(solver, steps=count(*pair, width))
        last = _fixed(part, rhs, solution[-1], torch.stack(pair), params, steering)
        solution.append(tuple(values[-1] for values in last))
    return _stacked(solution)


def _scipy(
    solver: Solver, rhs: Checked, state: State, times: Tensor, params: tuple[Tensor, ...], steering: int | None
) -> State:
    if not solver.by_adjoint and torch.is_grad_enabled() and any(p.requires_grad for p in (*state, *params)):
        raise ValueError("method 'scipy_solver' is not differentiable: pass gradient='adjoint', or use torch.no_grad()")
    # LSODA knows tolerances, not norms: a part that must not steer gets one that it always meets.
    count = len(state) if steering is None else steering
    atol = tuple(solver.atol if i < count else 1e30 for i in range(len(state)))
    return _integrate(solver, rhs, state, times, params, {"solver": "LSODA", "atol": atol})


def _by_row(
    solver: Solver, rhs: Checked, state: State, times: Tensor, params: tuple[Tensor, ...], steering: int | None
) -> State:
    times, leaving = times.to(state[0].device), rhs.part is not None
    if solver.paired and rhs.part is None:
        raise ValueError("rows in pairs step in parts of the batch: pass part=")
    solution, counts = dopri5_by_row(
        rhs, state, times, rtol=solver.rtol, atol=solver.atol, steering=steering, leaving=leaving, paired=solver.paired,
        forgiving=solver.forgiving, tell=rhs.stepping,
    )  # fmt: skip
    rhs.evaluations.taken, rhs.evaluations.refused = counts
    return _stacked(solution)


def _stacked(solution: Sequence[State]) -> State:
    return tuple(torch.stack(parts) for parts in zip(*solution, strict=True))


class _OnceDifferentiable(torch.autograd.Function):
    """The identity, which refuses a second derivative: the adjoint would leave terms of it out without a word."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise SolveError("the adjoint gives first derivatives only: pass gradient='backprop' for a second one")
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

GRADIENTS: dict[str, Callable[..., State]] = {
    "backprop": _through_steps,
    "checkpointed": _through_steps,
    "adjoint": _adjoint,
    "seminorm": partial(_adjoint, back={"norm": "seminorm"}),
}
