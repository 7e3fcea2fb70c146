"""FFJORD and ImageFFJORD: scikit-learn's face of a density model, for tables and for images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ffjord_kit.columns.frames import read_frame
from ffjord_kit.diagnostics.sample_weight import EFFECTIVE, check_sample_weight, effective_text
from ffjord_kit.estimator.config import Config, build_flow, resolve
from ffjord_kit.estimator.data import Arrays, TrainingData, check_context
from ffjord_kit.estimator.discretize import FOLLOWING_SHARE, amended, fit_steps, follow_steps
from ffjord_kit.estimator.domain import Domain
from ffjord_kit.estimator.fields import CommonFields, ImageFields, TableFields, check_kinds
from ffjord_kit.estimator.image import ImageDomain
from ffjord_kit.estimator.listeners import OnSamples, all_of, sampler, watches
from ffjord_kit.estimator.model import DensityModel
from ffjord_kit.estimator.persistence import (
    check_workers,
    field_values,
    new_record,
    prepare_reports,
    read_fields,
    run_folder,
)  # fmt: skip
from ffjord_kit.estimator.questions.verbs import of_model, of_model_on_data
from ffjord_kit.estimator.search import LEAST_SHARE, choose, is_small
from ffjord_kit.estimator.tables.choice import table_domain
from ffjord_kit.estimator.tables.contexts import categories_of_contexts
from ffjord_kit.estimator.tables.measurement_errors import with_noise
from ffjord_kit.estimator.tables.names import column_names, context_names, in_order, refuse_repeated
from ffjord_kit.estimator.tables.own import named, with_objects
from ffjord_kit.estimator.tables.subsets import marked
from ffjord_kit.estimator.tables.table import Header
from ffjord_kit.estimator.tables.weights import refuse_beside_weights
from ffjord_kit.flow import Flow
from ffjord_kit.precision import compiled
from ffjord_kit.progress import note, training_progress
from ffjord_kit.rows import as_rows
from ffjord_kit.run import Run
from ffjord_kit.run_folder import PRETRAINED
from ffjord_kit.threads import training_threads
from ffjord_kit.training import History, Phase, Workers, fit_flow
from ffjord_kit.training.history import OnValidation
from ffjord_kit.training.judge import judge_flow
from ffjord_kit.training.micro_batches import check_micro_batches
from ffjord_kit.training.runtime import Timer, pass_on

RECEIPT_SHARE, RECEIPT_SHARE_OF_MANY, MANY = 0.06, 0.15, 16  # of the seconds; beyond so many columns

OnStep = Callable[[dict[str, Any]], None]


def _deriving(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make an estimator's method of a model's on data that returns another model: it returns another estimator."""
    derive = of_model_on_data(method)

    @wraps(method)
    def call(self: DensityEstimator, X: Any, *args: Any, **options: Any) -> Any:
        return _with_model(derive(self, X, *args, **options))

    return call


