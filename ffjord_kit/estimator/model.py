"""DensityModel: a fitted flow on arrays, which scores, draws, follows and examines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ffjord_kit import diagnostics
from ffjord_kit.data import Batch, Pixels
from ffjord_kit.diagnostics.bits_per_dim import BitsPerDim, bits_per_dim
from ffjord_kit.diagnostics.corrections import CONFIDENCE, DRAWS, SLACK, Corrections
from ffjord_kit.diagnostics.outliers import outlier_scores
from ffjord_kit.estimator.config import resolve
from ffjord_kit.estimator.data import seed_from, tensor, to_numpy
from ffjord_kit.estimator.derived import DerivingModel
from ffjord_kit.estimator.fields import CommonFields, ImageFields, TableFields
from ffjord_kit.estimator.image import REPORT_PROBES, ImageDomain
from ffjord_kit.estimator.persistence import fields_of_record, load_model, save_model
from ffjord_kit.estimator.questions.base_points import BasePointModel
from ffjord_kit.estimator.questions.columns import QuestioningModel
from ffjord_kit.estimator.questions.expectations import ExpectationModel
from ffjord_kit.estimator.questions.modes import ModeModel
from ffjord_kit.estimator.sampling import NumpyTrajectory
from ffjord_kit.estimator.scoring import placed, spread, to_data
from ffjord_kit.estimator.tables.changeable import changeable_columns, with_numbers
from ffjord_kit.estimator.tables.own import own_of
from ffjord_kit.estimator.tables.subsets import SubsetDomain
from ffjord_kit.estimator.tables.table import TableDomain
from ffjord_kit.flow import Flow
from ffjord_kit.objectives import Neighbourhood, Objective
from ffjord_kit.ode import AdaptiveSolver, FixedSolver
from ffjord_kit.run import Run
from ffjord_kit.transforms.categorical import categorical_of
from ffjord_kit.transforms.cnf import SolveOptions

STEP_COUNTS = (1, 2, 4, 8)
STEP_METHODS = ("euler", "midpoint")
ERROR_ROWS = 32  # of the solver's error that a reflow records
REFERENCE_ROWS, COMPARED_ROWS = 5000, 256  # of corrections: for threshold and scales, and for the error below
GUIDE = FixedSolver("rk4", 16, grading=2.0)  # of a continuous flow, for the search of corrections
VERIFY = AdaptiveSolver(rtol=1e-4, atol=1e-4)  # of thousands of draws, with an error that is measured


@dataclass(frozen=True, eq=False)
class DensityModel(DerivingModel, QuestioningModel, ModeModel, ExpectationModel, BasePointModel):
    """A fitted flow on arrays.

    Rows X of a table are (n, d); images are uint8, (n, h, w) or (n, channels, h, w), and noise and probes belong to
    each of them. Log-densities are those of

        log p(x) = log p_base(z) + log|det dz/dx|,    z = to_base(x),

    solved by adaptive steps of each row, by the exact trace for tables and Hutchinson's for images; or, where `density`
    is "steps", made by few explicit steps with exact determinants.

    Args:
        flow: Flow, where and in the type in which it reports.
        config: Configuration.
        domain: Domain of the data.
        record: What a run's config.json holds.
        history: History of the fit.
        steps: Flow in few explicit steps; None where there is none.

    Example:
        >>> from ffjord_kit import FFJORD
        >>> x = np.random.default_rng(0).normal(size=(60, 2))
        >>> fitted = FFJORD(schedule=[("flow_matching", 5)], hidden=(8,), random_state=0).fit(x)
        >>> model = fitted.model_
        >>> model.score_samples(x[:3]).shape, model.sample(4, random_state=0).shape
        ((3,), (4, 2))
        >>> model.config.fields.scaling
        'standardize'
    """

    @classmethod
    def load(cls, path: str | Path, *, dynamics: Any = None, base: Any = None) -> DensityModel:
        """Load the model of a run folder, on the device that its fields name here.

        Args:
            path: Run folder, or pretrained:NAME for a run that comes with the package.
            dynamics: Network of your own that it was fitted with, or None.
            base: Base of your own that it was fitted with, or None.

        Returns:
            The model.

        Raises:
            RunError: If the folder is missing, damaged, without weights yet, or of another version.
        """
        return cls(**vars(load_model(Run.open(path), dynamics=dynamics, base=base)))

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the model as a run folder that `load` and the command line read.

        Args:
            path: Folder.
            force: Whether to replace a run that is there.

        Raises:
            RunError: If the folder cannot be used.

        Example:
            >>> import tempfile
            >>> from ffjord_kit import FFJORD
            >>> x = np.random.default_rng(0).normal(size=(100, 2))
            >>> model = FFJORD(schedule=[("flow_matching", 2)], hidden=(8,), random_state=0).fit(x)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save(f"{folder}/run")
            ...     print(FFJORD.load(f"{folder}/run").score(x) == model.score(x))
            True
        """
        save_model(path, self, force=force)

    @property
    def requested_fields(self) -> TableFields | ImageFields:
        """Fields of the fit as they were given, open ones included."""
        return replace(fields_of_record(self.record), **own_of(vars(self.config.fields)))

    def with_fields(self, fields: CommonFields) -> DensityModel:
        """Return the model with other fields, e.g. another tolerance of its reports.

        Args:
            fields: Fields.

        Returns:
            The model; the flow is shared.

        Raises:
            ValueError: If a field cannot be used.
        """
        chosen = self.record.get("chosen", {})
        return replace(self, config=resolve(fields, self.domain, seed=self.seed, chosen=chosen))

    def reporting_by(self, density: str) -> DensityModel:
        """Return the model with another density that reports.

        Args:
            density: Word of DENSITIES, or "auto".

        Returns:
            The model; the flows are shared.
        """
        return replace(self, config=replace(self.config, fields=replace(self.config.fields, density=density)))

    def states(
        self, n_samples: int, times: Sequence[float], *, context: Any = None, random_state: Any = None
    ) -> np.ndarray:
        """Follow new draws, without densities.

        Args:
            n_samples: Number of draws.
            times: Times in [0, 1], from base to data.
            context: Contexts, as in `sample`.
            random_state: Seed, or None.

        Returns:
            States in the units of the data, shape (T, n_samples, ...).
        """
        seed, states = seed_from(random_state), []
        for time in times:
            generator, contexts = self._prepare_draws(n_samples, context, seed)
            z = self.flow.base.sample(n_samples, generator)
            states.append(to_numpy(to_data(self.flow, Batch(z, contexts), self._solver, time=time)))
        return self.domain.frame(np.stack(states))

    def trajectory(
        self, n_samples: int = 200, *, frames: int = 41, context: Any = None, random_state: Any = None
    ) -> NumpyTrajectory:
        """Follow new draws of a table from the base (t = 0) to the data (t = 1), with their log-densities.

        Args:
            n_samples: Number of draws.
            frames: Number of times, at least 2.
            context: Contexts, as in `sample`.
            random_state: Seed, or None.

        Returns:
            Times, states and log-densities.

        Raises:
            ValueError: If there are fewer than two frames, or the data are images.
        """
        if frames < 2:
            raise ValueError(f"frames must be at least 2; got {frames}")
        self.domain.require_table("trajectory", "its states, without densities, come by `states`")
        generator, context = self._prepare_draws(n_samples, context, random_state)
        times = np.linspace(0.0, 1.0, frames)
        with torch.no_grad():
            start = self.flow.sample(n_samples, context, time=0.0, generator=generator)
            path = self.flow.trajectory(start, times.tolist(), context, solver=self._solver)
        return NumpyTrajectory(times, self.domain.frame(to_numpy(path.x)), to_numpy(path.log_prob))

    def velocity(self, X: Any, time: float, *, context: Any = None) -> np.ndarray:
        """Return the field dx/dt of a table's states.

        Args:
            X: States, shape (n, d).
            time: Time, in [0, 1].
            context: Contexts.

        Returns:
            Velocities in the units of X, shape (n, d); 0 outside the support.

        Raises:
            ValueError: If the data are images.
        """
        self.domain.require_table("velocity", "its `states` show the way")
        self.domain.require_real("velocity", "its `states` and `trajectory` show the way")
        batch, inside = self._batch(X, context)
        field = np.zeros((len(inside), self.n_features))
        if inside.any():
            batch = placed(self.flow, batch)
            field[inside] = to_numpy(self.flow.velocity(batch.x, time, batch.context))
        return field

    def diagnose(
        self,
        X: Any,
        *,
        context: Any = None,
        X_train: Any = None,
        context_train: Any = None,
        rows: int = 1000,
        seed: int = 0,
        on_progress: Callable[[str], None] | None = None,
    ) -> diagnostics.Diagnosis:
        """Examine the model on rows that it has not seen; see `ffjord_kit.diagnostics.diagnose`.

        The solver of its reports is judged, and that of a training by likelihood that no guard watched.

        Args:
            X: Held-out rows, shape (n, d).
            context: Contexts.
            X_train: Rows that trained the model: then overfitting shows.
            context_train: Their contexts.
            rows: Largest number of rows to use.
            seed: Seed of all noise.
            on_progress: Called with the name of each part before it begins.

        Returns:
            The diagnosis.

        Raises:
            ValueError: If rows lie outside the support, or the data are images.
        """
        self.domain.require_table("diagnose", "score its bits per dimension, and look at its pictures")
        batch = self._rows_to_diagnose(X, context, seed)
        trained_on = None if X_train is None else self._rows_to_diagnose(X_train, context_train, seed)
        solvers = {"of reports": self._solver}
        if not self.config.train.guard and any(phase.objective.name == "mle" for phase in self.config.phases):
            solvers["in training"] = self.config.solver
        flow = self.domain.given_categories(self.reporting_flow)
        names = cast(TableDomain, self.domain).columns
        found = diagnostics.diagnose(
            flow, batch.x, batch.context, trained_on=trained_on, solvers=solvers, rows=rows, seed=seed,
            columns=names if len(names) == self.domain.size else (), on_progress=on_progress,  # a sphere has 3 elements
        )  # fmt: skip
        found = found.with_finding(
            diagnostics.check_training(self.history.validations_of(self.density), self.domain.size)
        )
        if self.domain.code_dim:
            found = found.with_finding(self._check_categories(batch, seed))
        if self.density == "continuous":
            return found
        return found.with_finding(self.receipt(X, context=context, rows=rows, seed=seed).finding)

    def _check_categories(self, batch: Batch, seed: int) -> diagnostics.Finding:
        """Compare the probability of rows' categories with that of drawn ones, given the same contexts."""
        generator, user = torch.Generator().manual_seed(seed), cast(Tensor, batch.context)[:, : self.context_dim]
        given, categorical = user if self.context_dim else None, categorical_of(self.flow)
        drawn = self.domain.with_drawn_categories(self.flow, given, len(batch), generator)
        scaled = (self.flow.preprocess.scale_context(each, batch.x.double()) for each in (batch.context, drawn))
        return diagnostics.check_categories(*(to_numpy(categorical.log_prob(each)) for each in scaled))

    def weight_loss(
        self, X: Any, *, context: Any = None, objective: Objective[Flow] | None = None, seed: int = 0
    ) -> diagnostics.WeightLoss:
        """Return the loss of the continuous flow as a function of its weights, to look at its landscape and Hessian.

        Args:
            X: Rows, shape (n, d), all of which are computed at once.
            context: Contexts.
            objective: Objective; the negative log-likelihood by 16 steps of rk4 if None.
            seed: Seed of all noise.

        Returns:
            The loss; see `ffjord_kit.diagnostics.WeightLoss`.

        Raises:
            ValueError: If rows lie outside the support, or the data are images.
        """
        self.domain.require_table("weight_loss", "make it of their flow: WeightLoss.of(model.flow_, batch)")
        batch = self._rows_to_diagnose(X, context, seed)
        return diagnostics.WeightLoss.of(self.flow, batch, objective, seed=seed)

    def attack(
        self,
        X: Any,
        eps: float,
        *,
        context: Any = None,
        steps: int = 1,
        norm: str = "inf",
        starts: int = 0,
        scale: Any = None,
        seed: int = 0,
    ) -> diagnostics.Attack:
        """Search rows near given ones whose log-density is as low as can be.

        Args:
            X: Rows, shape (n, d), at least two where there is no `scale`.
            eps: Largest move of a row, in units of `scale`.
            context: Contexts.
            steps: Steps up the gradient: 1 for the fast gradient sign method, more for projected gradients.
            norm: "inf" for a move of each column by at most eps, "2" for the length of the whole move.
            starts: Number of further searches, each from a random start.
            scale: Units of each column, shape (d,); the standard deviations of X if None.
            seed: Seed of all noise.

        Returns:
            The worst rows found, and their losses, -log p, in nats.

        Raises:
            ValueError: If a number makes no sense, rows lie outside the support, or columns are bounded.
        """
        self.domain.require_table("attack", "search with diagnostics.attack and the log-density of their flow")
        self.domain.require_real("attack", "search with diagnostics.attack and the log-density of its flow")
        if not np.isinf(getattr(self.domain, "bounds", ())).all():
            raise ValueError("attack moves rows freely and takes columns with support='real'; some are bounded")
        batch = self._rows_to_diagnose(X, context, seed)
        units = batch.x.std(0, correction=0) if scale is None else torch.as_tensor(scale)
        if not bool((units > 0).all()):
            raise ValueError("expected rows that differ in each column, to take their deviations as scale; pass scale=")
        near, flow = Neighbourhood(eps, steps, norm), self.reporting_flow
        return diagnostics.attack(
            lambda x: -flow.log_prob(x, batch.context), batch.x, near, scale=units, starts=starts, seed=seed
        )  # fmt: skip

    def receipt(self, X: Any, *, context: Any = None, rows: int = 1000, seed: int = 0) -> diagnostics.Receipt:
        """Examine the few steps at rows, near them and at draws: are they a density?

        Args:
            X: Rows, shape (n, d).
            context: Contexts.
            rows: Largest number of rows to use.
            seed: Seed of draws and of points near rows.

        Returns:
            The receipt.

        Raises:
            ValueError: If the model has no few steps, or rows lie outside the support.
        """
        if self.steps is None:
            raise ValueError("this model has no density of few steps: discretize it first")
        batch = self._rows_to_diagnose(X, context, seed)
        return diagnostics.check_steps(self.steps, batch.x, batch.context, rows=rows, seed=seed)

    def _rows_to_diagnose(self, x: Any, context: Any, seed: int) -> Batch:
        """Return rows with the noise of grids, where the flow is."""
        batch = self._batch_inside(x, context, "diagnose")
        return placed(self.flow, batch.with_x(tensor(self.domain.add_noise(batch.x.numpy(), seed))))

    def outlier_scores(
        self,
        X: Any,
        *,
        context: Any = None,
        reference: float,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, np.ndarray]:
        """Score how far rows are from what the model knows; see `ffjord_kit.diagnostics.outliers`.

        Args:
            X: Rows or images.
            context: Contexts.
            reference: Mean log-density of held-out rows, nats.
            on_progress: Called with the number of rows done and of all rows.

        Returns:
            Scores by name, each of shape (n,), the higher the further; infinite outside the support.
        """
        batch, inside = self._batch(X, context)
        scores = outlier_scores(
            self.reporting_flow, placed(self.flow, batch), reference=reference, options=self.config.reporting,
            rows=self._rows_at_once, on_progress=on_progress,
        )  # fmt: skip
        return {name: spread(to_numpy(values), inside, np.inf) for name, values in scores.items()}

    def explain(
        self,
        X: Any,
        *,
        allow: Sequence[str | int] | None = None,
        stable: float = 0.05,
        context: Any = None,
        reference: Any = None,
        reference_context: Any = None,
        threshold: float | None = None,
        quantile: float = 0.01,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        draws: int = DRAWS,
        confidence: float = CONFIDENCE,
        random_state: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Corrections:
        """Find what would mend rows that are outliers: the smallest stable change, and a box of such changes.

        A row is an outlier if its log-density is below the threshold. See `ffjord_kit.diagnostics.corrections`. Draws
        of a continuous flow are judged by an adaptive solve, whose error is measured and added to the threshold.

        Args:
            X: Rows of a table.
            allow: Columns that may change, by name or number; all real ones if None. Categories, circles and spheres
                stay as they are.
            stable: Distance e, in scales of the columns (about a standard deviation), within which all changes mend.
            context: Contexts of the rows, which stay.
            reference: Rows as they should be, e.g. those of the fit, which set threshold, scales and bounds; draws of
                the model if None.
            reference_context: Their contexts.
            threshold: Log-density that a row must have, nats; if None, a quantile of that of the reference rows.
            quantile: That quantile.
            bounds: Least and greatest value of some allowed columns; by default those of the reference rows.
            draws: Number of draws that certify a box.
            confidence: Confidence of a certificate.
            random_state: Seed of all draws.
            on_progress: Called with the number of rows done and of all outliers.

        Returns:
            A correction for each row.

        Raises:
            ValueError: If the data are images, a column is not there, or a number is out of range.
        """
        self.domain.require_table("explain", "score their outliers, and look at their pictures")
        domain = cast(TableDomain, self.domain)
        self.domain.rows(X)  # which refuses wrong ones
        if self.domain.implied_context(X) is not None:
            raise ValueError("explain takes rows without missing cells: leave the others out, or impute them")
        names = changeable_columns(domain, allow)
        x = domain.all_rows(X)
        contexts = self._contexts(context, len(x))
        judged = domain.joined(Batch(x, None if contexts is None else tensor(contexts)))
        known, scores, batch = self._reference(reference, reference_context, random_state)
        allowed = diagnostics.Allowed.of(known, domain.columns, names, bounds)
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must lie between 0 and 1; got {quantile}")
        threshold = float(np.quantile(scores, quantile) if threshold is None else threshold)
        typical = known[scores >= min(threshold, float(np.median(scores)))]
        error = self._error_near(threshold, batch, scores) if self.density == "continuous" else 0.0
        threshold += error
        guide, verify = (
            diagnostics.density_judge(self.reporting_flow, threshold, judged.context, SolveOptions(solver=each))
            for each in (GUIDE, VERIFY)
        )
        found = diagnostics.correct(
            guide, to_numpy(judged.x), allowed, typical, verify=None if self.density == "steps" else verify,
            stable=stable, slack=SLACK + error, draws=draws, confidence=confidence, threshold=threshold,
            seed=random_state, on_progress=on_progress,
        )  # fmt: skip
        return replace(found, rows=with_numbers(domain, X, found.rows))

    def _reference(self, x: Any, context: Any, seed: int) -> tuple[np.ndarray, np.ndarray, Batch]:
        """Return reference rows, their log-densities, and the rows with their contexts."""
        if x is None and self.context_dim and not isinstance(self.domain, SubsetDomain):
            raise ValueError("this model is conditional: pass reference=ROWS and reference_context, e.g. of the fit")
        batch = self._batch(self.draw(REFERENCE_ROWS, random_state=seed) if x is None else x, context)[0]
        batch = batch[torch.linspace(0, len(batch) - 1, min(len(batch), REFERENCE_ROWS)).long()]
        return to_numpy(batch.x), self.evaluate_batch(batch).log_prob, batch

    def _error_near(self, threshold: float, batch: Batch, scores: np.ndarray) -> float:
        """Return the largest error of the solver that verifies draws, at the rows nearest to the threshold."""
        near = np.argsort(np.abs(scores - threshold))[:COMPARED_ROWS]
        found = self.evaluate_batch(batch[torch.from_numpy(near)], options=SolveOptions(solver=VERIFY)).log_prob
        return float(np.abs(found - scores[near]).max())

    def bits_per_dim(
        self,
        X: Any,
        *,
        context: Any = None,
        draws: int = 1,
        probes: int = REPORT_PROBES,
        max_error: float | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> BitsPerDim:
        """Return the bits per dimension of images, with every error of the figure.

        Args:
            X: Images.
            context: Contexts, or labels.
            draws: Number of draws of the noise.
            probes: Number of probes of the trace.
            max_error: Mean error that the solver may cause, bits per dimension: the fewest steps that hold it on a few
                images are used, which takes a fraction of the time; None for the converged solve of reports.
            on_progress: Called with the number of solves done and of all solves.

        Returns:
            Bits per dimension; of one draw, what `score_samples` says in nats.

        Raises:
            ValueError: If the data are a table.
        """
        if not isinstance(self.domain, ImageDomain):
            raise ValueError("bits_per_dim is for images, and this model is of a table: take score_samples")
        contexts = self.domain.contexts(context, len(X), self.flow.context_dim)
        return bits_per_dim(
            self.flow, Pixels(self.domain.images(X), self.domain.bits),
            None if contexts is None else tensor(contexts), batch_size=self._rows_at_once, draws=draws, probes=probes,
            solver=self._solver, max_error=max_error, on_progress=on_progress,
        )  # fmt: skip

    def few_step_sample_errors(
        self, *, n: int = 2_000, context: Any = None, random_state: Any = 0
    ) -> dict[tuple[str, int], float]:
        """Return the errors of samples by a few fixed steps of the continuous flow, against its converged samples.

        Args:
            n: Number of samples.
            context: Contexts.
            random_state: Seed of the noise.

        Returns:
            Root mean square errors in standard deviations, by (method, steps).
        """
        truth, errors = self.reporting_by("continuous").draw(n, context=context, random_state=random_state), {}
        for method in STEP_METHODS:
            for steps in STEP_COUNTS:
                rows = self.draw(n, context=context, random_state=random_state, steps=steps, method=method)
                errors[method, steps] = float(np.sqrt((((rows - truth) / truth.std(0)) ** 2).mean()))
        return errors

    def few_step_score_errors(self, X: Any, log_prob: np.ndarray, *, context: Any = None) -> dict[int, float]:
        """Return the mean errors of log-densities by a few steps of rk4 of the continuous flow.

        Args:
            X: Rows.
            log_prob: Converged log-densities of that flow, shape (n,).
            context: Contexts.

        Returns:
            Errors in nats by number of steps.
        """
        drafts = {steps: self.draft(X, context=context, steps=steps) for steps in STEP_COUNTS}
        return {steps: float(np.abs(draft - log_prob).mean()) for steps, draft in drafts.items()}
