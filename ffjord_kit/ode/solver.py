r"""Solvers of the initial value problem dy/dt = rhs(t, y), y(t_0) = y_0.

    AdaptiveSolver   one step size for the batch, chosen so that the estimated error of its worst row stays below
                     atol + rtol |y| (fehlberg2's estimate is a hundred times too small: prefer another method)
    FixedSolver      a stated number of steps over the whole interval, which may be graded: they crowd towards the
                     latest time, where the data are and a trained field is stiffest (grading > 1), or towards the base,
                     where the field of a reflow forks (grading < 1)
    PerRowSolver     Dormand-Prince steps with a clock and a step size for each row, whose results do not depend on the
                     other rows

Every requested time is the end of a step, so nothing is interpolated (scipy_solver alone does), and no field is
evaluated outside the interval. Gradients run back

    backprop        through the solver's own steps
    checkpointed    likewise, each evaluation made again on the way back: less memory for one more forward pass
    adjoint         through the adjoint equation, whose memory does not grow with the steps (Chen et al. 2018, sec. 2)
    seminorm        likewise, with steps that ignore the error of the parameters' part, an integral that nothing
                    depends on: fewer steps (Kidger, Chen & Lyons 2021)
    reversible      by the inverse of each step: exact, in memory that does not grow with the steps. A one-step scheme
                    is coupled to a second solution for it (reversible.py): twice the evaluations, and a solution that
                    differs from the scheme's own within its error
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ffjord_kit.ode import torchdiffeq
from ffjord_kit.ode.architectures import LinearMultistep, linear_multistep
from ffjord_kit.ode.dopri5_by_row import RowStepUnderflow, dopri5_by_row
from ffjord_kit.ode.errors import SolveError, StepSizeUnderflow
from ffjord_kit.ode.explicit import EXPLICIT_SCHEMES, RUNGE_KUTTA, integrate_on_grid
from ffjord_kit.ode.field import (
    CheckedField,
    RightHandSide,
    RowSelector,
    SolverStats,
    State,
    StepCallbacks,
    is_transformed,
)  # fmt: skip
from ffjord_kit.ode.grids import graded_grid
from ffjord_kit.ode.reversible import REVERSIBLE_SCHEMES, integrate_reversibly, reversible_scheme, walk_on_grid
from ffjord_kit.words import ADJOINTS

FINEST_SINGLE = 1e-6  # finest useful tolerance of states in float32
CONTINUOUS_ADJOINTS = ("adjoint", "seminorm")  # those that integrate the adjoint equation
ADAMS = ("explicit_adams", "implicit_adams", "fixed_adams")
MAX_NFE = 10_000


class Solution(NamedTuple):
    """States at every requested time, and what they cost.

    Attributes:
        states: Parts of the state, each (T, batch, ...).
        stats: Counts of evaluations and steps.

    Example:
        >>> times = torch.tensor([0.0, 0.5, 1.0])
        >>> states, stats = FixedSolver("euler", steps=2).solve(lambda t, x: (x[0],), (torch.ones(1, 1),), times)
        >>> states[0].flatten().tolist(), stats.nfe
        ([1.0, 1.5, 2.25], 2)
    """

    states: State
    stats: SolverStats


class Solver(ABC):
    """A method of integration; see `AdaptiveSolver`, `FixedSolver` and `PerRowSolver`.

    Attributes:
        METHODS: Names of the methods of the class.
        method: Name of the method, or the method itself where it learns.
        adjoint: Way back of the gradients, a word of ADJOINTS.
        max_nfe: Largest number of evaluations, forward and backward each.
    """

    METHODS: ClassVar[tuple[str, ...]]

    method: str | LinearMultistep
    adjoint: str
    max_nfe: int

    def solve(
        self,
        rhs: RightHandSide,
        state: State,
        times: Tensor,
        *,
        params: Sequence[Tensor] = (),
        error_components: int | None = None,
        for_rows: RowSelector | None = None,
    ) -> Solution:
        """Integrate from times[0] through every other time.

        Args:
            rhs: Right-hand side, from t and the state to slopes.
            state: State at times[0], a tuple of tensors (batch, ...).
            times: Times, shape (T,), strictly monotonic, T >= 2; their order is the direction.
            params: Tensors that the adjoint equation differentiates.
            error_components: Number of leading parts of the state that govern the step size; None for all.
            for_rows: From row indices to the right-hand side of these rows alone; with it, a solver that steps by row
                drops the rows that have arrived.

        Returns:
            The states at all times, and the counts.

        Raises:
            SolveError: If the field is not finite, a step vanishes, or `max_nfe` is exceeded.
            ValueError: If the times do not run one way, the tolerance is finer than the states' floats, or the method
                cannot be transformed by torch.func.
        """
        times = times.to("cpu", _clock_dtype(state[0]))  # once: no step asks an accelerator for its time
        _check_times(times)
        self._check_state(state, params)
        checked = self._checked(rhs, state, times, for_rows)
        try:
            states = self._integrate(checked, state, times, tuple(params), error_components)
        except (AssertionError, RowStepUnderflow) as error:  # torchdiffeq's guard, and the per-row stepper's
            raise self._underflow(checked, error) from error
        return Solution(tuple(states), checked.finish())

    @property
    @abstractmethod
    def label(self) -> str:
        """The solver in a few words."""

    @property
    def uses_adjoint_equation(self) -> bool:
        """Whether gradients come from an integration of the adjoint equation, not from the solver's own steps."""
        return self.adjoint in CONTINUOUS_ADJOINTS

    @abstractmethod
    def _integrate(
        self,
        checked: CheckedField,
        state: State,
        times: Tensor,
        params: tuple[Tensor, ...],
        error_components: int | None,
    ) -> State:
        """Integrate a checked field."""

    def _checked(self, rhs: RightHandSide, state: State, times: Tensor, for_rows: RowSelector | None) -> CheckedField:
        recompute = self.adjoint == "checkpointed"
        return CheckedField(rhs, times, max_nfe=self.max_nfe, for_rows=for_rows, recompute=recompute)

    @abstractmethod
    def _check_state(self, state: State, params: Sequence[Tensor]) -> None:
        """Refuse states and parameters that the method cannot integrate."""

    def _underflow(self, checked: CheckedField, error: Exception) -> SolveError:
        text = (
            f"the step size vanished after {checked.stats.nfe} evaluations ({error}): the field is too stiff for "
            f"{self.label}. Loosen the tolerance, or solve in float64"
        )
        rows = error.rows if isinstance(error, RowStepUnderflow) else ()
        return checked.error(StepSizeUnderflow, text, checked.clock, rows)