class DensityEstimator(DensityMixin, BaseEstimator, CommonFields):
    """The verbs of both estimators: fit, and those of a fitted model (see `DensityModel`)."""

    @torch.inference_mode(False)
    def fit(
        self,
        X: Any,
        y: None = None,
        *,
        sample_weight: Any = None,
        noise_std: Any = None,
        context: Any = None,
        columns: Sequence[str] | None = None,
        context_columns: Sequence[str] | None = None,
        run: str | Path | None = None,
        force: bool = False,
        resume: bool = False,
        data: Mapping[str, Any] | None = None,
        on_step: OnStep | None = None,
        on_samples: OnSamples | None = None,
    ) -> Any:
        """Learn the density of the rows of X.

        Args:
            X: Rows (n, d), a pandas frame among them, or a `numpy.memmap`, whose rows stay in their file; images for
                ImageFFJORD.
            y: Ignored.
            sample_weight: Weights of the rows of a table, shape (n,), which may be negative; None if all count alike.
            noise_std: Standard deviations of the measurement errors of a table, in the units of X: one for all cells,
                one for each column (d,), or for each cell (n, d). The density is then that of the true values.
            context: Contexts (n, c), for the density given these, a frame among them; labels (n,) of images.
            columns: Names of the columns, if X does not carry them.
            context_columns: Names of the context's columns, if it does not carry them.
            run: Folder to keep log, model and checkpoints in; None for no run.
            force: Whether to replace a run that is there.
            resume: Whether to go on from the run's last checkpoint.
            data: Note on the data, kept in the run's config.
            on_step: Called with the record of each step.
            on_samples: Called with the record of each validation, and some draws by few steps.

        Returns:
            The estimator itself.

        Raises:
            ValueError: If data or fields cannot be used.
            TrainingDiverged: If numbers are not finite, and lower learning rates do not help.
            RunError: If the run folder cannot be used.
            KeyboardInterrupt: If Ctrl-C ended the fit; the estimator holds what was reached, as does its run. SIGTERM
                raises SystemExit.
        """
        check_kinds(self)
        start = Timer(torch.device("cpu"), clock=self.clock)
        arrays, domain = self._read(X, context, columns, context_columns, sample_weight)
        arrays = with_noise(arrays, domain, self, noise_std, resume=resume)
        if self.verbose and domain.found and "source" not in (data or {}):  # of files, reading them has told it
            note(domain.found)
        workers, about = Workers.here(), {**domain.record(), **arrays.facts()}
        check_workers(workers, named(field_values(self)), about, resume=resume)
        about = {**about, "data": dict(data or {})}
        record = workers.broadcast(lambda: new_record(self, run, about, resume=resume))
        config, rows, flow = self._prepare(arrays, domain, record, workers)  # errors come before the folder
        if self.verbose and workers.is_first and EFFECTIVE in about:
            note(effective_text(about))
        threads = training_threads(flow, rows.fitting, config.phases, config.train.batch_size)
        with run_folder(workers, run, record, force=force, resume=resume) as folder, threads:
            timer = Timer(config.device, *start.read(), config.train.clock)
            before, going_on = None, workers.broadcast(lambda: folder is not None and resume and folder.has_checkpoint)
            if self.schedule == "auto" and config.phases and not going_on:
                config, flow, record, before = self._search(domain, rows, config, flow, record, folder, workers, timer)
            if self.schedule == "auto" and is_small(domain, rows) and not config.transforms:
                config = config.judged_at_the_end()
            listeners = [*watches(self, flow, rows)]
            if on_samples:
                coded = domain.has_categories
                contexts = rows.fitting.context if coded else arrays.contexts(np.arange(len(arrays.x)))
                listeners.append(sampler(flow, domain, contexts, config.train.seed, on_samples))
            history = self._train(flow, rows, config, folder, resume, before, timer, on_step, all_of(listeners))
            steps = None
            if config.steps is not None and not history.interrupted:
                steps, history, record = fit_steps(
                    flow, rows, self._steps_phase(config, history, rows), config.train, before=history,
                    continuous_nll=history.best_nll if rows.noise is None else None, record=record, folder=folder,
                    resume=resume, timer=None if resume else timer, shown=self.verbose, on_step=on_step,
                )  # fmt: skip
            if rows.noise is not None and not history.interrupted:
                record = follow_steps(
                    flow, steps, rows, config.objectives["flow_matching"], config.train, record=record, folder=folder,
                    max_seconds=self.max_seconds,
                )  # fmt: skip
        if rows.noise is not None and history.interrupted:
            pass_on(history.signal)
            raise KeyboardInterrupt  # there is no density of true values yet
        prepare_reports(flow, config, domain)
        self.model_ = DensityModel(flow, config, domain, record, history, steps)
        if history.interrupted:
            pass_on(history.signal)
        return self

    def check(
        self,
        X: Any,
        *,
        sample_weight: Any = None,
        noise_std: Any = None,
        context: Any = None,
        columns: Sequence[str] | None = None,
        context_columns: Sequence[str] | None = None,
    ) -> None:
        """Check data and fields as `fit` does before any training.

        Args:
            X: Rows or images.
            sample_weight: Weights of the rows.
            noise_std: Standard deviations of their measurement errors.
            context: Contexts.
            columns: Names of the columns.
            context_columns: Names of the context's columns.

        Raises:
            ValueError: If data or fields cannot be used.
        """
        check_kinds(self)
        arrays, domain = self._read(X, context, columns, context_columns, sample_weight)
        arrays = with_noise(arrays, domain, self, noise_std)
        self._prepare(arrays, domain, {"seed": 0}, Workers())

    score_samples = of_model_on_data(DensityModel.score_samples)
    score = of_model_on_data(DensityModel.score)
    evaluate = of_model_on_data(DensityModel.evaluate)
    certify = of_model_on_data(DensityModel.certify)
    draft = of_model_on_data(DensityModel.draft)
    solver_error = of_model_on_data(DensityModel.solver_error)
    outlier_scores = of_model_on_data(DensityModel.outlier_scores)
    sample = of_model(DensityModel.sample)
    states = of_model(DensityModel.states)
    interpolate = of_model(DensityModel.interpolate)
    split = of_model(DensityModel.split)
    save = of_model(DensityModel.save)

    @classmethod
    def load(cls, path: str | Path, *, dynamics: Any = None, base: Any = None) -> Any:
        """Load the fitted estimator of a run folder, on the device that its fields name here.

        Args:
            path: Run folder, or pretrained:NAME for a run that comes with the package.
            dynamics: Network of your own that it was fitted with, or None.
            base: Base of your own that it was fitted with, or None.

        Returns:
            The estimator.

        Raises:
            RunError: If the folder is missing, damaged, without weights yet, or of another version.
            ValueError: If the run is of images and the estimator of tables, or the other way round.
        """
        estimator = load(path, dynamics=dynamics, base=base)
        if not isinstance(estimator, cls):
            name = type(estimator).__name__
            raise ValueError(f"{path} is a run of {name}: load it by {name}.load")
        return estimator

    @classmethod
    def pretrained(cls, name: str) -> Any:
        """Load a fitted estimator that comes with the package (docs/howto/pretrained.md lists them).

        Args:
            name: Name, e.g. "moons".

        Returns:
            The estimator.

        Raises:
            RunError: If there is none of that name.
            ValueError: If it is of images and the estimator of tables, or the other way round.
        """
        return cls.load(f"{PRETRAINED}{name}")

    def set_params(self, **params: Any) -> Any:
        """Set fields; those that concern reports take effect at once on a fitted estimator.

        Args:
            **params: Fields.

        Returns:
            The estimator itself.
        """
        super().set_params(**params)
        if "model_" in vars(self) and params:
            self.model_ = self.model_.with_fields(self)
        return self

    @property
    def flow_(self) -> Flow:
        """Fitted flow."""
        return self.model_.flow

    @property
    def history_(self) -> History:
        """History of the fit."""
        return self.model_.history

    @property
    def seed_(self) -> int:
        """Seed of the fit."""
        return self.model_.seed

    @property
    def config_(self) -> dict[str, Any]:
        """Content of a run's config.json."""
        return self.model_.record

    @property
    def event_shape_(self) -> tuple[int, ...]:
        """Shape of a row or an image."""
        return self.model_.event_shape

    def _repr_html_inner(self) -> str:
        return self._with_result(super()._repr_html_inner())

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        bundle = super()._repr_mimebundle_(**kwargs)
        return {kind: self._with_result(text) if kind == "text/html" else text for kind, text in bundle.items()}

    def _with_result(self, html: str) -> str:
        """Return scikit-learn's view of the estimator, and below it what the fit has given."""
        return html + self.model_._repr_html_() if "model_" in vars(self) else html

    @abstractmethod
    def _read(
        self,
        X: Any,
        context: Any,
        columns: Sequence[str] | None,
        context_columns: Sequence[str] | None,
        sample_weight: Any = None,
    ) -> tuple[Arrays, Domain]:
        """Check data of a fit, and find their domain."""

    @abstractmethod
    def _checked(self, X: Any) -> Any:
        """Check data to be scored by scikit-learn's conventions."""

    def _prepare(
        self, arrays: Arrays, domain: Domain, record: Mapping[str, Any], workers: Workers
    ) -> tuple[Config, TrainingData, Flow]:
        """Resolve the fields, hold rows out, and make the untrained flow."""
        seed = record["seed"]
        config = resolve(self, domain, seed=seed, chosen=record.get("chosen"))
        rows = domain.training_data(arrays, config.fields.validation_fraction, seed)
        count = config.train.micro_batches or workers.size
        check_micro_batches(count, min(config.train.batch_size, len(rows.x)), workers)
        return config, rows, build_flow(config, domain, rows, seed)

    def _search(
        self,
        domain: Domain,
        rows: TrainingData,
        config: Config,
        flow: Flow,
        record: dict[str, Any],
        folder: Run | None,
        workers: Workers,
        timer: Timer,
    ) -> tuple[Config, Flow, dict[str, Any], History]:
        """Let the first worker try out what is left open, and settle it for all."""
        choice = workers.run_on_first(lambda: choose(self, domain, rows, config, flow, timer))
        values, before = workers.broadcast(lambda: (choice.values, vars(choice.before)) if choice else ({}, {}))
        record = amended(record, folder, chosen=values)
        settled = resolve(self, domain, seed=config.train.seed, chosen=values)
        if choice is None:
            return settled, build_flow(settled, domain, rows, config.train.seed), record, History(**before)
        return settled, choice.flow, record, History(**before)

    def _train(
        self,
        flow: Flow,
        rows: TrainingData,
        config: Config,
        folder: Run | None,
        resume: bool,
        before: History | None,
        timer: Timer,
        on_step: OnStep | None,
        on_validation: OnValidation | None,
    ) -> History:
        workers = Workers.here()
        if not config.phases:
            return judge_flow(flow, rows.held_out, config.validation, config.train.seed, folder, timer)
        shown = self.verbose and workers.is_first
        with (
            training_progress(config.phases, shown=shown, on_step=on_step) as bars,
            compiled(flow, config.fields.compile),
        ):
            history = fit_flow(
                flow, rows.x, context=rows.context, weight=rows.weight, validation=rows.held_out,
                schedule=config.phases, evaluation=config.validation, config=config.train, workers=workers, run=folder,
                resume=resume, before=before, timer=timer, on_step=bars.on_step, on_validation=on_validation,
            )  # fmt: skip
            bars.finish(history.interrupted)
        return history

    def _steps_phase(self, config: Config, before: History, rows: TrainingData) -> Phase:
        """Return the phase in few steps; under schedule auto it has all the seconds that are left."""
        phase = cast(Phase, config.steps)
        if self.max_seconds is None:
            return phase
        receipt = RECEIPT_SHARE if self.n_features_in_ <= MANY else RECEIPT_SHARE_OF_MANY
        receipt += 0.0 if rows.noise is None else FOLLOWING_SHARE
        left = self.max_seconds * (1 - receipt) - before.work_seconds
        return replace(phase, seconds=max(left, LEAST_SHARE * self.max_seconds))


