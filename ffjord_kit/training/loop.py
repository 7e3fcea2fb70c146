r"""The loop. All noise of step s, and the order of an epoch, are functions of (seed, s) and (seed, epoch) alone.

So the state of a run is its weights, their average, the best of them, the optimizer and a few numbers; no generator's
state has to be saved, and a resumed run is the run that was never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, enable_grad

from ffjord_kit.cnf import Integration
from ffjord_kit.flow import Flow
from ffjord_kit.objectives import Loss, Objective
from ffjord_kit.runs import Run
from ffjord_kit.training.data import Batches, Rows, looked_at, noise_generator, peel, refuse_not_finite
from ffjord_kit.training.divergence import LOWERED, RESTORES, TrainingDiverged, diverging
from ffjord_kit.training.guard import EVERY, Guard, guarded
from ffjord_kit.training.interrupt import interruptible
from ffjord_kit.training.optimization import Optimization, assign, exchanged
from ffjord_kit.training.phase import History, Phase
from ffjord_kit.training.state import State
from ffjord_kit.training.validation import score
from ffjord_kit.training.watch import Watch

CHECKPOINT_SECONDS = 20.0
LOGGED = 200  # steps of a phase in the log
TOLD_EVERY = 0.1  # seconds between two steps of which a listener is told on a GPU

OnStep = Callable[[dict[str, Any]], None]


@enable_grad()
def fit(
    flow: Flow,
    x: Tensor | Rows,
    *,
    context: Tensor | None = None,
    validation: tuple[Tensor, Tensor | None] | None = None,
    schedule: Sequence[Phase],
    batch_size: int = 512,
    optimization: Optimization | None = None,
    validate_every: int = 500,
    patience: int = 10,
    evaluation: Integration | None = None,
    guard: float = 0.1,
    seed: int = 0,
    before: History | None = None,
    run: Run | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> History:
    """Train the flow in place, phase by phase; the best weights on the validation data are left in it.

    A phase ends early after `patience` validations without a better NLL; the next one starts from the best weights.
    One of steps alone is validated after every `validate_every` of them, at least four times, one with an end in time
    twenty times, or less often where that is dear. `before` is a fit that came before: its log and its seconds go on.
    Ctrl-C ends the fit after the step under way with the best weights so far; a second one ends it at once. A `run` is
    given a log, the model and checkpoints; with `resume` the fit goes on from its last one. `guard` is the largest
    share of the loss's noise that the solver's error may take in training by likelihood (0: no guard). `on_step` is
    told of every step; on a GPU, which would have to wait for it, ten times a second.
    Shapes: x (n, *event), or `Rows`, fetched batch by batch; context (n, context_dim), validation a pair of the same.
    Raises ValueError for data that do not fit the flow, TrainingDiverged where the loss, its gradient, or the dynamics
    are not finite and lower learning rates do not help.
    """
    if not schedule or not all(isinstance(phase, Phase) for phase in schedule):
        raise ValueError(f"schedule must be a list of one or more Phase(objective, steps); got {schedule!r}")
    if validation is not None and not isinstance(validation, tuple):
        raise ValueError("validation must be a pair (x, context), context None where the flow takes none")
    trainer = _Trainer(flow, History.following(before, seed), optimization or Optimization(), run, on_step)
    trainer.validate_every, trainer.patience, trainer.guard = validate_every, patience, Guard(guard)
    trainer.evaluation = evaluation or Integration()
    trainer.feed((x, context), validation, batch_size)
    if not (resume and trainer.restore()):
        trainer.begin()
    return trainer.go(schedule)


class _Trainer:
    """One fit: the state that changes, and the few verbs that change it."""

    def __init__(
        self, flow: Flow, history: History, optimization: Optimization, run: Run | None, on_step: OnStep | None
    ) -> None:
        self.flow, self.history, self.run, self.on_step = flow, history, run, on_step
        self.fixed, self.inner = peel(flow)
        self.parameters = [p for p in self.inner.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("the flow has no parameters that require a gradient: there is nothing to train")
        self.device = self.parameters[0].device
        self.watch = Watch(self.device, history.seconds, history.spent)
        self.state = State(self.parameters, optimization)
        self.saved_at = self.told_at = time.monotonic()

    def feed(
        self,
        rows: tuple[Tensor | Rows, Tensor | None],
        held_out: tuple[Tensor, Tensor | None] | None,
        batch_size: int,
    ) -> None:
        for data in (rows, held_out):
            if data is not None:
                self.flow.check(*looked_at(*data))
                refuse_not_finite(looked_at(*data)[0])
        like = self.parameters[0]
        self.batches = Batches(self.fixed.feed(*rows, like), batch_size, self.history.seed)
        self.held_out = None if held_out is None else self.fixed.prepare(*held_out, like)

    def begin(self) -> None:
        """Write the log of what came before."""
        if self.run is not None:
            self.run.keep_records(0)
            for record in self.history.records:
                self.run.record(record)

    def go(self, schedule: Sequence[Phase]) -> History:
        self.history.phases = len(schedule)
        with interruptible() as interrupted:
            while self.history.phase < len(schedule) and not interrupted():
                self._phase(schedule[self.history.phase], interrupted)
        self.history.interrupted = self.history.phase < len(schedule)
        self._save()
        assign(self.parameters, self.state.favourite)
        return self.history

    def _phase(self, phase: Phase, interrupted: Callable[[], bool]) -> None:
        self.state.begin(phase.learning_rate)
        while not self.history.over(phase, self.patience):
            self._advance(phase)
            if interrupted():
                return
            if time.monotonic() - self.saved_at > CHECKPOINT_SECONDS:
                self._save()
        self._end(phase)

    def _advance(self, phase: Phase) -> None:
        """A step, and a validation where one is due."""
        begun = self.history.step
        try:
            self._step(phase)
            if self.history.due(phase, self.validate_every):
                self._validate(phase)
                self._save()
        except TrainingDiverged as error:
            if phase.trial:
                self.history.broken = str(error)
            elif not self._go_back(phase, error, self.history.step == begun):
                raise

    def _step(self, phase: Phase) -> None:
        here = self.history
        share = here.share(phase)
        generator = noise_generator(self.device, here.seed, "noise", here.step)
        peak = phase.learning_rate * LOWERED**here.restored
        rate = self.state.how.rate(here.phase_step, phase.steps, peak, share)
        with self._diverging(rate):
            loss = self._objective(phase).loss(self.inner, *self.batches[here.step], generator)
            norm = self.state.descent.step(loss.value, rate)
        self.state.average.update(self.state.how.ema_decay)
        here.step, here.phase_step = here.step + 1, here.phase_step + 1
        here.seconds, here.spent = self.watch.read()
        kept = int(LOGGED * here.share(phase)) > int(LOGGED * share)
        self._tell(phase, loss, {"learning_rate": rate, "gradient_norm": norm}, kept)

    def _go_back(self, phase: Phase, error: TrainingDiverged, skip: bool) -> bool:
        """Restore the last good weights, lower the learning rate and `skip` a bad batch; whether that makes sense."""
        here = self.history
        if here.restored == RESTORES:
            return False
        self.state.go_back(phase.learning_rate)
        here.restored, here.step, here.phase_step = here.restored + 1, here.step + skip, here.phase_step + skip
        went_back = f"went back to the last good weights, at {LOWERED**here.restored:.2g} of the learning rate"
        self._record({**self._where(phase), "event": f"{went_back} ({here.restored} of {RESTORES} times): {error}"})
        judged = self.held_out is None or self.state.best is not None
        return judged or not here.over(phase, self.patience)

    def _objective(self, phase: Phase) -> Objective:
        """The phase's objective, by the solver that the guard lets pass."""
        here = self.history
        if not self.guard.watches(self.inner, phase.objective, self.batches.size):
            return phase.objective
        if here.phase_step % EVERY == 0:
            key, state = (here.seed, "guard", here.step), (here.solver_level, here.solver_grading)
            verdict = self.guard.judge(self.inner, phase.objective, self.batches[here.step], key, state)
            here.solver_level, here.solver_grading = verdict.level, verdict.grading
            self._record({**self._where(phase), **verdict.record()})
        return guarded(self.inner, phase.objective, here.solver_level, here.solver_grading)

    def _validate(self, phase: Phase) -> None:
        with self._diverging(None):
            self.state.descent.check()
        if self.held_out is None:
            self.state.keep()
            return
        here = self.history
        with exchanged(self.parameters, self.state.average.values), self._diverging(None):
            found = score(self.inner, self.held_out, self.evaluation)
        self.state.keep()
        if here.best_nll is None or found.mean < here.best_nll:
            here.best_nll, here.best_step, here.stale = found.mean, here.step, 0
            self.state.improve()
        else:
            here.stale += 1
        before = here.spent
        here.seconds, here.spent = self.watch.read()
        here.validated_at, here.validation_cost = here.spent, here.spent - before
        self._record({**self._where(phase), **found.record()})

    def _end(self, phase: Phase) -> None:
        here = self.history
        why = here.why(phase, self.patience)
        self._record({**self._where(phase), "event": f"{phase.objective.name} ended ({why})"})
        self.state.end()
        here.phase, here.phase_step, here.phase_spent, here.stale = here.phase + 1, 0, here.spent, 0
        here.solver_level, here.solver_grading, here.broken, here.restored = 0, 1.0, "", 0
        if here.phase == here.phases and here.best_nll is not None:
            self._record({**self._where(phase), "event": f"kept step {here.best_step}: {here.best_nll:.4f} nats"})
        self._save()

    def _tell(self, phase: Phase, loss: Loss, numbers: dict[str, float | Tensor], kept: bool) -> None:
        """Note the step, and tell of it; only then are its numbers fetched, for which a GPU would wait."""
        told = self.on_step is not None and (self.device.type == "cpu" or time.monotonic() - self.told_at > TOLD_EVERY)
        if not (kept or told):
            return
        here, record = self.history, {**self._where(phase), **loss.numbers(numbers)}
        if told:
            self.told_at = time.monotonic()
            place = {"phase_index": here.phase, "phase_step": here.phase_step, "phase_share": here.share(phase)}
            self.on_step({**record, **place, "best_nll": here.best_nll})
        if kept:
            self._record(record)

    def _where(self, phase: Phase) -> dict[str, Any]:
        return {"step": self.history.step, "phase": phase.objective.name, "seconds": round(self.history.seconds, 3)}

    def _record(self, record: dict[str, Any]) -> None:
        self.history.records.append(record)
        if self.run is not None:
            self.run.record(record)

    def _diverging(self, rate: float | None) -> AbstractContextManager[None]:
        """Say where training was when the numbers ran out."""
        where = "in validation" if rate is None else f"at learning rate {rate:.3g}"
        return diverging(self.history.step + (rate is not None), where, self._left())

    def _left(self) -> str:
        there = self.run is not None and self.run.has_checkpoint
        return f"; the last checkpoint in {self.run.path} is intact" if there else ""

    def _save(self) -> None:
        if self.run is None:
            return
        state = {key: value for key, value in vars(self.history).items() if key != "records"}
        counts = {"average_steps": self.state.average.steps, "records": len(self.history.records)}
        self.run.save_checkpoint(self.state.packed(), {**state, **counts})
        with exchanged(self.parameters, self.state.favourite):
            self.run.save_model(self.flow)
        self.saved_at = time.monotonic()

    def restore(self) -> bool:
        """Take up the run's last checkpoint, if it had reached one."""
        found = None if self.run is None else self.run.load_checkpoint()
        if found is None:
            return False
        with self.run.explained("checkpoint/state.safetensors"):
            self._take_up(*found)
        return True

    def _take_up(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        average_steps, written = state.pop("average_steps"), state.pop("records")
        self.history = History(**{**state, "interrupted": False})
        self.watch = Watch(self.device, self.history.seconds, self.history.spent)
        self.state.take_up(tensors, average_steps)
        self.batches.seed = self.history.seed
        self.run.keep_records(written)
        self.history.records = self.run.records()