@dataclass(frozen=True)
class AdaptiveSolver(Solver):
    """Integrate by steps whose size follows a tolerance.

    Args:
        method: "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun" (torchdiffeq) or "scipy_solver" (LSODA).
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        adjoint: Way back of the gradients, a word of ADJOINTS.
        max_nfe: Largest number of evaluations.

    Raises:
        ValueError: If the method or the adjoint is unknown, or a tolerance is not positive.

    Example:
        >>> solver = AdaptiveSolver("dopri5", rtol=1e-8, atol=1e-8)
        >>> start, times = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0.0, 1.0])
        >>> solution = solver.solve(lambda t, state: (-state[0],), (start,), times)
        >>> print(f"{solution.states[0][-1].item():.6f}")
        0.367879
    """

    METHODS: ClassVar[tuple[str, ...]] = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", "scipy_solver")

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    adjoint: str = "backprop"
    max_nfe: int = MAX_NFE

    def __post_init__(self) -> None:
        _check_common(self)
        _check_tolerances(self.rtol, self.atol)

    @property
    def label(self) -> str:
        """The solver in a few words."""
        return f"{self.method} at {self.rtol:g}"

    def _check_state(self, state: State, params: Sequence[Tensor]) -> None:
        _refuse_transformed(state, params, "adaptive steps")
        _check_resolution(self.rtol, state[0])

    def _integrate(
        self,
        checked: CheckedField,
        state: State,
        times: Tensor,
        params: tuple[Tensor, ...],
        error_components: int | None,
    ) -> State:
        common: dict[str, Any] = {
            "method": self.method, "rtol": self.rtol, "adjoint": self.adjoint, "params": params,
        }  # fmt: skip
        if self.method != "scipy_solver":
            options = torchdiffeq.adaptive_options(times, error_components)
            callbacks = StepCallbacks(checked)
            return torchdiffeq.integrate(callbacks, state, times, atol=self.atol, options=options, **common)
        if not self.uses_adjoint_equation and torch.is_grad_enabled() and _any_requires_grad(*state, *params):
            raise ValueError(
                "method 'scipy_solver' is not differentiable: pass adjoint='adjoint', or use torch.no_grad()"
            )
        options, atol = torchdiffeq.lsoda_options(len(state), error_components, self.atol)
        return torchdiffeq.integrate(checked, state, times, atol=atol, options=options, **common)


