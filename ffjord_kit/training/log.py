"""What a fit tells: its history and the run's log of some steps and of all events, a listener of every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ffjord_kit.objectives import Loss
from ffjord_kit.runs import Run
from ffjord_kit.training.phase import History, Phase

STEPS = 200  # of a phase in the log
TOLD_EVERY = 0.1  # seconds between two steps of which a listener is told on a GPU

OnStep = Callable[[dict[str, Any]], None]


class Log:
    """The records of a history, kept in the run's log too, if there is a run."""

    def __init__(self, history: History, run: Run | None, on_step: OnStep | None, device: torch.device) -> None:
        self.history, self.run, self.on_step, self.device = history, run, on_step, device
        self.told_at = time.monotonic()

    def begin(self) -> None:
        """Write what came before."""
        if self.run is not None:
            self.run.keep_records(0)
            for record in self.history.records:
                self.run.record(record)

    def note(self, phase: Phase, numbers: Mapping[str, Any]) -> None:
        """Add a record of where training is."""
        record = {**self._where(phase), **numbers}
        self.history.records.append(record)
        if self.run is not None:
            self.run.record(record)

    def step(self, phase: Phase, loss: Loss, numbers: Mapping[str, float | Tensor], before: float) -> None:
        """Note the step, and tell of it; only then are its numbers fetched, for which a GPU would wait.

        `before` is the share of the phase that was done before it.
        """
        here, cpu = self.history, self.device.type == "cpu"
        kept = int(STEPS * here.share(phase)) > int(STEPS * before)
        told = self.on_step is not None and (cpu or time.monotonic() - self.told_at > TOLD_EVERY)
        if not (kept or told):
            return
        found = loss.numbers(numbers)
        if told:
            self.told_at = time.monotonic()
            place = {"phase_index": here.phase, "phase_step": here.phase_step, "phase_share": here.share(phase)}
            self.on_step({**self._where(phase), **found, **place, "best_nll": here.best_nll})
        if kept:
            self.note(phase, found)

    def _where(self, phase: Phase) -> dict[str, Any]:
        return {"step": self.history.step, "phase": phase.objective.name, "seconds": round(self.history.seconds, 3)}
