"""What stands between a method of integration and the field: it counts, and ends a solve that cannot go on.

A field that has left the reals ends an adaptive solve at once, for its steps would shrink for ever. A fixed number of
steps ends by itself: there the check waits for the last step, so that no step waits for an accelerator's answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ffjord_kit.steppers import State

RightHandSide = Callable[[Tensor, State], State]
Part = Callable[[Tensor], RightHandSide]  # from the numbers of rows, (m,), to the right-hand side of these rows alone


class SolveError(RuntimeError):
    """An integration that cannot go on; its text says when, why and what to do."""


@dataclass
class Evaluations:
    """How often the right-hand side was evaluated, forward and (by the adjoint or a checkpoint, later) backward.

    Steps taken and refused on the way forward: of each row, (batch,), where rows step for themselves, else of all, ();
    None where the method does not tell.
    """

    forward: int = 0
    backward: int = 0
    taken: Tensor | None = None
    refused: Tensor | None = None


class Checked:
    """A right-hand side, counted and checked: at each evaluation, or, with `patient`, when `finish` is called.

    With `recompute` an evaluation keeps its inputs alone and is made again on the way back (Chen et al. 2016); one that
    differentiates inside itself, for lack of a `Pushforward`, is made again at once too, which is not counted.
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
    ) -> None:
        self.rhs, self.part, self.limit, self.patient, self.recompute = rhs, part, limit, patient, recompute
        self.first, self.last = float(times.min()), float(times.max())
        self.evaluations, self.backward = Evaluations(), False
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __call__(self, t: Tensor, state: State, rows: Tensor | None = None) -> State:
        self._check_limit(t)
        rhs = self.rhs if rows is None else self.part(rows)
        self.evaluations.forward += not self.backward
        if self.recompute and torch.is_grad_enabled():
            slopes = checkpoint(self._evaluate, rhs, t, state, use_reentrant=False, preserve_rng_state=False)
        else:
            slopes = self._evaluate(rhs, t, state)
        if self.patient and not self.backward:
            self.kept.append((t.detach(), _bad_rows(slopes)))
        elif not all(bool(slope.isfinite().all()) for slope in slopes):
            raise SolveError(_nonfinite(t.detach(), _bad_rows(slopes), rows))
        return _linked(slopes, state) if torch.is_grad_enabled() else slopes

    def finish(self) -> Evaluations:
        """The count of a solve that has come to its end; evaluations from now on are those of the way back.

        Raises SolveError where a patient solve met values that are not finite.
        """
        if self.kept:
            bad = torch.stack([rows for _, rows in self.kept])
            if bool(bad.any()):
                first = bad.any(1).tolist().index(True)
                raise SolveError(_nonfinite(self.kept[first][0], bad[first]))
        self.kept, self.backward = [], True
        return self.evaluations

    def _evaluate(self, rhs: RightHandSide, t: Tensor, state: State) -> State:
        self.evaluations.backward += self.backward
        # torchdiffeq probes for its first step beyond the end, where no field was ever trained.
        return rhs(t.clamp(self.first, self.last), state)

    def _check_limit(self, t: Tensor) -> None:
        if (self.evaluations.backward if self.backward else self.evaluations.forward) >= self.limit:
            raise SolveError(
                f"more than max_nfe={self.limit} evaluations by t = {float(t.detach().min()):.4g}: loosen the "
                "tolerance, raise max_nfe, or regularize the dynamics (kinetic, jacobian)"
            )


def _bad_rows(slopes: State) -> Tensor:
    """Where a row of any slope is not finite, (batch,)."""
    finite = [slope.detach().isfinite().reshape(len(slope), -1).all(1) for slope in slopes]
    return ~torch.stack(finite).all(0)


def _nonfinite(t: Tensor, bad: Tensor, live: Tensor | None = None) -> str:
    rows = (bad.nonzero().flatten() if live is None else live[bad]).tolist()
    return (
        f"the dynamics became NaN or infinite at t = {float(t.min()):.4g} in {len(rows)} of {len(bad)} rows (first: "
        f"{rows[:5]}): check those rows for outliers; in training lower the learning rate or clip the gradient"
    )


def _linked(slopes: State, state: State) -> State:
    """Slopes that depend on nothing (a constant field) tied to the state by zero: the adjoint asks for a graph."""
    if any(slope.requires_grad for slope in slopes):
        return slopes
    return tuple(slope + 0 * part for slope, part in zip(slopes, state, strict=True))
