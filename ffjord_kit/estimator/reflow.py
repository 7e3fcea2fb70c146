r"""Reflow of a fitted model: flow matching again on its own pairs, so that sampling takes a few steps.

    z ~ base,   x = to_data(z) by a converged solve,   then   E_t |f(t, (1 - t) z + t x) - (x - z)|^2

(Liu et al. 2023). A new network need not learn what is linear: an affine transform brings the ends x to mean 0 and
covariance 1, and turns them towards their beginnings z, so that lines are short and no direction of little variance
makes the field stiff. The density of the new flow is its own: it is solved for, and measured, as any other.

A few fixed steps may crowd towards one end of the time (`FixedSolver.grading`): a field that was fitted to data is
stiffest near them, one after reflow where its paths begin, for there the mass forks. So the grading is measured, and
kept.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.data import Batch, sampling_batch_size
from ffjord_kit.distributions import StandardNormal
from ffjord_kit.estimator.config import Config, resolve, slow_transforms
from ffjord_kit.estimator.data import Arrays, check_context, seed_from, tensor
from ffjord_kit.estimator.persistence import prepare_reports, with_alignment
from ffjord_kit.estimator.scoring import ScoringModel, single_precision, to_data
from ffjord_kit.flow import Flow, with_transforms
from ffjord_kit.objectives import FlowMatching, Reflow, split_transforms
from ffjord_kit.objectives.reflow import stack_pairs
from ffjord_kit.ode import FINEST_SINGLE, AdaptiveSolver, FixedSolver, SolveError
from ffjord_kit.progress import training_progress
from ffjord_kit.training import History, Phase, TensorData, fit
from ffjord_kit.transforms import Affine
from ffjord_kit.transforms.cnf import SolveOptions

PAIRS_PER_COLUMN = 10  # that a covariance takes, at least
ERROR_ROWS = 32  # of the solver's error
TIME_DENSITY = "uniform"  # the weight of the likelihood leaves the early field, and so its straightness, unlearnt
GRADINGS = (0.4, 0.5, 0.6, 0.75, 1.0, 1.5, 2.0)
GRADING_ROWS = 4_096  # the error is that of few rows, where paths fork
GRADING_METHOD, GRADING_STEPS = "rk4", (3, 6)

Model = TypeVar("Model", bound=ScoringModel)


@dataclass(frozen=True)
class ReflowSettings:
    """Settings of a reflow.

    Args:
        pairs: Number of pairs to draw.
        steps: Steps of training on them.
        learning_rate: Peak learning rate.
        hidden: Widths of a new network that learns the pairs; None to train the old one on.

    Raises:
        ValueError: If a number is not positive.
    """

    pairs: int = 20_000
    steps: int = 4_000
    learning_rate: float = 8e-3
    hidden: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("pairs", "steps", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if self.hidden is not None and (not self.hidden or min(self.hidden) < 1):
            raise ValueError(f"hidden must be one or more positive widths; got {self.hidden}")


def reflow(
    model: Model,
    x: Any,
    context: Any,
    settings: ReflowSettings,
    *,
    random_state: Any = None,
    source: str | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> Model:
    """Train a copy of a model on its own pairs.

    Args:
        model: Fitted model of a table; it stays as it is.
        x: Rows of its fit, to validate the new model on those held out; None for no validation.
        context: Contexts of the pairs, of a conditional model: the fit's own where `x` is given.
        settings: Settings.
        random_state: Seed of pairs and training, or None.
        source: Note on where the model comes from.
        on_step: Called with the record of each step.

    Returns:
        The new model.

    Raises:
        ValueError: If the data are images or not those of the fit, or a context is missing or of no use.
    """
    model.domain.require_table("reflow", "sample it with few fixed steps")
    rows = None if x is None else np.asarray(x, np.float64)
    contexts = _contexts(model, rows, context)
    if rows is not None and Arrays(rows, contexts).facts()["sha256"] != model.record["sha256"]:
        raise ValueError("X and context must be the rows of the fit, all and in their order: others cannot validate it")
    seed = seed_from(random_state)
    train, held_out = (None, None) if rows is None else model.split_indices(rows)
    drawn = contexts if contexts is None or train is None else contexts[train]
    note: dict[str, Any] = {"source": source, "weights": _digest(model.flow), "seed": seed, **asdict(settings)}
    config, record = _successor(model, settings.hidden, note)
    old = single_precision(model.flow)
    start, end, seen = _pairs(old, drawn, settings.pairs, seed, max(model.config.fields.tolerance, FINEST_SINGLE))
    flow, end = _flow_to_train(old, model, config, start, end, seed, note)
    history = _train(flow, Batch(stack_pairs(start, end), seen), config, settings, seed, on_step)
    prepare_reports(flow, config, model.domain)
    result = type(model)(flow, config, model.domain, record, history)
    note["grading"] = best_grading(result, drawn, seed)
    if rows is not None and held_out is not None and len(held_out):
        noisy = model.domain.add_noise(rows, model.seed)[held_out]
        _validate(result, noisy, None if contexts is None else contexts[held_out])
    return result


def best_grading(model: ScoringModel, context: np.ndarray | None, seed: int) -> float:
    """Return the grading with which samples by a few steps are nearest to those of a converged solve.

    Nearness is the mean, over numbers of steps, of the logarithm of the mean square error.

    Args:
        model: Fitted model.
        context: Contexts to draw for, or None.
        seed: Seed of the draws.

    Returns:
        One of GRADINGS.
    """
    flow, generator = single_precision(model.flow), torch.Generator().manual_seed(seed)
    z = model.flow.base.sample(GRADING_ROWS, generator)
    contexts = None if context is None else tensor(np.resize(context, (GRADING_ROWS, context.shape[1])))
    place = Batch(z, contexts)
    truth = to_data(flow, place, AdaptiveSolver("dopri5", 1e-5, 1e-5))

    def error(grading: float, steps: int) -> float:
        try:
            moved = to_data(flow, place, FixedSolver(GRADING_METHOD, steps, grading=grading))
        except SolveError:  # steps placed like this leave the reach of the field
            return math.inf
        return float(((moved - truth) / truth.std(0)).square().mean().log())

    return min(GRADINGS, key=lambda grading: sum(error(grading, steps) for steps in GRADING_STEPS))


def _contexts(model: ScoringModel, rows: np.ndarray | None, context: Any) -> np.ndarray | None:
    """Check the contexts of the pairs."""
    dim = model.flow.context_dim
    if dim and context is None:
        raise ValueError(
            f"this model is conditional, so its pairs need contexts: pass context=, rows (n, {dim}) like the fit's"
        )
    if not dim and context is not None:
        raise ValueError("this model takes no context: leave it out")
    if context is None:
        return None
    contexts = check_context(context, len(np.asarray(context)) if rows is None else len(rows), dim)
    if contexts is not None and contexts.shape[1] != dim:
        raise ValueError(f"context must have shape (rows, {dim}); got {contexts.shape}")
    return contexts


def _successor(
    model: ScoringModel, hidden: tuple[int, ...] | None, note: dict[str, Any]
) -> tuple[Config, dict[str, Any]]:
    """Return the configuration and the record of the new model: the old ones but for new widths and a note."""
    changed: dict[str, Any] = {} if hidden is None else {"hidden": hidden}
    chosen = {name: value for name, value in model.record.get("chosen", {}).items() if name not in changed}
    record = {
        **model.record,
        "estimator": {**model.record["estimator"], **changed},
        "chosen": chosen,
        "reflow": [*model.record.get("reflow", []), note],
    }
    fields = replace(model.config.fields, **changed)
    return resolve(replace(fields, max_seconds=None), model.domain, seed=model.seed, chosen=chosen), record


@torch.no_grad()
def _pairs(
    flow: Flow, contexts: np.ndarray | None, count: int, seed: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Draw the ends of the continuous transforms' paths, and the contexts as the transforms see them."""
    _, cnfs, below = split_transforms(flow)
    generator, context = torch.Generator().manual_seed(seed), None
    start = flow.base.sample(count, generator)
    if contexts is not None:
        chosen = tensor(contexts)[torch.randint(len(contexts), (count,), generator=generator)]
        context = flow.preprocess.scale_context(chosen, flow.like)
    for transform in reversed(below):
        start, _ = transform.to_data(start, context)
    options, ends = SolveOptions(trace=None, solver=AdaptiveSolver("dopri5", tolerance, tolerance)), []
    for batch in Batch(start, context).split(sampling_batch_size(flow.event_shape, start.device.type)):
        state = batch.x
        for cnf in reversed(cnfs):
            state = cnf.integrate(state, [0.0, cnf.end_time], context=batch.context, options=options).x[-1]
        ends.append(state)
    return start, torch.cat(ends), context