@dataclass(eq=False, repr=False)
class FFJORD(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityEstimator, TableFields):
    """A continuous normalizing flow on the rows of a table, with scikit-learn's verbs.

    Fitted to rows x, it holds a density

        log p(x) = log p_base(z) + integral of tr(df/dx) dt,    dx/dt = f(t, x),    z = x(0),  x = x(1),

    solved by the exact trace in float64, each row by steps of its own. Schedule `auto` adds a second density, that of
    few explicit steps with exact determinants, which reports where it holds and is as good (field `density`). The
    constructor stores its fields; fitted attributes end in an underscore: `model_` (a `DensityModel`), `flow_`,
    `history_`, `seed_`, `config_`.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(100, 2))
        >>> model = FFJORD(schedule=[("flow_matching", 10)], hidden=(8,), random_state=0).fit(x)
        >>> model.score_samples(x[:3]).shape
        (3,)
        >>> model.sample(5, random_state=0).shape
        (5, 2)

    References:
        Grathwohl et al. 2019, FFJORD, https://arxiv.org/abs/1810.01367; Lipman et al. 2023, flow matching,
        https://arxiv.org/abs/2210.02747.
    """

    trajectory = of_model(DensityModel.trajectory)
    velocity = of_model_on_data(DensityModel.velocity)
    diagnose = of_model_on_data(DensityModel.diagnose)
    weight_loss = of_model_on_data(DensityModel.weight_loss)
    attack = of_model_on_data(DensityModel.attack)
    explain = of_model_on_data(DensityModel.explain)
    given = of_model(DensityModel.given)
    marginal = of_model(DensityModel.marginal)
    impute = of_model_on_data(DensityModel.impute)
    grad_log_prob = of_model_on_data(DensityModel.grad_log_prob)
    mode = of_model(DensityModel.mode)
    expectation = of_model(DensityModel.expectation)
    transform = of_model_on_data(DensityModel.transform)
    inverse_transform = of_model(DensityModel.inverse_transform)
    discretize = _deriving(DensityModel.discretize)
    condense = _deriving(DensityModel.condense)
    few_step_sample_errors = of_model(DensityModel.few_step_sample_errors)
    few_step_score_errors = of_model_on_data(DensityModel.few_step_score_errors)

    def fit_transform(self, X: Any, y: None = None, **options: Any) -> Any:
        """Fit to rows, and map them to the base; see `fit` and `DensityModel.transform`.

        Args:
            X: Rows.
            y: Ignored.
            **options: Those of `fit`, `context` among them.

        Returns:
            Points at the base, shape (n, d).
        """
        return self.fit(X, **options).transform(X, context=options.get("context"))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.subsets is not False
        return tags

    @property
    def _n_features_out(self) -> int:
        """Number of columns of `transform`, which scikit-learn names ffjord0, ffjord1, ..."""
        return self.model_.domain.size

    def reflow(self, X: Any = None, **options: Any) -> FFJORD:
        """Return a new estimator that samples in a few steps; see `DensityModel.reflow`.

        Args:
            X: Rows of the fit, to validate the new model on those held out, or None.
            **options: Those of `DensityModel.reflow`.

        Returns:
            The new, fitted estimator; this one stays as it is.

        Raises:
            ValueError: If X are not the rows of the fit, or a context is missing or of no use.
        """
        check_is_fitted(self, "model_")
        return _with_model(self.model_.reflow(X, **options))

    def _read(
        self,
        X: Any,
        context: Any,
        columns: Sequence[str] | None,
        context_columns: Sequence[str] | None,
        sample_weight: Any = None,
    ) -> tuple[Arrays, Domain]:
        refuse_repeated(getattr(X, "columns", ()))
        X, found = read_frame(X, self.columns, self.missing)
        X = as_rows(X)
        if getattr(X, "ndim", 2) in (3, 4):
            raise ValueError(f"FFJORD is for tables (n, d); got shape {np.shape(X)}: use ImageFFJORD for images")
        dtype: Any = [np.float64, np.float32] if isinstance(X, np.memmap) else np.float64
        x = marked(validate_data(self, X, dtype=dtype, ensure_min_samples=2, ensure_all_finite=False), self)
        names = getattr(self, "feature_names_in_", None)  # scikit-learn sets it where X carries names
        context_types, weight = categories_of_contexts(context), check_sample_weight(sample_weight, len(x))
        if weight is not None:
            refuse_beside_weights(self)
        own = column_names(columns if names is None else names, x.shape[1])
        header = Header(own, names is not None, tuple(context_names(context, context_columns)), context_types)
        domain = table_domain(self, x, header, found)
        contexts = check_context(domain.coded_context(context), len(x))
        return Arrays(x, contexts, isinstance(X, np.memmap), weight), domain

    def _checked(self, X: Any) -> Any:
        X = as_rows(self.model_.domain.coded(X))
        if "feature_names_in_" not in vars(self) and self.model_.record.get("columns"):
            X = np.asarray(in_order(X, self.model_.record["columns"]))
        return validate_data(self, X, dtype=np.float64, reset=False, ensure_all_finite=False)