@dataclass(frozen=True)
class FixedSolver(Solver):
    """Integrate by a fixed number of steps.

    Args:
        method: "euler", "midpoint", "heun2", "heun3", "rk4" (the 3/8 rule); "poly2", "poly3", "fractal2", "fractal3" or
            "linear_multistep" (architectures.py), or a `LinearMultistep`, whose coefficients a CNF learns with its
            field; "revnet" or "asynchronous_leapfrog" (reversible.py); or "explicit_adams", "implicit_adams" or
            "fixed_adams".
        steps: Number of steps over the whole interval.
        grading: 1 for equal steps, above 1 to crowd them towards the latest time, below 1 towards the earliest; Adams
            formulas need 1.
        adjoint: Way back of the gradients, a word of ADJOINTS.
        max_nfe: Largest number of evaluations.

    Raises:
        ValueError: If the method or the adjoint is unknown, `steps` is below 1, or the method cannot be graded.

    Example:
        >>> solver = FixedSolver("rk4", steps=8)
        >>> start, times = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0.0, 1.0])
        >>> solution = solver.solve(lambda t, state: (-state[0],), (start,), times)
        >>> print(f"{solution.states[0][-1].item():.4f} by {solution.stats.nfe} evaluations")
        0.3679 by 32 evaluations
    """

    METHODS: ClassVar[tuple[str, ...]] = (*EXPLICIT_SCHEMES, "linear_multistep", *REVERSIBLE_SCHEMES, *ADAMS)

    method: str | LinearMultistep
    steps: int
    grading: float = 1.0
    adjoint: str = "backprop"
    max_nfe: int = MAX_NFE

    def __post_init__(self) -> None:
        _check_common(self)
        _check_steps(self.method, self.steps)
        if self.uses_adjoint_equation and self.method not in (*RUNGE_KUTTA, *ADAMS):
            raise ValueError(
                f"method {self.method!r} has no adjoint equation: pass adjoint='backprop' or 'checkpointed', or one of "
                f"{', '.join(RUNGE_KUTTA)}; got {self.adjoint!r}"
            )
        if not 0 < self.grading < math.inf or (self.grading != 1 and not self.gradable):
            raise ValueError(
                f"grading must be positive, and 1 unless the method takes fixed single steps; got {self.grading}"
            )

    @property
    def label(self) -> str:
        """The solver in a few words."""
        graded = " (graded)" if self.grading != 1 else ""
        return f"{self.steps} {self.method} step{'s' * (self.steps > 1)}{graded}"

    @property
    def gradable(self) -> bool:
        """Whether the steps may crowd towards one end."""
        return self.method not in ADAMS

    def _checked(self, rhs: RightHandSide, state: State, times: Tensor, for_rows: RowSelector | None) -> CheckedField:
        recompute = self.adjoint == "checkpointed"
        return CheckedField(rhs, times, max_nfe=self.max_nfe, deferred=self.gradable, recompute=recompute)

    def _check_state(self, state: State, params: Sequence[Tensor]) -> None:
        if not self.gradable or self.uses_adjoint_equation or self.adjoint == "reversible":
            _refuse_transformed(state, params, f"{self.method} with adjoint={self.adjoint!r}")

    def _integrate(
        self,
        checked: CheckedField,
        state: State,
        times: Tensor,
        params: tuple[Tensor, ...],
        error_components: int | None,
    ) -> State:
        if not self.gradable:
            return _stacked(
                torchdiffeq.adams(
                    checked,
                    state,
                    times,
                    method=str(self.method),
                    steps=self.steps,
                    adjoint=self.adjoint,
                    params=params,
                )
            )
        if self.uses_adjoint_equation:
            options = torchdiffeq.fixed_options(times, self.steps, self.grading)
            return torchdiffeq.integrate(
                checked, state, times, method=str(self.method), rtol=1.0, atol=1.0, adjoint=self.adjoint, params=params,
                options=options,
            )  # fmt: skip
        grid = graded_grid(times, float(times.min()), float(times.max()), self.steps, self.grading)
        return _stacked(self._walk(checked, state, grid, times, params))

    def _walk(
        self, checked: CheckedField, state: State, grid: Tensor, times: Tensor, params: tuple[Tensor, ...]
    ) -> list[State]:
        """Make the steps of a grid."""
        given = checked, state, grid, times, checked.on_step
        if isinstance(self.method, LinearMultistep):
            return linear_multistep(*given, self.method.coefficients(grid, state[0]))
        if self.adjoint == "reversible":
            return integrate_reversibly(reversible_scheme(self.method), *given, params)
        if self.method in REVERSIBLE_SCHEMES:
            return walk_on_grid(REVERSIBLE_SCHEMES[self.method], *given)
        if self.method == "linear_multistep":
            return linear_multistep(*given)
        return integrate_on_grid(EXPLICIT_SCHEMES[self.method], *given)


