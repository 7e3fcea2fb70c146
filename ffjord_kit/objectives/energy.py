r"""Density matching: a flow for an unnormalised density, where there is an energy E and no data.

The target is p(x) = exp(-E(x)) / Z. With draws x of the flow q and weights w = exp(-E(x)) / q(x),

    KL(q || p) = log Z - ELBO,    ELBO = E_q[log w] <= log Z = log E_q[w],    ESS = (sum w)^2 / sum w^2.

The loss is -ELBO. Its least value is reached at q = p, but a flow may leave out a mode that it has never drawn from:
this direction of the divergence and the effective sample size do not see what q does not draw.

References:
    Rezende & Mohamed 2015, Variational inference with normalizing flows, https://arxiv.org/abs/1505.05770.
    Kong 1992, A note on importance sampling using standardized weights (ESS).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.objectives.base import Loss, Objective
from ffjord_kit.ode import Solver, SolverStats
from ffjord_kit.segments import carry, path_to_base, reverse
from ffjord_kit.trace import ExactTrace, TraceEstimator
from ffjord_kit.transforms.base import Transform
from ffjord_kit.transforms.cnf import SolveOptions

Energy = Callable[[Tensor], Tensor]  # from x (batch, *event) to E (batch,), nats

DRAWS_AT_ONCE = 5000


@dataclass(frozen=True)
class EnergyMatching(Objective[Flow]):
    """The negative evidence lower bound of a flow's draws, which is KL(q || p) up to the constant log Z.

    The rows of a batch are draws of the base (`BaseDraws` of the training room makes them).

    Args:
        energy: Energy E, from x (batch, *event) to (batch,), nats.
        trace: Trace estimator.
        solver: Solver of all continuous transforms; their own if None.
        name: Word for logs.

    Example:
        >>> from ffjord_kit import CNF, ConcatDynamics
        >>> flow = Flow([CNF(ConcatDynamics((2,)), (2,))])
        >>> objective = EnergyMatching(lambda x: 0.5 * (x - 1).square().sum(1))
        >>> sorted(objective.loss(flow, Batch(torch.randn(8, 2)), torch.Generator()).terms)
        ['elbo', 'ess']
    """

    energy: Energy
    trace: TraceEstimator = field(default_factory=ExactTrace)
    solver: Solver | None = None
    name: str = "energy"

    def loss(self, model: Flow, batch: Batch, generator: torch.Generator) -> Loss:
        log_weights, stats = _log_weights(
            model, self.energy, batch.x, SolveOptions(self.trace, self.solver, {}, generator)
        )
        elbo = log_weights.mean()
        terms = {"elbo": elbo, "ess": effective_sample_size(log_weights.detach()) / len(batch)}
        return Loss(-elbo, terms, stats)


@dataclass(frozen=True)
class Evidence:
    """A flow's account of an unnormalised density.

    Attributes:
        elbo: Evidence lower bound, nats.
        elbo_error: Its standard error, nats.
        log_evidence: log Z by importance sampling, nats; the flow must cover the target.
        log_evidence_error: Its standard error, nats.
        effective_sample_size: Number of independent draws of the target that the weighted draws are worth.
        draws: Number of draws.

    Example:
        >>> print(Evidence(0.9189, 0.0, 0.9189, 0.0, 1000, 1000))
        ELBO 0.9189 ± 0.0000 nats, log Z 0.9189 ± 0.0000, 1000 effective of 1000 draws
    """

    elbo: float
    elbo_error: float
    log_evidence: float
    log_evidence_error: float
    effective_sample_size: float
    draws: int

    def __str__(self) -> str:
        return (
            f"ELBO {self.elbo:.4f} ± {self.elbo_error:.4f} nats, log Z {self.log_evidence:.4f} ± "
            f"{self.log_evidence_error:.4f}, {self.effective_sample_size:.0f} effective of {self.draws} draws"
        )


@torch.no_grad()
def evidence(
    flow: Flow,
    energy: Energy,
    *,
    draws: int = 10_000,
    solver: Solver | None = None,
    generator: torch.Generator | None = None,
) -> Evidence:
    """Measure how well a flow covers an unnormalised density, by importance sampling.

    Args:
        flow: Flow, without preprocessing and contexts.
        energy: Energy E, from x (batch, *event) to (batch,), nats.
        draws: Number of draws, at least 2.
        solver: Solver of all continuous transforms; their own if None.
        generator: Source of the draws.

    Returns:
        The evidence lower bound, the evidence and the effective sample size.

    Raises:
        ValueError: If there are too few draws, or the flow or the energy cannot be used.

    Example:
        >>> flow = Flow([], base=torch.distributions.Independent(torch.distributions.Normal(torch.zeros(1), 1.0), 1))
        >>> round(evidence(flow, lambda x: 0.5 * x.square().sum(1)).elbo, 4)  # log sqrt(2 pi)
        0.9189
    """
    if draws < 2:
        raise ValueError(f"draws must be at least 2; got {draws}")
    z, options = flow.base.sample(draws, generator), SolveOptions(solver=solver, generator=generator)
    log_weights = torch.cat([_log_weights(flow, energy, part, options)[0] for part in z.split(DRAWS_AT_ONCE)]).double()
    relative = (log_weights - log_weights.max()).exp()
    return Evidence(
        elbo=float(log_weights.mean()), elbo_error=float(log_weights.std()) / math.sqrt(draws),
        log_evidence=float(log_weights.logsumexp(0)) - math.log(draws),
        log_evidence_error=float(relative.std() / relative.mean()) / math.sqrt(draws),
        effective_sample_size=float(effective_sample_size(log_weights)), draws=draws,
    )  # fmt: skip


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Return the number of equal weights that would be worth as much.

    Args:
        log_weights: Logarithms of the weights, shape (n,).

    Returns:
        (sum w)^2 / sum w^2, from 1 to n, ().

    Example:
        >>> effective_sample_size(torch.tensor([0.0, 0.0, -100.0])).item()  # the third has no weight
        2.0
    """
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()


def check_flow(flow: Flow) -> None:
    """Check that a flow can be matched to an energy.

    Args:
        flow: Flow.

    Raises:
        ValueError: If it has preprocessing or takes contexts.
    """
    if not flow.preprocess.identity:
        raise ValueError("a flow for an energy has no data to preprocess: pass its maps in transforms, not preprocess")
    if flow.context_dim:
        raise ValueError(f"a flow for an energy takes no context; got context_dim={flow.context_dim}: leave it out")


def _log_weights(
    flow: Flow, energy: Energy, z: Tensor, options: SolveOptions
) -> tuple[Tensor, tuple[SolverStats, ...]]:
    """Return log w of the draws that come from z, (batch,), and the counts of the solves."""
    check_flow(flow)
    path = path_to_base(cast("list[Transform]", list(flow.transforms)))
    moved = carry(Batch(z), reverse(path), options)
    values = energy(moved.x)
    if not isinstance(values, Tensor) or values.shape != (len(z),):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"the energy must return one number for each row, shape ({len(z)},); got {got}")
    return -values - flow.base.log_prob(z) + moved.required_log_det, moved.stats
