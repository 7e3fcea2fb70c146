r"""Explicit Runge-Kutta steps on a given grid of times.

A scheme maps a state y at time t to y + dy at t + h by evaluations of the field alone:

    euler      dy = h k_1,                                k_1 = f(t, y)
    midpoint   dy = h f(t + h/2, y + h/2 k_1)
    heun2      dy = h (k_1 + k_2) / 2,                    k_2 = f(t + h, y + h k_1)
    heun3      dy = h (k_1 + 3 k_3) / 4,                  k_2 = f(t + h/3, y + h/3 k_1), k_3 = f(t + 2h/3, y + 2h/3 k_2)
    rk4        dy = h (k_1 + 3 (k_2 + k_3) + k_4) / 8     Kutta's 3/8 rule

The steps are plain operations on tensors, so torch.func transforms (grad, vmap, jvp, ...) run through them. They are
those of torchdiffeq's solvers of the same names, operation by operation. The menu also has the schemes that are
architectures of residual networks (architectures.py).
"""

from __future__ import annotations

from torch import Tensor

from ffjord_kit.ode.architectures import ARCHITECTURES
from ffjord_kit.ode.field import State
from ffjord_kit.ode.scheme import Field, Scheme, StepCallback

THIRD, TWO_THIRDS = 1 / 3, 2 / 3


def integrate_on_grid(
    scheme: Scheme, field: Field, state: State, grid: Tensor, times: Tensor, callback: StepCallback
) -> list[State]:
    """Integrate along a grid.

    Args:
        scheme: One of EXPLICIT_SCHEMES.
        field: Field, from t () and the state to slopes.
        state: State at times[0], a tuple of tensors (batch, ...).
        grid: Ends of the steps, shape (steps + 1,), monotonic, on the CPU; it holds all of `times`.
        times: Times to return states at, shape (T,).
        callback: Called with time, state and step before each step.

    Returns:
        The states at `times`.
    """

    def on_views(t: Tensor, y: State) -> State:
        return field(t, _viewed(y))

    starts, steps, ends = grid[:-1], grid.diff(), grid[1:]
    # All times move to the state's device at once: no step waits for an accelerator.
    stages = [stage.to(state[0].device, state[0].dtype).unbind() for stage in scheme.stage_times(starts, steps, ends)]
    solution, requested = [_viewed(state)], times.tolist()
    walk = zip(zip(*stages, strict=True), starts.unbind(), steps.unbind(), steps.tolist(), ends.tolist(), strict=True)
    for stage_times, start, step, size, end in walk:
        callback(start, state, step)
        change = scheme.change(on_views, stage_times, size, state)
        state = tuple([y + dy for y, dy in zip(state, change, strict=True)])
        if end == requested[len(solution)]:
            solution.append(_viewed(state))
    return solution


def _viewed(state: State) -> State:
    """Return views of a state, each a node of its own in autograd's graph.

    Their gradients are summed before they join those of the state, so that the way back adds up in torchdiffeq's order.
    """
    return tuple([part.view_as(part) for part in state])


def _euler(field: Field, t: tuple[Tensor, ...], h: float, y: State) -> State:
    return tuple([h * k for k in field(t[0], y)])


def _midpoint(field: Field, t: tuple[Tensor, ...], h: float, y: State) -> State:
    middle = tuple([a + k * (0.5 * h) for a, k in zip(y, field(t[0], y), strict=True)])
    return tuple([h * k for k in field(t[1], middle)])


def _heun2(field: Field, t: tuple[Tensor, ...], h: float, y: State) -> State:
    k1 = field(t[0], y)
    k2 = field(t[1], tuple([a + h * k for a, k in zip(y, k1, strict=True)]))
    return tuple([h * (a * 0.5 + b * 0.5) for a, b in zip(k1, k2, strict=True)])


def _heun3(field: Field, t: tuple[Tensor, ...], h: float, y: State) -> State:
    k1 = field(t[0], y)
    k2 = field(t[1], tuple([a + h * k * THIRD for a, k in zip(y, k1, strict=True)]))
    k3 = field(t[2], tuple([a + h * (k * TWO_THIRDS) for a, k in zip(y, k2, strict=True)]))
    return tuple([h * (a * 0.25 + b * 0.75) for a, b in zip(k1, k3, strict=True)])


def _rk4(field: Field, t: tuple[Tensor, ...], h: float, y: State) -> State:
    k1 = field(t[0], y)
    k2 = field(t[1], tuple([a + h * k * THIRD for a, k in zip(y, k1, strict=True)]))
    k3 = field(t[2], tuple([a + h * (q - p * THIRD) for a, p, q in zip(y, k1, k2, strict=True)]))
    k4 = field(t[3], tuple([a + h * (p - q + r) for a, p, q, r in zip(y, k1, k2, k3, strict=True)]))
    return tuple([(p + 3 * (q + r) + s) * h * 0.125 for p, q, r, s in zip(k1, k2, k3, k4, strict=True)])


RUNGE_KUTTA: dict[str, Scheme] = {
    "euler": Scheme(lambda t, h, end: (t,), _euler),
    "midpoint": Scheme(lambda t, h, end: (t, t + 0.5 * h), _midpoint),
    "heun2": Scheme(lambda t, h, end: (t, t + h), _heun2),
    "heun3": Scheme(lambda t, h, end: (t, t + h * THIRD, t + h * TWO_THIRDS), _heun3),
    "rk4": Scheme(lambda t, h, end: (t, t + h * THIRD, t + h * TWO_THIRDS, end), _rk4),
}
EXPLICIT_SCHEMES: dict[str, Scheme] = {**RUNGE_KUTTA, **ARCHITECTURES}
