"""What stands between a method of integration and the field: it counts, and ends a solve that cannot go on.

A field that has left the reals ends an adaptive solve at once, for its steps would shrink for ever. A fixed number of
steps ends by itself: there the check waits for the last step, so that no step waits for an accelerator's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ffjord_kit.failures import GROWN, BlownUp, NotFinite, SolveError, TooManyEvaluations
from ffjord_kit.steppers import State

RightHandSide = Callable[[Tensor, State], State]
Part = Callable[[Tensor], RightHandSide]  # from the numbers of rows, (m,), to the right-hand side of these rows alone


@dataclass
class Evaluations:
    """How often the right-hand side was evaluated, forward and (by the adjoint or a checkpoint, later) backward.

    Steps taken and refused on the way forward: of each row, (batch,), where rows step for themselves, else of all
    together; None where the method does not tell.
    """

    forward: int = 0
    backward: int = 0
    taken: Tensor | int | None = None
    refused: Tensor | int | None = None


class Checked:
    """A right-hand side, counted and checked: at each evaluation, or, with `patient`, when `finish` is called.

    With `recompute` an evaluation keeps its inputs alone and is made again on the way back (Chen et al. 2016); one that
    differentiates inside itself, for lack of a `Pushforward`, is made again at once too, which is not counted.
    With `forgiving` what is not finite passes: whoever steps deals with it. Of so many `pairs` the first row is named.
    Shapes: times (T,) on the CPU; t () or (batch,), every part of the state (batch, ...).
    """

    def __init__(
        self,
        rhs: RightHandSide,
        times: Tensor,
        *,
        limit: int,
        part: Part | None = None,
        patient: bool = False,
        recompute: bool = False,
        forgiving: bool = False,
        pairs: int = 0,
    ) -> None:
        self.rhs, self.part, self.limit, self.patient, self.recompute = rhs, part, limit, patient, recompute
        self.first, self.last, self.forgiving, self.pairs = float(times.min()), float(times.max()), forgiving, pairs
        self.evaluations, self.backward = Evaluations(), False
        self.kept: list[tuple[Tensor, Tensor]] = []  # times, and totals of the slopes there
        self.ends: State = ()  # the last state with its slopes
        self.origin: Tensor | None = None  # the first state, and the last good one
        self.good: Tensor | None = None
        self.clock = times[0]
        self.step: Tensor | None = None

    def __call__(self, t: Tensor, state: State, rows: Tensor | None = None) -> State:
        self._check_limit(t, rows)
        rhs = self.rhs if rows is None else self.part(rows)
        self.evaluations.forward += not self.backward
        if self.recompute and torch.is_grad_enabled():
            slopes = checkpoint(self._evaluate, rhs, t, state, use_reentrant=False, preserve_rng_state=False)
        else:
            slopes = self._evaluate(rhs, t, state)
        if self.patient and not self.backward:
            self.kept.append((t.detach(), _total(slopes)))
            self.ends = (*state, *slopes)
        elif not (self.forgiving or bool(_total(slopes).isfinite()) or not bool(_bad_rows(slopes).any())):
            bad = _bad_rows(slopes)
            raise self._not_finite(t.detach(), bad, (bad.nonzero().flatten() if rows is None else rows[bad]).tolist())
        self.good = state[0].detach()
        self.origin = self.good if self.origin is None else self.origin
        return _linked(slopes, state) if torch.is_grad_enabled() else slopes

    def stepping(self, t: Tensor, state: State, step: Tensor) -> None:
        """Told of each step before it is tried, by those that tell."""
        self.clock, self.step = t, step

    def finish(self) -> Evaluations:
        """The count of a solve that has come to its end; evaluations from now on are those of the way back.

        Raises SolveError where a patient solve met values that are not finite.
        """
        if self.kept:
            finite = torch.stack([total for _, total in self.kept]).isfinite().tolist()
            bad = None if all(finite) else _bad_rows(self.ends)
            if bad is not None and bool(bad.any()):
                first = finite.index(False)
                raise self._not_finite(self.kept[first][0], bad, bad.nonzero().flatten().tolist())
        self.kept, self.ends, self.backward = [], (), True
        return self.evaluations

    def _evaluate(self, rhs: RightHandSide, t: Tensor, state: State) -> State:
        self.evaluations.backward += self.backward
        # torchdiffeq probes for its first step beyond the end, where no field was ever trained.
        return rhs(t.clamp(self.first, self.last), state)

    def _check_limit(self, t: Tensor, rows: Tensor | None) -> None:
        if (self.evaluations.backward if self.backward else self.evaluations.forward) >= self.limit:
            text = (
                f"more than max_nfe={self.limit} evaluations by t = {float(t.detach().min()):.4g}: loosen the "
                "tolerance, raise max_nfe, or regularize the dynamics (kinetic, jacobian)"
            )
            raise self.failed(TooManyEvaluations, text, t, () if rows is None else rows.tolist())

    def _not_finite(self, t: Tensor, bad: Tensor, rows: list[int]) -> SolveError:
        rows, count = self._named(rows), len(bad) // 2 if self.pairs else len(bad)
        text = (
            f"the dynamics became NaN or infinite at t = {float(t.min()):.4g} in {len(rows)} of {count} rows "
            f"(first: {rows[:5]}): check those rows for outliers; in training lower the learning rate or clip the "
            "gradient"
        )
        return self.failed(NotFinite, text, t, rows)

    def _named(self, rows: Sequence[int]) -> list[int]:
        return sorted({row % self.pairs for row in rows}) if self.pairs else list(rows)

    def failed(self, kind: type[SolveError], text: str, t: Tensor, rows: Sequence[int]) -> SolveError:
        """The error to raise: of that kind, unless the state has left for infinity."""
        if self.good is not None and bool(self.good.abs().max() > GROWN * (1 + self.origin.abs().max())):
            size = float(self.good.abs().max())
            kind = BlownUp
            text = (
                f"the state grew to {size:.1e} by t = {float(t.detach().min()):.4g}: this field leaves for infinity "
                f"in finite time; bound it (tanh, regularizers), or shorten end_time ({text})"
            )
        step = None if self.step is None else float(self.step.detach().abs().min())
        return kind(
            text,
            time=float(t.detach().min()),
            step=step,
            nfe=self.evaluations.forward,
            rows=self._named(rows),
            state=self.good,
        )


class Told:
    """A right-hand side that hears of torchdiffeq's steps, by the names that torchdiffeq calls."""

    def __init__(self, rhs: Checked) -> None:
        self.rhs = rhs
        rhs.evaluations.taken = rhs.evaluations.refused = 0

    def __call__(self, t: Tensor, state: State) -> State:
        return self.rhs(t, state)

    def callback_step(self, t: Tensor, state: State, step: Tensor) -> None:
        """Before a step is tried."""
        self.rhs.stepping(t, state, step)

    def callback_accept_step(self, t: Tensor, state: State, step: Tensor) -> None:
        """After one that was taken."""
        self.rhs.evaluations.taken += 1

    def callback_reject_step(self, t: Tensor, state: State, step: Tensor) -> None:
        """After one that was refused."""
        self.rhs.evaluations.refused += 1


def _total(slopes: State) -> Tensor:
    """The sum of all elements, (): finite only if each is, and mostly where each is; far cheaper than to ask each."""
    return sum(slope.detach().sum() for slope in slopes[1:]) + slopes[0].detach().sum()


def _bad_rows(slopes: State) -> Tensor:
    """Where a row of any slope is not finite, (batch,)."""
    finite = [slope.detach().isfinite().reshape(len(slope), -1).all(1) for slope in slopes]
    return ~torch.stack(finite).all(0)


def _linked(slopes: State, state: State) -> State:
    """Slopes that depend on nothing (a constant field) tied to the state by zero: the adjoint asks for a graph."""
    if any(slope.requires_grad for slope in slopes):
        return slopes
    return tuple(slope + 0 * part for slope, part in zip(slopes, state, strict=True))
