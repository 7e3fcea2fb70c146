"""Findings of a diagnosis, and the verdicts that measurements get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

GOOD, FAIR, BAD, UNSURE = "good", "fair", "bad", "unsure"
VERDICTS = (GOOD, FAIR, BAD, UNSURE)
SIGNIFICANCE = 0.01  # p-value below which chance does not explain a difference
INDENT, WIDTH = 33, 84  # columns of a printed finding


@dataclass(frozen=True)
class Finding:
    r"""One line of a diagnosis.

    Args:
        name: Name of the check.
        verdict: Word of VERDICTS; "unsure" where the measurement does not decide.
        measured: Result of the measurement, with its numbers.
        advice: What to do where the verdict is not good.

    Example:
        >>> finding = Finding("integral", "bad", "0.25 by a grid", "look for a wrong log-determinant")
        >>> print("\n".join(finding.lines()))
        bad    integral                  0.25 by a grid
                                         -> look for a wrong log-determinant
    """

    name: str
    verdict: str
    measured: str
    advice: str = ""

    @property
    def remedy(self) -> str:
        """The advice; empty where the verdict is good."""
        return "" if self.verdict == GOOD else self.advice

    def lines(self) -> list[str]:
        """Return the finding as lines of text in columns.

        Returns:
            Lines: verdict, name and measurement, then the remedy if there is one.
        """
        first, *rest = wrap(self.measured, WIDTH)
        lines = [f"{self.verdict:<7}{self.name:<26}{first}", *(" " * INDENT + line for line in rest)]
        remedy = wrap("-> " + self.remedy, WIDTH) if self.remedy else []
        return lines + [" " * INDENT + line for line in remedy]


def grade(value: float, *, good: float, fair: float) -> str:
    """Return the verdict on a value that should be small.

    Args:
        value: The value.
        good: Largest good value.
        fair: Largest fair value.

    Returns:
        A word of VERDICTS; bad if the value is NaN.
    """
    return GOOD if value <= good else FAIR if value <= fair else BAD


def grade_test(p_value: float, size: float, *, fair: float) -> str:
    """Return the verdict on a difference that a statistical test measured.

    Args:
        p_value: p-value of the test.
        size: Size of the difference.
        fair: Largest fair size of a significant difference.

    Returns:
        Good if chance explains the difference, else fair or bad by its size.
    """
    return GOOD if p_value >= SIGNIFICANCE else FAIR if size <= fair else BAD


def worst_verdict(findings: Sequence[Finding]) -> str:
    """Return the worst verdict of several findings; "unsure" ranks between good and fair.

    Args:
        findings: Findings, at least one.

    Returns:
        A word of VERDICTS.
    """
    verdicts = {finding.verdict for finding in findings}
    return next(word for word in (BAD, FAIR, UNSURE, GOOD) if word in verdicts)