@dataclass(eq=False, repr=False)
class ImageFFJORD(DensityEstimator, ImageFields):
    """A continuous normalizing flow on images of whole grey levels, uint8 (n, h, w) or (n, channels, h, w).

    The density is that of levels with uniform noise, which bounds the probability of the levels from below. It is
    solved by Hutchinson's trace; noise and probes belong to each image. Labels as context give a density of each class.

    Example:
        >>> import numpy as np
        >>> images = np.random.default_rng(0).integers(0, 256, size=(12, 4, 4), dtype=np.uint8)
        >>> model = ImageFFJORD(schedule=[("flow_matching", 2)], hidden=(8,), random_state=0).fit(images)
        >>> model.sample(3, random_state=0).shape
        (3, 4, 4)

    References:
        Theis et al. 2016, https://arxiv.org/abs/1511.01844, on noise and bits per dimension.
    """

    bits_per_dim = of_model_on_data(DensityModel.bits_per_dim)
    class_probabilities = of_model_on_data(DensityModel.class_probabilities)

    def _read(
        self,
        X: Any,
        context: Any,
        columns: Sequence[str] | None,
        context_columns: Sequence[str] | None,
        sample_weight: Any = None,
    ) -> tuple[Arrays, Domain]:
        if sample_weight is not None:
            raise ValueError("sample_weight is for tables (FFJORD): repeat or leave out images instead")
        x = np.asarray(as_rows(X, "images"))
        if x.ndim not in (3, 4):
            raise ValueError(
                f"ImageFFJORD is for images (n, h, w) or (n, channels, h, w); got shape {x.shape}: use FFJORD for "
                "tables"
            )
        domain = ImageDomain.of(self, x, context)
        images = domain.images(x).numpy()
        if len(images) < 2:
            raise ValueError("images must be 2 or more; got 1")
        self.n_features_in_ = domain.size
        return Arrays(images, domain.contexts(context, len(images), None)), domain

    def _checked(self, X: Any) -> Any:
        return X


