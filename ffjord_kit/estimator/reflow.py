r"""Straightening: flow matching again on a flow's own pairs, so that sampling takes a few steps.

    z ~ base,   x = to_data(z) by a converged solve,   then   E_t |f(t, (1 - t) z + t x) - (x - z)|^2

(reflow, Liu et al. 2023). The pairs are what the flow joins, so their lines hardly cross: the field that fits them is
nearly constant along its paths, and carries the base to the law that the old flow had, to the error of the fit. A new
network is relieved of what is linear: an affine layer brings the ends x to mean 0 and covariance 1, and turns them
towards their beginnings z, so that lines are short and no direction of little variance makes the field stiff. The
density of the new flow is its own: it is solved for, and measured, as any other.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from ffjord_kit.base import StandardNormal
from ffjord_kit.cnf import Integration
from ffjord_kit.estimator import build
from ffjord_kit.estimator.arrays import check_context, facts, held_out_rows, seed_from, tensor
from ffjord_kit.estimator.few_steps import best_grading
from ffjord_kit.estimator.images import refuse_images
from ffjord_kit.estimator.networks import slow_layers, with_middle
from ffjord_kit.estimator.reports import evaluate_rows
from ffjord_kit.flow import Flow
from ffjord_kit.layers import Affine
from ffjord_kit.objectives import FlowMatching, split
from ffjord_kit.portions import drawn_at_once
from ffjord_kit.progress import progress_bar
from ffjord_kit.solver import FINEST_SINGLE, Solver
from ffjord_kit.training import Phase
from ffjord_kit.training.pairs import NAME, fit_pairs

if TYPE_CHECKING:
    from ffjord_kit.estimator.ffjord import FFJORD

PAIRS_OF_A_COLUMN = 10  # that a covariance takes, at least
JUDGED_ROWS = 32  # of the solver's error
TIME_DENSITY = "uniform"  # the weight of the likelihood leaves the early field, and so its straightness, unlearnt


@dataclass(frozen=True)
class Straightening:
    """How a flow is straightened: pairs to draw, steps of training on them, and their peak learning rate.

    `hidden` are the widths of a new network that learns the pairs (None: the old one goes on).
    Raises ValueError for numbers that are not positive.
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


def straightened(
    model: FFJORD,
    x: Any,
    context: Any,
    how: Straightening,
    random_state: Any,
    source: str | None,
    on_step: Callable[[dict[str, Any]], None] | None,
) -> FFJORD:
    """A new, fitted model whose continuous layers were trained on the pairs of the old one, which stays as it is."""
    refuse_images(model, "straighten", "sample it with few fixed steps")
    rows = None if x is None else np.asarray(x, np.float64)
    context = _contexts(model, rows, context)
    if rows is not None and facts(rows, context)["sha256"] != model.config_["sha256"]:
        raise ValueError("X and context must be the rows of the fit, all and in their order: others cannot validate it")
    seed = seed_from(random_state)
    rows = None if rows is None else model.grid.noisy(rows, model.seed_)
    held_out = None if rows is None else held_out_rows(rows, context, model.validation_fraction, model.seed_)
    drawn = context if held_out is None or context is None else held_out[0][1].numpy()
    made_from = {"source": source, "weights": _digest(model.flow_), "seed": seed, **asdict(how)}
    fresh = _successor(model, how.hidden, made_from)
    old = copy.deepcopy(model.flow_).float()
    start, end, c = _pairs(old, drawn, how.pairs, seed, max(model.tolerance, FINEST_SINGLE))
    aligning = _aligning(old, start, end) if how.hidden is not None else None
    if aligning is not None:
        end, made_from["aligned"] = aligning.to_base(end)[0], True
    flow = fresh.flow_ = copy.deepcopy(old) if how.hidden is None else _with_new_network(old, fresh, aligning, seed)
    for cnf in split(flow)[1]:
        cnf.requires_grad_(True)
    options = build.training_options(model.settled, model.event_shape_)
    phase = Phase(FlowMatching(TIME_DENSITY), how.steps, how.learning_rate)
    with progress_bar([phase], model.verbose, on_step, titles=[NAME]) as tell:
        fresh.history_ = fit_pairs(
            flow, start, end, c, phase=phase, batch_size=options["batch_size"], optimization=options["optimization"],
            seed=seed, on_step=tell,
        )  # fmt: skip
    fresh.settle()
    made_from["grading"] = best_grading(fresh, drawn, seed)
    if held_out is not None and held_out[1] is not None:
        _validate(fresh, *held_out[1])
    return fresh


