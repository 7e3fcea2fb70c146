r"""The training loop. All noise of step s, and the order of an epoch, are functions of (seed, s) and (seed, epoch) alone.

So the state of a run is its weights, their average, the best of them, the optimizer and a few numbers; no generator's state
has to be saved, and a resumed run is the run that was never stopped.

Workers (see `distributed.py`) walk through it side by side. The first one has the run, and reads the clock; they tell each
other whether a step failed, and whether a stop is requested.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, enable_grad, nn

from ffjord_kit.data import Batch, Rows
from ffjord_kit.flow import Flow
from ffjord_kit.objectives import Objective
from ffjord_kit.ode import SolveError
from ffjord_kit.precision import reduced_precision
from ffjord_kit.run import Run
from ffjord_kit.training.checkpoint import Checkpoints
from ffjord_kit.training.config import Phase, TrainConfig
from ffjord_kit.training.data import (
    Batches, StreamedData, TensorData, TrainingRows, check_finite, preprocessed, sample_rows,
)  # fmt: skip
from ffjord_kit.training.distributed import Workers, WorkersError, check_agreement
from ffjord_kit.training.guard import EVERY, Guard, GuardResult, guarded
from ffjord_kit.training.history import History, OnStep, Recorder
from ffjord_kit.training.micro_batches import MicroBatches, run_together
from ffjord_kit.training.optim import assign, exchanged
from ffjord_kit.training.runtime import Timer, interruptible
from ffjord_kit.training.state import MAX_RESTORES, RATE_FACTOR, TrainingDiverged, TrainState, explain_divergence
from ffjord_kit.training.validation import LikelihoodValidation, ValidationScore, Validator
from ffjord_kit.transforms.cnf import SolveOptions


@enable_grad()
def fit(
    model: nn.Module,
    data: TrainingRows,
    schedule: Sequence[Phase],
    *,
    config: TrainConfig | None = None,
    validate: Validator | None = None,
    saved: nn.Module | None = None,
    workers: Workers | None = None,
    run: Run | None = None,
    resume: bool = False,
    before: History | None = None,
    on_step: OnStep | None = None,
    on_validation: OnStep | None = None,
) -> History:
    """Train a model in place, phase by phase.

    The best weights on the validation data, or without such data their average, are left in the model. A phase ends early
    after `patience` validations without a better one; the next one starts from the best weights. A phase of steps alone
    is validated after every `validate_every` of them, at least four times, one with an end in time twenty times, or less
    often where that is dear. Ctrl-C or SIGTERM ends the fit after the step under way; a second one ends it at once.

    Args:
        model: Model; its parameters that require a gradient are trained.
        data: Rows, as the model sees them.
        schedule: Phases.
        config: How weights are updated, validated and guarded.
        validate: Scores the model; None for no validation.
        saved: Model to save in the run, which shares the weights; `model` if None.
        workers: Workers that share each batch; this process alone if None.
        run: Run folder for log, model and checkpoints, or None.
        resume: Whether to go on from the run's last checkpoint.
        before: Earlier history, whose records and seconds go on.
        on_step: Called with the record of each step, on a GPU ten times a second.
        on_validation: Called with the record of each validation, while the average of the weights is in the model.

    Returns:
        The history.

    Raises:
        ValueError: If there is nothing to train, or the schedule is not one of phases.
        TrainingDiverged: If numbers are not finite, and lower learning rates do not help.
        WorkersError: If a worker is lost.
    """
    if not schedule or not all(isinstance(phase, Phase) for phase in schedule):
        raise ValueError(f"schedule must be a list of one or more Phase(objective, steps); got {schedule!r}")
    trainer = _Trainer(model, data, config or TrainConfig(), workers or Workers(), before)
    trainer.attach(run, model if saved is None else saved, validate, on_step, on_validation)
    trainer.begin(resume=resume)
    return trainer.train(schedule)


def fit_flow(
    flow: Flow,
    x: Tensor | Rows,
    *,
    schedule: Sequence[Phase],
    context: Tensor | None = None,
    validation: Batch | None = None,
    evaluation: SolveOptions | None = None,
    config: TrainConfig | None = None,
    workers: Workers | None = None,
    run: Run | None = None,
    resume: bool = False,
    before: History | None = None,
    on_step: OnStep | None = None,
    on_validation: OnStep | None = None,
) -> History:
    """Train a flow in place on rows in the units of the data; see `fit`.

    Args:
        flow: Flow; its preprocessing stays as it is.
        x: Rows, shape (n, *event), or their source, from which they are fetched batch by batch.
        schedule: Phases.
        context: Contexts, shape (n, context_dim), or None.
        validation: Held-out rows and contexts; None for no validation.
        evaluation: How validations are solved for; the flow's own solvers and the exact trace if None.
        config: How weights are updated, validated and guarded.
        workers: Workers that share each batch; those of torchrun if None.
        run: Run folder for log, model and checkpoints, or None.
        resume: Whether to go on from the run's last checkpoint.
        before: Earlier history, whose records and seconds go on.
        on_step: Called with the record of each step.
        on_validation: Called with the record of each validation.

    Returns:
        The history.

    Raises:
        ValueError: If the data do not fit the flow, or are not finite.
        TrainingDiverged: If numbers are not finite, and lower learning rates do not help.
        WorkersError: If workers were not given the same, or one is lost.

    Example:
        >>> import torch
        >>> from ffjord_kit import CNF, ConcatDynamics, Flow, FlowMatching
        >>> flow = Flow([CNF(ConcatDynamics((2,)), (2,))])
        >>> history = fit_flow(flow, torch.randn(64, 2), schedule=[Phase(FlowMatching(), steps=3)])
        >>> history.step
        3
    """
    config, workers = config or TrainConfig(), workers or Workers.here()
    if validation is not None and not isinstance(validation, Batch):
        raise ValueError("validation must be a Batch(x, context), context None where the flow takes none")
    check_agreement(workers, flow, (x, context), validation, schedule, config, resume=resume)
    for rows in [sample_rows(x, context), *([] if validation is None else [validation])]:
        flow.check(rows.x, rows.context)
        check_finite(rows.x)
    data = StreamedData(x, context, flow) if isinstance(x, Rows) else preprocessed(flow, Batch(x, context))
    inner, validate = flow.inner, None
    if validation is not None:
        validate = LikelihoodValidation(inner, preprocessed(flow, validation), evaluation or SolveOptions())
    return fit(
        inner, data, schedule, config=config, validate=validate, saved=flow, workers=workers, run=run, resume=resume,
        before=before, on_step=on_step, on_validation=on_validation,
    )  # fmt: skip


class _Trainer:
    """One fit: the state that changes, and the verbs that change it."""

    def __init__(
        self, model: nn.Module, data: TrainingRows, config: TrainConfig, workers: Workers, before: History | None
    ) -> None:
        self.model, self.config, self.workers = model, config, workers
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("the model has no parameters that require a gradient: there is nothing to train")
        self.device = self.parameters[0].device
        self.history = History.following(before, config.seed)
        self.timer = Timer(self.device, self.history.seconds, self.history.work_seconds)
        self.state, self.guard = TrainState(self.parameters, config), Guard(config.guard)
        prefetch = isinstance(data, StreamedData) and self.device.type == "cuda"
        self.batches = Batches(data, config.batch_size, config.seed, prefetch=prefetch)
        self.stopped = False

    def attach(
        self,
        run: Run | None,
        saved: nn.Module,
        validate: Validator | None,
        on_step: OnStep | None,
        on_validation: OnStep | None,
    ) -> None:
        """Connect the run, the validation and the listeners; the first worker alone has run and listeners."""
        run, on_step, on_validation = (run, on_step, on_validation) if self.workers.is_first else (None, None, None)
        self.recorder = Recorder(self.history, run, on_step, self.device)
        self.checkpoints = Checkpoints(run, self.workers, saved, self.state, self.history)
        self.validate, self.on_validation = validate, on_validation

    def begin(self, *, resume: bool) -> None:
        """Go on from the run's last checkpoint, if it has one, or start its log."""
        if resume and self.checkpoints.resume(self.config.micro_batches):
            self.timer = Timer(self.device, self.history.seconds, self.history.work_seconds)
            self.batches.seed = self.history.seed
        else:
            self.history.micro_batches = self.config.micro_batches or self.workers.size
            self.recorder.begin()
        self.micro_batches = MicroBatches(
            self.model, self.batches, self.parameters, self.history.micro_batches, self.workers
        )

    def train(self, schedule: Sequence[Phase]) -> History:
        """Make all phases."""
        self.history.phases = len(schedule)
        with interruptible() as self.stop_requested, self._explain_lost_workers():
            while self.history.phase < len(schedule) and not self._stops():
                self._train_phase(schedule[self.history.phase])
        self.history.interrupted = self.history.phase < len(schedule)
        self.checkpoints.save()
        assign(self.parameters, self.state.selected)
        return self.history

    def _stops(self) -> bool:
        """Say whether a stop is requested, which workers tell each other with every step."""
        return self.stop_requested() if self.workers.size == 1 else self.stopped

    def _train_phase(self, phase: Phase) -> None:
        self.state.begin_phase(phase.learning_rate)
        while not self.history.is_over(phase, self.config.patience):
            self._advance(phase)
            if self._stops():
                return
            if self.checkpoints.due:
                self.checkpoints.save()
        self._end_phase(phase)

    def _advance(self, phase: Phase) -> None:
        """Make a step, and a validation where one is due."""
        begun = self.history.step
        try:
            self._step(phase)
            if self.history.is_validation_due(phase, self.config.validate_every):
                self._validate(phase)
                self.checkpoints.save()
        except TrainingDiverged as error:
            if phase.trial:
                self.history.broken = str(error)
            elif not self._restore(phase, error, skip=self.history.step == begun):
                raise

    def _step(self, phase: Phase) -> None:
        here, share = self.history, self.history.share(phase)
        peak = phase.learning_rate * RATE_FACTOR**here.restored
        rate = self.config.learning_rate(here.phase_step, phase.steps, peak, share)
        with self._explain_divergence(rate):
            objective = self._objective(phase)
            with reduced_precision(self.model, self.config.precision):
                loss, (stop, *clock) = self.micro_batches.backward(objective, here.step, self._status)
            norm = self.state.optimizer.step(loss.value, rate)
        self.state.average.update(self.config.ema_decay)
        here.step, here.phase_step = here.step + 1, here.phase_step + 1
        (here.seconds, here.work_seconds), self.stopped = clock, stop > 0
        self.recorder.add_step(phase, loss, {"learning_rate": rate, "gradient_norm": norm}, share)

    def _status(self) -> tuple[float, ...]:
        """Return whether a stop is requested of this worker, and the first one's clock."""
        return float(self.stop_requested()), *self.workers.first_only(self.timer.read())

    def _restore(self, phase: Phase, error: TrainingDiverged, *, skip: bool) -> bool:
        """Go back to the last good weights at a lower rate, and skip a bad batch; say whether that makes sense."""
        here = self.history
        if here.restored == MAX_RESTORES:
            return False
        self.state.restore(phase.learning_rate)
        here.restored, here.step, here.phase_step = here.restored + 1, here.step + skip, here.phase_step + skip
        event = f"went back to the last good weights, at {RATE_FACTOR**here.restored:.2g} of the learning rate"
        self.recorder.add(phase, {"event": f"{event} ({here.restored} of {MAX_RESTORES} times): {error}"})
        validated = self.validate is None or self.state.best is not None
        return validated or not here.is_over(phase, self.config.patience)

    def _objective(self, phase: Phase) -> Objective:
        """Return the phase's objective, by the solver that the guard allows."""
        here, count = self.history, self.micro_batches.count
        if not self.guard.applies(self.model, phase.objective, self.batches.size // count):
            return phase.objective
        if here.phase_step % EVERY == 0:
            result = run_together(self.workers, lambda: self._guard(phase) if self.workers.is_first else None)
            news = self.workers.broadcast(lambda: (result.level, result.grading, result.record()))
            here.solver_level, here.solver_grading, record = news
            self.recorder.add(phase, record)
        return guarded(self.model, phase.objective, here.solver_level, here.solver_grading)

    def _guard(self, phase: Phase) -> GuardResult:
        here = self.history
        return self.guard.measure(
            self.model, phase.objective, self.micro_batches.part(here.step, 0), (here.seed, "guard", here.step),
            level=here.solver_level, grading=here.solver_grading, size=self.batches.size,
        )  # fmt: skip

    def _validate(self, phase: Phase) -> None:
        with self._explain_divergence(None):
            self.state.optimizer.check()
        if self.validate is None:
            self.state.keep()
            return
        here = self.history
        self.workers.copy_from_first_([*self.parameters, *self.state.average.values])  # lest machines drift apart
        with exchanged(self.parameters, self.state.average.values):
            with self._explain_divergence(None):
                score = self.validate(self.workers, self.micro_batches.count)
            self._call_on_validation(phase, score)
        self.state.keep()
        if here.best_nll is None or score.mean < here.best_nll:
            here.best_nll, here.best_step, here.stale = score.mean, here.step, 0
            self.state.keep_best()
        else:
            here.stale += 1
        before = here.work_seconds
        here.seconds, here.work_seconds = self.workers.broadcast(self.timer.read)
        here.validated_at, here.validation_cost = here.work_seconds, here.work_seconds - before
        self.recorder.add(phase, score.record())

    def _call_on_validation(self, phase: Phase, score: ValidationScore) -> None:
        """Call the listener; its failure is recorded, and training goes on."""
        if self.on_validation is None:
            return
        try:
            self.on_validation({"step": self.history.step, "phase": phase.objective.name, **score.record()})
        except (SolveError, ArithmeticError, OSError) as error:
            self.recorder.add(phase, {"event": f"no samples shown: {' '.join(str(error).split())}"})

    def _end_phase(self, phase: Phase) -> None:
        here = self.history
        self.recorder.add(phase, {"event": f"{phase.objective.name} ended ({here.end_reason(phase)})"})
        self.state.end_phase()
        here.phase, here.phase_step, here.phase_start, here.stale = here.phase + 1, 0, here.work_seconds, 0
        here.solver_level, here.solver_grading, here.broken, here.restored = 0, 1.0, "", 0
        if here.phase == here.phases and here.best_nll is not None:
            self.recorder.add(phase, {"event": f"kept step {here.best_step}: {here.best_nll:.4f} nats"})
        self.checkpoints.save()

    def _explain_divergence(self, rate: float | None) -> AbstractContextManager[None]:
        where = "in validation" if rate is None else f"at learning rate {rate:.3g}"
        return explain_divergence(self.history.step + (rate is not None), where, self.checkpoints.advice())

    @contextmanager
    def _explain_lost_workers(self) -> Iterator[None]:
        """Say where training was when a worker was lost, and how to go on."""
        try:
            yield
        except WorkersError as error:
            folder, size = self.checkpoints.folder, self.workers.size
            command = f"torchrun --standalone --nproc-per-node {size} -m ffjord_kit fit --resume {folder}"
            advice = "" if folder is None else f"; what {folder} holds is intact: go on with `{command}`"
            raise WorkersError(f"{error}; that was at step {self.history.step}{advice}") from error
