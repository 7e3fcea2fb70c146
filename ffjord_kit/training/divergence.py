"""What to do when the numbers of training run out: go back to the last good weights, with a lower learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ffjord_kit.failures import SolveError

RESTORES = 3  # of a phase
LOWERED = 0.3  # the learning rate, each time

ADVICE = "Lower the learning rate or clip_norm, or look for outliers in the data"


class TrainingDiverged(RuntimeError):
    """The loss, its gradient or the dynamics are no longer numbers; the text says when, and what to try.

    Raised when that happens for the fourth time in a phase: three times the weights of the last validation that was
    finite, or those that the phase began with, are restored, and the learning rate is multiplied by 0.3.
    """


@contextmanager
def diverging(step: int, where: str, left: str) -> Iterator[None]:
    """Say where training was when the numbers ran out, and what it `left`."""
    try:
        yield
    except (SolveError, ArithmeticError) as error:
        raise TrainingDiverged(f"training diverged at step {step}, {where}: {error}. {ADVICE}{left}") from error
