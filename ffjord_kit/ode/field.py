"""The layer between a method of integration and the field: it counts evaluations and ends a solve that cannot go on.

A field that gives NaN ends an adaptive solve at once, since its steps would shrink for ever. A solve of fixed steps ends
by itself, so there the check is deferred to the last step, and no step waits for an accelerator's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ffjord_kit.ode.errors import BlowUpError, NonFiniteError, SolveError, TooManyEvaluations

State = tuple[Tensor, ...]
RightHandSide = Callable[[Tensor, State], State]
RowSelector = Callable[[Tensor], RightHandSide]  # from row indices (m,) to the right-hand side of these rows alone

BLOW_UP = 1e8  # a state larger than this, relative to 1 + its start, has left for infinity


@dataclass
class SolverStats:
    """Count the evaluations and the steps of a solve.

    Attributes:
        nfe: Evaluations of the field on the way forward.
        nfe_backward: Evaluations on the way back, by an adjoint or a checkpoint; they are counted as they happen.
        accepted: Accepted steps: of each row, shape (batch,), where rows step by themselves, else of the batch; None
            where the method does not say.
        rejected: Rejected steps, likewise.
    """

    nfe: int = 0
    nfe_backward: int = 0
    accepted: Tensor | int | None = None
    rejected: Tensor | int | None = None


class CheckedField:
    """Wrap a right-hand side so that evaluations are counted and checked.

    Args:
        rhs: Right-hand side; its state is a tuple of tensors (batch, ...).
        times: Times of the solve, shape (T,), on the CPU.
        max_nfe: Largest number of evaluations, forward and backward each.
        for_rows: Right-hand side of some rows alone, where the method steps rows by themselves.
        deferred: Check for NaN once, when `finish` is called, instead of at each evaluation.
        recompute: Keep the inputs of each evaluation alone, and evaluate again on the way back (Chen et al. 2016). One
            that differentiates inside itself is evaluated again at once too, which is not counted.
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
        self.totals: list[tuple[Tensor, Tensor]] = []  # times, and sums of the slopes there
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
        """
        if is_transformed(state[0]):
            self.stats.nfe += 1
            return self._evaluate(self._rhs(rows), t, state)
        self._check_limit(t, rows)
        self.stats.nfe += not self.backward
        if self.recompute and torch.is_grad_enabled():
            slopes = checkpoint(
                self._evaluate, self._rhs(rows), t, state, use_reentrant=False, preserve_rng_state=False
            )
        else:
            slopes = self._evaluate(self._rhs(rows), t, state)
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
        if self.totals:
            finite = torch.stack([total for _, total in self.totals]).isfinite().tolist()
            bad = None if all(finite) else _bad_rows(self.latest)
            if bad is not None and bool(bad.any()):
                first = finite.index(False)
                raise self._non_finite(self.totals[first][0], bad, bad.nonzero().flatten().tolist())
        self.totals, self.latest, self.backward = [], (), True
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
        if self.good is not None and bool(self.good.abs().max() > BLOW_UP * (1 + self.origin.abs().max())):
            size, kind = float(self.good.abs().max()), BlowUpError
            text = (
                f"the state grew to {size:.1e} by t = {time:.4g}: this field leaves for infinity in finite time; bound "
                f"it (tanh, regularizers), or shorten end_time ({text})"
            )
        step = None if self.step is None else float(self.step.detach().abs().min())
        return kind(text, time=time, step=step, nfe=self.stats.nfe, rows=self._first_of_pairs(rows), state=self.good)

    def _rhs(self, rows: Tensor | None) -> RightHandSide:
        return self.rhs if rows is None else self.for_rows(rows)

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
            self.totals.append((t.detach(), _total(slopes)))
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


class StepCallbacks:
    """Count torchdiffeq's steps, by the methods that torchdiffeq calls."""

    def __init__(self, field: CheckedField) -> None:
        self.field = field
        field.stats.accepted = field.stats.rejected = 0

    def __call__(self, t: Tensor, state: State) -> State:
        """Evaluate the field; see `CheckedField`."""
        return self.field(t, state)

    def callback_step(self, t: Tensor, state: State, step: Tensor) -> None:
        """Note an attempted step; torchdiffeq calls it."""
        self.field.on_step(t, state, step)

    def callback_accept_step(self, t: Tensor, state: State, step: Tensor) -> None:
        """Count an accepted step; torchdiffeq calls it."""
        self.field.stats.accepted += 1

    def callback_reject_step(self, t: Tensor, state: State, step: Tensor) -> None:
        """Count a rejected step; torchdiffeq calls it."""
        self.field.stats.rejected += 1


def is_transformed(x: Tensor) -> bool:
    """Say whether a transform of torch.func (grad, vmap, jvp, ...) is at work on a tensor.

    Args:
        x: Any tensor.

    Returns:
        True inside such a transform, where values cannot be looked at.
    """
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def _total(slopes: State) -> Tensor:
    """Sum all elements, (): finite only if each is, and mostly where each is; far cheaper than to check each."""
    return sum(slope.detach().sum() for slope in slopes[1:]) + slopes[0].detach().sum()


def _bad_rows(slopes: State) -> Tensor:
    """Mark the rows, (batch,), where any slope is not finite."""
    finite = [slope.detach().isfinite().reshape(len(slope), -1).all(1) for slope in slopes]
    return ~torch.stack(finite).all(0)


def _linked(slopes: State, state: State) -> State:
    """Tie slopes that depend on nothing (a constant field) to the state by zero: the adjoint needs a graph."""
    if any(slope.requires_grad for slope in slopes):
        return slopes
    return tuple(slope + 0 * part for slope, part in zip(slopes, state, strict=True))
