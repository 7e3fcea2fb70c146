r"""Explicit Runge-Kutta steps on a given grid of times.

A scheme maps a state y at time t to y + dy at t + h by evaluations of the field alone:

    euler      dy = h k_1,                                k_1 = f(t, y)
    midpoint   dy = h f(t + h/2, y + h/2 k_1)
    heun2      dy = h (k_1 + k_2) / 2,                    k_2 = f(t + h, y + h k_1)
    heun3      dy = h (k_1 + 3 k_3) / 4,                  k_2 = f(t + h/3, y + h/3 k_1), k_3 = f(t + 2h/3, y + 2h/3 k_2)
    rk4        dy = h (k_1 + 3 (k_2 + k_3) + k_4) / 8     Kutta's 3/8 rule

The steps are plain operations on tensors, so torch.func transforms (grad, vmap, jvp, ...) run through them. They are
those of torchdiffeq's solvers of the same names, operation by operation.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ffjord_kit.ode.field import State

Field = Callable[[Tensor, State], State]
Scheme = Callable[[Field, Tensor, Tensor, Tensor, State], State]
StepCallback = Callable[[Tensor, State, Tensor], None]

THIRD, TWO_THIRDS = 1 / 3, 2 / 3


def integrate_on_grid(
    scheme: Scheme, field: Field, state: State, grid: Tensor, times: Tensor, callback: StepCallback
) -> list[State]:
    """Integrate along a grid.

    Args:
        scheme: One of EXPLICIT_SCHEMES.
        field: Field, from t () and the state to slopes.
        state: State at times[0], a tuple of tensors (batch, ...).
        grid: Ends of the steps, shape (steps + 1,), monotonic; it holds all of `times`.
        times: Times to return states at, shape (T,).
        callback: Called with time, state and step before each step.

    Returns:
        The states at `times`.
    """
    solution, wanted = [state], 1
    for start, end in zip(grid[:-1], grid[1:], strict=True):
        step = end - start
        callback(start, state, step)
        change = scheme(_in_dtype_of(field, state[0]), start, step, end, state)
        state = tuple(y + dy for y, dy in zip(state, change, strict=True))
        if end == times[wanted]:
            solution.append(state)
            wanted += 1
    return solution


def _in_dtype_of(field: Field, like: Tensor) -> Field:
    """Give the field its time in the dtype and on the device of the state."""
    return lambda t, state: field(t.to(like.device, like.dtype), state)


def _euler(field: Field, t: Tensor, h: Tensor, end: Tensor, y: State) -> State:
    return tuple(h * k for k in field(t, y))


def _midpoint(field: Field, t: Tensor, h: Tensor, end: Tensor, y: State) -> State:
    half = 0.5 * h
    middle = tuple(a + k * half for a, k in zip(y, field(t, y), strict=True))
    return tuple(h * k for k in field(t + half, middle))


def _heun2(field: Field, t: Tensor, h: Tensor, end: Tensor, y: State) -> State:
    k1 = field(t, y)
    k2 = field(t + h, tuple(a + h * k for a, k in zip(y, k1, strict=True)))
    return tuple(h * (a * 0.5 + b * 0.5) for a, b in zip(k1, k2, strict=True))


def _heun3(field: Field, t: Tensor, h: Tensor, end: Tensor, y: State) -> State:
    k1 = field(t, y)
    k2 = field(t + h * THIRD, tuple(a + h * k * THIRD for a, k in zip(y, k1, strict=True)))
    k3 = field(t + h * TWO_THIRDS, tuple(a + h * (k * TWO_THIRDS) for a, k in zip(y, k2, strict=True)))
    return tuple(h * (a * 0.25 + b * 0.75) for a, b in zip(k1, k3, strict=True))


def _rk4(field: Field, t: Tensor, h: Tensor, end: Tensor, y: State) -> State:
    k1 = field(t, y)
    k2 = field(t + h * THIRD, tuple(a + h * k * THIRD for a, k in zip(y, k1, strict=True)))
    k3 = field(
        t + h * TWO_THIRDS, tuple(a + h * (p - k * THIRD) for a, k, p in zip(y, k1, k2, strict=True))
    )  # fmt: skip
    k4 = field(end, tuple(a + h * (k - p + q) for a, k, p, q in zip(y, k1, k2, k3, strict=True)))
    return tuple((k + 3 * (p + q) + r) * h * 0.125 for k, p, q, r in zip(k1, k2, k3, k4, strict=True))


EXPLICIT_SCHEMES: dict[str, Scheme] = {
    "euler": _euler,
    "midpoint": _midpoint,
    "heun2": _heun2,
    "heun3": _heun3,
    "rk4": _rk4,
}
