"""A fitted flow on arrays: log-densities, exact, with errors, or in draft; and draws, all at once or in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.accuracy import LogDensity
from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.columns import warn_of_unlearnt_contexts
from ffjord_kit.diagnostics.sample_weight import check_sample_weight
from ffjord_kit.display import html_table
from ffjord_kit.estimator.data import tensor, to_numpy
from ffjord_kit.estimator.image import ImageDomain
from ffjord_kit.estimator.persistence import StoredModel
from ffjord_kit.flow import Flow
from ffjord_kit.objectives import class_log_probs
from ffjord_kit.ode import AdaptiveSolver, FixedSolver, SolveError, Solver, make_solver
from ffjord_kit.precision import double_precision, full_precision, single_precision
from ffjord_kit.threads import solving_threads
from ffjord_kit.trace import PerRowTrace
from ffjord_kit.transforms import ContextScaling
from ffjord_kit.transforms.cnf import SolveOptions

JUDGED_ROWS = 64  # of the solver's error
CERTIFIED_ROWS = 256  # solved at once; of more, a bar would stand still for minutes
ROUNDING_MARGIN = 10  # of the rounding of few steps in float64, over what that in float32 suggests
DRAFT_SOLVER = AdaptiveSolver(rtol=1e-3, atol=1e-3)

OnProgress = Callable[[int, int], None]


class Evaluation(NamedTuple):
    """Log-densities and their cost.

    Attributes:
        log_prob: Log-densities, nats, shape (n,).
        nfe: Evaluations of the dynamics in the slowest batch.

    Example:
        >>> result = Evaluation(np.array([-1.0, -2.0]), nfe=26)
        >>> float(result.log_prob.mean())
        -1.5
    """

    log_prob: np.ndarray
    nfe: int


class LogDensities(NamedTuple):
    """Log-densities with their errors, each of shape (n,), in nats; see `ffjord_kit.accuracy.LogDensity`.

    A row outside the support has the log-density minus infinity, without error.

    Attributes:
        log_prob: Log-densities.
        error: Bound on the error for about 99 % of rows.
        solver_error: Error of the solver.
        trace_error: Standard error of an estimated trace.
        met: Whether a row has the requested error.
        accepted: Accepted steps.
        rejected: Rejected steps.
        longest_step: Longest step, in the time of its continuous transform; what is shorter may not be seen.

    Example:
        >>> one = np.ones(2)
        >>> value, error = np.array([-1.0, -2.0]), 1e-6 * one
        >>> result = LogDensities(value, error, error, 0 * one, one > 0, 9 * one, 0 * one, one)
        >>> print(f"{result.log_prob.sum():g}, off by {result.error.sum():g} at most; {result.met.sum()} rows met")
        -3, off by 2e-06 at most; 2 rows met
    """

    log_prob: np.ndarray
    error: np.ndarray
    solver_error: np.ndarray
    trace_error: np.ndarray
    met: np.ndarray
    accepted: np.ndarray
    rejected: np.ndarray
    longest_step: np.ndarray

    def _repr_html_(self) -> str:
        count, mean = len(self.log_prob), self.log_prob.mean()
        known = count > 1 and np.isfinite(mean)
        spread = f" ± {self.log_prob.std(ddof=1) / math.sqrt(count):.4f}" if known else ""
        rows = {
            "rows": str(count),
            "mean log-density": f"{mean:.4f}{spread} nats",
            "error of a row": f"median {np.median(self.error):.1e}, largest {self.error.max():.1e} nats (99 % of rows)",
            "requested error": f"met by {self.met.sum()} rows",
            "steps of a row": f"median {np.median(self.accepted):.0f}, largest {self.accepted.max()}",
        }
        return html_table("Certificate", rows)


@dataclass(frozen=True, eq=False)
class ScoringModel(StoredModel):
    """A fitted flow that scores arrays; see `ffjord_kit.estimator.model.DensityModel`."""

    @property
    def seed(self) -> int:
        """Seed of the fit."""
        return int(self.record["seed"])

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of a row or an image."""
        return self.domain.event_shape

    @property
    def n_features(self) -> int:
        """Number of columns, or of pixels."""
        return len(self.record["columns"]) or self.domain.size

    @property
    def is_image(self) -> bool:
        """Whether the data are images."""
        return isinstance(self.domain, ImageDomain)

    @property
    def image_domain(self) -> ImageDomain:
        """Domain of the images; a ValueError if the data are a table."""
        if not isinstance(self.domain, ImageDomain):
            raise ValueError("this is for images, and the model is of a table")
        return self.domain

    def score_samples(self, X: Any, *, context: Any = None, time: float = 1.0, return_error: bool = False) -> Any:
        """Return the log-density of each row, by the density that reports (see the field `density`).

        Few exact steps are made in float32, to the rounding that their receipt states; `certify` makes them in float64.

        It does not depend on the other rows but by rounding, which may turn a step of the solver: the same row among
        others differed by up to 8e-9 nats in 13 models of 9 tables at the tolerance of 1e-5, and by up to 1e-7 far
        from the data, at log-densities near -80.

        Args:
            X: Rows or images.
            context: Contexts (n, c), or one (c,) or (1, c) for all; labels of images. A single row is scored under
                each of several contexts.
            time: Time of the states X, in [0, 1]; 1 for data.
            return_error: Whether to return the errors too, for three times the work.

        Returns:
            Log-densities, shape (n,), in nats and the units of X; with `return_error` also bounds on their errors for
            about 99 % of rows, shape (n,).

        Raises:
            ValueError: If rows or contexts do not fit the model.

        Example:
            >>> from ffjord_kit import FFJORD
            >>> x = np.random.default_rng(0).normal(size=(100, 2))
            >>> model = FFJORD(schedule=[("flow_matching", 2)], hidden=(8,), random_state=0).fit(x)
            >>> near, far = model.score_samples([[0.0, 0.0], [9.0, 9.0]])
            >>> bool(near > far)
            True
        """
        if not return_error:
            return self.evaluate(X, context=context, time=time).log_prob
        certified = self.certify(X, context=context, time=time)
        return certified.log_prob, certified.error

    def score(self, X: Any, y: None = None, *, context: Any = None, sample_weight: Any = None) -> float:
        """Return the mean log-likelihood.

        Args:
            X: Rows or images.
            y: Ignored.
            context: Contexts.
            sample_weight: Weights of the rows, shape (n,), or None.

        Returns:
            The mean, nats.

        Raises:
            ValueError: If weights, rows and contexts do not fit each other.
        """
        log_prob = self.evaluate(X, context=context).log_prob
        weight = check_sample_weight(sample_weight, len(log_prob))
        return float(log_prob.mean() if weight is None else np.average(log_prob, weights=weight))

    def evaluate(
        self, X: Any, *, context: Any = None, time: float = 1.0, on_progress: OnProgress | None = None
    ) -> Evaluation:
        """Return the log-density of each row, and the evaluations of the dynamics that they took.

        Args:
            X: Rows or images.
            context: Contexts.
            time: Time of the states X, in [0, 1].
            on_progress: Called with the number of rows done and of all rows.

        Returns:
            Log-densities and evaluations.
        """
        batch, inside = self._batch(X, context)
        result = self.evaluate_batch(batch, time=time, on_progress=on_progress)
        return result._replace(log_prob=spread(result.log_prob, inside, -np.inf))

    def evaluate_batch(
        self,
        batch: Batch,
        *,
        time: float = 1.0,
        flow: Flow | None = None,
        options: SolveOptions | None = None,
        on_progress: OnProgress | None = None,
    ) -> Evaluation:
        """Return the log-densities of checked rows.

        Args:
            batch: Rows within the support, shape (n, *event), and contexts.
            time: Time of the states, in [0, 1].
            flow: Copy of the flow to use; the model's own if None.
            options: Trace and solver; those of reports if None.
            on_progress: Called with the number of rows done and of all rows.

        Returns:
            Log-densities and evaluations.
        """
        flow, options = flow or self._flow_at(time), options or self.config.reporting
        results = []
        with solving_threads(flow, batch[: self._rows_at_once]):
            for chunk in self._chunks(batch, self._rows_at_once, on_progress):
                with self._naming_context(chunk):
                    results.append(_evaluate(flow, chunk, time, options))
        log_prob = np.concatenate([np.empty(0), *(result.log_prob for result in results)])
        return Evaluation(log_prob, max((result.nfe for result in results), default=0))

    def certify(
        self,
        X: Any,
        *,
        context: Any = None,
        time: float = 1.0,
        error: float | None = None,
        probes: int | None = None,
        random_state: int = 0,
        on_progress: OnProgress | None = None,
    ) -> LogDensities:
        """Return log-densities with the errors of solver and trace.

        Where an `error` is requested, tolerance and probes are refined row by row until it is met.

        Args:
            X: Rows or images.
            context: Contexts.
            time: Time of the states X, in [0, 1].
            error: Requested error, nats; None for the one that the model's tolerance gives.
            probes: Probes of Hutchinson's trace; None for the exact trace, of images 4 probes.
            random_state: Seed of the probes.
            on_progress: Called with the number of rows done and of all rows.

        Returns:
            Log-densities and errors.

        Raises:
            ValueError: If the error is not positive, or there is one probe.

        Example:
            >>> from ffjord_kit import FFJORD
            >>> x = np.random.default_rng(0).normal(size=(100, 2))
            >>> model = FFJORD(schedule=[("flow_matching", 2)], hidden=(8,), random_state=0).fit(x)
            >>> result = model.certify(x[:3], error=1e-3)
            >>> bool((result.error <= 1e-3).all())
            True
        """
        options = {"time": time, "error": error, "probes": self.domain.certify_probes if probes is None else probes}
        batch, inside = self._batch(X, context)
        return _log_densities(self._certified(batch, random_state, on_progress, **options), inside)

    def _certified(
        self, batch: Batch, random_state: int = 0, on_progress: OnProgress | None = None, **options: Any
    ) -> list[LogDensity]:
        """Return the log-densities of checked rows with their errors, chunk by chunk."""
        generator, fields = torch.Generator().manual_seed(random_state), self.config.fields
        reporting = self._flow_at(options.get("time", 1.0))
        flow = double_precision(reporting)
        results, rows = [], min(CERTIFIED_ROWS, self._rows_at_once)
        with full_precision(), solving_threads(flow, batch[:rows]):
            for chunk in self._chunks(batch, rows, on_progress):
                part = placed(flow, chunk)
                with self._naming_context(chunk):
                    result = flow.evaluate(
                        part.x, part.context, tolerance=fields.tolerance, generator=generator,
                        max_nfe=fields.max_nfe, **options,
                    )  # fmt: skip
                stepped = reporting is self.steps
                results.append(self._with_rounding(result, chunk, options.get("error")) if stepped else result)
        return results

    def _with_rounding(self, result: LogDensity, chunk: Batch, requested: float | None) -> LogDensity:
        """State the rounding of few exact steps, which have no other error: that of float32, less its missing bits."""
        single = _evaluate(self.reporting_flow, chunk, 1.0, self.config.reporting).log_prob
        largest = float((result.value.cpu() - torch.from_numpy(single)).abs().max())
        bits = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        error = torch.full_like(result.error, ROUNDING_MARGIN * bits * largest)
        met = error <= (math.inf if requested is None else requested)
        return replace(result, error=error, solver_error=error, rounding=error, met=met)

    def solver_error(self, X: Any, *, context: Any = None) -> float:
        """Return the mean error of the solver in the log-densities of up to 64 rows; see `certify`.

        Args:
            X: Rows or images.
            context: Contexts.

        Returns:
            The error, nats.
        """
        batch, _ = self._batch(X, context)
        few = torch.linspace(0, len(batch) - 1, min(len(batch), JUDGED_ROWS)).long()
        errors = [result.solver_error for result in self._certified(batch[few], probes=self.domain.certify_probes)]
        return float(torch.cat(errors).mean()) if errors else 0.0

    def draft(
        self, X: Any, *, context: Any = None, time: float = 1.0, steps: int | None = None, method: str = "rk4"
    ) -> np.ndarray:
        """Return log-densities to some hundredths of a nat, for pictures; in float32, and not for reporting.

        Args:
            X: Rows or images.
            context: Contexts.
            time: Time of the states X, in [0, 1].
            steps: Number of fixed steps; None for adaptive steps, the same for all rows.
            method: Method of the fixed steps.

        Returns:
            Log-densities, nats, shape (n,).
        """
        batch, inside = self._batch(X, context)
        solver: Solver = DRAFT_SOLVER if steps is None else self.few_step_solver(method, steps)
        options, flow = replace(self.config.reporting, solver=solver), single_precision(self._drafted(time, steps))
        return spread(self.evaluate_batch(batch, time=time, flow=flow, options=options).log_prob, inside, -np.inf)

    def _drafted(self, time: float, steps: int | None) -> Flow:
        """Return the flow that a draft evaluates; a number of solver's steps is for the continuous one."""
        return self.flow if steps is not None else self._flow_at(time)

    def class_probabilities(self, X: Any) -> np.ndarray:
        """Return the probabilities P(c | x) of classes by Bayes' rule, all classes being as likely before.

        Args:
            X: Images.

        Returns:
            Probabilities, shape (n, classes).

        Raises:
            ValueError: If the model was not fitted with labels.
        """
        if not isinstance(self.domain, ImageDomain) or not self.domain.classes:
            raise ValueError("class_probabilities needs a model of images that was fitted with context=labels")

        def log_prob(x: Tensor, context: Tensor) -> Tensor:
            return torch.from_numpy(self.evaluate_batch(Batch(x, context)).log_prob)

        x, _ = self.domain.rows(X)
        return class_log_probs(log_prob, x, self.domain.classes).exp().numpy()

    def few_step_solver(self, method: str, steps: int) -> Solver:
        """Return a solver of a few fixed steps, placed where a reflow found them best, else equal.

        Args:
            method: Method.
            steps: Number of steps.

        Returns:
            The solver.

        Raises:
            ValueError: If the method is unknown, or not one of fixed steps.
        """
        solver = make_solver(method, steps=steps)
        graded = isinstance(solver, FixedSolver) and solver.gradable
        return FixedSolver(method, steps, grading=self.grading) if graded else solver

    @property
    def grading(self) -> float:
        """Grading of few steps that the last reflow measured; 1 without a reflow."""
        notes = reversed(self.record.get("reflow", []))
        return float(next((note["grading"] for note in notes if "grading" in note), 1.0))

    def _flow_at(self, time: float) -> Flow:
        """Return the flow whose density is p_time: that which reports has p_1 alone where it is made of steps."""
        return self.reporting_flow if time == 1 else self.flow

    @property
    def _solver(self) -> Solver:
        """Solver of reports."""
        return self.config.reporting.solver or DRAFT_SOLVER

    @staticmethod
    def _chunks(batch: Batch, rows: int, on_progress: OnProgress | None) -> Iterator[Batch]:
        """Yield a batch in chunks of some rows, and report what is done."""
        done = 0
        for chunk in batch.split(rows):
            if on_progress is not None:
                on_progress(done, len(batch))
            yield chunk
            done += len(chunk)

    @property
    def _rows_at_once(self) -> int:
        return self.flow.rows_at_once

    def _batch(self, x: Any, context: Any) -> tuple[Batch, np.ndarray]:
        """Return the rows within the support with their contexts, and a mask of these among all rows."""
        rows, inside = self.domain.rows(x)
        context = self.domain.coded_context(context)
        context = self.domain.implied_context(x) if context is None else context
        contexts = self._contexts(context, self._contexts_given(context) if len(inside) == 1 else len(inside))
        if contexts is None:
            return self._joined(Batch(rows)), inside
        inside = np.resize(inside, len(contexts))
        rows = rows.expand(int(inside.sum()), *rows.shape[1:])  # one row under several contexts, or as they are
        return self._joined(Batch(rows, tensor(contexts[inside]))), inside

    def _joined(self, batch: Batch) -> Batch:
        """Return checked rows with the user's contexts in the form of the flow's."""
        given = 0 if batch.context is None else batch.context.shape[1]
        if self.domain.code_dim and given != self.context_dim:
            raise ValueError(f"context must have shape {(len(batch), self.context_dim)}; got {(len(batch), given)}")
        return self.domain.joined(batch)

    @property
    def context_dim(self) -> int:
        """Length of a user's context; the flow's are longer by the codes of categories."""
        return self.flow.context_dim - self.domain.code_dim

    def _contexts(self, context: Any, rows: int) -> np.ndarray | None:
        """Return checked contexts of some rows, shape (rows, c)."""
        contexts, scaling = self.domain.contexts(context, rows, self.context_dim), self.flow.preprocess.context
        if contexts is not None and isinstance(scaling, ContextScaling) and contexts.shape[1] == self.context_dim:
            warn_of_unlearnt_contexts(contexts, scaling, self.domain.context_names(contexts.shape[1]))
        return contexts

    def _contexts_given(self, context: Any) -> int:
        """Return the number of contexts; a vector as long as a context is one."""
        shape, dim = np.shape(context), self.context_dim
        labels = self.is_image and self.image_domain.classes
        single = not shape or (len(shape) == 1 and dim > 1 and shape[0] == dim and not labels)
        return 1 if single else shape[0]

    @contextmanager
    def _naming_context(self, batch: Batch) -> Iterator[None]:
        """Let the error of a solve name the farthest context among the rows to blame."""
        try:
            yield
        except SolveError as error:
            if batch.context is not None:
                rows = torch.tensor(error.rows or range(len(batch)))
                scaled = self.flow.preprocess.scale_context(batch.context[rows], batch.context.cpu())
                values = batch.context[rows[int(cast(Tensor, scaled).abs().amax(1).argmax())]].tolist()
                names = self.domain.context_names(len(values))
                named = ", ".join(f"{name} = {value:g}" for name, value in zip(names, values, strict=True))
                error.args = (f"{error}. The farthest context among these rows is {named}",)
            raise

    def _batch_inside(self, x: Any, context: Any, verb: str) -> Batch:
        """Return rows and contexts, all of which must lie within the support."""
        if context is None and self.domain.implied_context(x) is not None:
            raise ValueError(f"{verb} takes rows without missing cells: leave the others out, or impute them")
        batch, inside = self._batch(x, context)
        if not inside.all():
            raise ValueError(
                f"{verb} takes rows within the support, where the density is positive; {(~inside).sum()} of "
                f"{len(inside)} lie outside (first: row {int((~inside).argmax())}): leave them out"
            )
        return batch


