"""The layer between a method of integration and the field: it counts evaluations and ends a solve that cannot go on.

A field that gives NaN ends an adaptive solve at once, since its steps would shrink for ever. A solve of fixed steps
ends by itself, so there the check is deferred to the last step, and no step waits for an accelerator's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ffjord_kit.ode.errors import BlowUpError, NonFiniteError, SolveError, TooManyEvaluations
from ffjord_kit.ode.time_limit import check_time

State = tuple[Tensor, ...]
RightHandSide = Callable[[Tensor, State], State]
RowSelector = Callable[[Tensor], RightHandSide]  # from row indices (m,) to the right-hand side of these rows alone

BLOW_UP = 1e8  # a state larger than this, relative to 1 + its start, has left for infinity
FOLD = 256  # deferred checks that are folded into one tensor, so that many steps do not keep many small ones


class RowSteps(NamedTuple):
    """The steps of each row.

    Attributes:
        accepted: Number of accepted steps, shape (batch,).
        rejected: Number of rejected steps, shape (batch,).
        longest: Longest accepted step, shape (batch,).
        leaps: With step doubling, bounds on the errors by leaps of the slopes; a state.
        gaps: With step doubling, the root of the sum of squares of the differences that each step makes; a state.
        jumps: With step doubling, bounds on the log-density's error by jumps of the velocity in space, nats, shape
            (batch,).

    Example:
        >>> from ffjord_kit.ode import PerRowSolver
        >>> rates, start = torch.tensor([[0.0], [30.0]]), torch.ones(2, 1)
        >>> found = PerRowSolver(1e-4, 1e-4).solve(lambda t, x: (-rates * x[0],), (start,), torch.tensor([0.0, 1.0]))
        >>> bool(found.stats.rows.longest[0] > found.stats.rows.longest[1])
        True
    """

    accepted: Tensor
    rejected: Tensor
    longest: Tensor
    leaps: State
    gaps: State
    jumps: Tensor


@dataclass
class SolverStats:
    """Count the evaluations and the steps of a solve.

    Attributes:
        nfe: Evaluations of the field on the way forward.
        nfe_backward: Evaluations on the way back, by an adjoint or a checkpoint; they are counted as they happen.
        accepted: Accepted steps: of each row, shape (batch,), where rows step by themselves, else of the batch; None
            where the method does not say.
        rejected: Rejected steps, likewise.
        rows: Steps of each row, where rows step by themselves.

    Example:
        >>> from ffjord_kit.ode import FixedSolver
        >>> times = torch.tensor([0.0, 1.0])
        >>> stats = FixedSolver("rk4", steps=3).solve(lambda t, x: (-x[0],), (torch.ones(1, 1),), times).stats
        >>> stats.nfe, stats.nfe_backward  # four evaluations a step
        (12, 0)
    """

    nfe: int = 0
    nfe_backward: int = 0
    accepted: Tensor | int | None = None
    rejected: Tensor | int | None = None
    rows: RowSteps | None = None


class CheckedField:
    """Wrap a right-hand side so that evaluations are counted and checked.

    Args:
        rhs: Right-hand side; its state is a tuple of tensors (batch, ...).
        times: Times of the solve, shape (T,), on the CPU.
        max_nfe: Largest number of evaluations, forward and backward each.
        for_rows: Right-hand side of some rows alone, where the method steps rows by themselves.
        deferred: Check for NaN once, when `finish` is called, instead of at each evaluation.
        recompute: Keep only the inputs of each evaluation, and evaluate again on the way back (Chen et al. 2016). A
            right-hand side that differentiates inside itself is evaluated again at once too, which is not counted.
        keep_nan: Let values pass that are not finite; the method deals with them.
        pairs: Number of pairs of rows, if rows i and i + pairs are two solves of one row; errors name the first.
    """

    def __init__(
        self,
        rhs: RightHandSide,
        times: Tensor,
        *,
        max_nfe: int,
        for_rows: RowSelector | None = None,
        deferred: bool = False,
        recompute: bool = False,
        keep_nan: bool = False,
        pairs: int = 0,
    ) -> None:
        self.rhs, self.for_rows, self.max_nfe = rhs, for_rows, max_nfe
        self.deferred, self.recompute, self.keep_nan, self.pairs = deferred, recompute, keep_nan, pairs
        self.first, self.last = float(times.min()), float(times.max())
        self.stats, self.backward = SolverStats(), False
        self.deferred_checks = _DeferredChecks()
        self.latest: State = ()  # the last state with its slopes
        self.origin: Tensor | None = None
        self.good: Tensor | None = None  # the last finite state
        self.clock = times[0]
        self.step: Tensor | None = None

    def __call__(self, t: Tensor, state: State, rows: Tensor | None = None) -> State:
        """Evaluate the right-hand side.

        Args:
            t: Time, () or (batch,).
            state: State, a tuple of tensors (batch, ...).
            rows: Indices of the rows that the state holds; None for all.

        Returns:
            Slopes, a tuple like the state.

        Raises:
            SolveError: If the limit of evaluations is reached or a slope is not finite.
            OutOfTime: If the time allowed is up.
        """
        check_time()
        self._check_limit(t, rows)
        self.stats.nfe += not self.backward
        rhs = self._rhs(rows)
        if self.recompute and torch.is_grad_enabled() and not is_transformed(*state):
            # Parts are passed one by one: autograd, and who counts what it saves, does not look into a tuple.
            slopes = checkpoint(
                lambda t, *parts: self._evaluate(rhs, t, parts),
                t,
                *state,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        else:
            slopes = self._evaluate(rhs, t, state)
        if is_transformed(*state, *slopes):  # whose values cannot be looked at
            return slopes
        self._check_finite(t, state, slopes, rows)
        self.good = state[0].detach()
        self.origin = self.good if self.origin is None else self.origin
        return _linked(slopes, state) if torch.is_grad_enabled() else slopes

    def on_step(self, t: Tensor, state: State, step: Tensor) -> None:
        """Note an attempted step.

        Args:
            t: Time at its start, () or (batch,).
            state: State there.
            step: Size of the step, () or (batch,).
        """
        self.clock, self.step = t, step

    def finish(self) -> SolverStats:
        """End the way forward; evaluations from now on are those of the way back.

        Returns:
            The counts, whose `nfe_backward` goes on.

        Raises:
            NonFiniteError: If a deferred check finds slopes that are not finite.
        """
        time = self.deferred_checks.first_failure()
        if time is not None:
            bad = _bad_rows(self.latest)
            if bool(bad.any()):
                raise self._non_finite(time, bad, bad.nonzero().flatten().tolist())
        self.deferred_checks, self.latest, self.backward = _DeferredChecks(), (), True
        return self.stats

    def error(self, kind: type[SolveError], text: str, t: Tensor, rows: Sequence[int]) -> SolveError:
        """Make the error to raise: of the given kind, unless the state has left for infinity.

        Args:
            kind: Class of the error.
            text: Message.
            t: Time, () or (batch,).
            rows: Indices of the rows to blame.

        Returns:
            The error, with the time, the step, the evaluations and the last finite state.
        """
        time = float(t.detach().min())
        good, origin = self.good, self.origin
        if good is not None and origin is not None and bool(good.abs().max() > BLOW_UP * (1 + origin.abs().max())):
            size, kind = float(good.abs().max()), BlowUpError
            text = (
                f"the state grew to {size:.1e} by t = {time:.4g}: this field leaves for infinity in finite time; bound "
                f"it (tanh, regularizers), or shorten end_time ({text})"
            )
        step = None if self.step is None else float(self.step.detach().abs().min())
        return kind(text, time=time, step=step, nfe=self.stats.nfe, rows=self._first_of_pairs(rows), state=self.good)

    def _rhs(self, rows: Tensor | None) -> RightHandSide:
        if rows is None:
            return self.rhs
        if self.for_rows is None:
            raise ValueError("a solver that steps some rows alone needs their right-hand side: pass for_rows=")
        return self.for_rows(rows)

    def _evaluate(self, rhs: RightHandSide, t: Tensor, state: State) -> State:
        self.stats.nfe_backward += self.backward
        # torchdiffeq probes for its first step beyond the end, where no field was ever trained.
        return rhs(t.clamp(self.first, self.last), state)

    def _check_limit(self, t: Tensor, rows: Tensor | None) -> None:
        if (self.stats.nfe_backward if self.backward else self.stats.nfe) >= self.max_nfe:
            text = (
                f"more than max_nfe={self.max_nfe} evaluations by t = {float(t.detach().min()):.4g}: loosen the "
                "tolerance, raise max_nfe, or regularize the dynamics (kinetic, jacobian)"
            )
            raise self.error(TooManyEvaluations, text, t, () if rows is None else rows.tolist())

    def _check_finite(self, t: Tensor, state: State, slopes: State, rows: Tensor | None) -> None:
        if self.deferred and not self.backward:
            self.deferred_checks.append(t.detach(), _total(slopes))
            self.latest = (*state, *slopes)
        elif not (self.keep_nan or bool(_total(slopes).isfinite()) or not bool(_bad_rows(slopes).any())):
            bad = _bad_rows(slopes)
            names = bad.nonzero().flatten() if rows is None else rows[bad]
            raise self._non_finite(t.detach(), bad, names.tolist())

    def _non_finite(self, t: Tensor, bad: Tensor, rows: list[int]) -> SolveError:
        rows, count = self._first_of_pairs(rows), len(bad) // 2 if self.pairs else len(bad)
        text = (
            f"the dynamics became NaN or infinite at t = {float(t.min()):.4g} in {len(rows)} of {count} rows "
            f"(first: {rows[:5]}): check those rows for outliers; in training lower the learning rate or clip the "
            "gradient"
        )
        return self.error(NonFiniteError, text, t, rows)

    def _first_of_pairs(self, rows: Sequence[int]) -> list[int]:
        return sorted({row % self.pairs for row in rows}) if self.pairs else list(rows)


class _DeferredChecks:
    """Times of evaluations and sums of the slopes there, to be checked together.

    They are folded into one tensor of times and one of truth values at a time.
    """

    def __init__(self) -> None:
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.folded: list[tuple[Tensor, Tensor]] = []

    def append(self, t: Tensor, total: Tensor) -> None:
        self.pending.append((t, total))
        if len(self.pending) == FOLD:
            self._fold()

    def first_failure(self) -> Tensor | None:
        """Return the time of the first sum that is not finite, or None."""
        if self.pending:
            self._fold()
        for times, finite in self.folded:
            if not bool(finite.all()):
                return times[int((~finite).nonzero()[0])]
        return None

    def _fold(self) -> None:
        times, totals = (torch.stack(values) for values in zip(*self.pending, strict=True))
        self.folded.append((times, totals.isfinite()))
        self.pending = []


class StepCallbacks:
    """Count torchdiffeq's steps, by the methods that torchdiffeq calls.

    Args:
        field: Field whose `stats` are kept.
    """

    def __init__(self, field: CheckedField) -> None:
        self.field = field
        self.accepted = self.rejected = 0
        field.stats.accepted = field.stats.rejected = 0

    def __call__(self, t: Tensor, state: State) -> State:
        """Evaluate the field.

        Args:
            t: Time, ().
            state: State, a tuple of tensors (batch, ...).

        Returns:
            Slopes, a tuple like the state.
        """
        return self.field(t, state)

    def callback_step(self, t: Tensor, state: State, step: Tensor) -> None:
        """Note an attempted step.

        Args:
            t: Time at its start, ().
            state: State there.
            step: Size of the step, ().
        """
        self.field.on_step(t, state, step)

    def callback_accept_step(self, t: Tensor, state: State, step: Tensor) -> None:
        """Count an accepted step.

        Args:
            t: Time at its start, ().
            state: State there.
            step: Size of the step, ().
        """
        self.accepted += 1
        self.field.stats.accepted = self.accepted

    def callback_reject_step(self, t: Tensor, state: State, step: Tensor) -> None:
        """Count a rejected step.

        Args:
            t: Time at its start, ().
            state: State there.
            step: Size of the step, ().
        """
        self.rejected += 1
        self.field.stats.rejected = self.rejected


def is_transformed(*tensors: Tensor) -> bool:
    """Say whether a transform of torch.func (grad, vmap, jvp, ...) is at work on a tensor.

    Args:
        *tensors: Any tensors.

    Returns:
        True if it is on one of them: such a tensor's values cannot be looked at.
    """
    return inside_transform() and any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))


def inside_transform() -> bool:
    """Say whether a transform of torch.func (grad, vmap, jvp, ...) is at work at all.

    Returns:
        True inside a function that is transformed, where `Tensor.requires_grad_` and autograd.grad do not work.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None


def _total(slopes: State) -> Tensor:
    """Sum all elements, (): finite only if each is, and mostly where each is; far cheaper than to check each."""
    total = slopes[0].detach().sum()
    for slope in slopes[1:]:
        total = total + slope.detach().sum()
    return total


def _bad_rows(slopes: State) -> Tensor:
    """Mark the rows, (batch,), where any slope is not finite."""
    finite = [slope.detach().isfinite().reshape(len(slope), -1).all(1) for slope in slopes]
    return ~torch.stack(finite).all(0)


def _linked(slopes: State, state: State) -> State:
    """Tie slopes that depend on nothing (a constant field) to the state by zero: the adjoint needs a graph."""
    if any(slope.requires_grad for slope in slopes):
        return slopes
    return tuple(slope + 0 * part for slope, part in zip(slopes, state, strict=True))
