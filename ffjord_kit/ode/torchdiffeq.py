r"""Integration by torchdiffeq; no other file knows that library.

A tuple of states is one initial value problem. The step size of an adaptive method is governed by the worst row of the
first `error_components` parts of the state, so that no row hides its error behind the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from ffjord_kit.ode.errors import refuse_second_derivative
from ffjord_kit.ode.field import CheckedField, State, StepCallbacks
from ffjord_kit.ode.grids import graded_grid, step_count

Options = dict[str, Any]

MAX_ADAMS_ORDER = 5  # torchdiffeq's own 12 is unstable for an explicit formula
CORRECTOR_TOLERANCE = 1e-5  # of implicit Adams formulas: where a finer one fails, torchdiffeq lowers the order
IGNORED = 1e30  # tolerance of a component that must not govern LSODA's steps


def integrate(
    field: CheckedField | StepCallbacks,
    state: State,
    times: Tensor,
    *,
    method: str,
    rtol: float,
    atol: float | tuple[float, ...],
    adjoint: str,
    params: Sequence[Tensor],
    options: Options,
) -> State:
    """Integrate by a method of torchdiffeq.

    Args:
        field: Right-hand side.
        state: State at times[0], a tuple of tensors (batch, ...).
        times: Times, shape (T,).
        method: Name of torchdiffeq's method.
        rtol: Relative tolerance.
        atol: Absolute tolerance, one or one for each part of the state.
        adjoint: Word of ADJOINTS: "adjoint" and "seminorm" integrate the adjoint equation, others differentiate the
            steps.
        params: Tensors that the adjoint equation differentiates.
        options: torchdiffeq's options of the method.

    Returns:
        States at all times, each (T, batch, ...).
    """
    device = state[0].device
    options = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in options.items()}
    common = {"rtol": rtol, "atol": atol, "method": method, "options": options}
    times = times.to(device)
    if adjoint not in ("adjoint", "seminorm"):
        return odeint(field, state, times, **common)
    special = MappingProxyType({"norm": "seminorm"} if adjoint == "seminorm" else {})
    tolerance = atol if isinstance(atol, float) else max(a for a in atol if a != IGNORED)
    states = odeint_adjoint(
        field, state, times, adjoint_params=tuple(params), adjoint_atol=tolerance,
        adjoint_options=_adjoint_options(options, special, times), **common,
    )  # fmt: skip
    return tuple(_OnceDifferentiable.apply(part) for part in states)


def adaptive_options(times: Tensor, error_components: int | None) -> Options:
    """Return options of adaptive methods: the norm of the worst row, and steps that end at each time.

    Args:
        times: Times, shape (T,).
        error_components: Number of leading parts of the state that govern the step size; None for all.

    Returns:
        torchdiffeq's options.
    """
    return {"norm": lambda parts: _worst_row(parts[:error_components]), "step_t": times, "dtype": times.dtype}


def fixed_options(times: Tensor, steps: int, grading: float, *, adams: bool = False) -> Options:
    """Return options of fixed methods: the grid of their steps.

    Args:
        times: Times, shape (T,).
        steps: Number of steps over the whole interval.
        grading: Grading of the steps; see `graded_grid`.
        adams: Whether the method is an Adams formula, whose order is limited.

    Returns:
        torchdiffeq's options.
    """
    low, high = float(times.min()), float(times.max())
    grid = {"grid_constructor": lambda _, __, requested: graded_grid(requested, low, high, steps, grading)}
    return {**grid, "max_order": MAX_ADAMS_ORDER} if adams else grid


def lsoda_options(parts: int, error_components: int | None, atol: float) -> tuple[Options, tuple[float, ...]]:
    """Return options and absolute tolerances of scipy's LSODA, which knows tolerances instead of norms.

    Args:
        parts: Number of parts of the state.
        error_components: Number of leading parts that govern the step size; None for all.
        atol: Absolute tolerance of these.

    Returns:
        torchdiffeq's options, and one tolerance for each part, which is always met by parts that must not govern.
    """
    count = parts if error_components is None else error_components
    return {"solver": "LSODA"}, tuple(atol if i < count else IGNORED for i in range(parts))


def adams(
    field: CheckedField,
    state: State,
    times: Tensor,
    *,
    method: str,
    steps: int,
    adjoint: str,
    params: Sequence[Tensor],
) -> list[State]:
    """Integrate by an Adams formula, which holds for equal steps alone: each interval is a solve of its own.

    Args:
        field: Right-hand side.
        state: State at times[0].
        times: Times, shape (T,).
        method: Name of torchdiffeq's method.
        steps: Steps over the whole interval.
        adjoint: Word of ADJOINTS.
        params: Tensors that the adjoint equation differentiates.

    Returns:
        The states at all times.
    """
    width, solution = float((times[-1] - times[0]).abs()) / steps, [state]
    for pair in zip(times[:-1], times[1:], strict=True):
        options = fixed_options(torch.stack(pair), step_count(*pair, width), 1.0, adams=True)
        last = integrate(
            field, solution[-1], torch.stack(pair), method=method, rtol=CORRECTOR_TOLERANCE, atol=CORRECTOR_TOLERANCE,
            adjoint=adjoint, params=params, options=options,
        )  # fmt: skip
        solution.append(tuple(values[-1] for values in last))
    return solution


def _adjoint_options(options: Options, special: Mapping[str, str], times: Tensor) -> Options:
    back = {**{key: value for key, value in options.items() if key != "norm"}, **special}
    if "step_t" in back:  # torchdiffeq reverses the clock of a backward solve, but not these
        back["step_t"] = torch.cat([times, -times]).unique()
    return back


def _worst_row(parts: State) -> Tensor:
    """Return the largest row's root mean square. Step sizes carry no gradient."""
    return torch.stack([part.detach().reshape(len(part), -1).square().mean(1).amax().sqrt() for part in parts]).amax()


class _OnceDifferentiable(torch.autograd.Function):
    """The identity, which refuses a second derivative: the adjoint would leave out terms of it without a word."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        refuse_second_derivative("adjoint")
        return grad