@dataclass(frozen=True)
class PerRowSolver(Solver):
    """Integrate each row by adaptive Dormand-Prince steps of its own.

    Args:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        adjoint: "backprop" or "checkpointed".
        max_nfe: Largest number of evaluations.
        max_step: Longest step, as a share of the whole time.
        step_doubling: Let row n + i of a batch of 2 n rows take the steps of row i, each as two of half the length, so
            that the difference of the two shows the error.
        on_failure: "raise" an error for a row that cannot go on, or let it end as "nan" while the others go on.

    Raises:
        ValueError: If the adjoint or `on_failure` is unknown, or a tolerance is not positive.

    Example:
        >>> rates = torch.tensor([[1.0], [30.0]], dtype=torch.float64)
        >>> start, times = torch.ones(2, 1, dtype=torch.float64), torch.tensor([0.0, 1.0])
        >>> solution = PerRowSolver(1e-6, 1e-6).solve(lambda t, state: (-rates * state[0],), (start,), times)
        >>> bool(solution.stats.accepted[0] < solution.stats.accepted[1])
        True
    """

    METHODS: ClassVar[tuple[str, ...]] = ("dopri5_by_row",)

    rtol: float = 1e-5
    atol: float = 1e-5
    adjoint: str = "backprop"
    max_nfe: int = MAX_NFE
    max_step: float = 1.0
    step_doubling: bool = False
    on_failure: str = "raise"
    method: str = field(default="dopri5_by_row", init=False)

    def __post_init__(self) -> None:
        _check_common(self)
        _check_tolerances(self.rtol, self.atol)
        if not 0 < self.max_step <= 1:
            raise ValueError(f"max_step must be in (0, 1], a share of the whole time; got {self.max_step}")
        if self.uses_adjoint_equation:
            raise ValueError("method 'dopri5_by_row' has no adjoint: pass adjoint='backprop', or method='dopri5'")
        if self.on_failure not in ("raise", "nan"):
            raise ValueError(f"on_failure must be 'raise' or 'nan'; got {self.on_failure!r}")

    @property
    def label(self) -> str:
        """The solver in a few words."""
        return f"{self.method} at {self.rtol:g}"

    def _checked(self, rhs: RightHandSide, state: State, times: Tensor, for_rows: RowSelector | None) -> CheckedField:
        return CheckedField(
            rhs, times, max_nfe=self.max_nfe, for_rows=for_rows, recompute=self.adjoint == "checkpointed",
            keep_nan=self.on_failure == "nan", pairs=len(state[0]) // 2 if self.step_doubling else 0,
        )  # fmt: skip

    def _check_state(self, state: State, params: Sequence[Tensor]) -> None:
        _refuse_transformed(state, params, "adaptive steps")
        _check_resolution(self.rtol, state[0])

    def _integrate(
        self,
        checked: CheckedField,
        state: State,
        times: Tensor,
        params: tuple[Tensor, ...],
        error_components: int | None,
    ) -> State:
        if self.step_doubling and len(state[0]) % 2:
            raise ValueError(f"step doubling needs two rows for each solution; got {len(state[0])} rows")
        if self.step_doubling and checked.for_rows is None:
            raise ValueError("step doubling evaluates half of the rows at a time: pass for_rows=")
        solution, steps = dopri5_by_row(
            checked, state, times.to(state[0].device), rtol=self.rtol, atol=self.atol, max_step=self.max_step,
            error_components=error_components, compact=checked.for_rows is not None, step_doubling=self.step_doubling,
            nan_on_failure=self.on_failure == "nan", callback=checked.on_step,
        )  # fmt: skip
        checked.stats.accepted, checked.stats.rejected, checked.stats.rows = steps.accepted, steps.rejected, steps
        return _stacked(solution)


