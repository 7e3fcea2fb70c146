r"""The loop. All noise of step s, and the order of an epoch, are functions of (seed, s) and (seed, epoch) alone.

So the state of a run is its weights, their average, the best of them, the optimizer and a few numbers; no generator's
state has to be saved, and a resumed run is the run that was never stopped.

Workers (see `workers.py`) walk through it side by side. The first one has the run, and tells the time; whether a step
failed, and whether somebody was asked to stop, they tell each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, enable_grad

from ffjord_kit.cnf import Integration
from ffjord_kit.failures import SolveError
from ffjord_kit.flow import Flow
from ffjord_kit.objectives import Objective
from ffjord_kit.runs import Run
from ffjord_kit.training.agreement import agree
from ffjord_kit.training.checkpoints import Checkpoints
from ffjord_kit.training.data import Batches, Rows, looked_at, peel, refuse_not_finite
from ffjord_kit.training.divergence import LOWERED, RESTORES, TrainingDiverged, diverging
from ffjord_kit.training.guard import EVERY, Guard, Verdict, guarded
from ffjord_kit.training.interrupt import interruptible
from ffjord_kit.training.log import Log, OnStep
from ffjord_kit.training.optimization import Optimization, assign, exchanged
from ffjord_kit.training.parts import Parts, together
from ffjord_kit.training.phase import History, Phase
from ffjord_kit.training.precision import check_precision, precise
from ffjord_kit.training.state import State
from ffjord_kit.training.validation import Score, score
from ffjord_kit.training.watch import Watch
from ffjord_kit.training.workers import Workers, WorkersError


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
    precision: str = "float32",
    micro_batches: int | None = None,
    workers: Workers | None = None,
    seed: int = 0,
    before: History | None = None,
    run: Run | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
    on_validation: OnStep | None = None,
) -> History:
    """Train the flow in place, phase by phase; the best weights on the validation data are left in it.

    A phase ends early after `patience` validations without a better NLL; the next one starts from the best weights.
    One of steps alone is validated after every `validate_every` of them, at least four times, one with an end in time
    twenty times, or less often where that is dear. `before` is a fit that came before: its log and its seconds go on.
    Ctrl-C ends the fit after the step under way with the best weights so far; a second one ends it at once. A `run` is
    given a log, the model and checkpoints; with `resume` the fit goes on from its last one. `guard` is the largest
    share of the loss's noise that the solver's error may take in training by likelihood (0: no guard). `on_step` is
    told of every step, on a GPU ten times a second, `on_validation` of those, the weights' average in their place. A
    batch is made in `micro_batches` parts by all `workers` (None: those of torchrun, a part each); the first has `run`.
    Shapes: x (n, *event), or `Rows`, fetched batch by batch; context (n, context_dim), validation a pair of the same.
    Raises ValueError for data that do not fit the flow, WorkersError, TrainingDiverged where lower rates do not help.
    """
    workers = _checked(schedule, validation, precision, workers)
    options = {"batch_size": batch_size, "seed": seed, "micro_batches": micro_batches, "resume": resume}
    agree(workers, flow, (x, context), validation, schedule, options)
    trainer = _Trainer(flow, History.following(before, seed), optimization or Optimization(), workers, run, on_step)
    trainer.validate_every, trainer.patience, trainer.precision = validate_every, patience, precision
    trainer.guard, trainer.evaluation, trainer.on_validation = Guard(guard), evaluation or Integration(), on_validation
    trainer.feed((x, context), validation, batch_size)
    trainer.begin(micro_batches, resume=resume)
    return trainer.go(schedule)


def _checked(
    schedule: Sequence[Phase],
    validation: tuple[Tensor, Tensor | None] | None,
    precision: str,
    workers: Workers | None,
) -> Workers:
    check_precision(precision)
    if not schedule or not all(isinstance(phase, Phase) for phase in schedule):
        raise ValueError(f"schedule must be a list of one or more Phase(objective, steps); got {schedule!r}")
    if validation is not None and not isinstance(validation, tuple):
        raise ValueError("validation must be a pair (x, context), context None where the flow takes none")
    return workers or Workers.here()


class _Trainer:
    """One fit: the state that changes, and the few verbs that change it."""

    def __init__(
        self,
        flow: Flow,
        history: History,
        optimization: Optimization,
        workers: Workers,
        run: Run | None,
        on_step: OnStep | None,
    ) -> None:
        self.flow, self.history, self.workers = flow, history, workers
        self.fixed, self.inner = peel(flow)
        self.parameters = [p for p in self.inner.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("the flow has no parameters that require a gradient: there is nothing to train")
        self.device = self.parameters[0].device
        self.watch = Watch(self.device, history.seconds, history.spent)
        self.state = State(self.parameters, optimization)
        run, on_step = (run, on_step) if workers.first else (None, None)
        self.log = Log(history, run, on_step, self.device)
        self.checkpoints = Checkpoints(run, workers, flow, self.state, history)
        self.halted = False

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
        fed, ahead = self.fixed.feed(*rows, like), isinstance(rows[0], Rows) and self.device.type == "cuda"
        self.batches = Batches(fed, batch_size, self.history.seed, ahead=ahead)
        self.held_out = None if held_out is None else self.fixed.prepare(*held_out, like)

    def begin(self, micro_batches: int | None, *, resume: bool) -> None:
        """Go on from the run's last checkpoint, if it had reached one, or start its log."""
        if resume and self.checkpoints.take_up(micro_batches):
            self.watch = Watch(self.device, self.history.seconds, self.history.spent)
            self.batches.seed = self.history.seed
        else:
            self.history.micro_batches = micro_batches or self.workers.size
            self.log.begin()
        self.parts = Parts(self.inner, self.batches, self.parameters, self.history.micro_batches, self.workers)

    def go(self, schedule: Sequence[Phase]) -> History:
        self.history.phases = len(schedule)
        with interruptible() as self.asked, self._beside_others():
            while self.history.phase < len(schedule) and not self._halts():
                self._phase(schedule[self.history.phase])
        self.history.interrupted = self.history.phase < len(schedule)
        self.checkpoints.save()
        assign(self.parameters, self.state.favourite)
        return self.history

    def _halts(self) -> bool:
        """Whether somebody was asked to stop, which workers tell each other with every step."""
        return self.asked() if self.workers.size == 1 else self.halted

    @contextmanager
    def _beside_others(self) -> Iterator[None]:
        """Say where training was when a worker was lost, and how to go on."""
        try:
            yield
        except WorkersError as error:
            folder = self.checkpoints.folder
            again = f"torchrun --standalone --nproc-per-node {self.workers.size} -m ffjord_kit fit --resume {folder}"
            left = "" if folder is None else f"; what {folder} holds is intact: go on with `{again}`"
            raise WorkersError(f"{error}; that was at step {self.history.step}{left}") from error

    def _phase(self, phase: Phase) -> None:
        self.state.begin(phase.learning_rate)
        while not self.history.over(phase, self.patience):
            self._advance(phase)
            if self._halts():
                return
            if self.checkpoints.due:
                self.checkpoints.save()
        self._end(phase)

    def _advance(self, phase: Phase) -> None:
        """A step, and a validation where one is due."""
        begun = self.history.step
        try:
            self._step(phase)
            if self.history.due(phase, self.validate_every):
                self._validate(phase)
                self.checkpoints.save()
        except TrainingDiverged as error:
            if phase.trial:
                self.history.broken = str(error)
            elif not self._go_back(phase, error, self.history.step == begun):
                raise

    def _step(self, phase: Phase) -> None:
        here = self.history
        share = here.share(phase)
        peak = phase.learning_rate * LOWERED**here.restored
        rate = self.state.how.rate(here.phase_step, phase.steps, peak, share)
        with self._diverging(rate):
            objective = self._objective(phase)
            with precise(self.inner, self.precision):
                loss, (asked, *clock) = self.parts.backward(objective, here.step, self._news)
            norm = self.state.descent.update(loss.value, rate)
        self.state.average.update(self.state.how.ema_decay)
        here.step, here.phase_step = here.step + 1, here.phase_step + 1
        (here.seconds, here.spent), self.halted = clock, asked > 0
        self.log.step(phase, loss, {"learning_rate": rate, "gradient_norm": norm}, share)

    def _news(self) -> tuple[float, ...]:
        """Whether this worker was asked to stop, and the first one's clock."""
        return float(self.asked()), *self.workers.own(self.watch.read())

    def _go_back(self, phase: Phase, error: TrainingDiverged, skip: bool) -> bool:
        """Restore the last good weights, lower the learning rate and `skip` a bad batch; whether that makes sense."""
        here = self.history
        if here.restored == RESTORES:
            return False
        self.state.go_back(phase.learning_rate)
        here.restored, here.step, here.phase_step = here.restored + 1, here.step + skip, here.phase_step + skip
        went_back = f"went back to the last good weights, at {LOWERED**here.restored:.2g} of the learning rate"
        self.log.note(phase, {"event": f"{went_back} ({here.restored} of {RESTORES} times): {error}"})
        judged = self.held_out is None or self.state.best is not None
        return judged or not here.over(phase, self.patience)

    def _objective(self, phase: Phase) -> Objective:
        """The phase's objective, by the solver that the guard lets pass."""
        here = self.history
        if not self.guard.watches(self.inner, phase.objective, self.batches.size // self.parts.count):
            return phase.objective
        if here.phase_step % EVERY == 0:
            verdict = together(self.workers, lambda: self._judged(phase) if self.workers.first else None)
            said = self.workers.told(lambda: (verdict.level, verdict.grading, verdict.record()))
            here.solver_level, here.solver_grading, record = said
            self.log.note(phase, record)
        return guarded(self.inner, phase.objective, here.solver_level, here.solver_grading)

    def _judged(self, phase: Phase) -> Verdict:
        here = self.history
        key, state = (here.seed, "guard", here.step), (here.solver_level, here.solver_grading)
        part = self.parts.rows(here.step, 0)
        return self.guard.judge(self.inner, phase.objective, part, key, state, self.batches.size)

    def _validate(self, phase: Phase) -> None:
        with self._diverging(None):
            self.state.descent.check()
        if self.held_out is None:
            self.state.keep()
            return
        here = self.history
        self.workers.copy_([*self.parameters, *self.state.average.values])  # lest machines drift apart
        with exchanged(self.parameters, self.state.average.values):
            with self._diverging(None):
                found = score(self.inner, self.held_out, self.evaluation, self.workers, self.parts.count)
            self._show(phase, found)
        self.state.keep()
        if here.best_nll is None or found.mean < here.best_nll:
            here.best_nll, here.best_step, here.stale = found.mean, here.step, 0
            self.state.improve()
        else:
            here.stale += 1
        before = here.spent
        here.seconds, here.spent = self.workers.told(self.watch.read)
        here.validated_at, here.validation_cost = here.spent, here.spent - before
        self.log.note(phase, found.record())

    def _show(self, phase: Phase, found: Score) -> None:
        """Tell of a validation; what a listener cannot do is noted, and training goes on."""
        if self.on_validation is None or not self.workers.first:
            return
        try:
            self.on_validation({"step": self.history.step, "phase": phase.objective.name, **found.record()})
        except (SolveError, ArithmeticError, OSError) as error:
            self.log.note(phase, {"event": f"no samples shown: {' '.join(str(error).split())}"})

    def _end(self, phase: Phase) -> None:
        here = self.history
        why = here.why(phase, self.patience)
        self.log.note(phase, {"event": f"{phase.objective.name} ended ({why})"})
        self.state.end()
        here.phase, here.phase_step, here.phase_spent, here.stale = here.phase + 1, 0, here.spent, 0
        here.solver_level, here.solver_grading, here.broken, here.restored = 0, 1.0, "", 0
        if here.phase == here.phases and here.best_nll is not None:
            self.log.note(phase, {"event": f"kept step {here.best_step}: {here.best_nll:.4f} nats"})
        self.checkpoints.save()

    def _diverging(self, rate: float | None) -> AbstractContextManager[None]:
        """Say where training was when the numbers ran out."""
        where = "in validation" if rate is None else f"at learning rate {rate:.3g}"
        return diverging(self.history.step + (rate is not None), where, self.checkpoints.left())
