"""FFJORD: the scikit-learn face of a flow. Its fields are the configuration of the command line and of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils.validation import check_is_fitted

from ffjord_kit.cnf import Integration
from ffjord_kit.estimator import build, reports
from ffjord_kit.estimator.defaults import settled
from ffjord_kit.estimator.dequantize import Grid
from ffjord_kit.estimator.drawing import draw, follow, samples_of, split, states
from ffjord_kit.estimator.errors import LogDensities, with_errors
from ffjord_kit.estimator.few_steps import solver_of
from ffjord_kit.estimator.fields import Fields, check_kinds
from ffjord_kit.estimator.given import Given, given
from ffjord_kit.estimator.images import Images, refuse_images
from ffjord_kit.estimator.loading import configured, loaded
from ffjord_kit.estimator.plan import Plan, plan
from ffjord_kit.estimator.results import Evaluation, NumpyTrajectory
from ffjord_kit.estimator.resume import configuration
from ffjord_kit.estimator.straighten import Straightening, straightened
from ffjord_kit.estimator.together import chosen_together, compare, folder
from ffjord_kit.progress import progress_bar
from ffjord_kit.runs import Run, claimed
from ffjord_kit.training import Workers, fit
from ffjord_kit.training.compiled import compiled

JUDGED_ROWS = 64  # of the solver's error
FEW_STEPS = "midpoint"


@dataclass(eq=False, repr=False)
class FFJORD(Fields, DensityMixin, BaseEstimator):
    """A continuous normalizing flow with scikit-learn's verbs: fit, score_samples, score, sample.

    The constructor only stores; what is learned ends in an underscore (`flow_`, `history_`, `seed_`). Log-densities
    are exact-trace solves by tolerance, in float64 where the device has it, each row independent of the others.
    X may also be images, uint8 (n, h, w) or (n, channels, h, w): their log-densities are those of grey levels with
    noise, which bounds the log-probability from below, by Hutchinson's trace, noise and probes each image's own.
    Source: Grathwohl et al. 2019 (FFJORD), Lipman et al. 2023 (flow matching).
    """

    def fit(
        self,
        X: Any,
        y: None = None,
        *,
        context: Any = None,
        columns: Sequence[str] | None = None,
        run: str | Path | None = None,
        force: bool = False,
        resume: bool = False,
        data: Mapping[str, Any] | None = None,
        on_step: Callable[[dict[str, Any]], None] | None = None,
        on_samples: Callable[[dict[str, Any], np.ndarray], None] | None = None,
    ) -> FFJORD:
        """Learn the density of the rows of X (n, d), given context (n, c) where it is passed; y is ignored.

        `columns` name the columns where X does not. `run` is a folder to keep log, model and checkpoints in: `force`
        lets it replace a run, `resume` goes on from its checkpoint, `data` is kept in its config as it is. Rows of a
        `numpy.memmap` stay in their file, and are fetched batch by batch. `on_samples` is given the record of each
        validation, and some draws (by few steps).
        Raises ValueError for data or fields that cannot be used, TrainingDiverged, RunError.
        """
        check_kinds(self)
        read, about = given(self, X, context, columns)
        self.event_shape_, workers = read.event, Workers.here()
        compare(workers, self.get_params(), about, resume=resume)
        config = workers.told(lambda: configuration(self, run, {**about, "data": dict(data or {})}, resume))
        read = read._replace(x=Grid.kept(config.get("grid"), len(read.names)).noisy(read.x, config["seed"]))
        made = plan(self, read, config["seed"], config.get("chosen", {}))  # errors come before the folder
        with folder(workers, run, config, force=force, resume=resume) as kept:
            self._train(made, read, config, kept, resume, on_step, on_samples)
        self.settle()
        return self

    def _train(
        self,
        made: Plan,
        read: Given,
        config: dict[str, Any],
        kept: Run | None,
        resume: bool,
        on_step: Callable[[dict[str, Any]], None] | None,
        on_samples: Callable[[dict[str, Any], np.ndarray], None] | None,
    ) -> None:
        seed, before, workers = config["seed"], None, Workers.here()
        if self.schedule == "auto" and not workers.told(lambda: resume and kept.has_checkpoint):
            made, config, before = chosen_together(workers, self, made, read, config, kept)
        shown = self.verbose and workers.first
        with progress_bar(made.schedule, shown, on_step) as tell, compiled(made.flow, self.compile):
            history = fit(
                made.flow, made.rows[0], context=made.rows[1], validation=made.held_out, schedule=made.schedule,
                **made.options, seed=seed, before=before, run=kept, resume=resume, on_step=tell,
                on_validation=None if on_samples is None else samples_of(made.flow, read, seed, on_samples),
            )  # fmt: skip
        self.config_, self.seed_, self.history_, self.flow_ = config, seed, history, made.flow

    @property
    def grid(self) -> Grid:
        """The steps of the columns of the fit."""
        return Grid.kept(self.config_.get("grid"), len(self.config_["columns"]))

    @property
    def images(self) -> Images | None:
        """What is kept of the images of the fit; None of a table."""
        return Images.kept(self.config_.get("images"))

    @property
    def settled(self) -> Fields:
        """The fields, with those that were left open as the fit settled them."""
        return settled(self, self.config_.get("chosen", {}), self.event_shape_)

    @property
    def integration(self) -> Integration:
        """How reported likelihoods are solved for."""
        return build.reporting(self.settled, self.event_shape_)

    def check(self, X: Any, *, context: Any = None, columns: Sequence[str] | None = None) -> None:
        """Raise, before any training, what `fit` would raise for these fields and rows (n, d), or images."""
        check_kinds(self)
        read, about = given(self, X, context, columns)
        plan(self, read._replace(x=Grid.kept(about.get("grid"), len(read.names)).noisy(read.x, 0)), 0, {})

    def score_samples(
        self, X: Any, *, context: Any = None, time: float = 1.0, return_error: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Log-density of each row of X (n, d), (n,), in nats and the units of X; of the state at `time` if not 1.

        With `return_error` also the error of each, (n,), which bounds it for about 99 % of rows; three times the work.
        """
        if not return_error:
            return self.evaluate(X, context=context, time=time).log_prob
        found = self.certify(X, context=context, time=time)
        return found.log_prob, found.error

    def certify(
        self,
        X: Any,
        *,
        context: Any = None,
        time: float = 1.0,
        error: float | None = None,
        probes: int | None = None,
        random_state: int = 0,
    ) -> LogDensities:
        """Log-densities of the rows of X (n, d) with the errors of solver and trace, each (n,).

        Where an `error` in nats is asked for, tolerance and probes follow until each row has it; `met` says which do.
        The trace is exact, or Hutchinson's of so many `probes`.
        """
        given = {"time": time, "error": error, "probes": probes, "random_state": random_state}
        return with_errors(self, X, context, **given)

    def evaluate(self, X: Any, *, context: Any = None, time: float = 1.0) -> Evaluation:
        """Log-density of each row of X (n, d), and the evaluations of the dynamics that it took."""
        return reports.evaluate(self, X, context, time)

    def solver_error(self, X: Any, *, context: Any = None) -> float:
        """The mean error of the solver in the log-densities of up to 64 rows of X (n, d), nats: see `certify`."""
        few = np.linspace(0, len(X) - 1, min(len(X), JUDGED_ROWS)).astype(int)
        context = None if context is None else np.asarray(context)[few]
        return float(self.certify(np.asarray(X)[few], context=context).solver_error.mean())

    def draft(
        self, X: Any, *, context: Any = None, time: float = 1.0, steps: int | None = None, method: str = "rk4"
    ) -> np.ndarray:
        """Log-density of each row of X (n, d), (n,), to some hundredths of a nat: what a picture needs, and cheap.

        In float32, with one step size for all rows, or, with `steps`, by so many fixed ones of a method of METHODS;
        not for reporting.
        """
        return reports.draft(self, X, context, time, reports.DRAFT if steps is None else solver_of(self, method, steps))

    def score(self, X: Any, y: None = None, *, context: Any = None) -> float:
        """The mean log-likelihood of the rows of X (n, d), nats; y is ignored."""
        return float(self.score_samples(X, context=context).mean())

    def sample(
        self,
        n_samples: int = 1,
        *,
        context: Any = None,
        random_state: Any = None,
        steps: int | None = None,
        method: str = FEW_STEPS,
        guidance: float = 1.0,
    ) -> np.ndarray:
        """Draw rows (n_samples, d); context is one row (c,) for all, or one for each (n_samples, c).

        Columns of equal steps (`dequantize`) are on their grid; images are uint8 of the shape of the fit's, a context
        of classes their number, or one each. By a converged solve; with `steps`, by so many fixed ones of a method of
        METHODS, in float32: fast, and as good as the paths are straight (see `straighten`). With `guidance` above 1
        draws are further into their context than the data are (it needs `context_dropout` in the fit).
        """
        return draw(self, n_samples, context, random_state, steps, method, guidance)

    def states(
        self, n_samples: int, times: Sequence[float], *, context: Any = None, random_state: Any = None
    ) -> np.ndarray:
        """Follow new samples, without densities: their states at the times, (T, n_samples, ...), in the units of X."""
        return states(self, n_samples, times, context, random_state)

    def trajectory(
        self, n_samples: int = 200, *, frames: int = 41, context: Any = None, random_state: Any = None
    ) -> NumpyTrajectory:
        """Follow new samples from the base (t = 0) to the data (t = 1), with their log-density along the way."""
        return follow(self, n_samples, frames, context, random_state)

    def velocity(self, X: Any, time: float, *, context: Any = None) -> np.ndarray:
        """The field dx/dt (n, d) at the states X (n, d) and a time in [0, 1], in the units of X."""
        refuse_images(self, "velocity", "its `states` show the way")
        return reports.velocity(self, X, context, time)

    def split(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """The rows of X, the data of the fit, that trained this model, and those held out for validation."""
        check_is_fitted(self, "flow_")
        return split(self, X)

    def straighten(
        self,
        X: Any = None,
        *,
        context: Any = None,
        pairs: int = 20_000,
        steps: int = 4_000,
        learning_rate: float = 8e-3,
        hidden: Sequence[int] | None = None,
        random_state: Any = None,
        source: str | None = None,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ) -> FFJORD:
        """A new model that samples in a few steps: its continuous layers, trained again on this one's own `pairs`.

        `hidden` gives it a network of other widths, which begins anew: straight paths need less of one, and of a single
        width the exact trace has a closed form. Its density is its own. X (n, d), the rows of the fit, are not trained
        on: those that the fit held out validate the new model. A conditional model draws the contexts of its pairs
        from `context` (n, c). `source` is noted in `config_`.
        Source: reflow, Liu et al. 2023. Raises ValueError for a context that is missing or to spare.
        """
        check_is_fitted(self, "flow_")
        how = Straightening(pairs, steps, learning_rate, None if hidden is None else tuple(hidden))
        return straightened(self, X, context, how, random_state, source, on_step)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the model as a run folder that `load` and the command line read."""
        check_is_fitted(self, "flow_")
        with claimed(path):
            run = Run.create(path, self.config_, force=force)
            for record in self.history_.records:
                run.record(record)
            run.save_model(self.flow_)

    @classmethod
    def load(cls, path: str | Path) -> FFJORD:
        """The model of a run folder, on the device that its `device` field names here.

        Raises RunError where the folder is missing, damaged, without weights yet, or of another version.
        """
        return loaded(cls, Run.open(path))

    @classmethod
    def configured(cls, run: Run) -> FFJORD:
        """An estimator with a run's fields and no weights. Raises RunError where the fields are not FFJORD's."""
        return configured(cls, run)

    def settle(self) -> None:
        """Leave the flow where and how it reports: fixed, and in the widest floats that the device has.

        That of images stays in the floats that it learned in.
        """
        device = build.build_device(self.device)
        if self.images is None:
            self.flow_.to(device=device, dtype=build.reporting_dtype(device))
        build.on_device(self.flow_, device).requires_grad_(False)
