"""Checkpoints of a fit in its run folder, written by the first worker and resumed by all."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ffjord_kit.run import Run, RunError
from ffjord_kit.training.distributed import Workers
from ffjord_kit.training.history import History
from ffjord_kit.training.optim import exchanged
from ffjord_kit.training.state import TrainState

INTERVAL = 20.0  # seconds


class Checkpoints:
    """Save and resume the state and the history of a fit; without a run, do nothing.

    Args:
        run: Run folder; None for no run, and on all workers but the first.
        workers: Workers that share the fit.
        saved: Model to save; it holds the parameters that train.
        state: Tensors of the fit.
        history: History of the fit.
    """

    def __init__(
        self, run: Run | None, workers: Workers, saved: nn.Module, state: TrainState, history: History
    ) -> None:
        self.run, self.workers, self.saved, self.state, self.history = run, workers, saved, state, history
        where: tuple[str, str] | None = workers.broadcast(lambda: None if run is None else (str(run.path), run.part))
        self.shared_run = (
            None if where is None else Run(Path(where[0]), part=where[1])
        )  # known to all workers, written by the first
        self.saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is older than INTERVAL."""
        return time.monotonic() - self.saved_at > INTERVAL

    def save(self) -> None:
        """Write a checkpoint, and the model with the selected weights."""
        if self.run is None:
            return
        history = {key: value for key, value in vars(self.history).items() if key != "records"}
        counts = {"average_steps": self.state.average.steps, "records": len(self.history.records)}
        self.run.save_checkpoint(self.state.packed(), {**history, **counts})
        with exchanged(self.state.parameters, self.state.selected):
            self.run.save_model(self.saved)
        self.saved_at = time.monotonic()

    def resume(self, micro_batches: int | None) -> bool:
        """Continue from the last checkpoint, if the run has one.

        Args:
            micro_batches: Requested number of parts of a batch; None for the number in the checkpoint.

        Returns:
            Whether there was a checkpoint.

        Raises:
            RunError: If the checkpoint is damaged, or was made with another number of parts.
        """
        run = self.shared_run
        if run is None:
            return False
        checkpoint = self.workers.run_on_first(run.load_checkpoint)
        history = self.workers.broadcast(lambda: None if checkpoint is None else checkpoint[1])
        if history is None:
            return False
        tensors = self.workers.broadcast_tensors(None if checkpoint is None else checkpoint[0])
        with run.explained("checkpoint/state.safetensors"):
            self._unpack(run, tensors, history, micro_batches)
        self.history.records = self.workers.broadcast(run.records)
        return True

    def advice(self) -> str:
        """Return advice about the last checkpoint, for the message of an error.

        Returns:
            A phrase; empty if there is no checkpoint.
        """
        if self.run is None or not self.run.has_checkpoint:
            return ""
        return f"; the last checkpoint in {self.run.path} is intact"

    def _unpack(self, run: Run, tensors: dict[str, Tensor], history: dict[str, Any], micro_batches: int | None) -> None:
        average_steps, records = history.pop("average_steps"), history.pop("records")
        kept = History(**{**history, "interrupted": False, "signal": 0})
        kept.check()
        if not (type(average_steps) is type(records) is int and min(average_steps, records) >= 0):
            raise ValueError(f"average_steps and records must be counts; got {average_steps!r:.40}, {records!r:.40}")
        if micro_batches not in (None, kept.micro_batches):
            raise RunError(
                f"{run.path} was trained in micro_batches={kept.micro_batches}; got {micro_batches}: "
                "resume it with its own"
            )
        vars(self.history).update(vars(kept))
        self.state.unpack(tensors, average_steps)
        if self.run is not None:
            self.run.keep_records(records)
