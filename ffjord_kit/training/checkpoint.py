"""Checkpoints of a fit in its run: written by the first worker, taken up by all."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from ffjord_kit.flow import Flow
from ffjord_kit.runs import Run, RunError
from ffjord_kit.training.optimization import exchanged
from ffjord_kit.training.phase import History
from ffjord_kit.training.state import State
from ffjord_kit.training.workers import Workers

EVERY = 20.0  # seconds


class Checkpoints:
    """The state and the history of a fit of a flow on the disk; nothing, where there is no run.

    `folder` is the run's, known to all workers.
    """

    def __init__(self, run: Run | None, workers: Workers, flow: Flow, state: State, history: History) -> None:
        self.run, self.workers, self.flow, self.state, self.history = run, workers, flow, state, history
        self.folder = workers.told(lambda: None if run is None else str(run.path))
        self.saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last one is old."""
        return time.monotonic() - self.saved_at > EVERY

    def save(self) -> None:
        """Write one, and the best weights."""
        if self.run is None:
            return
        state = {key: value for key, value in vars(self.history).items() if key != "records"}
        counts = {"average_steps": self.state.average.steps, "records": len(self.history.records)}
        self.run.save_checkpoint(self.state.packed(), {**state, **counts})
        with exchanged(self.state.parameters, self.state.favourite):
            self.run.save_model(self.flow)
        self.saved_at = time.monotonic()

    def take_up(self, micro_batches: int | None) -> bool:
        """Go on from the last one, if the run had reached one; in as many parts of a batch as it was made in.

        Raises RunError for one that is damaged, or was made in another number of parts than is asked for.
        """
        found = self.workers.only_first(lambda: None if self.run is None else self.run.load_checkpoint())
        state = self.workers.told(lambda: None if found is None else found[1])
        if state is None:
            return False
        tensors = self.workers.given(None if found is None else found[0])
        with Run(Path(self.folder)).explained("checkpoint/state.safetensors"):
            self._take_up(tensors, state, micro_batches)
        self.history.records = self.workers.told(lambda: self.run.records())
        return True

    def left(self) -> str:
        """What there is to go back to."""
        there = self.run is not None and self.run.has_checkpoint
        return f"; the last checkpoint in {self.run.path} is intact" if there else ""

    def _take_up(self, tensors: dict[str, Tensor], state: dict[str, Any], micro_batches: int | None) -> None:
        average_steps, written = state.pop("average_steps"), state.pop("records")
        kept = History(**{**state, "interrupted": False})
        if micro_batches not in (None, kept.micro_batches):
            raise RunError(
                f"{self.folder} was trained in micro_batches={kept.micro_batches}; got {micro_batches}: "
                "resume it with its own"
            )
        vars(self.history).update(vars(kept))
        self.state.take_up(tensors, average_steps)
        if self.run is not None:
            self.run.keep_records(written)
