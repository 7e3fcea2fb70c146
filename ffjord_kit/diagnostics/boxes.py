r"""Boxes of changes that all pass: certified by draws, and grown to the largest.

Of N uniform draws in a box, f fail. With confidence c the failing share of the box is at most the c-quantile of
Beta(f + 1, N - f) (Clopper & Pearson 1934); without a failure that is 1 - (1 - c)^(1/N). Where a box is changed after
its draws, it is drawn in anew, at most TRIES times, each time with confidence 1 - (1 - c) / TRIES: then c holds for
whichever box is the last.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from scipy.stats import beta
from torch import Tensor

from ffjord_kit.diagnostics.judgment import Judgment

TRIES = 8  # boxes that one confidence covers
CORNERS = 256  # most corners that are tried beside the draws
FIRST_DRAWS = 500  # which find most failures, so that the others can be spared
SLAB_DRAWS = 64  # in what one side adds to a box
SLAB = 0.25  # first thickness of what a side adds, as a share of the room that it has
SLABS = 5  # halvings of it
ROUNDS = 40  # most rounds of all sides
TINY = 1e-9  # width of a side that cannot move


@dataclass(frozen=True)
class Certificate:
    """Count of the draws in a box that fail, and what it says of the box.

    Attributes:
        draws: Number of uniform draws N.
        failures: Number of draws that fail.
        confidence: Confidence c in the share, with all tries counted.
    """

    draws: int
    failures: int
    confidence: float

    @property
    def share(self) -> float:
        """Largest failing share of the box, with the stated confidence.

        Example:
            >>> round(Certificate(10_000, 0, 0.99).share, 6)  # of one try it would be 0.00046
            0.000668
        """
        level = 1 - (1 - self.confidence) / TRIES
        return float(beta.ppf(level, self.failures + 1, self.draws - self.failures)) if self.draws else 1.0

    def __str__(self) -> str:
        failing = f"{self.failures} of {self.draws} draws fail"
        return f"{failing}: at most {100 * self.share:.2g} % of the box, with {100 * self.confidence:g} % confidence"


def certify(
    judgment: Judgment, row: int, box: tuple[Tensor, Tensor], draws: int, confidence: float, generator: torch.Generator
) -> tuple[Certificate, Tensor, Tensor]:
    """Draw in a box of changes, and try its corners.

    Args:
        judgment: Rows, judge and what may change.
        row: The row.
        box: Least and greatest change, both of shape (k,).
        draws: Number of draws.
        confidence: Confidence to state.
        generator: Source of the draws.

    Returns:
        The certificate of the draws, and the failing points, shape (f, k), with their margins, shape (f,); corners are
        among them, but not in the certificate.
    """
    corners = _corners(*box, generator)
    failed = _failing(judgment, row, corners)
    done, failures = 0, 0
    while done < draws and not len(failed[0]):
        count = min(FIRST_DRAWS, draws) if done == 0 else draws - done
        failed = _failing(judgment, row, _drawn(*box, count, generator))
        done, failures = done + count, len(failed[0])
    return Certificate(done, failures, confidence), *failed


def grow(judgment: Judgment, row: int, box: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Move the sides of a box outwards, one after the other, as long as no draw in what they add fails.

    Args:
        judgment: Rows, judge and what may change.
        row: The row.
        box: Least and greatest change, both of shape (k,).
        generator: Source of the draws.

    Returns:
        The grown box.
    """
    ends = torch.stack([judgment.lower[row], judgment.upper[row]])
    grown = torch.stack(box)
    step = (ends - grown).abs() * SLAB
    least = step / 2**SLABS
    for _ in range(ROUNDS):
        sides = ((step > least) & (grown != ends)).nonzero().tolist()
        if not sides:
            break
        for end, column in sides:
            slab = _slab(grown, ends, end, column, float(step[end, column]))
            if len(_failing(judgment, row, _slab_draws(slab, generator))[0]):
                step[end, column] /= 2
            else:
                grown[end, column] = slab[end, column]
    return grown[0], grown[1]


def trim(
    judgment: Judgment, row: int, box: tuple[Tensor, Tensor], core: tuple[Tensor, Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cut failing corners off a box until none is found; the sides grew one by one, and their corners did not.

    Args:
        judgment: Rows, judge and what may change.
        row: The row.
        box: Least and greatest change, both of shape (k,).
        core: The same of the part to leave.
        generator: Source of the choice among many corners.

    Returns:
        The smaller box.
    """
    for _ in range(ROUNDS):
        failing, _ = _failing(judgment, row, _corners(*box, generator))
        if not len(failing):
            break
        box = cut(box, core, failing)
    return box


def cut(box: tuple[Tensor, Tensor], core: tuple[Tensor, Tensor], failing: Tensor) -> tuple[Tensor, Tensor]:
    """Cut failing points off a box, half way to a core that stays, each where that takes the least.

    Args:
        box: Least and greatest change, both of shape (k,).
        core: The same of the part to leave.
        failing: Failing points, shape (f, k).

    Returns:
        The smaller box; points within the core stay in it.

    Example:
        >>> low, high = torch.zeros(2), torch.ones(2)
        >>> cut((low, high), (low, high / 2), torch.tensor([[0.25, 0.75]]))[1]
        tensor([1.0000, 0.6250])
    """
    lower, upper = box[0].clone(), box[1].clone()
    for point in failing:
        if bool(((point < lower) | (point > upper)).any()):
            continue
        below, above = (point + core[0]) / 2, (point + core[1]) / 2
        ends = torch.cat([lower - below, above - upper]) / (upper - lower).clamp(min=TINY).repeat(2)
        outside = torch.cat([point < core[0], point > core[1]])
        share, place = torch.where(outside, ends, -torch.inf).max(0)
        column = int(place) % len(point)
        if bool(share.isinf()):
            continue
        if int(place) < len(point):
            lower[column] = below[column]
        else:
            upper[column] = above[column]
    return lower, upper


def _failing(judgment: Judgment, row: int, change: Tensor) -> tuple[Tensor, Tensor]:
    margin = judgment.margins(change, torch.full((len(change),), row))
    return change[margin < 0], margin[margin < 0]


def _drawn(lower: Tensor, upper: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return lower + torch.rand(count, len(lower), dtype=lower.dtype, generator=generator) * (upper - lower)


def _corners(lower: Tensor, upper: Tensor, generator: torch.Generator) -> Tensor:
    """Return all corners of a box, or some of them at random."""
    k = len(lower)
    if 2**k <= CORNERS:
        high = torch.tensor(list(itertools.product((False, True), repeat=k)))
    else:
        high = torch.rand(CORNERS, k, generator=generator) < 0.5
    return torch.where(high, upper, lower)


def _slab(grown: Tensor, ends: Tensor, end: int, column: int, step: float) -> Tensor:
    """Return the box (2, k) that a side would add; its outer face lies at [end, column]."""
    slab = grown.clone()
    slab[1 - end, column] = grown[end, column]
    towards = grown[end, column] + (step if end else -step)
    slab[end, column] = towards.clamp(ends[0, column], ends[1, column])
    return slab


def _slab_draws(slab: Tensor, generator: torch.Generator) -> Tensor:
    """Return draws in a slab, half of them at its corners, where failures are likeliest."""
    inside = _drawn(slab[0], slab[1], SLAB_DRAWS // 2, generator)
    high = torch.rand(inside.shape, generator=generator) < 0.5
    return torch.cat([inside, torch.where(high, slab[1], slab[0])])
