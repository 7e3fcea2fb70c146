r"""Maximum likelihood, of the whole flow or of its exact transforms alone.

Both minimise the mean negative log-likelihood of the rows x_1 .. x_n of a batch,

    L = -(1/n) sum_i log p(x_i) + sum_k w_k (1/n) sum_i C_k(x_i),

where C_k are costs along the paths of a continuous flow (see `ffjord_kit.regularizers`) with weights w_k >= 0. Where
rows have weights, of mean 1 over all rows, each sum over i is weighted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.objectives.base import Loss, Objective, SolvedObjective
from ffjord_kit.ode import Solver
from ffjord_kit.regularizers import REGULARIZERS
from ffjord_kit.trace import HutchinsonTrace, TraceEstimator
from ffjord_kit.transforms.base import Transform
from ffjord_kit.transforms.cnf import SolveOptions


@dataclass(frozen=True)
class MaximumLikelihood(SolvedObjective[Flow]):
    """The mean negative log-likelihood of a flow, with weighted costs along the paths.

    Args:
        trace: Trace estimator.
        regularizers: Weights of the costs, by words of REGULARIZERS.
        solver: Solver of all continuous transforms; their own if None.
        steer: Half-width s of the distribution U(T - s T, T + s T) of the end time, as a share of the end time T. One
            end time is drawn for each step, so that the flow settles near T and is not stiff there.
        name: Word for logs and schedules.

    Raises:
        ValueError: Unless 0 <= steer < 1.

    Example:
        >>> import torch
        >>> from ffjord_kit import CNF, ConcatDynamics, FixedSolver, Flow
        >>> from ffjord_kit.data import Batch
        >>> flow = Flow([CNF(ConcatDynamics((2,)), (2,), solver=FixedSolver("rk4", 4))])
        >>> objective = MaximumLikelihood(regularizers={"kinetic": 0.01})
        >>> loss = objective.loss(flow, Batch(torch.randn(8, 2)), torch.Generator().manual_seed(0))
        >>> sorted(loss.terms), loss.stats[0].nfe
        (['kinetic', 'nll'], 16)

    References:
        Grathwohl et al. 2019, FFJORD, https://arxiv.org/abs/1810.01367.
        Finlay et al. 2020 (costs along the paths), https://arxiv.org/abs/2002.02798.
        Behl et al. 2020 (STEER), https://arxiv.org/abs/2006.10711.
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
        terms = {"nll": -batch.mean(log_prob), **{word: batch.mean(cost) for word, cost in moved.costs.items()}}
        value = terms["nll"] + sum(weight * terms[word] for word, weight in self.regularizers.items())
        return Loss(value, terms, moved.stats)

    def row_losses(self, model: Flow, batch: Batch, generator: torch.Generator, solver: Solver) -> Tensor:
        options = SolveOptions(self.trace, solver, {}, generator, self.steer)
        return -model.evaluate_log_prob(batch.x, batch.context, options=options)[0]

    def with_solver(self, solver: Solver) -> MaximumLikelihood:
        return replace(self, solver=solver)


@dataclass(frozen=True)
class TransformsLikelihood(Objective[Flow]):
    """The mean negative log-likelihood of a flow's exact transforms, without its continuous ones.

    `loss` raises ValueError for a flow whose exact transforms have no weights.

    Args:
        name: Word for logs and schedules.

    Example:
        >>> import torch
        >>> from ffjord_kit import CNF, ConcatDynamics, Flow
        >>> from ffjord_kit.data import Batch
        >>> flow = Flow([CNF(ConcatDynamics((2,)), (2,))])
        >>> TransformsLikelihood().loss(flow, Batch(torch.zeros(8, 2)), torch.Generator())
        Traceback (most recent call last):
        ValueError: no exact transform of this flow has weights to train: pass transforms='maf:3', or 'mle'
    """

    name: str = "transforms"

    def loss(self, model: Flow, batch: Batch, generator: torch.Generator) -> Loss:
        transforms = cast(Iterable[Transform], model.transforms)  # a ModuleList says Module
        exact = [transform for transform in transforms if not transform.duration]
        if not any(list(transform.parameters()) for transform in exact):
            raise ValueError("no exact transform of this flow has weights to train: pass transforms='maf:3', or 'mle'")
        x, log_det = batch.x, batch.x.new_zeros(len(batch))
        for transform in exact:
            x, step = transform.to_base(x, batch.context)
            log_det = log_det + step
        value = -batch.mean(model.base.log_prob(x) + log_det)
        return Loss(value, {"nll": value})
