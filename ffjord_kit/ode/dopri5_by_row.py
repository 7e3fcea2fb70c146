r"""Dormand-Prince steps with a clock and a step size for every row of the batch.

The pair of formulas is of orders 5 and 4 (Dormand & Prince 1980): with slopes k_1 .. k_7 and the step h of a row,

    y(t + h) = y + h sum_i b_i k_i,    error = h sum_i e_i k_i,    k_i = f(t + c_i h, y + h sum_{j < i} a_ij k_j),

and the row's next step is 0.9 h ratio^(-1/5), where ratio = |error| / (atol + rtol |y|) accepts the step if it is <= 1.

A row's solution depends on no other row, to rounding, so a log-density does not change with the rest of the batch; a
stiff row does not cost the others their accuracy, and an easy one does not hide its error in an average. Rows that have
arrived leave the batch, so the last ones travel alone and the cost is that of the mean row, not of the worst.

With step doubling, row n + i of a batch of 2 n rows starts where row i does, and takes the steps of row i, each as two
of half the length. At the end the difference of the two is the error of row i, to 1/32 of it (the formula is of fifth
order).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ffjord_kit.ode.errors import TooManyEvaluations
from ffjord_kit.ode.field import State

RowField = Callable[[Tensor, State], State]  # slopes of the rows under way
Field = Callable[[Tensor, State, Tensor | None], State]  # slopes of the rows with some indices; None for all
StepCallback = Callable[[Tensor, State, Tensor], None]

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
LEAVE = 1 / 8  # share of rows that must have arrived before they are dropped from the batch


class RowStepUnderflow(ArithmeticError):
    """Signal rows whose step size fell below the resolution of their clock.

    Args:
        rows: Indices of the rows.
        time: Earliest reading of their clocks.
    """

    def __init__(self, rows: list[int], time: float) -> None:
        super().__init__(f"rows {rows[:5]} at t = {time:.6g}")
        self.rows = rows


class Counts(NamedTuple):
    """Count the steps of each row.

    Attributes:
        accepted: Accepted steps, shape (batch,).
        rejected: Rejected steps, shape (batch,).
    """

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
    callback: StepCallback | None = None,
) -> tuple[list[State], Counts]:
    """Integrate each row by adaptive steps of its own.

    Args:
        field: Slopes of the rows with the given indices, from their times (batch,) and states. The indices are None,
            for all rows, unless `compact` or `step_doubling`.
        state: State at times[0], a tuple of tensors (batch, ...).
        times: Times, shape (T,), strictly monotonic.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        error_components: Number of leading parts of the state whose largest error governs a row's steps; None for all.
        compact: Whether rows that have arrived leave the batch.
        step_doubling: Whether row n + i takes the steps of row i, each as two of half the length.
        nan_on_failure: Whether rows that cannot go on end as NaN while the others go on.
        callback: Called with the rows' times (batch,), state and steps (batch,) before each attempted step.

    Returns:
        The states at all times, and the counts of steps.

    Raises:
        RowStepUnderflow: If a row's step vanishes, unless `nan_on_failure`.
    """
    control = _Control(rtol, atol, error_components, step_doubling, nan_on_failure, callback)
    rows, solution = _start(field, state, times, control), [state]
    for start, end in zip(times[:-1], times[1:], strict=True):
        rows = rows._replace(clock=start.expand(len(rows.clock)).clone())
        rows = _advance(field, rows, end, control, compact=compact)
        solution.append(rows.state)
    return solution, Counts(rows.accepted, rows.rejected)


class _Control(NamedTuple):
    """Options of every step; see `dopri5_by_row`."""

    rtol: float
    atol: float
    error_components: int | None
    step_doubling: bool
    nan_on_failure: bool
    callback: StepCallback | None


class _Rows(NamedTuple):
    """Rows under way: states, slopes, and the clock, the step and the counts of each row, (batch,)."""

    state: State
    slopes: State
    clock: Tensor
    step: Tensor
    accepted: Tensor
    rejected: Tensor

    def take(self, indices: Tensor) -> _Rows:
        """Return some of the rows."""
        state, slopes = (tuple(part[indices] for part in parts) for parts in (self.state, self.slopes))
        return _Rows(state, slopes, *(values[indices] for values in self[2:]))

    def put(self, indices: Tensor, rows: _Rows) -> _Rows:
        """Return a copy with other rows in some places."""
        state, slopes = _put(self.state, rows.state, indices), _put(self.slopes, rows.slopes, indices)
        return _Rows(state, slopes, *_put(self[2:], rows[2:], indices))


def _put(old: Iterable[Tensor], new: Iterable[Tensor], indices: Tensor) -> State:
    return tuple(a.index_copy(0, indices, b) for a, b in zip(old, new, strict=True))


def _start(field: Field, state: State, times: Tensor, control: _Control) -> _Rows:
    """Evaluate the field at times[0], and choose each row's first step."""
    count, parts = len(state[0]), control.error_components
    clock = times[0].expand(count).clone()
    slopes = field(clock.to(state[0].dtype), state, None)
    step = _first_step(state[:parts], slopes[:parts], times[1] - times[0], control.rtol, control.atol)
    step = step[: count // 2].repeat(2) if control.step_doubling else step
    none = torch.zeros(count, dtype=torch.long, device=times.device)
    return _Rows(state, slopes, clock, step, none, none)


def _advance(field: Field, rows: _Rows, end: Tensor, control: _Control, *, compact: bool) -> _Rows:
    """Carry rows to the end of an interval."""
    everyone, live = rows, None  # live: indices of the rows still in the batch; None for all
    while True:
        under_way = rows.clock != end
        left = int(under_way.sum())
        if left == 0 or (compact and left <= (1 - LEAVE) * len(under_way)):
            everyone = rows if live is None else everyone.put(live, rows)
            remaining = under_way.nonzero().flatten()
            live = remaining if live is None else live[remaining]
            rows = rows.take(remaining)
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


def _failed(rows: _Rows, mask: Tensor, end: Tensor) -> _Rows:
    """Give up the rows of a mask: they arrive as NaN."""
    state = tuple(torch.where(_broadcast(mask, part), torch.nan, part) for part in rows.state)
    return rows._replace(state=state, clock=torch.where(mask, end, rows.clock))


def _step(field: Field, live: Tensor | None, rows: _Rows, end: Tensor, control: _Control) -> _Rows:
    """Attempt one step of every row; a row that has arrived takes none."""
    state, slopes, clock, step, accepted, rejected = rows
    last = (end - clock).abs() <= step.abs() * (1 + 1e-12)
    h = torch.where(last, end - clock, step)
    if control.callback is not None:
        control.callback(clock, state, h)
    if control.step_doubling:
        new, new_slopes, errors = _doubled_trial(field, live, rows, h)
    else:
        new, new_slopes, errors = _trial(lambda t, y: field(t, y, live), state, slopes, clock, h)
    ratio = _error_ratio(state, new, errors, control)
    passed = ratio <= 1
    factor = (SAFETY * ratio.clamp(min=1e-10) ** -0.2).clamp(SHRINK, GROW)
    under_way = clock != end
    # The last step of an interval may be cut short: it must not shorten the first step of the next.
    step = torch.where(last & passed, torch.where(h.abs() * factor > step.abs(), h * factor, step), h * factor)
    clock = torch.where(passed, torch.where(last, end, clock + h), clock)
    counts = accepted + (passed & under_way), rejected + (~passed & under_way)
    return _Rows(_choose(passed, new, state), _choose(passed, new_slopes, slopes), clock, step, *counts)


def _doubled_trial(field: Field, live: Tensor | None, rows: _Rows, h: Tensor) -> tuple[State, State, State]:
    """Attempt a step h of the first half of the rows, and two of h / 2 of the second half."""
    half = len(h) // 2
    sizes = torch.cat([h[:half], h[half:] / 2])
    new, slopes, errors = _trial(lambda t, y: field(t, y, live), rows.state, rows.slopes, rows.clock, sizes)
    second = torch.arange(half, len(h), device=h.device) if live is None else live[half:]
    middle, middle_slopes = (tuple(part[half:] for part in parts) for parts in (new, slopes))
    clock = rows.clock[half:] + sizes[half:]
    last, last_slopes, _ = _trial(lambda t, y: field(t, y, second), middle, middle_slopes, clock, sizes[half:])
    return _join(new, last, half), _join(slopes, last_slopes, half), errors


def _join(first: State, second: State, half: int) -> State:
    return tuple(torch.cat([a[:half], b]) for a, b in zip(first, second, strict=True))


def _trial(field: RowField, state: State, slopes: State, clock: Tensor, h: Tensor) -> tuple[State, State, State]:
    """Return the state after a step h, the slopes there, and the estimated errors."""
    stages = [slopes]
    for c, row in zip(C[1:], A[1:], strict=True):
        stages.append(field((clock + c * h).to(state[0].dtype), _shift(state, stages, row, h)))
    new = _shift(state, stages, B, h)
    stages.append(field((clock + h).to(state[0].dtype), new))
    return new, stages[-1], tuple(_weighted_sum(stages, B_ERROR, h, i) for i in range(len(state)))


def _weighted_sum(stages: list[State], weights: tuple[float, ...], h: Tensor, part: int) -> Tensor:
    """Return h sum_i w_i k_i of one part of the state."""
    terms = [w * stage[part] for w, stage in zip(weights, stages, strict=True) if w]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total * _broadcast(h, total)


def _shift(state: State, stages: list[State], weights: tuple[float, ...], h: Tensor) -> State:
    return tuple(part + _weighted_sum(stages, weights, h, i) for i, part in enumerate(state))


def _choose(passed: Tensor, new: State, old: State) -> State:
    return tuple(torch.where(_broadcast(passed, a), a, b) for a, b in zip(new, old, strict=True))


def _broadcast(rows: Tensor, like: Tensor) -> Tensor:
    """Reshape (batch,) to (batch, 1, ...) to broadcast against `like`, in its dtype unless it is a mask."""
    rows = rows if rows.dtype == torch.bool else rows.to(like.dtype)
    return rows.reshape(-1, *[1] * (like.dim() - 1))


def _rms(part: Tensor) -> Tensor:
    """Return the root mean square of each row, (batch,)."""
    return part.detach().reshape(len(part), -1).square().mean(1).sqrt()


def _error_ratio(old: State, new: State, errors: State, control: _Control) -> Tensor:
    """Return each row's error over its tolerance, (batch,); both rows of a pair get that of the first."""
    trials = list(zip(old, new, errors, strict=True))[: control.error_components]
    scaled = [
        _rms(e.detach() / (control.atol + control.rtol * torch.maximum(a.detach().abs(), b.detach().abs())))
        for a, b, e in trials
    ]
    ratio = torch.stack(scaled).amax(0)
    ratio = ratio if ratio.device.type == "mps" else ratio.double()
    if not control.step_doubling:
        return ratio
    first, second = ratio.chunk(2)
    return torch.where(second.isfinite(), first, torch.nan).repeat(2)


def _first_step(state: State, slopes: State, span: Tensor, rtol: float, atol: float) -> Tensor:
    """Return each row's first step: a hundredth of the state's size over its speed (Hairer et al. 1993, II.4)."""
    scales = [atol + rtol * s.detach().abs() for s in state]
    size = torch.stack([_rms(s / w) for s, w in zip(state, scales, strict=True)]).amax(0)
    speed = torch.stack([_rms(f / w) for f, w in zip(slopes, scales, strict=True)]).amax(0)
    step = (0.01 * (size + 1e-3) / (speed + 1e-10)).to(span.dtype)
    return step.clamp(max=float(span.abs()), min=1e-6 * float(span.abs())) * span.sign()
