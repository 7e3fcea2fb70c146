r"""The training loop, for any model and objective.

The noise of step s is a function of (seed, s) alone, and the order of an epoch of (seed, epoch). So the state of a run
is its weights, their average, the best of them, the optimizer and a few numbers. No generator's state is saved, and a
resumed run equals one that was never stopped, bit for bit.

Workers (see `distributed.py`) run the loop side by side. The first one writes to the run folder and reads the clock;
all exchange whether a step failed, and whether a stop is requested.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, enable_grad, nn

from ffjord_kit.data import Batch, Rows
from ffjord_kit.flow import Flow
from ffjord_kit.objectives import Objective, SolvedObjective
from ffjord_kit.ode import OutOfTime, SolveError, time_limit
from ffjord_kit.precision import reduced_precision
from ffjord_kit.run import Run
from ffjord_kit.training.checkpoint import Checkpoints
from ffjord_kit.training.config import Phase, TrainConfig
from ffjord_kit.training.data import Batches, StreamedData, TrainingRows, check_finite, preprocessed, sample_rows
from ffjord_kit.training.distributed import Workers, WorkersError, check_agreement
from ffjord_kit.training.guard import EVERY, Guard, guarded
from ffjord_kit.training.history import History, OnStep, OnValidation, Recorder
from ffjord_kit.training.micro_batches import MicroBatches, broadcast_together
from ffjord_kit.training.optim import assign, exchanged
from ffjord_kit.training.runtime import Timer, interruptible
from ffjord_kit.training.state import MAX_RESTORES, RATE_FACTOR, TrainingDiverged, TrainState, explain_divergence
from ffjord_kit.training.validation import LikelihoodValidation, SteppedValidation, ValidationScore, Validator
from ffjord_kit.transforms import Stepped
from ffjord_kit.transforms.cnf import SolveOptions

LATEST = 1.04  # end of a last validation, relative to the seconds of a phase
LATEST_OF_ALL = 1.1  # where no other validation has judged what was trained: the training would be lost


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
    timer: Timer | None = None,
    on_step: OnStep | None = None,
    on_validation: OnValidation | None = None,
) -> History:
    """Train a model in place, phase by phase.

    The model ends with the weights of the best validation, or, without validation, with their moving average. A phase
    ends early after `config.patience` validations in a row without improvement; the next phase starts from the best
    weights, or from weights of its own. A phase that is limited by steps alone is validated every
    `config.validate_every` steps, and at least four times; a phase with a limit of time is validated twenty times, or
    less often if validations are expensive. Ctrl-C or SIGTERM ends the fit after the present step, which the history
    tells (`pass_on` does then what the signal does); a second one ends it at once. Buffers, e.g. the running statistics
    of batch normalisation, are neither averaged nor part of a checkpoint.

    Args:
        model: Model, whose parameters that require a gradient are trained.
        data: Rows, as the model takes them.
        schedule: Phases, in order.
        config: How weights are updated, validated and guarded.
        validate: Function that scores the model, lower being better; None for no validation.
        saved: Model to save in the run, which shares the parameters of `model`; `model` itself if None.
        workers: Workers that share each batch; this process alone if None.
        run: Run folder for the log, the model and checkpoints, or None.
        resume: Whether to continue from the run's last checkpoint, if it has one.
        before: Earlier history, whose records and clocks are continued; the model has its best weights.
        timer: Clocks that run already; they start here if None.
        on_step: Callback, called with the record of each step, on a GPU at most ten times a second.
        on_validation: Callback, called with the record of each validation while the model has the averaged weights; the
            numbers that it returns join the record.

    Returns:
        The history.

    Raises:
        ValueError: If there is nothing to train, or the schedule is not a list of phases.
        TrainingDiverged: If numbers are not finite, and lower learning rates do not help.
        WorkersError: If a worker is lost.

    Example:
        Least squares, with the targets in the place of the contexts:

        >>> import torch
        >>> from ffjord_kit.objectives import Loss
        >>> from ffjord_kit.training import TensorData
        >>> class LeastSquares(Objective):
        ...     name = "least_squares"
        ...
        ...     def loss(self, model, batch, generator):
        ...         return Loss((model(batch.x) - batch.context).square().mean(), {})
        >>> x = torch.linspace(-1, 1, 32)[:, None]
        >>> model = nn.Linear(1, 1)
        >>> config = TrainConfig(batch_size=32, ema_decay=0.0)
        >>> _ = fit(model, TensorData(Batch(x, 3 * x)), [Phase(LeastSquares(), 200, 0.1)], config=config)
        >>> round(model.weight.item(), 2)
        3.0
    """
    _check_schedule(schedule)
    trainer = _Trainer(model, data, config or TrainConfig(), workers or Workers(), before, timer)
    trainer.attach(run, model if saved is None else saved, validate, on_step, on_validation)
    trainer.begin(resume=resume)
    return trainer.train(schedule)


def fit_flow(
    flow: Flow,
    x: Tensor | Rows,
    *,
    schedule: Sequence[Phase],
    context: Tensor | None = None,
    weight: Tensor | None = None,
    noise: Tensor | None = None,
    validation: Batch | None = None,
    evaluation: SolveOptions | None = None,
    config: TrainConfig | None = None,
    workers: Workers | None = None,
    run: Run | None = None,
    resume: bool = False,
    before: History | None = None,
    timer: Timer | None = None,
    on_step: OnStep | None = None,
    on_validation: OnValidation | None = None,
) -> History:
    """Train a flow in place on rows in the units of the data; see `fit`.

    Args:
        flow: Flow to train; its preprocessing stays as it is.
        x: Rows, shape (n, *event), or a source that fetches them batch by batch.
        schedule: Phases, in order.
        context: Contexts, shape (n, context_dim), or None.
        weight: Weights of the rows, of mean 1, shape (n,), or None.
        noise: Deviations of the errors of rows in memory, shape (n, *event), which explicit steps remove, or None.
        validation: Held-out rows with all that they carry, scored by their likelihood; None for no validation.
        evaluation: Trace and solver of validations; the exact trace and the flow's own solvers if None.
        config: How weights are updated, validated and guarded.
        workers: Workers that share each batch; the processes started by torchrun if None.
        run: Run folder for the log, the model and checkpoints, or None.
        resume: Whether to continue from the run's last checkpoint, if it has one.
        before: Earlier history, whose records and clocks are continued; the model has its best weights.
        timer: Clocks that run already; they start here if None.
        on_step: Callback, called with the record of each step, on a GPU at most ten times a second.
        on_validation: Callback, called with the record of each validation while the flow has the averaged weights; the
            numbers that it returns join the record.

    Returns:
        The history.

    Raises:
        ValueError: If the data do not fit the flow, or are not finite.
        TrainingDiverged: If numbers are not finite, and lower learning rates do not help.
        WorkersError: If the workers' data or options differ, or a worker is lost.

    Example:
        >>> import torch
        >>> from ffjord_kit import CNF, ConcatDynamics, Flow, FlowMatching
        >>> flow = Flow([CNF(ConcatDynamics((2,)), (2,))])
        >>> history = fit_flow(flow, torch.randn(64, 2), schedule=[Phase(FlowMatching(), steps=3)])
        >>> history.step
        3
    """
    config, workers = config or TrainConfig(), workers or Workers.here()
    _check_schedule(schedule)
    if validation is not None and not isinstance(validation, Batch):
        raise ValueError("validation must be a Batch(x, context), context None if the flow takes none")
    check_agreement(workers, flow, (x, context, weight), validation, schedule, config, resume=resume)
    for rows in [sample_rows(x, context), *([] if validation is None else [validation])]:
        flow.check(rows.x, rows.context)
        check_finite(rows.x)
    data: TrainingRows
    if isinstance(x, Rows):
        data = StreamedData(x, context, flow, weight)
    else:
        data = preprocessed(flow, Batch(x, context, weight, noise))
    inner, validate = flow.inner, None
    if validation is not None:
        stepped = any(isinstance(transform, Stepped) for transform in inner.transforms)
        judge = SteppedValidation if stepped else LikelihoodValidation
        validate = judge(inner, preprocessed(flow, validation), evaluation or SolveOptions())
    return fit(
        inner, data, schedule, config=config, validate=validate, saved=flow, workers=workers, run=run, resume=resume,
        before=before, timer=timer, on_step=on_step, on_validation=on_validation,
    )  # fmt: skip


def _check_schedule(schedule: Sequence[Phase]) -> None:
    if not schedule or not all(isinstance(phase, Phase) for phase in schedule):
        raise ValueError(f"schedule must be a list of one or more Phase(objective, steps); got {schedule!r}")


class _Trainer:
    """One fit: its state, and the steps that change it."""

    def __init__(
        self,
        model: nn.Module,
        data: TrainingRows,
        config: TrainConfig,
        workers: Workers,
        before: History | None,
        timer: Timer | None,
    ) -> None:
        self.model, self.config, self.workers = model, config, workers
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("the model has no parameters that require a gradient: there is nothing to train")
        self.device = self.parameters[0].device
        self.history = History.following(before, config.seed)
        self.timer = timer or self._timer()
        self.state, self.guard = TrainState(self.parameters, config), Guard(config.guard)
        if self.history.best_nll is not None:
            self.state.keep_best()
        prefetch = isinstance(data, StreamedData) and self.device.type == "cuda"
        self.batches = Batches(data, config.batch_size, config.seed, prefetch=prefetch)
        self.stopped = False

    def attach(
        self,
        run: Run | None,
        saved: nn.Module,
        validate: Validator | None,
        on_step: OnStep | None,
        on_validation: OnValidation | None,
    ) -> None:
        """Connect the run, the validation and the callbacks; only the first worker has a run and callbacks."""
        run, on_step, on_validation = (run, on_step, on_validation) if self.workers.is_first else (None, None, None)
        self.recorder = Recorder(self.history, run, on_step, self.device)
        self.checkpoints = Checkpoints(run, self.workers, saved, self.state, self.history)
        self.validate, self.on_validation = validate, on_validation

    def begin(self, *, resume: bool) -> None:
        """Continue from the run's last checkpoint, if requested and there is one, or start its log."""
        if resume and self.checkpoints.resume(self.config.micro_batches):
            self.timer = self._timer()
            self.batches.seed = self.history.seed
        else:
            self.history.micro_batches = self.config.micro_batches or self.workers.size
            self.recorder.begin()
        self.micro_batches = MicroBatches(
            self.model, self.batches, self.parameters, self.history.micro_batches, self.workers
        )

    def _timer(self) -> Timer:
        return Timer(self.device, self.history.seconds, self.history.work_seconds, self.config.clock)

    def train(self, schedule: Sequence[Phase]) -> History:
        """Train all phases that are left."""
        self.history.phases = len(schedule)
        with interruptible() as self.stop_requested, self._explain_lost_workers():
            while self.history.phase < len(schedule) and not self._stops():
                self._train_phase(schedule[self.history.phase])
        self.history.interrupted = self.history.phase < len(schedule)
        self.history.signal = self.stop_requested.signal
        self.checkpoints.save()
        assign(self.parameters, self.state.selected)
        return self.history

    def _stops(self) -> bool:
        """Return whether a stop is requested; several workers learn of it with each step's sums."""
        return self.stop_requested() if self.workers.size == 1 else self.stopped

    def _train_phase(self, phase: Phase) -> None:
        if phase.initial is not None and self.history.phase_step == 0:
            self.state.begin_phase(phase.initial())
        if phase.from_start and self.history.phase_step == 0:
            self._judge_start(phase)
        while not self.history.is_over(phase, self.config.patience):
            self._advance(phase)
            if self._stops():
                return
            if self.checkpoints.due:
                self.checkpoints.save()
        self._end_phase(phase)

    def _judge_start(self, phase: Phase) -> None:
        """Validate the weights that a phase begins with, if that is possible."""
        try:
            with self._limited(phase):
                self._validate(phase)
        except (OutOfTime, TrainingDiverged) as error:
            self.recorder.add(phase, {"event": f"the first weights have no validation: {error}"})

    def _advance(self, phase: Phase) -> None:
        """Make a step, and a validation if one is due; go back if either diverges."""
        begun = self.history.step
        try:
            with self._limited(phase):
                self._step(phase)
            if self.history.is_validation_due(phase, self.config.validate_every, self.batches.per_epoch):
                with self._limited(phase, LATEST if self.history.is_judged(phase) else LATEST_OF_ALL):
                    self._validate(phase)
                self.checkpoints.save()
        except OutOfTime:
            self.history.seconds, self.history.work_seconds = self.timer.read()
            self.recorder.add(phase, {"event": "the time was up before the end of a step or validation"})
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
            norm = self.state.optimizer.step(loss.value, rate, self.config.weight_decay)
        self.state.average.update(self.config.ema_decay)
        here.step, here.phase_step = here.step + 1, here.phase_step + 1
        (here.seconds, here.work_seconds), self.stopped = clock, stop > 0
        self.recorder.add_step(phase, loss, {"learning_rate": rate, "gradient_norm": norm}, share)

    def _limited(self, phase: Phase, latest: float = LATEST) -> AbstractContextManager[None]:
        """Limit a step or a validation to some times the seconds of the phase; several workers cannot end at once."""
        if phase.seconds == math.inf or self.workers.size > 1:
            return nullcontext()
        end = self.history.phase_start + max(latest * phase.seconds, phase.seconds + phase.overtime)
        return time_limit(lambda: self.timer.read()[1] > end)

    def _status(self) -> tuple[float, ...]:
        """Return whether this worker was requested to stop, and the first worker's clocks."""
        return float(self.stop_requested()), *self.workers.first_only(self.timer.read())

    def _restore(self, phase: Phase, error: TrainingDiverged, *, skip: bool) -> bool:
        """Go back to the last good weights at a lower rate, past a bad batch if `skip`; return whether to continue."""
        here = self.history
        if here.restored == MAX_RESTORES:
            return False
        self.state.restore()
        here.restored, here.step, here.phase_step = here.restored + 1, here.step + skip, here.phase_step + skip
        event = f"went back to the last good weights, at {RATE_FACTOR**here.restored:.2g} of the learning rate"
        self.recorder.add(phase, {"event": f"{event} ({here.restored} of {MAX_RESTORES} times): {error}"})
        finite_step = here.phase_step > here.restored  # each failed step has been skipped
        succeeded = finite_step if self.validate is None else self.state.best is not None
        return succeeded or not here.is_over(phase, self.config.patience)

    def _objective(self, phase: Phase) -> Objective[Any]:
        """Return the phase's objective with the solver that the guard allows."""
        here, objective, rows = self.history, phase.objective, self.batches.size // self.micro_batches.count
        if not (isinstance(objective, SolvedObjective) and self.guard.applies(self.model, rows)):
            return objective
        if here.phase_step % EVERY == 0:
            level, grading, record = broadcast_together(self.workers, lambda: self._measure(objective))
            here.solver_level, here.solver_grading = level, grading
            self.recorder.add(phase, record)
        return guarded(self.model, objective, here.solver_level, here.solver_grading)

    def _measure(self, objective: SolvedObjective[Any]) -> tuple[int, float, dict[str, float | int]]:
        """Measure the solver's error on the present batch; return the level and grading to use, and the record."""
        here = self.history
        result = self.guard.measure(
            self.model, objective, self.micro_batches.part(here.step, 0), (here.seed, "guard", here.step),
            level=here.solver_level, grading=here.solver_grading, size=self.batches.size,
        )  # fmt: skip
        return result.level, result.grading, result.record()

    def _validate(self, phase: Phase) -> None:
        """Score the averaged weights, and keep them if they are the best."""
        with self._explain_divergence(None):
            self.state.optimizer.check()
        if self.validate is None:
            self.state.keep()
            return
        here = self.history
        self.workers.copy_from_first_([*self.parameters, *self.state.average.values])  # rounding differs by machine
        with exchanged(self.parameters, self.state.average.values):
            with self._explain_divergence(None):
                score = self.validate(self.workers, self.micro_batches.count)
            seen = self._call_on_validation(phase, score)
        self.state.keep()
        if score.sound and (here.best_nll is None or score.mean < here.best_nll):
            here.best_nll, here.best_step, here.stale = score.mean, here.step, 0
            self.state.keep_best()
        elif score.sound:
            here.stale += 1
        before = here.work_seconds
        here.seconds, here.work_seconds = self.workers.broadcast(self.timer.read)
        here.validated_at, here.validation_cost = here.work_seconds, here.work_seconds - before
        self.recorder.add(phase, {**score.record(), **seen})

    def _call_on_validation(self, phase: Phase, score: ValidationScore) -> Mapping[str, Any]:
        """Return what the callback adds to the record; a failure of it is recorded, and training continues."""
        if self.on_validation is None:
            return {}
        try:
            return (
                self.on_validation({"step": self.history.step, "phase": phase.objective.name, **score.record()}) or {}
            )
        except (SolveError, ArithmeticError, OSError) as error:
            self.recorder.add(phase, {"event": f"nothing shown: {' '.join(str(error).split())}"})
            return {}

    def _end_phase(self, phase: Phase) -> None:
        """Record the end of a phase, and prepare the next one."""
        here = self.history
        self.recorder.add(phase, {"event": f"{phase.objective.name} ended ({here.end_reason(phase)})"})
        self.state.end_phase()
        here.begin_phase(here.phase + 1)
        if here.phase == here.phases and here.best_nll is not None:
            event = f"kept step {here.best_step}: {here.best_nll:.4f} nats"
            self.recorder.add(phase, {"event": event, "best_nll": here.best_nll})
        self.checkpoints.save()

    def _explain_divergence(self, rate: float | None) -> AbstractContextManager[None]:
        """Turn numerical failures of a step at some learning rate, or of a validation (None), into TrainingDiverged."""
        where = "in validation" if rate is None else f"at learning rate {rate:.3g}"
        return explain_divergence(self.history.step + (rate is not None), where, self.checkpoints.advice())

    @contextmanager
    def _explain_lost_workers(self) -> Iterator[None]:
        """Add the step at which a worker was lost, and how to continue, to the message."""
        try:
            yield
        except WorkersError as error:
            advice, shared = "", self.checkpoints.shared_run
            if shared is not None:
                launch = f"torchrun --standalone --nproc-per-node {self.workers.size}"
                command = f"{launch} -m ffjord_kit fit --resume {shared.path}"
                advice = f"; what {shared.path} holds is intact: go on with `{command}`"
            raise WorkersError(f"{error}; that was at step {self.history.step}{advice}") from error