def load(path: str | Path, *, dynamics: Any = None, base: Any = None) -> FFJORD | ImageFFJORD:
    """Load the fitted estimator of a run folder, of tables or images.

    Args:
        path: Run folder.
        dynamics: Network of your own that it was fitted with, or None.
        base: Base of your own that it was fitted with, or None.

    Returns:
        The estimator.

    Raises:
        RunError: If the folder is missing, damaged, without weights yet, or of another version.

    Example:
        >>> load("pretrained:moons").sample(5, random_state=0).shape
        (5, 2)
    """
    return _with_model(DensityModel.load(path, dynamics=dynamics, base=base))


def from_run(run: Run) -> FFJORD | ImageFFJORD:
    """Return an estimator with the fields of a run, unfitted.

    Args:
        run: The run.

    Returns:
        The estimator.

    Raises:
        RunError: If the fields are not an estimator's.
    """
    return _estimator_of(with_objects(read_fields(run), {}, str(run.path)))


def _estimator_of(fields: CommonFields) -> FFJORD | ImageFFJORD:
    kind = ImageFFJORD if isinstance(fields, ImageFields) else FFJORD
    return kind(**field_values(fields))


def _with_model(model: DensityModel) -> Any:
    """Return the fitted estimator of a model."""
    estimator = _estimator_of(model.requested_fields)
    estimator.model_, estimator.n_features_in_ = model, model.n_features
    if model.record.get("named"):
        estimator.feature_names_in_ = np.array(model.record["columns"], dtype=object)
    return estimator