METHODS: dict[str, type[Solver]] = {
    method: kind for kind in (AdaptiveSolver, FixedSolver, PerRowSolver) for method in kind.METHODS
}


def make_solver(
    method: str = "dopri5",
    *,
    tolerance: float = 1e-5,
    steps: int | None = None,
    grading: float = 1.0,
    adjoint: str = "backprop",
    max_nfe: int = MAX_NFE,
) -> Solver:
    """Make a solver from the name of its method.

    Args:
        method: Word of METHODS.
        tolerance: Relative and absolute tolerance of an adaptive method.
        steps: Number of steps of a fixed method; None for an adaptive one.
        grading: Grading of a fixed method's steps.
        adjoint: Word of ADJOINTS.
        max_nfe: Largest number of evaluations.

    Returns:
        An adaptive, fixed or per-row solver.

    Raises:
        ValueError: If the method is unknown, or steps are missing, or passed to a method that adapts them.

    Example:
        >>> make_solver("rk4", steps=4)
        FixedSolver(method='rk4', steps=4, grading=1.0, adjoint='backprop', max_nfe=10000)
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if METHODS[method] is FixedSolver:
        return FixedSolver(method, _check_steps(method, steps), grading=grading, adjoint=adjoint, max_nfe=max_nfe)
    if steps is not None:
        raise ValueError(f"method {method!r} adapts its steps: pass a tolerance, not steps={steps}")
    if METHODS[method] is PerRowSolver:
        return PerRowSolver(tolerance, tolerance, adjoint=adjoint, max_nfe=max_nfe)
    return AdaptiveSolver(method, tolerance, tolerance, adjoint=adjoint, max_nfe=max_nfe)


def _clock_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.device.type == "mps" else torch.float64


def _stacked(solution: Sequence[State]) -> State:
    return tuple(torch.stack(parts) for parts in zip(*solution, strict=True))


def _any_requires_grad(*tensors: Tensor) -> bool:
    return any(tensor.requires_grad for tensor in tensors)


def _check_common(solver: Solver) -> None:
    learned = isinstance(solver, FixedSolver) and isinstance(solver.method, LinearMultistep)
    if not learned and solver.method not in solver.METHODS:
        raise ValueError(f"method must be one of {', '.join(solver.METHODS)}; got {solver.method!r}")
    if solver.max_nfe < 1:
        raise ValueError(f"max_nfe must be at least 1; got {solver.max_nfe}")
    if solver.adjoint not in ADJOINTS:
        raise ValueError(f"adjoint must be one of {', '.join(ADJOINTS)}; got {solver.adjoint!r}")
    if solver.adjoint == "reversible" and solver.method not in (*EXPLICIT_SCHEMES, *REVERSIBLE_SCHEMES):
        raise ValueError(
            f"adjoint 'reversible' walks back by fixed one-step schemes, and {solver.method!r} is none: pass "
            "method='rk4' with steps=16 (or another number), or adjoint='checkpointed'"
        )


def _check_steps(method: str | LinearMultistep, steps: int | None) -> int:
    if steps is None or steps < 1:
        raise ValueError(f"method {method!r} takes a fixed number of steps: pass steps >= 1; got {steps}")
    return steps


def _check_tolerances(rtol: float, atol: float) -> None:
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"rtol and atol must be positive; got {rtol} and {atol}")


def _check_times(times: Tensor) -> None:
    steps = times.diff()
    if times.dim() != 1 or len(times) < 2 or not bool((steps > 0).all() | (steps < 0).all()):
        raise ValueError(f"times must be strictly monotonic, two or more; got {times.tolist()}")


def _check_resolution(rtol: float, x: Tensor) -> None:
    if rtol < 4 * torch.finfo(x.dtype).eps:
        raise ValueError(
            f"rtol={rtol:g} is finer than {x.dtype} resolves: solve in float64 (flow.double(), x.double())"
            ", or loosen it"
        )


def _refuse_transformed(state: State, params: Sequence[Tensor], what: str) -> None:
    if is_transformed(*state, *params):
        raise ValueError(
            f"torch.func cannot look into {what}: pass a solver of fixed steps, e.g. FixedSolver('rk4', steps=16)"
        )
