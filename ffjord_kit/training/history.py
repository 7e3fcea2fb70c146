"""The history of a fit: where it stands, when it validates, when a phase ends, and its records."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ffjord_kit.objectives import Loss
from ffjord_kit.run import Run
from ffjord_kit.training.config import Phase

VALIDATIONS, TRIAL_VALIDATIONS = 20, 3  # of a phase that ends by time
TRIAL_PATIENCE = 2
MAX_VALIDATION_SHARE = 1 / 8  # of such a phase's time

RECORDED_STEPS = 200  # of a phase
CALLBACK_INTERVAL = 0.1  # seconds between two calls of `on_step` on a GPU

OnStep = Callable[[dict[str, Any]], None]


@dataclass
class History:
    """What a fit did, and where it stands.

    Attributes:
        seed: Seed of all noise.
        phase: Number of the present phase, of `phases`.
        phase_step: Steps of the present phase.
        step: Steps of all phases.
        best_nll: Best validation NLL, nats; None without validation data.
        best_step: Step of the best validation.
        stale: Validations since then.
        seconds: Seconds on the wall.
        work_seconds: Seconds of work.
        phase_start: Seconds of work before the present phase.
        validated_at: Seconds of work at the last validation.
        validation_cost: Seconds that it took.
        broken: Why a trial ended early; empty where it did not.
        restored: How often the present phase went back to good weights.
        interrupted: Whether a request to stop ended the fit.
        solver_level: Level of the guarded solver.
        solver_grading: Grading of its steps.
        micro_batches: Parts of a batch.
        records: Log of some steps, of all validations and events.
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
    work_seconds: float = 0.0
    phase_start: float = 0.0
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
        """Return a history at its start, whose records and seconds go on from an earlier one.

        Args:
            before: Earlier history, or None.
            seed: Seed of the new one.

        Returns:
            The new history.
        """
        if before is None:
            return cls(seed)
        return cls(
            seed, seconds=before.seconds, work_seconds=before.work_seconds, phase_start=before.work_seconds,
            validation_cost=before.validation_cost, records=list(before.records),
        )  # fmt: skip

    def share(self, phase: Phase) -> float:
        """Return the share of a phase that is done, by steps or by time.

        Args:
            phase: The present phase.

        Returns:
            Share, in [0, 1].
        """
        return min(1.0, max(self.phase_step / phase.steps, (self.work_seconds - self.phase_start) / phase.seconds))

    def is_over(self, phase: Phase, patience: int) -> bool:
        """Say whether the phase has ended.

        Args:
            phase: The present phase.
            patience: Validations without a better one that end it.

        Returns:
            True at its end.
        """
        done = self.phase_step >= phase.steps or self._out_of_time(phase)
        return done or bool(self.broken) or self._is_stale(phase, patience)

    def is_validation_due(self, phase: Phase, every: int) -> bool:
        """Say whether to validate after the last step: every so often, and always after the last one.

        Args:
            phase: The present phase.
            every: Most steps between validations, of a phase of steps.

        Returns:
            True where a validation is due.
        """
        if self.phase_step == phase.steps or self._out_of_time(phase):
            return True
        if phase.seconds == math.inf:
            return self.phase_step % min(every, max(1, phase.steps // phase.validations)) == 0
        count = TRIAL_VALIDATIONS if phase.trial else VALIDATIONS
        interval = max(phase.seconds / count, self.validation_cost / MAX_VALIDATION_SHARE)
        return self.work_seconds - max(self.validated_at, self.phase_start) >= interval

    def end_reason(self, phase: Phase) -> str:
        """Return why the phase ended.

        Args:
            phase: The present phase.

        Returns:
            A phrase for the log.
        """
        if self.broken:
            return f"early: {self.broken}"
        if self.phase_step >= phase.steps:
            return "all its steps made"
        return "its time was up" if self._out_of_time(phase) else "early: no better validation NLL"

    def _is_stale(self, phase: Phase, patience: int) -> bool:
        short = phase.trial and phase.seconds == math.inf  # seconds were set aside for it: nothing else would use them
        return self.stale >= (TRIAL_PATIENCE if short else patience)

    def _out_of_time(self, phase: Phase) -> bool:
        """Say whether the rest is what a last validation takes; one that takes more than half the time may be late."""
        reserve = min(self.validation_cost, phase.seconds / 2)
        return self.work_seconds - self.phase_start + reserve >= phase.seconds


class Recorder:
    """Add records to a history, and to the log of its run, and call a listener.

    Args:
        history: The history.
        run: Run folder, or None.
        on_step: Called with the record of each step, on a GPU ten times a second; or None.
        device: Device that trains.
    """

    def __init__(self, history: History, run: Run | None, on_step: OnStep | None, device: torch.device) -> None:
        self.history, self.run, self.on_step, self.device = history, run, on_step, device
        self.called_at = time.monotonic()

    def begin(self) -> None:
        """Write the records that came before."""
        if self.run is not None:
            self.run.keep_records(0)
            for record in self.history.records:
                self.run.record(record)

    def add(self, phase: Phase, numbers: Mapping[str, Any]) -> None:
        """Add a record of where training is.

        Args:
            phase: The present phase.
            numbers: Numbers or an event.
        """
        record = {**self._place(phase), **numbers}
        self.history.records.append(record)
        if self.run is not None:
            self.run.record(record)

    def add_step(self, phase: Phase, loss: Loss, numbers: Mapping[str, float | Tensor], share_before: float) -> None:
        """Record a step if it is one to keep, and call the listener; only then are its numbers fetched from a GPU.

        Args:
            phase: The present phase.
            loss: Loss of the step.
            numbers: Learning rate and norm of the gradient.
            share_before: Share of the phase that was done before the step.
        """
        here, cpu = self.history, self.device.type == "cpu"
        kept = int(RECORDED_STEPS * here.share(phase)) > int(RECORDED_STEPS * share_before)
        called = self.on_step is not None and (cpu or time.monotonic() - self.called_at > CALLBACK_INTERVAL)
        if not (kept or called):
            return
        record = loss.record(numbers)
        if called:
            self.called_at = time.monotonic()
            place = {"phase_index": here.phase, "phase_step": here.phase_step, "phase_share": here.share(phase)}
            self.on_step({**self._place(phase), **record, **place, "best_nll": here.best_nll})
        if kept:
            self.add(phase, record)

    def _place(self, phase: Phase) -> dict[str, Any]:
        return {"step": self.history.step, "phase": phase.objective.name, "seconds": round(self.history.seconds, 3)}
