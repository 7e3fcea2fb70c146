"""Checkpoints of a fit in its run folder: written by the first worker, resumed by all."""

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
    """The state and the history of a fit on the disk; nothing happens where there is no run.

    Args:
        run: Run folder; None for no run, and on all workers but the first.
        workers: The workers.
        saved: Model to save, with the weights that train.
        state: Tensors of the fit.
        history: Its history.
    """

    def __init__(
        self, run: Run | None, workers: Workers, saved: nn.Module, state: TrainState, history: History
    ) -> None:
        self.run, self.workers, self.saved, self.state, self.history = run, workers, saved, state, history
        self.folder: str | None = workers.broadcast(lambda: None if run is None else str(run.path))
        self.saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is old."""
        return time.monotonic() - self.saved_at > INTERVAL

    def save(self) -> None:
        """Write a checkpoint, and the selected weights."""
        if self.run is None:
            return
        history = {key: value for key, value in vars(self.history).items() if key != "records"}
        counts = {"average_steps": self.state.average.steps, "records": len(self.history.records)}
        self.run.save_checkpoint(self.state.packed(), {**history, **counts})
        with exchanged(self.state.parameters, self.state.selected):
            self.run.save_model(self.saved)
        self.saved_at = time.monotonic()

    def resume(self, micro_batches: int | None) -> bool:
        """Go on from the last checkpoint, if the run has one.

        Args:
            micro_batches: Requested parts of a batch; None for those that it was made with.

        Returns:
            Whether there was one.

        Raises:
            RunError: If it is damaged, or was made with other parts.
        """
        found = self.workers.run_on_first(lambda: None if self.run is None else self.run.load_checkpoint())
        history = self.workers.broadcast(lambda: None if found is None else found[1])
        if history is None:
            return False
        tensors = self.workers.broadcast_tensors(None if found is None else found[0])
        with Run(Path(self.folder)).explained("checkpoint/state.safetensors"):
            self._unpack(tensors, history, micro_batches)
        self.history.records = self.workers.broadcast(lambda: self.run.records())
        return True

    def advice(self) -> str:
        """Return what there is to go back to.

        Returns:
            A phrase for an error's message; empty where there is nothing.
        """
        there = self.run is not None and self.run.has_checkpoint
        return f"; the last checkpoint in {self.run.path} is intact" if there else ""

    def _unpack(self, tensors: dict[str, Tensor], history: dict[str, Any], micro_batches: int | None) -> None:
        average_steps, records = history.pop("average_steps"), history.pop("records")
        kept = History(**{**history, "interrupted": False})
        if micro_batches not in (None, kept.micro_batches):
            raise RunError(
                f"{self.folder} was trained in micro_batches={kept.micro_batches}; got {micro_batches}: "
                "resume it with its own"
            )
        vars(self.history).update(vars(kept))
        self.state.unpack(tensors, average_steps)
        if self.run is not None:
            self.run.keep_records(records)