def _flow_to_train(
    old: Flow, model: ScoringModel, config: Config, start: Tensor, end: Tensor, seed: int, note: dict[str, Any]
) -> tuple[Flow, Tensor]:
    """Return the flow to train, the old one or one with a new network, and the ends as its transforms see them."""
    if config.fields.hidden == model.config.fields.hidden and note["hidden"] is None:
        return copy.deepcopy(old), end
    layers = [layer.to(old.like) for layer in slow_transforms(config, model.domain, old.context_dim, seed)]
    known = isinstance(old.base, StandardNormal) and len(end) >= PAIRS_PER_COLUMN * end.shape[1]
    if not known:
        above, _, below = split_transforms(old)
        return with_transforms(old, [*above, *layers, *below]), end
    alignment, note["aligned"] = Affine.aligning(start, end), True
    return with_alignment(old, alignment, layers), alignment.to_base(end)[0]


def _train(
    flow: Flow,
    pairs: Batch,
    config: Config,
    settings: ReflowSettings,
    seed: int,
    on_step: Callable[[dict[str, Any]], None] | None,
) -> History:
    """Train the continuous transforms on pairs of their ends."""
    for cnf in split_transforms(flow)[1]:
        cnf.requires_grad_(True)
    phase = Phase(Reflow(FlowMatching(TIME_DENSITY)), settings.steps, settings.learning_rate)
    options = replace(config.train, seed=seed, micro_batches=None, precision="float32")
    with training_progress([phase], shown=config.fields.verbose, on_step=on_step) as listener:
        return fit(flow, TensorData(pairs), [phase], config=options, on_step=listener)


def _validate(model: ScoringModel, x: np.ndarray, context: np.ndarray | None) -> None:
    """Record the likelihood of held-out rows."""
    batch = Batch(tensor(x), None if context is None else tensor(context))
    nll, history = -model.evaluate_batch(batch).log_prob, model.history
    history.best_nll, history.best_step = float(nll.mean()), history.step
    few = slice(0, ERROR_ROWS)
    record = {
        "step": history.step,
        "phase": Reflow().name,
        "seconds": round(history.seconds, 3),
        "validation_nll": history.best_nll,
        "validation_standard_error": float(nll.std(ddof=1) / math.sqrt(len(nll))),
        "validation_solver_error": model.solver_error(x[few], context=None if context is None else context[few]),
    }
    history.records.append(record)


def _digest(flow: Flow) -> str:
    """Return the SHA-256 of all weights."""
    digest = hashlib.sha256()
    for name, value in flow.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
