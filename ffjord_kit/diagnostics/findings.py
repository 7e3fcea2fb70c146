"""What a check finds, and its verdict in one word."""

from __future__ import annotations

from dataclasses import dataclass

GOOD, FAIR, BAD, UNSURE = "good", "fair", "bad", "unsure"
VERDICTS = (GOOD, FAIR, BAD, UNSURE)
SURE = 0.01  # the p-value below which chance is no explanation


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis: what was looked at, a word of VERDICTS, what was measured, and what to do about it.

    `unsure` is what the measurement could not tell.
    """

    name: str
    verdict: str
    measured: str
    advice: str = ""

    @property
    def remedy(self) -> str:
        """The advice, where there is need of one."""
        return "" if self.verdict == GOOD else self.advice


def judged(value: float, good: float, fair: float) -> str:
    """The verdict on a value of which less is better, by the largest that are good and fair."""
    return GOOD if value <= good else FAIR if value <= fair else BAD


def tested(p_value: float, size: float, fair: float) -> str:
    """The verdict on a difference: good where chance explains it, fair where it is no larger than `fair`."""
    return GOOD if p_value >= SURE else FAIR if size <= fair else BAD
