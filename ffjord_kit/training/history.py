"""The history of a fit: its progress, its records, and when a phase validates and ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ffjord_kit.objectives import Loss
from ffjord_kit.run import Run
from ffjord_kit.training.config import Phase

VALIDATIONS, TRIAL_VALIDATIONS = 20, 3  # in a phase with a limit of time
TRIAL_PATIENCE = 2
UNKNOWN_COST_VALIDATIONS = 4  # until the first one has told what a validation costs
MAX_VALIDATION_SHARE = 1 / 8  # of the time of such a phase
EARLIEST = 10  # steps before the first validation
RESERVE = 1.25  # time reserved for the last validation, relative to the one before

RECORDED_STEPS = 200  # per phase
CALLBACK_INTERVAL = 0.1  # seconds between two calls of `on_step` on a GPU

OnStep = Callable[[dict[str, Any]], None]
OnValidation = Callable[[dict[str, Any]], Mapping[str, Any] | None]


@dataclass
class History:
    """Progress of a fit, and its records.

    Attributes:
        seed: Seed of all noise.
        phase: Index of the present phase.
        phases: Number of phases.
        phase_step: Steps made in the present phase.
        step: Steps made in all phases.
        best_nll: Best validation score, the negative log-likelihood in nats for a flow; None without validation data.
        best_step: Step of the best validation.
        stale: Number of validations since the best one.
        seconds: Wall time, seconds.
        work_seconds: Seconds that limits count; see `Timer`.
        phase_start: Work time at the start of the present phase, seconds.
        validated_at: Work time at the last validation, seconds.
        validation_cost: Work time of the last validation, seconds.
        broken: Reason why a trial was abandoned; empty if it was not.
        restored: Number of times that the present phase went back to its last good weights.
        interrupted: Whether a request to stop ended the fit.
        signal: Number of the signal that requested it; 0 for none, or one to another worker.
        solver_level: Level of the guarded solver.
        solver_grading: Grading of the guarded solver's steps.
        micro_batches: Number of parts of a batch.
        records: Records of some steps, and of all validations and events.

    Example:
        >>> history = History(seed=0, records=[{"step": 10, "validation_nll": 2.5}, {"step": 20, "loss": 2.0}])
        >>> history.validations
        [(10, 2.5)]
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
    signal: int = 0
    solver_level: int = 0
    solver_grading: float = 1.0
    micro_batches: int = 1
    records: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def validations(self) -> list[tuple[int, float]]:
        """Steps and validation NLLs, in order."""
        return _validations(self.records)

    def validations_of(self, density: str) -> list[tuple[int, float]]:
        """Return steps and validation NLLs of one density of the fit.

        Args:
            density: "steps" or "continuous".

        Returns:
            Pairs, in order.
        """
        return _validations(of_density(self.records, density))

    @classmethod
    def following(cls, before: History | None, seed: int) -> History:
        """Return a new history that continues the steps, the records and the clocks of an earlier one.

        The model has the best weights of the earlier one, which stay until a validation is better.

        Args:
            before: Earlier history, or None.
            seed: Seed of the new one.

        Returns:
            The new history.
        """
        if before is None:
            return cls(seed)
        return cls(
            seed, step=before.step, seconds=before.seconds, work_seconds=before.work_seconds,
            phase_start=before.work_seconds, validation_cost=before.validation_cost, best_nll=before.best_nll,
            records=list(before.records),
        )  # fmt: skip

    def check(self) -> None:
        """Check the numbers of a history that was read from a file.

        Raises:
            ValueError: If one of them makes no sense.
        """
        counts = ("phase", "phases", "phase_step", "step", "best_step", "stale", "restored", "seed")
        numbers = ("seconds", "work_seconds", "phase_start", "validated_at", "validation_cost", "solver_grading")
        for name in (*counts, "micro_batches", *numbers):
            value, kind = getattr(self, name), float if name in numbers else int
            least = 1 if name == "micro_batches" else 0
            if not (type(value) in (int, kind) and least <= value < math.inf):
                raise ValueError(f"{name} must be at least {least}; got {value!r:.40}")
        if type(self.solver_level) is not int:  # below 0 it is coarser
            raise ValueError(f"solver_level must be a whole number; got {self.solver_level!r:.40}")
        if self.phase > self.phases:
            raise ValueError(f"phase must be at most {self.phases}; got {self.phase}")
        if type(self.best_nll) not in (int, float, type(None)):
            raise ValueError(f"best_nll must be a number; got {self.best_nll!r:.40}")

    def share(self, phase: Phase) -> float:
        """Return the share of a phase that is done, by steps or by time.

        Args:
            phase: The present phase.

        Returns:
            Share, in [0, 1].
        """
        return min(1.0, max(self.phase_step / phase.steps, (self.work_seconds - self.phase_start) / phase.seconds))

    def is_over(self, phase: Phase, patience: int) -> bool:
        """Return whether the phase has ended.

        Args:
            phase: The present phase.
            patience: Number of validations in a row without improvement that ends it.

        Returns:
            True if it has.
        """
        done = self.phase_step >= phase.steps or self._out_of_time(phase)
        return done or bool(self.broken) or self._is_stale(phase, patience)

    def is_validation_due(self, phase: Phase, every: int, epoch: int) -> bool:
        """Return whether to validate now: after the last step of the phase, at regular intervals, and often at first.

        Nothing is learnt by heart within one epoch; after it, the number of steps doubles from one of the first
        validations to the next, until the interval is the regular one.

        Args:
            phase: The present phase.
            every: Largest number of steps between validations, in a phase that is limited by steps alone.
            epoch: Number of steps that visit each row once.

        Returns:
            True if a validation is due.
        """
        if self.phase_step == phase.steps or self._out_of_time(phase):
            return True
        early = not phase.trial and phase.validations > 1 and _is_doubled(self.phase_step, max(EARLIEST, epoch))
        if phase.seconds == math.inf:
            interval = min(every, max(1, phase.steps // phase.validations))
            return self.phase_step % interval == 0 or (early and self.phase_step < interval)
        count = TRIAL_VALIDATIONS if phase.trial and not phase.from_start else VALIDATIONS
        if not self.validation_cost:  # of weights that begin it would say little
            count = UNKNOWN_COST_VALIDATIONS
        since = self.work_seconds - max(self.validated_at, self.phase_start)
        return since >= self.validation_cost / MAX_VALIDATION_SHARE and (early or since >= phase.seconds / count)

    def is_judged(self, phase: Phase) -> bool:
        """Return whether a validation has seen the second half of a phase that has a limit of time.

        Args:
            phase: The present phase.

        Returns:
            True if one has, or if the phase has another that will do: it is an attempt, or has no limit of time.
        """
        attempt = phase.trial or phase.validations == 1 or phase.seconds == math.inf
        return attempt or self.validated_at >= self.phase_start + phase.seconds / 2

    def begin_phase(self, phase: int) -> None:
        """Begin a phase.

        Args:
            phase: Its index.
        """
        self.phase, self.phase_step, self.phase_start, self.stale = phase, 0, self.work_seconds, 0
        self.solver_level, self.solver_grading, self.broken, self.restored = 0, 1.0, "", 0

    def end_reason(self, phase: Phase) -> str:
        """Return why the phase ended.

        Args:
            phase: The present phase.

        Returns:
            The reason, for the log.
        """
        if self.broken:
            return f"early: {self.broken}"
        if self.phase_step >= phase.steps:
            return "all its steps made"
        return "its time was up" if self._out_of_time(phase) else "early: no better validation NLL"

    def _is_stale(self, phase: Phase, patience: int) -> bool:
        if phase.patient:
            return False
        short = phase.trial and phase.seconds == math.inf  # seconds are reserved for the phase: it may use them all
        return self.stale >= (TRIAL_PATIENCE if short else patience)

    def _out_of_time(self, phase: Phase) -> bool:
        """Return whether only the time for a last validation is left; at most half the phase is reserved for it."""
        reserve = min(RESERVE * self.validation_cost, phase.seconds / 2)
        return self.work_seconds - self.phase_start + reserve >= phase.seconds


def _validations(records: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    return [(record["step"], record["validation_nll"]) for record in records if "validation_nll" in record]


def _is_doubled(steps: int, first: int) -> bool:
    """Say whether a number of steps is the first one, or its double, or the double of that, ..."""
    return steps % first == 0 and (steps // first).bit_count() == 1


def of_density(records: Sequence[Mapping[str, Any]], density: str) -> list[Mapping[str, Any]]:
    """Return the records of the training of one density of a fit.

    Args:
        records: Records.
        density: "steps" for the few explicit steps, else the continuous flow.

    Returns:
        Its records, in order.
    """
    return [record for record in records if (record.get("phase") == "steps") == (density == "steps")]


class Recorder:
    """Write records to a history and to the log of its run, and report steps to a callback.

    Args:
        history: History to extend.
        run: Run folder, or None.
        on_step: Callback, called with the record of each step, on a GPU at most ten times a second; or None.
        device: Device of the training.
    """

    def __init__(self, history: History, run: Run | None, on_step: OnStep | None, device: torch.device) -> None:
        self.history, self.run, self.on_step, self.device = history, run, on_step, device
        self.called_at = time.monotonic()

    def begin(self) -> None:
        """Start the log of the run with the earlier records of the history."""
        if self.run is not None:
            self.run.keep_records(0)
            for record in self.history.records:
                self.run.record(record)

    def add(self, phase: Phase, numbers: Mapping[str, Any]) -> None:
        """Record numbers or an event at the present step.

        Args:
            phase: The present phase.
            numbers: Numbers by name, or {"event": text}.
        """
        record = {**self._position(phase), **numbers}
        self.history.records.append(record)
        if self.run is not None:
            self.run.record(record)

    def add_step(self, phase: Phase, loss: Loss, numbers: Mapping[str, float | Tensor], share_before: float) -> None:
        """Report a step to the callback, and record it if it is one of RECORDED_STEPS spread over the phase.

        Otherwise the numbers are not fetched, for which a GPU would have to wait.

        Args:
            phase: The present phase.
            loss: Loss of the step.
            numbers: Learning rate and norm of the gradient.
            share_before: Share of the phase that was done before the step.
        """
        here, callback = self.history, self._due_callback()
        recorded = int(RECORDED_STEPS * here.share(phase)) > int(RECORDED_STEPS * share_before)
        if not recorded and callback is None:
            return
        record = loss.record(numbers)
        if callback is not None:
            self.called_at = time.monotonic()
            progress = {"phase_index": here.phase, "phase_step": here.phase_step, "phase_share": here.share(phase)}
            callback({**self._position(phase), **record, **progress, "best_nll": here.best_nll})
        if recorded:
            self.add(phase, record)

    def _due_callback(self) -> OnStep | None:
        """Return the callback if it is time to call it."""
        due = self.device.type == "cpu" or time.monotonic() - self.called_at > CALLBACK_INTERVAL
        return self.on_step if due else None

    def _position(self, phase: Phase) -> dict[str, Any]:
        return {"step": self.history.step, "phase": phase.objective.name, "seconds": round(self.history.seconds, 3)}
