r"""Maximum likelihood, of the whole flow or of its exact transforms alone.

    MaximumLikelihood      -E[log p(x)] + sum_i weight_i E[cost_i]      (FFJORD, Grathwohl et al. 2019; RNODE's costs)
    TransformsLikelihood   -E[log p(x)] of the flow without its continuous transforms
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.objectives.base import Loss, Objective, SolvedObjective
from ffjord_kit.ode import Solver
from ffjord_kit.regularizers import REGULARIZERS
from ffjord_kit.trace import HutchinsonTrace, TraceEstimator
from ffjord_kit.transforms.cnf import SolveOptions


@dataclass(frozen=True)
class MaximumLikelihood(SolvedObjective):
    """Plain FFJORD: the mean negative log-likelihood, with weighted costs along the path.

    Args:
        trace: Trace estimator.
        regularizers: Weights by words of REGULARIZERS.
        solver: Solver of all continuous transforms; their own if None.
        steer: Half-width s, as a part of the end time T, of U(T - s T, T + s T), from which the end time of each step's
            solve is drawn, so that the flow settles about T and is not stiff there (STEER, Behl et al. 2020).
        name: Word for logs and schedules.

    Raises:
        ValueError: Unless 0 <= steer < 1.
    """

    trace: TraceEstimator = field(default_factory=HutchinsonTrace)
    regularizers: Mapping[str, float] = field(default_factory=dict)
    solver: Solver | None = None
    steer: float = 0.0
    name: str = "mle"

    def __post_init__(self) -> None:
        if not 0 <= self.steer < 1:
            raise ValueError(f"steer must be in [0, 1), a part of the end time; got {self.steer}")

    def loss(self, model: Flow, batch: Batch, generator: torch.Generator) -> Loss:
        costs = {word: REGULARIZERS[word] for word in self.regularizers}
        options = SolveOptions(self.trace, self.solver, costs, generator, self.steer)
        log_prob, moved = model.evaluate_log_prob(batch.x, batch.context, options=options)
        terms = {"nll": -log_prob.mean(), **{word: cost.mean() for word, cost in moved.costs.items()}}
        value = terms["nll"] + sum(weight * terms[word] for word, weight in self.regularizers.items())
        return Loss(value, terms, moved.stats)

    def row_losses(self, model: Flow, batch: Batch, generator: torch.Generator, solver: Solver) -> Tensor:
        options = SolveOptions(self.trace, solver, {}, generator, self.steer)
        return -model.evaluate_log_prob(batch.x, batch.context, options=options)[0]

    def with_solver(self, solver: Solver) -> MaximumLikelihood:
        return replace(self, solver=solver)


@dataclass(frozen=True)
class TransformsLikelihood(Objective):
    """The mean negative log-likelihood of a flow's exact transforms alone, its continuous ones left out.

    Args:
        name: Word for logs and schedules.

    Raises:
        ValueError: From `loss`, for a flow whose exact transforms have nothing to learn.
    """

    name: str = "transforms"

    def loss(self, model: Flow, batch: Batch, generator: torch.Generator) -> Loss:
        exact = [transform for transform in model.transforms if not transform.duration]
        if not any(list(transform.parameters()) for transform in exact):
            raise ValueError("no exact transform of this flow has weights to train: pass transforms='maf:3', or 'mle'")
        x, log_det = batch.x, batch.x.new_zeros(len(batch))
        for transform in exact:
            x, step = transform.to_base(x, batch.context)
            log_det = log_det + step
        value = -(model.base.log_prob(x) + log_det).mean()
        return Loss(value, {"nll": value})
