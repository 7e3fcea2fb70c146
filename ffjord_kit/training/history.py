"""The parts of a schedule, and where a fit stands in one of them: how much is done, when to validate, when it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ffjord_kit.objectives import Objective

VALIDATIONS, FEW_VALIDATIONS = 20, 3  # in a phase that ends by time, and in one that is a trial
TRIAL_PATIENCE = 2
MOST_VALIDATING = 1 / 8  # of such a phase's time


@dataclass(frozen=True)
class Phase:
    """A part of the schedule: an objective, at most `steps` steps or `seconds` of it, and its peak learning rate.

    Seconds are those that the training thread works, validations with them; on a GPU those on the wall. A `trial` may
    be of no help: one of steps ends at the second validation that is not better, and any where its numbers are no
    longer finite; the weights are then those of before. One of steps is validated `validations` times at least.
    Raises ValueError for a length that is not positive, or a phase that has no end.
    """

    objective: Objective
    steps: float
    learning_rate: float = 2e-3
    seconds: float = math.inf
    trial: bool = False
    validations: int = 4

    def __post_init__(self) -> None:
        if not (self.steps > 0 and self.seconds > 0 and min(self.steps, self.seconds) < math.inf):
            raise ValueError(
                f"a phase takes so many steps, seconds, or both, positive and not both infinite; "
                f"got {self.steps} steps and {self.seconds} seconds"
            )


@dataclass
class History:
    """What a fit did, and where it stands: its log, and the best validation NLL in nats (None without such data).

    The fit is at phase number `phase` of `phases`. `seconds` have passed on the wall; `spent` are those worked, and
    `phase_spent` those of them before the present phase, which `broken` ends, and in which training diverged and was
    `restored` so many times. Batches are made in `micro_batches` parts.
    """

    seed: int
    phase: int = 0
    phases: int = 0
    phase_step: int = 0
    step: int = 0
    best_nll: float | None = None
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    spent: float = 0.0
    phase_spent: float = 0.0
    validated_at: float = 0.0
    validation_cost: float = 0.0
    broken: str = ""
    restored: int = 0
    interrupted: bool = False
    solver_level: int = 0
    solver_grading: float = 1.0
    micro_batches: int = 1
    records: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @classmethod
    def following(cls, before: History | None, seed: int) -> History:
        """A history at its start, or one whose log and seconds go on."""
        if before is None:
            return cls(seed)
        return cls(
            seed, seconds=before.seconds, spent=before.spent, phase_spent=before.spent,
            validation_cost=before.validation_cost, records=list(before.records),
        )  # fmt: skip

    def share(self, phase: Phase) -> float:
        """What part of the phase is done, by steps or by time."""
        return min(1.0, max(self.phase_step / phase.steps, (self.spent - self.phase_spent) / phase.seconds))

    def over(self, phase: Phase, patience: int) -> bool:
        """Whether the phase has ended."""
        done = self.phase_step >= phase.steps or self._no_time(phase)
        return done or bool(self.broken) or self._stale(phase, patience)

    def due(self, phase: Phase, every: int) -> bool:
        """Whether to validate after the step just made: after `every` steps, or now and then; after the last always."""
        if self.phase_step == phase.steps or self._no_time(phase):
            return True
        if phase.seconds == math.inf:
            return self.phase_step % min(every, max(1, phase.steps // phase.validations)) == 0
        count = FEW_VALIDATIONS if phase.trial else VALIDATIONS
        apart = max(phase.seconds / count, self.validation_cost / MOST_VALIDATING)
        return self.spent - max(self.validated_at, self.phase_spent) >= apart

    def why(self, phase: Phase, patience: int) -> str:
        """What ended the phase."""
        if self.broken:
            return f"early: {self.broken}"
        if self.phase_step >= phase.steps:
            return "all its steps made"
        return "its time was up" if self._no_time(phase) else "early: no better validation NLL"

    def _stale(self, phase: Phase, patience: int) -> bool:
        short = phase.trial and phase.seconds == math.inf  # seconds were set aside for it: nothing else would use them
        return self.stale >= (TRIAL_PATIENCE if short else patience)

    def _no_time(self, phase: Phase) -> bool:
        """Whether what is left is what a last validation takes; one that takes more than half the time may be late."""
        return self.spent - self.phase_spent + min(self.validation_cost, phase.seconds / 2) >= phase.seconds
