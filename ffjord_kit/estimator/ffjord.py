"""FFJORD: the scikit-learn face of a flow. Its fields are the configuration of the command line and of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from ffjord_kit.estimator import build
from ffjord_kit.estimator.arrays import check_context, facts, held_out_rows, is_streamed, tensor
from ffjord_kit.estimator.auto import choose
from ffjord_kit.estimator.checks import column_names, inside_support
from ffjord_kit.estimator.dequantize import Grid, grid_of
from ffjord_kit.estimator.drawing import draw, follow
from ffjord_kit.estimator.errors import LogDensities, with_errors
from ffjord_kit.estimator.fields import Fields, check_kinds
from ffjord_kit.estimator.loading import configured, loaded
from ffjord_kit.estimator.plan import Plan, plan
from ffjord_kit.estimator.results import Evaluation, NumpyTrajectory, spread, to_numpy
from ffjord_kit.estimator.resume import configuration
from ffjord_kit.estimator.single import Single
from ffjord_kit.estimator.straighten import Straightening, straightened
from ffjord_kit.estimator.words import support_of
from ffjord_kit.progress import progress_bar
from ffjord_kit.runs import Run, claimed
from ffjord_kit.solver import Solver
from ffjord_kit.training import fit
from ffjord_kit.training.compiled import compiled

CHUNK_ELEMENTS = 32_768
DRAFT = Solver(rtol=1e-3, atol=1e-3)
JUDGED_ROWS = 64  # of the solver's error
FEW_STEPS = "midpoint"


@dataclass(eq=False, repr=False)
class FFJORD(Fields, DensityMixin, BaseEstimator):
    """A continuous normalizing flow with scikit-learn's verbs: fit, score_samples, score, sample.

    The constructor only stores; what is learned ends in an underscore (`flow_`, `history_`, `seed_`). Log-densities
    are exact-trace solves by tolerance, in float64 where the device has it, each row independent of the others.
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
    ) -> FFJORD:
        """Learn the density of the rows of X (n, d), given context (n, c) where it is passed; y is ignored.

        `columns` name the columns where X does not. `run` is a folder to keep log, model and checkpoints in: `force`
        lets it replace a run, `resume` goes on from its checkpoint, `data` is kept in its config as it is. Rows of a
        `numpy.memmap` stay in their file, and are fetched batch by batch.
        Raises ValueError for data or fields that cannot be used, TrainingDiverged, RunError.
        """
        check_kinds(self)
        stream = is_streamed(X)
        X = validate_data(self, X, dtype=[np.float64, np.float32] if stream else np.float64, ensure_min_samples=2)
        context = check_context(context, len(X))
        named = getattr(self, "feature_names_in_", None)  # scikit-learn sets it where X carries names
        names = column_names(columns if named is None else named, X.shape[1])
        grid = grid_of(self.dequantize, X, names)
        about = {"columns": names, "named": named is not None, "data": dict(data or {}), **facts(X, context)}
        config = configuration(self, run, {**about, "grid": grid._asdict()}, resume)
        seed, words, rows = config["seed"], config.get("chosen", {}), (grid.noisy(X, config["seed"]), context)
        made = plan(self, *rows, names, seed, words, stream=stream)  # errors come before the folder
        with claimed(run):
            kept = Run.open(run) if resume else None if run is None else Run.create(run, config, force=force)
            self._train(made, rows, config, kept, resume, stream, on_step)
        self.settle()
        return self

    def _train(
        self,
        made: Plan,
        rows: tuple[np.ndarray, np.ndarray | None],
        config: dict[str, Any],
        kept: Run | None,
        resume: bool,
        stream: bool,
        on_step: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        seed, before = config["seed"], None
        if self.schedule == "auto" and not (resume and kept.has_checkpoint):
            words, flow, before = choose(self, made, seed)
            config = {**config, "chosen": words} if kept is None else kept.amend(chosen=words)
            made = plan(self, *rows, config["columns"], seed, words, stream=stream)._replace(flow=flow)
        with progress_bar(made.schedule, self.verbose, on_step) as tell, compiled(made.flow, self.compile):
            history = fit(
                made.flow, made.rows[0], context=made.rows[1], validation=made.held_out, schedule=made.schedule,
                **made.options, seed=seed, before=before, run=kept, resume=resume, on_step=tell,
            )  # fmt: skip
        self.config_, self.seed_, self.history_, self.flow_ = config, seed, history, made.flow

    @property
    def grid(self) -> Grid:
        """The steps of the columns of the fit."""
        return Grid.kept(self.config_.get("grid"), len(self.config_["columns"]))

    def check(self, X: np.ndarray, *, context: Any = None, columns: Sequence[str] | None = None) -> None:
        """Raise, before any training, what `fit` would raise for these fields and rows (n, d)."""
        check_kinds(self)
        names = column_names(columns, X.shape[1])
        plan(self, grid_of(self.dequantize, X, names).noisy(X, 0), check_context(context, len(X)), names, 0, {})

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
        x, context, inside = self.checked(X, context)
        log_prob, nfe = self.evaluate_rows(x, context, time=time)
        return Evaluation(spread(log_prob, inside), nfe)

    def evaluate_rows(self, x: Tensor, context: Tensor | None, *, time: float = 1.0) -> Evaluation:
        """The same of rows that were checked: x (n, d) within the support, context (n, c), where the flow lives."""
        log_probs, nfe = [np.empty(0)], 0
        for part, c in self.chunks(x, context):
            with torch.no_grad():
                log_prob, moved = self.flow_.evaluate_log_prob(part, c, time=time, integration=build.reporting(self))
            log_probs.append(to_numpy(log_prob))
            nfe = max(nfe, moved.nfe)
        return Evaluation(np.concatenate(log_probs), nfe)

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
        x, context, inside = self.checked(X, context)
        single, solver = Single(self.flow_), DRAFT if steps is None else Solver(method, steps=steps)
        parts = [single.log_prob(part, c, time, solver) for part, c in self.chunks(x, context)]
        return spread(np.concatenate([np.empty(0), *parts]), inside)

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
    ) -> np.ndarray:
        """Draw rows (n_samples, d); context is one row (c,) for all, or one for each (n_samples, c).

        Columns of equal steps (`dequantize`) are on their grid. By a converged solve; with `steps`, by so many fixed
        ones of a method of METHODS, in float32: fast, and as good as the paths are straight (see `straighten`).
        """
        drawn = draw(self, n_samples, context, random_state, steps, method)
        return self.grid.rounded(drawn)

    def trajectory(
        self, n_samples: int = 200, *, frames: int = 41, context: Any = None, random_state: Any = None
    ) -> NumpyTrajectory:
        """Follow new samples from the base (t = 0) to the data (t = 1), with their log-density along the way."""
        return follow(self, n_samples, frames, context, random_state)

    def velocity(self, X: Any, time: float, *, context: Any = None) -> np.ndarray:
        """The field dx/dt (n, d) at the states X (n, d) and a time in [0, 1], in the units of X."""
        x, context, inside = self.checked(X, context)
        field = np.zeros((len(inside), self.n_features_in_))  # nothing moves outside the support
        if inside.any():
            field[inside] = to_numpy(self.flow_.velocity(x, time, context).detach())
        return field

    def split(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """The rows of X (n, d), the data of the fit, that trained this model, and those held out for validation."""
        check_is_fitted(self, "flow_")
        X = np.asarray(X, np.float64)
        kept, held_out = held_out_rows(X, None, self.validation_fraction, self.seed_)
        return kept[0].numpy(), np.empty((0, X.shape[1])) if held_out is None else held_out[0].numpy()

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

        `hidden` gives it a network of other widths, which begins anew: straight paths need less of one. Its density is
        its own. X (n, d), the rows of the fit, are not trained on: those that the fit held out validate the new model.
        A conditional model draws the contexts of its pairs from `context` (n, c). `source` is noted in `config_`.
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
        """Leave the flow where and how it reports: fixed, and in the widest floats that the device has."""
        device = build.build_device(self.device)
        self.flow_.to(device=device, dtype=build.reporting_dtype(device)).requires_grad_(False)

    def checked(self, X: Any, context: Any) -> tuple[Tensor, Tensor | None, np.ndarray]:
        """The rows within the support and their contexts, and which of all the rows (n,) they are."""
        check_is_fitted(self, "flow_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        context = check_context(context, len(X), self.flow_.context_dim)
        inside = inside_support(X, support_of(self.support, X.shape[1])).all(axis=1)
        return self.tensor(X[inside]), None if context is None else self.tensor(context[inside]), inside

    def chunks(self, x: Tensor, context: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Rows x (n, d) and their contexts (n, c) in parts of a size that memory bears."""
        rows = max(1, CHUNK_ELEMENTS // x.shape[1])
        for start in range(0, len(x), rows):
            yield x[start : start + rows], None if context is None else context[start : start + rows]

    def tensor(self, array: np.ndarray) -> Tensor:
        """An array where the flow lives, in the floats that it reports in."""
        device = next(self.flow_.parameters()).device
        return tensor(array).to(build.reporting_dtype(device)).to(device)
