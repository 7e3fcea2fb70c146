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

    Example:
        >>> error = SolveError("no step reaches t = 1", time=0.25, rows=[3])
        >>> error.time, error.rows
        (0.25, (3,))
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
    """Signal a field that gives NaN or infinity at a finite state.

    Example:
        >>> from ffjord_kit.ode import AdaptiveSolver
        >>> start, times = torch.ones(1, 1), torch.tensor([0.0, 2.0])
        >>> AdaptiveSolver().solve(lambda t, x: ((0.5 - t).sqrt() * x[0],), (start,), times)
        Traceback (most recent call last):
        ffjord_kit.ode.errors.NonFiniteError: ...
    """


class BlowUpError(SolveError):
    """Signal a state that leaves for infinity in finite time: the field has no flow over the whole interval.

    Example:
        >>> from ffjord_kit.ode import AdaptiveSolver
        >>> start, times = torch.ones(1, 1), torch.tensor([0.0, 2.0])
        >>> AdaptiveSolver(rtol=1e-3, atol=1e-3).solve(lambda t, x: (x[0] ** 2,), (start,), times)  # 1 / (1 - t)
        Traceback (most recent call last):
        ffjord_kit.ode.errors.BlowUpError: ...
    """


class StepSizeUnderflow(SolveError):
    """Signal a step size below the resolution of the clock.

    Example:
        >>> from ffjord_kit.ode import PerRowSolver
        >>> start, times = torch.full((1, 1), 5e11, dtype=torch.float64), torch.tensor([0.0, 1.0])
        >>> PerRowSolver(1e-13, 1e-13).solve(lambda t, x: (-1e12 * x[0].sign(),), (start,), times)  # an edge at t = 1/2
        Traceback (most recent call last):
        ffjord_kit.ode.errors.StepSizeUnderflow: ...
    """


class TooManyEvaluations(SolveError):
    """Signal a solve that needs more evaluations than `max_nfe` allows.

    Example:
        >>> from ffjord_kit.ode import AdaptiveSolver
        >>> start, times = torch.ones(1, 1), torch.tensor([0.0, 1.0])
        >>> AdaptiveSolver(max_nfe=10).solve(lambda t, x: (-100 * x[0],), (start,), times)
        Traceback (most recent call last):
        ffjord_kit.ode.errors.TooManyEvaluations: ...
    """


def refuse_second_derivative(adjoint: str) -> None:
    """Refuse to differentiate a gradient that is not made of recorded steps.

    Args:
        adjoint: Word of ADJOINTS that gave the gradient.

    Raises:
        SolveError: If autograd records the way back.
    """
    if torch.is_grad_enabled():
        raise SolveError(f"adjoint {adjoint!r} gives first derivatives only: pass adjoint='backprop' for a second one")