@torch.no_grad()
def to_data(flow: Flow, place: Batch, solver: Solver, *, time: float = 1.0) -> Tensor:
    """Map points at the base to data, or to their states at a time.

    Args:
        flow: Flow, or a copy of it in float32.
        place: Points at the base, shape (n, *event), and contexts.
        solver: Solver.
        time: Time of the states, in [0, 1].

    Returns:
        Data or states, shape (n, *event).
    """
    options = SolveOptions(trace=None, solver=solver)
    with solving_threads(flow, place):
        return flow.to_data(place.x.to(flow.like), place.context, time=time, options=options)[0]


@torch.no_grad()
def _evaluate(flow: Flow, chunk: Batch, time: float, options: SolveOptions) -> Evaluation:
    """Return the log-densities of rows solved at once."""
    if isinstance(options.trace, PerRowTrace):
        options = replace(options, trace=options.trace.of(chunk.x))
    chunk = placed(flow, chunk)
    with full_precision():
        log_prob, moved = flow.evaluate_log_prob(chunk.x, chunk.context, time=time, options=options)
    return Evaluation(to_numpy(log_prob), moved.nfe)


def placed(flow: Flow, batch: Batch) -> Batch:
    """Move a batch to where a flow takes it: anywhere, or, without preprocessing, where its transforms compute.

    Args:
        flow: Flow.
        batch: Rows and contexts.

    Returns:
        The batch.
    """
    return batch.to(flow.like) if flow.preprocess.identity else batch


def spread(values: np.ndarray, inside: np.ndarray, outside: float) -> np.ndarray:
    """Return the values of all rows, from those of the rows within the support.

    Args:
        values: Values of the rows within the support.
        inside: Which rows are within it, shape (n,).
        outside: Value of the other rows.

    Returns:
        Values, shape (n,).
    """
    spread = np.full(len(inside), outside)
    spread[inside] = values
    return spread


def _log_densities(results: list[LogDensity], inside: np.ndarray) -> LogDensities:
    """Join the results of all chunks."""

    def column(name: str, outside: float) -> np.ndarray:
        return spread(np.concatenate([np.empty(0), *(to_numpy(getattr(r, name)) for r in results)]), inside, outside)

    return LogDensities(
        log_prob=column("value", -np.inf),
        error=column("error", 0.0),
        solver_error=column("solver_error", 0.0),
        trace_error=column("trace_error", 0.0),
        met=column("met", 1.0).astype(bool),
        accepted=column("accepted", 0.0).astype(int),
        rejected=column("rejected", 0.0).astype(int),
        longest_step=column("longest_step", 0.0),
    )
