"""Errors that end an integration early; each says when, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SolveError(RuntimeError):
    """Signal an integration that cannot go on.

    Attributes:
        time: Reading of the clock, or None.
        step: Size of the last attempted step, or None where it is unknown.
        nfe: Evaluations of the field until then.
        rows: Indices of the rows to blame.
        state: Last finite state of the rows under way, shape (rows, *event), or None.
    """

    def __init__(
        self,
        text: str,
        *,
        time: float | None = None,
        step: float | None = None,
        nfe: int = 0,
        rows: Sequence[int] = (),
        state: Tensor | None = None,
    ) -> None:
        super().__init__(text)
        self.time, self.step, self.nfe, self.rows, self.state = time, step, nfe, tuple(rows), state


class NonFiniteError(SolveError):
    """Signal a field that gives NaN or infinity at a finite state."""


class BlowUpError(SolveError):
    """Signal a state that leaves for infinity in finite time: the field has no flow over the whole interval."""


class StepSizeUnderflow(SolveError):
    """Signal a step size below the resolution of the clock."""


class TooManyEvaluations(SolveError):
    """Signal a solve that needs more evaluations than `max_nfe` allows."""


def refuse_second_derivative(adjoint: str) -> None:
    """Refuse to differentiate a gradient that is not made of recorded steps.

    Args:
        adjoint: Word of ADJOINTS that gave the gradient.

    Raises:
        SolveError: If autograd records the way back.
    """
    if torch.is_grad_enabled():
        raise SolveError(f"adjoint {adjoint!r} gives first derivatives only: pass adjoint='backprop' for a second one")
