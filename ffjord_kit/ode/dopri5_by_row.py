r"""Integration methods that torchdiffeq lacks.

`dopri5_by_row` is the Dormand-Prince pair (Dormand & Prince 1980) with a clock and a step size for every row of the
batch. A row's solution depends on no other row, to rounding, so a log-density does not change with its company; a
stiff row does not cost the others their accuracy, and an easy one does not hide its error in an average. Rows that have
arrived leave the batch, so the last ones travel alone and the cost is that of the mean row, not of the worst.

Rows may travel in pairs: a row of the second half of the batch begins where its like in the first half does, and takes
its steps, each as two of half the length. At the end the two are parted by the error of the first, to 1/32 of it (the
pair is of fifth order), which is how that error is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ffjord_kit.ode.errors import TooManyEvaluations
from ffjord_kit.ode.field import State

Live = Callable[[Tensor, State], State]
Field = Callable[[Tensor, State, Tensor | None], State]

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
LEAVE = 1 / 8  # the share of rows that must have arrived before the others are moved together


class RowStepUnderflow(ArithmeticError):
    """The step size of some rows, which it numbers, fell below what their clock resolves."""

    def __init__(self, rows: list[int], time: float) -> None:
        super().__init__(f"rows {rows[:5]} at t = {time:.6g}")
        self.rows = rows


class Counts(NamedTuple):
    """How many steps each row took and was rejected, (batch,)."""

    accepted: Tensor
    rejected: Tensor


def dopri5_by_row(
    field: Field,
    state: State,
    times: Tensor,
    *,
    rtol: float,
    atol: float,
    error_components: int | None = None,
    compact: bool = False,
    step_doubling: bool = False,
    nan_on_failure: bool = False,
    callback: Callable[[Tensor, State, Tensor], None] | None = None,
) -> tuple[list[State], Counts]:
    """The states at every time, each row with its own adaptive steps, and their counts.

    `field(t, state, rows)` is asked for the rows that `rows` names, all where it is None; only for all unless rows may
    leave, or are `step_doubling`. The error that steers a row is the largest of those of the first `error_components` parts of its
    state; of a pair, that of its first row. With `nan_on_failure` rows that cannot go on end as NaN, and the others go on.
    `callback(clock, state, step)` hears of each step before it is tried.
    Shapes: every part of the state (batch, ...); times (T,), monotonic, the first the start.
    Raises RowStepUnderflow where a row's step vanishes.
    """
    rows, slopes, step, control = (
        len(state[0]),
        None,
        None,
        _Control(rtol, atol, error_components, step_doubling, nan_on_failure, callback),
    )
    solution, none = [state], torch.zeros(rows, dtype=torch.long, device=times.device)
    counts = Counts(none, none)
    for start, end in zip(times[:-1], times[1:], strict=True):
        clock = start.expand(rows).clone()
        if slopes is None:
            slopes = field(clock.to(state[0].dtype), state, None)
            step = _first_step(state[:error_components], slopes[:error_components], end - start, rtol, atol)
            step = step[: rows // 2].repeat(2) if step_doubling else step
        arrived = _advance(field, _Rows(state, slopes, clock, step, *counts), end, control, compact=compact)
        state, slopes, step, counts = arrived.state, arrived.slopes, arrived.step, Counts(*arrived[4:])
        solution.append(state)
    return solution, counts


class _Control(NamedTuple):
    """How steps are judged: the tolerances, the parts of the state that do, whether rows travel in pairs, and end."""

    rtol: float
    atol: float
    error_components: int | None
    step_doubling: bool
    nan_on_failure: bool
    callback: Callable[[Tensor, State, Tensor], None] | None


class _Rows(NamedTuple):
    """Rows under way: states and slopes; the clock, the step and the counts of each, (batch,)."""

    state: State
    slopes: State
    clock: Tensor
    step: Tensor
    accepted: Tensor
    rejected: Tensor

    def take(self, which: Tensor) -> _Rows:
        return _Rows(*([part[which] for part in parts] for parts in self[:2]), *(part[which] for part in self[2:]))

    def put(self, which: Tensor, rows: _Rows) -> _Rows:
        parts = (
            tuple(a.index_copy(0, which, b) for a, b in zip(mine, its, strict=True))
            for mine, its in zip(self[:2], rows[:2], strict=True)
        )
        return _Rows(*parts, *(a.index_copy(0, which, b) for a, b in zip(self[2:], rows[2:], strict=True)))


def _advance(field: Field, rows: _Rows, end: Tensor, control: _Control, *, compact: bool) -> _Rows:
    everyone, live = rows, None
    while True:
        under_way = rows.clock != end
        left = int(under_way.sum())
        if left == 0 or (compact and left <= (1 - LEAVE) * len(under_way)):
            everyone = rows if live is None else everyone.put(live, rows)
            chosen = under_way.nonzero().flatten()
            live = chosen if live is None else live[chosen]
            rows = rows.take(chosen)
        if left == 0:
            return everyone
        try:
            rows = _step(field, live, rows, end, control)
        except TooManyEvaluations:
            if not control.nan_on_failure:
                raise
            rows = _failed(rows, rows.clock != end, end)
            return rows if live is None else everyone.put(live, rows)
        stuck = (rows.clock != end) & ((rows.clock + rows.step == rows.clock) | ~rows.step.isfinite())
        if control.nan_on_failure:
            rows = _failed(rows, stuck, end)
        elif bool(stuck.any()):
            names = stuck.nonzero().flatten() if live is None else live[stuck]
            raise RowStepUnderflow(names.tolist(), float(rows.clock[stuck].min()))


def _failed(rows: _Rows, which: Tensor, end: Tensor) -> _Rows:
    """Some rows, (batch,) of truth, given up: arrived as NaN."""
    state = tuple(torch.where(_broadcast(which, part), torch.nan, part) for part in rows.state)
    return rows._replace(state=state, clock=torch.where(which, end, rows.clock))


def _step(field: Field, live: Tensor | None, rows: _Rows, end: Tensor, control: _Control) -> _Rows:
    """One step of every row, accepted or rejected; a row that has arrived takes none."""
    (state, slopes, clock, step, accepted, rejected), (rtol, atol, error_components, step_doubling) = rows, control[:4]
    last = (end - clock).abs() <= step.abs() * (1 + 1e-12)
    h = torch.where(last, end - clock, step)
    if control.callback is not None:
        control.callback(clock, state, h)
    if step_doubling:
        new, new_slopes, errors = _doubled_trial(field, live, rows, h)
    else:
        new, new_slopes, errors = _trial(lambda t, y: field(t, y, live), state, slopes, clock, h)
    ratio = _error_ratio(state[:error_components], new[:error_components], errors[:error_components], rtol, atol)
    if step_doubling:
        first, second = ratio.chunk(2)
        ratio = torch.where(second.isfinite(), first, torch.nan).repeat(2)
    passed = ratio <= 1
    factor = (SAFETY * ratio.clamp(min=1e-10) ** -0.2).clamp(SHRINK, GROW)
    under_way = clock != end
    # A last step may be short for want of road: it must not shorten the next interval's first one.
    step = torch.where(last & passed, torch.where(h.abs() * factor > step.abs(), h * factor, step), h * factor)
    clock = torch.where(passed, torch.where(last, end, clock + h), clock)
    counts = accepted + (passed & under_way), rejected + (~passed & under_way)
    return _Rows(_choose(passed, new, state), _choose(passed, new_slopes, slopes), clock, step, *counts)


def _doubled_trial(field: Field, live: Tensor | None, rows: _Rows, h: Tensor) -> tuple[State, State, State]:
    """A step h of the first half of the rows, and two of h / 2 of the second half."""
    half = len(h) // 2
    stride = torch.cat([h[:half], h[half:] / 2])
    new, slopes, errors = _trial(lambda t, y: field(t, y, live), *rows[:3], stride)
    second = torch.arange(half, len(h), device=h.device) if live is None else live[half:]
    middle = [tuple(part[half:] for part in parts) for parts in (new, slopes)]
    there, slopes_there, _ = _trial(
        lambda t, y: field(t, y, second), *middle, rows.clock[half:] + stride[half:], stride[half:]
    )
    return _joined(new, there, half), _joined(slopes, slopes_there, half), errors


def _joined(first: State, second: State, half: int) -> State:
    return tuple(torch.cat([a[:half], b]) for a, b in zip(first, second, strict=True))


def _trial(field: Live, state: State, slopes: State, clock: Tensor, h: Tensor) -> tuple[State, State, State]:
    """Where a step h leads, the slopes there, and its estimated errors."""
    stages = [slopes]
    for c, row in zip(C[1:], A[1:], strict=True):
        stages.append(field((clock + c * h).to(state[0].dtype), _moved(state, stages, row, h)))
    new = _moved(state, stages, B, h)
    stages.append(field((clock + h).to(state[0].dtype), new))
    return new, stages[-1], tuple(_combined(stages, B_ERROR, h, i) for i in range(len(state)))


def _combined(stages: list[State], weights: tuple[float, ...], h: Tensor, part: int) -> Tensor:
    total = sum(w * stage[part] for w, stage in zip(weights, stages, strict=True) if w)
    return total * _broadcast(h, total)


def _moved(state: State, stages: list[State], weights: tuple[float, ...], h: Tensor) -> State:
    return tuple(part + _combined(stages, weights, h, i) for i, part in enumerate(state))


def _choose(passed: Tensor, new: State, old: State) -> State:
    return tuple(torch.where(_broadcast(passed, a), a, b) for a, b in zip(new, old, strict=True))


def _broadcast(rows: Tensor, like: Tensor) -> Tensor:
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
