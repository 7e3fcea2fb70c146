"""What ends an integration before its time: each a class of its own, that says when, where and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

GROWN = 1e8  # times its start, and 1: a state this large has left for infinity


class SolveError(RuntimeError):
    """An integration that cannot go on.

    `time` is the reading of the clock, `step` the size of the last step (None: not known), `nfe` the evaluations until
    then, `rows` the numbers of those that are to blame, and `state` the last good one of the rows under way, (row,
    *event), where there was one.
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


class NotFinite(SolveError):
    """The dynamics gave NaN or infinity for a state that is neither."""


class BlownUp(SolveError):
    """The state grew beyond all bounds in finite time: this field has no flow over the whole interval."""


class StepVanished(SolveError):
    """The step size fell below what the clock resolves."""


class TooManyEvaluations(SolveError):
    """The solve took more evaluations than `max_nfe` allows."""
