r"""Dormand-Prince steps with a clock and a step size for every row of the batch.

The pair of formulas is of orders 5 and 4 (Dormand & Prince 1980): with slopes k_1 .. k_7 and the step h of a row,

    y(t + h) = y + h sum_i b_i k_i,    error = h sum_i e_i k_i,    k_i = f(t + c_i h, y + h sum_{j < i} a_ij k_j),

and the row's next step is 0.9 h ratio^(-1/5), where ratio = |error| / (atol + rtol |y|) accepts the step if it is <= 1.
It is rounded down to a power of 2^(1/4). How a matrix product rounds a row depends on the batch; steps that followed
each such difference would drift apart within some tens of steps, and the solutions by their whole error.

A row's solution depends on no other row, to rounding, so a log-density does not change with the rest of the batch; a
stiff row does not cost the others their accuracy, and an easy one does not hide its error in an average. Rows that have
arrived leave the batch, so the last ones travel alone and the cost is that of the mean row, not of the worst.

With step doubling, row n + i of a batch of 2 n rows starts where row i does, and takes the steps of row i, each as two
of half the length. At the end the difference of the two is the error of row i, to 1/32 of it (the formula is of fifth
order). Errors of several steps may cancel in it by chance, so the differences that the single steps make are kept too.
The two also see the field at different times, and a step is accepted only if they agree on it, so that a pulse
between the stages of one is seen by the other. Where the slopes leap between two neighbouring stages, the order does
not hold: h times the leap bounds the error of the step, and is added up; a leap in space, of the velocity f, also
changes the density by up to log(1 + leap / |f|), which no derivative shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ffjord_kit.ode.errors import TooManyEvaluations
from ffjord_kit.ode.field import RowSteps, State

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
STEPS_PER_OCTAVE = 4  # sizes of a step between h and 2 h
TIMES_OF_BOTH = (
    0.0,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    4 / 9,
    0.5,
    0.5,
    0.6,
    0.65,
    0.8,
    8 / 9,
    0.9,
    17 / 18,
    1.0,
    1.0,
    1.0,
)  # of a step
SPIKE = 5.0  # times the range over a step; a jump in the widest gap, 0.15 of a step, gives 6.7
NARROW = 0.05  # of a step; stages that are closer differ by their own errors
APART = 4.0  # times the tolerance; largest difference of the two solutions' changes over an accepted step
SLIGHT = 0.1  # of the tolerance; leaps that change less in the longest step count for nothing
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


def dopri5_by_row(
    field: Field,
    state: State,
    times: Tensor,
    *,
    rtol: float,
    atol: float,
    max_step: float = math.inf,
    error_components: int | None = None,
    compact: bool = False,
    step_doubling: bool = False,
    nan_on_failure: bool = False,
    callback: StepCallback | None = None,
) -> tuple[list[State], RowSteps]:
    """Integrate each row by adaptive steps of its own.

    Args:
        field: Slopes of the rows with the given indices, from their times (batch,) and states. The indices are None,
            for all rows, unless `compact` or `step_doubling`.
        state: State at times[0], a tuple of tensors (batch, ...).
        times: Times, shape (T,), strictly monotonic.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_step: Longest step, as a share of the whole time.
        error_components: Number of leading parts of the state whose largest error governs a row's steps; None for all.
        compact: Whether rows that have arrived leave the batch.
        step_doubling: Whether row n + i takes the steps of row i, each as two of half the length.
        nan_on_failure: Whether rows that cannot go on end as NaN while the others go on.
        callback: Called with the rows' times (batch,), state and steps (batch,) before each attempted step.

    Returns:
        The states at all times, and the steps of each row.

    Raises:
        RowStepUnderflow: If a row's step vanishes, unless `nan_on_failure`.
    """
    longest = max_step * float((times[-1] - times[0]).abs())
    control = _Control(rtol, atol, longest, error_components, step_doubling, nan_on_failure, callback)
    rows, solution = _start(field, state, times, control), [state]
    for start, end in zip(times[:-1], times[1:], strict=True):
        rows = rows._replace(clock=start.expand(len(rows.clock)).clone())
        rows = _advance(field, rows, end, control, compact=compact)
        solution.append(rows.state)
    gaps = tuple(total.sqrt() for total in rows.gaps)
    return solution, RowSteps(rows.accepted, rows.rejected, rows.longest, rows.leaps, gaps, rows.jumps)


class _Control(NamedTuple):
    """Options of every step; see `dopri5_by_row`."""

    rtol: float
    atol: float
    max_step: float
    error_components: int | None
    step_doubling: bool
    nan_on_failure: bool
    callback: StepCallback | None


class _Rows(NamedTuple):
    """Rows under way: states, slopes, h times the leaps, squared gaps so far, and numbers of each row, (batch,)."""

    state: State
    slopes: State
    leaps: State
    gaps: State
    clock: Tensor
    step: Tensor
    accepted: Tensor
    rejected: Tensor
    longest: Tensor
    jumps: Tensor

    def take(self, indices: Tensor) -> _Rows:
        """Return some of the rows."""
        state, slopes, leaps, gaps = (tuple(part[indices] for part in parts) for parts in self[:4])
        return _Rows(state, slopes, leaps, gaps, *(values[indices] for values in self[4:]))

    def put(self, indices: Tensor, rows: _Rows) -> _Rows:
        """Return a copy with other rows in some places."""
        parts = zip(self[:4], rows[:4], strict=True)
        state, slopes, leaps, gaps = (_put(old, new, indices) for old, new in parts)
        return _Rows(state, slopes, leaps, gaps, *_put(self[4:], rows[4:], indices))


def _put(old: Iterable[Tensor], new: Iterable[Tensor], indices: Tensor) -> State:
    return tuple(a.index_copy(0, indices, b) for a, b in zip(old, new, strict=True))


def _start(field: Field, state: State, times: Tensor, control: _Control) -> _Rows:
    """Evaluate the field at times[0], and choose each row's first step."""
    count, parts = len(state[0]), control.error_components
    clock = times[0].expand(count).clone()
    slopes = field(clock.to(state[0].dtype), state, None)
    step = _first_step(state[:parts], slopes[:parts], times[1] - times[0], control.rtol, control.atol)
    step = step[: count // 2].repeat(2) if control.step_doubling else step
    step = _rounded_down(step).clamp(-control.max_step, control.max_step)
    none = torch.zeros(count, dtype=torch.long, device=times.device)
    zeros = tuple(torch.zeros_like(part) for part in state) if control.step_doubling else ()
    longest, jumps = torch.zeros_like(step), state[0].new_zeros(count)
    return _Rows(state, slopes, zeros, zeros, clock, step, none, none, longest, jumps)


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
    state, clock, step = rows.state, rows.clock, rows.step
    last = (end - clock).abs() <= step.abs() * (1 + 1e-12)
    h = torch.where(last, end - clock, step)
    if control.callback is not None:
        control.callback(clock, state, h)
    trial = _doubled_trial(field, live, rows, h) if control.step_doubling else _trial(field, live, rows, h)
    ratio = _error_ratio(state, trial.state, trial.errors, control)
    passed = ratio <= 1
    moved = passed & (clock != end)
    if control.step_doubling:
        rows = _with_gaps(_with_leaps(field, live, rows, trial, h, moved, control), trial, moved)
    fitting = _rounded_down(h * (SAFETY * ratio.clamp(min=1e-10) ** -0.2).clamp(SHRINK, GROW))
    # The last step of an interval may be cut short: it must not shorten the first step of the next.
    step = torch.where(last & passed & (fitting.abs() < step.abs()), step, fitting)
    return rows._replace(
        state=_choose(passed, trial.state, state),
        slopes=_choose(passed, trial.slopes, rows.slopes),
        clock=torch.where(passed, torch.where(last, end, clock + h), clock),
        step=step.clamp(-control.max_step, control.max_step),
        accepted=rows.accepted + moved,
        rejected=rows.rejected + (~passed & (clock != end)),
        longest=torch.where(moved, torch.maximum(rows.longest, h.abs()), rows.longest),
    )


class _Trial(NamedTuple):
    """An attempted step: the state after it, the slopes there, the estimated errors, and the slopes of its stages.

    The stages are those of the pair of formulas; with step doubling, all of them in the order of their times. The gaps
    are then the differences of the two solutions' changes.
    """

    state: State
    slopes: State
    errors: State
    stages: list[State]
    gaps: State = ()


def _doubled_trial(field: Field, live: Tensor | None, rows: _Rows, h: Tensor) -> _Trial:
    """Attempt a step h of the first half of the rows, and two of h / 2 of the second half.

    The error is the larger of two: the estimate of the pair of formulas, and a part of the difference of the two
    changes, which holds the differences of earlier steps too.
    """
    half = len(h) // 2
    sizes = torch.cat([h[:half], h[half:] / 2])
    first = _trial(field, live, rows, sizes)
    second = torch.arange(half, len(h), device=h.device) if live is None else live[half:]
    middle = rows._replace(
        state=tuple(part[half:] for part in first.state),
        slopes=tuple(part[half:] for part in first.slopes),
        clock=rows.clock[half:] + sizes[half:],
    )
    later = _trial(field, second, middle, sizes[half:])
    state = _join(first.state, later.state, half)
    changes = (new - old for new, old in zip(state, rows.state, strict=True))
    gaps = tuple((change[:half] - change[half:]).abs().repeat(2, *[1] * (change.dim() - 1)) for change in changes)
    errors = tuple(torch.maximum(e.abs(), gap / APART) for e, gap in zip(first.errors, gaps, strict=True))
    stages = _in_order(first.stages, later.stages, half)
    return _Trial(state, _join(first.slopes, later.slopes, half), errors, stages, gaps)


def _with_gaps(rows: _Rows, trial: _Trial, moved: Tensor) -> _Rows:
    """Add the squared gaps of an accepted step."""
    gaps = (torch.where(_broadcast(moved, gap), gap.square(), 0) for gap in trial.gaps)
    return rows._replace(gaps=tuple(total + gap for total, gap in zip(rows.gaps, gaps, strict=True)))


def _in_order(first: list[State], later: list[State], half: int) -> list[State]:
    """Return the slopes of all stages of both solutions at TIMES_OF_BOTH."""
    whole = [tuple(part[:half] for part in stage) for stage in first]
    early = [tuple(part[half:] for part in stage) for stage in first]
    return [
        early[0], early[1], early[2], whole[1], whole[2], early[3], early[4], early[5], early[6],
        later[1], later[2], whole[3], whole[4], later[3], later[4], whole[5], later[5], later[6],
    ]  # fmt: skip


def _with_leaps(
    field: Field, live: Tensor | None, rows: _Rows, trial: _Trial, h: Tensor, moved: Tensor, control: _Control
) -> _Rows:
    """Add the leaps within an accepted step; both rows of a pair get the same."""
    half = len(h) // 2
    paths = [torch.stack(parts) for parts in zip(*trial.stages, strict=True)]
    places = [_leap(path, old[:half], moved[:half], control) for path, old in zip(paths, rows.state, strict=True)]
    sums = tuple(
        total + torch.cat([leap, leap]) * _broadcast(h.abs(), total)
        for total, leap in zip(rows.leaps, map(_change, paths, places), strict=True)
    )
    found = (places[0] >= 0).nonzero().flatten()
    if not len(found):
        return rows._replace(leaps=sums)
    some = rows.take(found + half)
    which = found + half if live is None else live[found + half]
    jump = _jump(field, which, some, paths[0][:, found], places[0][found], h[found])
    return rows._replace(leaps=sums, jumps=rows.jumps.index_add(0, torch.cat([found, found + half]), jump.repeat(2)))


def _leap(path: Tensor, state: Tensor, moved: Tensor, control: _Control) -> Tensor:
    """Return the place of the leap between neighbouring stages (stage, batch, ...), (batch,); -1 for none."""
    sizes = torch.stack([_rms(change) for change in path.diff(dim=0)])
    gaps = torch.tensor(TIMES_OF_BOTH, dtype=sizes.dtype, device=sizes.device).diff().clamp(min=NARROW)
    fastest, place = (sizes / gaps[:, None]).max(0)
    steep = fastest > SPIKE * _rms(path.amax(0) - path.amin(0))
    slight = SLIGHT * (control.atol + control.rtol * _rms(state))
    return torch.where(moved & steep & (control.max_step * sizes.gather(0, place[None])[0] > slight), place, -1)


def _change(path: Tensor, place: Tensor) -> Tensor:
    """Return the sizes of the changes of a path (stage, batch, ...) at places, 0 where there is none."""
    rows = torch.arange(len(place), device=place.device)
    change = (path[place + 1, rows] - path[place, rows]).abs()
    return torch.where(_broadcast(place >= 0, change), change, 0)


def _jump(field: Field, which: Tensor, rows: _Rows, path: Tensor, place: Tensor, h: Tensor) -> Tensor:
    """Return log(1 + leap / |f|) of leaps of the velocity in space, (batch,), and 0 for leaps in time.

    The velocity at the step's first state, at the time of the leap's far side, tells the two apart.
    """
    every = torch.arange(len(place), device=place.device)
    sides = torch.stack([path[place, every], path[place + 1, every]])
    away = torch.stack([_rms(side - path[0]) for side in sides])
    time = path.new_tensor(TIMES_OF_BOTH).double()[place + away.argmax(0)]
    moved = field((rows.clock + time.to(h) * h).to(path.dtype), rows.state, which)[0]
    in_space = _rms(moved - path[0]) < away.amax(0) / 2
    slowest = torch.stack([_rms(side) for side in sides]).amin(0).clamp(min=torch.finfo(path.dtype).tiny)
    return torch.where(in_space, torch.log1p(_rms(sides[1] - sides[0]) / slowest), 0)


def _join(first: State, second: State, half: int) -> State:
    return tuple(torch.cat([a[:half], b]) for a, b in zip(first, second, strict=True))


def _trial(field: Field, live: Tensor | None, rows: _Rows, h: Tensor) -> _Trial:
    """Attempt a step of h."""
    state, clock = rows.state, rows.clock
    stages = [rows.slopes]
    for c, row in zip(C[1:], A[1:], strict=True):
        stages.append(field((clock + c * h).to(state[0].dtype), _shift(state, stages, row, h), live))
    new = _shift(state, stages, B, h)
    stages.append(field((clock + h).to(state[0].dtype), new, live))
    errors = tuple(_weighted_sum(stages, B_ERROR, h, i) for i in range(len(state)))
    return _Trial(new, stages[-1], errors, stages)


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


def _rounded_down(step: Tensor) -> Tensor:
    """Return each step rounded down to one of a few sizes, which no rounding of the state changes, (batch,)."""
    return step.sign() * ((step.abs().log2() * STEPS_PER_OCTAVE).floor() / STEPS_PER_OCTAVE).exp2()


def _first_step(state: State, slopes: State, span: Tensor, rtol: float, atol: float) -> Tensor:
    """Return each row's first step: a hundredth of the state's size over its speed (Hairer et al. 1993, II.4)."""
    scales = [atol + rtol * s.detach().abs() for s in state]
    size = torch.stack([_rms(s / w) for s, w in zip(state, scales, strict=True)]).amax(0)
    speed = torch.stack([_rms(f / w) for f, w in zip(slopes, scales, strict=True)]).amax(0)
    step = (0.01 * (size + 1e-3) / (speed + 1e-10)).to(span.dtype)
    return step.clamp(max=float(span.abs()), min=1e-6 * float(span.abs())) * span.sign()
