r"""Integration methods that torchdiffeq lacks.

`dopri5_by_row` is the Dormand-Prince pair (Dormand & Prince 1980) with a clock and a step size for every row of the
batch. A row's solution depends on no other row, to rounding, so a log-density does not change with its company; a
stiff row does not cost the others their accuracy, and an easy one does not hide its error in an average.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Field = Callable[[Tensor, State], State]

C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0)
A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
)
B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
B_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0


class StepUnderflow(ArithmeticError):
    """The step size of some rows fell below what their clock resolves."""


def dopri5_by_row(
    field: Field, state: State, times: Tensor, *, rtol: float, atol: float, steering: int | None = None
) -> list[State]:
    """The states at every time, each row with its own adaptive steps.

    The error that steers a row is the largest of those of the first `steering` parts of its state.
    Shapes: every part of the state (batch, ...); times (T,), monotonic, the first the start.
    Raises StepUnderflow where a row's step vanishes.
    """
    rows, slopes, step = len(state[0]), None, None
    solution = [state]
    for start, end in zip(times[:-1], times[1:], strict=True):
        clock = start.expand(rows).clone()
        if slopes is None:
            slopes = field(clock.to(state[0].dtype), state)
            step = _first_step(state[:steering], slopes[:steering], end - start, rtol, atol)
        state, slopes, step = _advance(field, state, slopes, clock, step, end, (rtol, atol, steering))
        solution.append(state)
    return solution


def _advance(
    field: Field, state: State, slopes: State, clock: Tensor, step: Tensor, end: Tensor, control: tuple
) -> tuple[State, State, Tensor]:
    rtol, atol, steering = control
    while bool((clock != end).any()):
        last = (end - clock).abs() <= step.abs() * (1 + 1e-12)
        h = torch.where(last, end - clock, step)
        new, new_slopes, errors = _trial(field, state, slopes, clock, h)
        ratio = _error_ratio(state[:steering], new[:steering], errors[:steering], rtol, atol)
        accepted = ratio <= 1
        state, slopes = _choose(accepted, new, state), _choose(accepted, new_slopes, slopes)
        clock = torch.where(accepted, torch.where(last, end, clock + h), clock)
        factor = (SAFETY * ratio.clamp(min=1e-10) ** -0.2).clamp(SHRINK, GROW)
        # A last step may be short for want of road: it must not shorten the next interval's first one.
        step = torch.where(last & accepted, torch.where(h.abs() * factor > step.abs(), h * factor, step), h * factor)
        _check_underflow(clock, step, end)
    return state, slopes, step


def _trial(
    field: Field, state: State, slopes: State, clock: Tensor, h: Tensor
) -> tuple[State, State, tuple[Tensor, ...]]:
    stages = [slopes]
    for c, row in zip(C[1:], A[1:], strict=True):
        stages.append(field((clock + c * h).to(state[0].dtype), _moved(state, stages, row, h)))
    new = _moved(state, stages, B, h)
    stages.append(field((clock + h).to(state[0].dtype), new))
    return new, stages[-1], tuple(_combined(stages, B_ERROR, h, i) for i in range(len(state)))


def _combined(stages: list[State], weights: tuple[float, ...], h: Tensor, part: int) -> Tensor:
    total = sum(w * stage[part] for w, stage in zip(weights, stages, strict=True) if w)
    return total * _beside(h, total)


def _moved(state: State, stages: list[State], weights: tuple[float, ...], h: Tensor) -> State:
    return tuple(part + _combined(stages, weights, h, i) for i, part in enumerate(state))


def _choose(accepted: Tensor, new: State, old: State) -> State:
    return tuple(torch.where(_beside(accepted, a), a, b) for a, b in zip(new, old, strict=True))


def _beside(rows: Tensor, like: Tensor) -> Tensor:
    """(batch,) as (batch, 1, ...) that broadcasts against `like`, in its dtype unless it is a mask."""
    rows = rows if rows.dtype == torch.bool else rows.to(like.dtype)
    return rows.reshape(-1, *[1] * (like.dim() - 1))


def _rms(part: Tensor) -> Tensor:
    return part.detach().reshape(len(part), -1).square().mean(1).sqrt()


def _error_ratio(old: State, new: State, errors: State, rtol: float, atol: float) -> Tensor:
    scaled = [
        _rms(e.detach() / (atol + rtol * torch.maximum(a.detach().abs(), b.detach().abs())))
        for a, b, e in zip(old, new, errors, strict=True)
    ]
    return torch.stack(scaled).amax(0).double() if scaled[0].device.type != "mps" else torch.stack(scaled).amax(0)


def _first_step(state: State, slopes: State, span: Tensor, rtol: float, atol: float) -> Tensor:
    """Each row's first step: a hundredth of the state's size over its speed (Hairer, Norsett & Wanner, II.4)."""
    scales = [atol + rtol * s.detach().abs() for s in state]
    size = torch.stack([_rms(s / w) for s, w in zip(state, scales, strict=True)]).amax(0)
    speed = torch.stack([_rms(f / w) for f, w in zip(slopes, scales, strict=True)]).amax(0)
    step = (0.01 * (size + 1e-3) / (speed + 1e-10)).to(span.dtype)
    return step.clamp(max=float(span.abs()), min=1e-6 * float(span.abs())) * span.sign()


def _check_underflow(clock: Tensor, step: Tensor, end: Tensor) -> None:
    stuck = (clock != end) & (clock + step == clock)
    if bool(stuck.any()):
        rows = stuck.nonzero().flatten().tolist()
        raise StepUnderflow(f"rows {rows[:5]} of {len(clock)} at t = {float(clock[rows[0]]):.6g}")
