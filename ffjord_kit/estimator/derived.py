"""Models made from a fitted one: with a density in few exact steps, or with straight paths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.measurement import NOISE
from ffjord_kit.diagnostics.sample_weight import EFFECTIVE, check_sample_weight
from ffjord_kit.estimator.config import Config, resolve, slow_transforms
from ffjord_kit.estimator.data import Arrays, seed_from, tensor
from ffjord_kit.estimator.discretize import fit_steps
from ffjord_kit.estimator.fields import choice, positive, whole
from ffjord_kit.estimator.persistence import prepare_reports
from ffjord_kit.estimator.scoring import ScoringModel
from ffjord_kit.estimator.tables.subsets import SubsetDomain
from ffjord_kit.nn.mlp import set_reach
from ffjord_kit.objectives.reflow import Reflow, stack_pairs
from ffjord_kit.ode import FINEST_SINGLE
from ffjord_kit.ode.explicit import EXPLICIT_SCHEMES
from ffjord_kit.precision import single_precision
from ffjord_kit.progress import training_progress
from ffjord_kit.rows import as_rows
from ffjord_kit.training import Phase
from ffjord_kit.training.condense import Condensed, narrowest
from ffjord_kit.training.reflow import (
    ReflowSettings,
    best_grading,
    draw_pairs,
    prepare_flow,
    train_on_pairs,
    weights_digest,
)  # fmt: skip
from ffjord_kit.training.runtime import pass_on
from ffjord_kit.weights import mean_and_error

Model = TypeVar("Model", bound="DerivingModel")

ERROR_ROWS = 32  # of the solver's error that a reflow records
COMPARED_ROWS = 2_000  # on which the loss of a narrower flow is measured


@dataclass(frozen=True, eq=False)
class DerivingModel(ScoringModel):
    """A fitted flow on arrays from which other models are made; see `ffjord_kit.estimator.model.DensityModel`."""

    def discretize(
        self: Model,
        X: Any,
        *,
        context: Any = None,
        sample_weight: Any = None,
        steps: int | None = None,
        method: str | None = None,
        max_seconds: float = 60.0,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ) -> Model:
        """Return a model whose density is that of few exact steps: cheap, and without a solver's error.

        The number of steps, their scheme and their grid are chosen on the rows that the fit held out; then the steps
        are trained on by exact likelihood, each one held injective. The continuous flow stays beside them.

        Args:
            X: Rows of the fit, all and in their order.
            context: Their contexts, of a conditional model.
            sample_weight: Their weights, of a model that was fitted with weights.
            steps: Number of steps, e.g. 4 for a cheap density; None to choose it.
            method: Scheme of the steps, a word of EXPLICIT_SCHEMES; None to choose it.
            max_seconds: Seconds of training, as the model's clock counts them.
            on_step: Called with the record of each step.

        Returns:
            The new model, which reports by the steps if their receipt holds and their likelihood is as good (see
            `note` and `density`); this one stays as it is.

        Raises:
            ValueError: If X are not the rows of the fit, have too many columns, or an option cannot be used.
        """
        self.domain.require_table("discretize", "sample it with few fixed steps")
        self.domain.check_schedule(["flow_matching", "steps"])
        if steps is not None:
            whole("steps", steps)
        if method is not None:
            choice("method", method, EXPLICIT_SCHEMES)
        arrays = self._rows_of_fit(X, context, sample_weight)
        rows = self.domain.training_data(arrays, self.config.fields.validation_fraction, self.seed)
        objective, rate = self.config.objectives["steps"]
        phase = Phase(objective, math.inf, rate, positive("max_seconds", max_seconds), trial=True, from_start=True)
        known = {name: value for name, value in self.record.items() if name != "steps"}
        nll = min((nll for _, nll in self.history.validations_of("continuous")), default=None)
        flow, history, record = fit_steps(
            self.flow, rows, phase, self.config.train, before=self.history, continuous_nll=nll, record=known,
            steps=steps, method=method, shown=self.config.fields.verbose, on_step=on_step,
        )  # fmt: skip
        if flow is None:
            pass_on(history.signal)
            raise KeyboardInterrupt
        return replace(self, record=record, history=history, steps=flow)

    def condense(
        self: Model,
        X: Any,
        *,
        context: Any = None,
        sample_weight: Any = None,
        loss: float = 0.005,
        steps: int = 3_000,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ) -> Model:
        """Return a narrower model with the same density within a loss, which scores faster.

        Hidden neurons that others can stand in for are merged, and the rest imitates the field; several widths are
        tried. The loss is measured on the rows that the fit held out, or, where it held out none, on its own.

        Args:
            X: Rows of the fit, all and in their order.
            context: Their contexts, of a conditional model.
            sample_weight: Their weights, of a model that was fitted with weights.
            loss: Largest mean increase of the negative log-likelihood, nats.
            steps: Steps of imitation of each width that is tried.
            on_step: Called with the record of each step.

        Returns:
            The new model, whose record says what it lost; this one stays as it is.

        Raises:
            ValueError: If no narrower network keeps the loss, X are not the rows of the fit, or the network is not
                fully connected.

        References:
            Zhang et al. 2021, embedding principle, https://arxiv.org/abs/2105.14573.
        """
        self._require_one_question("condense")
        self.domain.require_table("condense", "give images a narrower network from the start")
        self.domain.require_real("condense", "give it a narrower network from the start (hidden)")
        rows = self.domain.training_data(
            self._rows_of_fit(X, context, sample_weight), self.config.fields.validation_fraction, self.seed
        )
        flow = single_precision(self.flow)
        compared = (rows.fitting if rows.held_out is None else rows.held_out)[:COMPARED_ROWS]
        found = narrowest(
            flow, rows.fitting, compared, positive("loss", loss), options=self.config.validation,
            steps=whole("steps", steps), seed=self.seed, on_step=on_step,
        )  # fmt: skip
        config, record = self._narrower(found)
        prepare_reports(found.flow, config, self.domain)
        event = {"step": self.history.step, "phase": "condense", "seconds": self.history.seconds, "event": str(found)}
        history = replace(self.history, records=[*self.history.records, event])
        return replace(self, flow=found.flow, config=config, record=record, history=history, steps=None)

    def _narrower(self, found: Condensed) -> tuple[Config, dict[str, Any]]:
        """Return the configuration and the record of a model with fewer neurons."""
        old = tuple(self.config.fields.hidden or ())
        hidden = tuple(math.ceil(found.share * width) for width in old)
        note = {"hidden": list(old), "loss": found.loss, "standard_error": found.standard_error, "rows": found.rows}
        config, record = self._changed({"hidden": hidden})
        return config, {**record, "condensed": note}

    def split(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Split the data of the fit into those that trained the model and those held out for validation.

        Args:
            X: Data of the fit, all and in their order.

        Returns:
            Two arrays.
        """
        dtype = None if self.is_image else np.float64
        x = X if isinstance(X, np.memmap) else np.asarray(as_rows(self.domain.coded(X)), dtype)
        train, held_out = self.split_indices(x)
        return x[train], x[held_out]

    def split_indices(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the data of the fit that trained the model, and of those held out.

        Args:
            X: Data of the fit.

        Returns:
            Two arrays of indices.
        """
        return self.domain.split(X, self.config.fields.validation_fraction, self.seed)

    def _require_one_question(self, verb: str) -> None:
        """Refuse a model that answers many questions, for what is made of one."""
        if isinstance(self.domain, SubsetDomain):
            raise ValueError(f"{verb} takes a model of one question; this one was fitted with subsets=True")

    def _rows_of_fit(self, X: Any, context: Any, sample_weight: Any = None) -> Arrays:
        """Return the rows of the fit with their contexts and weights."""
        rows = np.asarray(as_rows(self.domain.coded(X)), np.float64)
        if NOISE in self.record:
            raise ValueError(
                "this model was fitted with noise_std, and rows with measurement errors are no draws of it"
            )
        if EFFECTIVE in self.record and sample_weight is None:
            raise ValueError("this model was fitted with weights: pass sample_weight=, those of the fit")
        weight = check_sample_weight(sample_weight, len(rows))
        contexts = None if isinstance(self.domain, SubsetDomain) else self._contexts(context, len(rows))
        arrays = Arrays(rows, contexts, weight=weight)
        if arrays.facts()["sha256"] != self.record["sha256"]:
            raise ValueError(
                "X and context must be the rows of the fit, all and in their order, with its weights: others cannot "
                "validate it"
            )
        return arrays

    def reflow(
        self: Model,
        X: Any = None,
        *,
        context: Any = None,
        sample_weight: Any = None,
        pairs: int = 20_000,
        steps: int = 4_000,
        learning_rate: float = 8e-3,
        hidden: Sequence[int] | None = None,
        random_state: Any = None,
        source: str | None = None,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ) -> Model:
        """Return a new model that samples in a few steps: this one's network, trained again on its own pairs.

        Its density is its own. Rows are not trained on: those that the fit held out validate the new model.

        Args:
            X: Rows of the fit, all and in their order, or None.
            context: Contexts of the pairs, of a conditional model.
            sample_weight: Weights of the rows, of a model that was fitted with weights.
            pairs: Number of pairs to draw.
            steps: Steps of training.
            learning_rate: Peak learning rate.
            hidden: Widths of a new network; of a single width the exact trace has a closed form. None for the old one.
            random_state: Seed, or None.
            source: Note on where this model comes from.
            on_step: Called with the record of each step.

        Returns:
            The new model; this one stays as it is.

        Raises:
            ValueError: If X are not the rows of the fit, a context is missing or of no use, or the data are images.

        References:
            Liu et al. 2023, reflow, https://arxiv.org/abs/2209.03003.
        """
        settings = ReflowSettings(pairs, steps, learning_rate, None if hidden is None else tuple(hidden))
        self._require_one_question("reflow")
        self.domain.require_table("reflow", "sample it with few fixed steps")
        self.domain.require_real("reflow", "sample it with few fixed steps")
        rows = None if X is None else np.asarray(as_rows(X), np.float64)
        contexts = self._contexts_of_pairs(rows, context)
        weight = None if rows is None else self._rows_of_fit(rows, contexts, sample_weight).weight
        seed = seed_from(random_state)
        train, held_out = (None, None) if rows is None else self.split_indices(rows)
        drawn = contexts if contexts is None or train is None else contexts[train]
        note = {"source": source, "weights": weights_digest(self.flow), "seed": seed, **asdict(settings)}
        model = self._reflowed(settings, None if drawn is None else tensor(drawn), note, on_step)
        if rows is not None and held_out is not None and len(held_out):
            noisy = self.domain.add_noise(rows, self.seed)[held_out]
            judges = [None if part is None else tensor(part[held_out]) for part in (contexts, weight)]
            _record_validation(model, Batch(tensor(noisy), *judges))
        return model

    def _reflowed(
        self: Model,
        settings: ReflowSettings,
        contexts: Tensor | None,
        note: dict[str, Any],
        on_step: Callable[[dict[str, Any]], None] | None,
    ) -> Model:
        """Train a copy on its own pairs; the note of it gets what was measured."""
        seed, old = note["seed"], single_precision(self.flow)
        config, record = self._successor(settings.hidden, note)
        tolerance = max(self.config.fields.tolerance, FINEST_SINGLE)
        start, end, seen = draw_pairs(old, contexts, settings.pairs, seed, tolerance)
        new = settings.hidden is not None
        layers = slow_transforms(config, self.domain, self.flow.context_dim, seed) if new else None
        flow, end, aligned = prepare_flow(old, layers, start, end)
        if new:
            set_reach(flow, end)
        note.update({"aligned": True} if aligned else {})
        options = replace(config.train, seed=seed, micro_batches=None, precision="float32")
        with training_progress([settings.phase], shown=config.fields.verbose, on_step=on_step) as bars:
            history = train_on_pairs(flow, Batch(stack_pairs(start, end), seen), settings, options, bars.on_step)
            bars.finish(history.interrupted)
        prepare_reports(flow, config, self.domain)
        note["grading"] = best_grading(flow, contexts, seed)
        return replace(self, flow=flow, config=config, record=record, history=history, steps=None)

    def _successor(self, hidden: tuple[int, ...] | None, note: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
        """Return the configuration and the record of a model made from this one: new widths and a note."""
        config, record = self._changed({} if hidden is None else {"hidden": hidden})
        return config, {**record, "reflow": [*self.record.get("reflow", []), note]}

    def _changed(self, changed: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
        """Return the configuration and the record with other fields, and without the density of few steps."""
        chosen = {name: value for name, value in self.record.get("chosen", {}).items() if name not in changed}
        record = {
            **{name: value for name, value in self.record.items() if name != "steps"},
            "estimator": {**self.record["estimator"], **changed},
            "chosen": chosen,
        }
        fields = replace(self.config.fields, **changed, max_seconds=None)
        return resolve(fields, self.domain, seed=self.seed, chosen=chosen), record

    def _contexts_of_pairs(self, rows: np.ndarray | None, context: Any) -> np.ndarray | None:
        """Check the contexts of a reflow's pairs."""
        dim = self.flow.context_dim
        if dim and context is None:
            raise ValueError(
                f"this model is conditional, so its pairs need contexts: pass context=, rows (n, {dim}) like the fit's"
            )
        if not dim and context is not None:
            raise ValueError("this model takes no context: leave it out")
        if context is None:
            return None
        contexts = self._contexts(context, self._contexts_given(context) if rows is None else len(rows))
        if contexts is not None and contexts.shape[1] != dim:
            raise ValueError(f"context must have shape (rows, {dim}); got {contexts.shape}")
        return contexts


def _record_validation(model: ScoringModel, rows: Batch) -> None:
    """Record the likelihood of held-out rows."""
    nll, history = -torch.from_numpy(model.evaluate_batch(rows).log_prob), model.history
    mean, standard_error = mean_and_error(nll, rows.weight)
    history.best_nll, history.best_step = mean, history.step
    few = rows[:ERROR_ROWS]
    record = {
        "step": history.step,
        "phase": Reflow().name,
        "seconds": round(history.seconds, 3),
        "validation_nll": history.best_nll,
        "validation_standard_error": standard_error,
        "validation_solver_error": model.solver_error(few.x.numpy(), context=few.context),
    }
    history.records.append(record)