def _contexts(model: FFJORD, rows: np.ndarray | None, context: Any) -> np.ndarray | None:
    dim = model.flow_.context_dim
    if dim and context is None:
        raise ValueError(
            f"this model is conditional, so its pairs need contexts: pass context=, rows (n, {dim}) like the fit's"
        )
    if not dim and context is not None:
        raise ValueError("this model takes no context: leave it out")
    if context is None:
        return None
    count = len(np.asarray(context)) if rows is None else len(rows)
    context = check_context(context, count, dim)
    if context.shape[1] != dim:
        raise ValueError(f"context must have shape (rows, {dim}); got {context.shape}")
    return context


@torch.no_grad()
def _pairs(
    flow: Flow, contexts: np.ndarray | None, count: int, seed: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The ends of the continuous layers' paths, and the contexts that they saw, drawn from those given."""
    _, cnfs, below = split(flow)
    like = next(cnfs[0].parameters())
    generator = torch.Generator().manual_seed(seed)
    start, context = flow.base.sample(count, generator), None
    if contexts is not None:
        chosen = tensor(contexts)[torch.randint(len(contexts), (count,), generator=generator)]
        context = flow.scaled_context(chosen.to(like))
    for layer in reversed(below):
        start, _ = layer.to_data(start, context)
    how = Integration(trace=None, solver=Solver("dopri5", tolerance, tolerance))
    ends = []
    size = drawn_at_once(flow.event_shape, start.device.type)
    for first in range(0, count, size):
        part, c = start[first : first + size], None if context is None else context[first : first + size]
        for cnf in reversed(cnfs):
            part = cnf.transport(part, [0.0, cnf.end_time], context=c, integration=how).x[-1]
        ends.append(part)
    return start, torch.cat(ends), context


def _successor(model: FFJORD, hidden: tuple[int, ...] | None, note: dict[str, Any]) -> FFJORD:
    """A model of the same fields, but for new widths, and columns; its configuration says what it was made from."""
    fresh = clone(model)
    changed = {} if hidden is None else {"hidden": hidden}
    fresh.set_params(**changed)
    for name, value in vars(model).items():
        if name.endswith("_") and name not in ("flow_", "history_", "config_"):
            setattr(fresh, name, value)
    made_from = [*model.config_.get("straightened", []), note]
    estimator = {**model.config_["estimator"], **changed}
    chosen = {name: word for name, word in model.config_.get("chosen", {}).items() if name not in changed}
    fresh.config_ = {**model.config_, "estimator": estimator, "chosen": chosen, "straightened": made_from}
    return fresh


def _aligning(flow: Flow, start: Tensor, end: Tensor) -> Affine | None:
    """The affine layer that brings the ends nearest to their beginnings; None where covariances are not to be had."""
    known = isinstance(flow.base, StandardNormal) and len(end) >= PAIRS_OF_A_COLUMN * end.shape[1]
    return Affine.aligning(start, end) if known else None


def _with_new_network(flow: Flow, model: FFJORD, aligning: Affine | None, seed: int) -> Flow:
    """The flow with untrained continuous layers in the place of its own, and what aligns their ends above them.

    Fast sinusoids of time would leave ripples for a solver to follow in a field that is to be constant along its paths.
    """
    layers = slow_layers(model.settled, model.event_shape_, flow.context_dim, seed)
    like = next(flow.parameters())
    return with_middle(flow, [*([] if aligning is None else [aligning]), *(layer.to(like) for layer in layers)])


def _validate(model: FFJORD, x: Tensor, context: Tensor | None) -> None:
    like = next(model.flow_.parameters())
    nll = -evaluate_rows(model, x.to(like), None if context is None else context.to(like)).log_prob
    history = model.history_
    history.best_nll, history.best_step = float(nll.mean()), history.step
    error = float(nll.std(ddof=1) / math.sqrt(len(nll)))
    few = slice(0, JUDGED_ROWS)
    solver_error = model.solver_error(x[few].numpy(), context=None if context is None else context[few].numpy())
    history.records.append(
        {"step": history.step, "phase": NAME, "seconds": round(history.seconds, 3),
         "validation_nll": history.best_nll, "validation_standard_error": error,
         "validation_solver_error": solver_error}
    )  # fmt: skip


def _digest(flow: Flow) -> str:
    """The SHA-256 of all weights."""
    digest = hashlib.sha256()
    for name, value in flow.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
