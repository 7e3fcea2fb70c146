r"""Maximum likelihood through explicit steps, with each step held monotone.

    L = -(1/n) sum_i log p(x_i) + w (1/m) sum_j sum_k max(0, margin - lambda_kj)^2

lambda_kj is the lowest eigenvalue of the symmetric part of the Jacobian J_k of step k at point j: the rows, and points
near and far from them. Where all are positive the steps are injective, and the exact determinants make a density.
Without the second term training finds steps that fold, whose likelihood is worthless.

For more than a few columns only the value carries the whole frame of tangents. Its gradient needs two of them,

    d log|det J| = tr(J^-1 dJ) = E[(J^-T v)^T dJ v],  E[v v^T] = I,      d lambda = u^T dJ u,

with u the eigenvector of lambda: it has no bias, and takes a fraction of the time and memory.

References:
    Minty 1962, Monotone (nonlinear) operators in Hilbert space; Hutchinson 1990, A stochastic estimator of the trace.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.noise import standard_normal
from ffjord_kit.objectives.base import Loss, Objective
from ffjord_kit.objectives.deconvolution import mean_over_draws, noise_removed
from ffjord_kit.transforms.base import Transform
from ffjord_kit.transforms.stepped import Step, Stepped

SPREAD = (0.1, 10.0)  # standard deviations of points around rows, in preprocessed units
# Share of points at and near rows where a step may fold. The condition suffices, and is not necessary: on the digits
# 0.7 % miss it, and no base point has a second preimage. The receipt, which looks for these, decides.
MOST_UNCERTIFIED = 2e-2
FEW_COLUMNS = 4  # up to here the gradient carries the whole frame too


class _Points(NamedTuple):
    """Points at the end of some steps, with the log-determinants of the rows and the penalty."""

    x: Tensor
    log_det: Tensor
    penalty: Tensor


@dataclass(frozen=True)
class SteppedLikelihood(Objective[Flow]):
    """The mean negative log-likelihood of a flow of explicit steps from the data, and a penalty on steps that may fold.

    Args:
        weight: Weight w of the penalty; 0 for none.
        margin: Eigenvalue below which a step is penalised.
        spread: Least and largest standard deviation of the points around rows.
        share: Number of points around rows, as a share of the rows.
        draws: Number of draws of the measurement error of each row, where rows have any.
        name: Word for logs and schedules.

    Raises:
        ValueError: If the weight is negative, or a spread not positive; from `loss`, if the steps begin at the base.

    Example:
        >>> from ffjord_kit import Flow, ResidualDynamics
        >>> from ffjord_kit.transforms import Stepped
        >>> flow = Flow([Stepped(ResidualDynamics((2,)), (2,), steps=4)])
        >>> loss = SteppedLikelihood().loss(flow, Batch(torch.randn(8, 2)), torch.Generator().manual_seed(0))
        >>> sorted(loss.terms), loss.terms["monotonicity"].item()  # an untrained network is the identity
        (['monotonicity', 'nll'], 0.0)
    """

    weight: float = 1000.0
    margin: float = 0.1
    spread: tuple[float, float] = SPREAD
    share: float = 0.25
    draws: int = 16
    name: str = "steps"

    def __post_init__(self) -> None:
        if self.weight < 0 or not min(self.spread) > 0 or not 0 <= self.share <= 1:
            raise ValueError(
                f"weight must not be negative, spread positive, and share in [0, 1]; got {self.weight}, {self.spread} "
                f"and {self.share}"
            )

    def loss(self, model: Flow, batch: Batch, generator: torch.Generator) -> Loss:
        seen = noise_removed(batch, self.draws, generator)
        rows, share = len(seen), self.share * len(batch) / len(seen)
        points = with_neighbours(seen, generator, self.spread, share) if self.weight else seen
        points = points.with_x(model.base.project(points.x))
        x, log_det, penalty = points.x, points.x.new_zeros(rows), points.x.new_zeros(())
        for transform in cast(Iterable[Transform], model.transforms):
            if not isinstance(transform, Stepped):
                x, change = transform.to_base(x, points.context)
                log_det = log_det + change[:rows]
                continue
            if transform.explicit_from != "data":
                raise ValueError("training by likelihood takes steps from the data: explicit_from='data'")
            few = x[0].numel() <= FEW_COLUMNS or not torch.is_grad_enabled()
            walk = self._by_frames if few else self._by_two_tangents
            x, change, folds = walk(transform, points.with_x(x), rows, generator)
            log_det, penalty = log_det + change, penalty + folds
        nll = -batch.mean(mean_over_draws(model.base.log_prob(x[:rows]) + log_det, len(batch)))
        return Loss(nll + self.weight * penalty, {"nll": nll, "monotonicity": penalty})

    def _by_frames(self, transform: Stepped, points: Batch, rows: int, generator: torch.Generator) -> _Points:
        """Carry the whole frame: the gradient is exact."""
        x = points.x
        log_det, penalty = x.new_zeros(rows), x.new_zeros(())
        for step in transform.walk(x, points.context):
            x, log_det = step.y, log_det + step.log_det[:rows].to(log_det)
            if self.weight:
                penalty = penalty + points.size_mean(self._shortfall(lowest_eigenvalues(step.jacobian)).square())
        return _Points(x, log_det, penalty)

    def _by_two_tangents(self, transform: Stepped, points: Batch, rows: int, generator: torch.Generator) -> _Points:
        """Carry the whole frame for the values, and two tangents of each step for their gradient."""
        x, context = points.x, points.context
        with torch.no_grad():
            seen = [self._seen(step, rows, generator) for step in transform.walk(x, context)]
        log_det = torch.stack([each.log_det for each in seen]).sum(0)
        penalty = torch.stack([points.size_mean(each.shortfall.square()) for each in seen]).sum()
        for each, (y, products) in zip(
            seen, transform.push_forward(x, [each.tangents for each in seen], context), strict=True
        ):
            x, along = y, (each.cotangents * products).flatten(2).sum(2)
            log_det = _with_gradient(log_det, along[0, :rows])
            penalty = _with_gradient(penalty, -points.size_mean(2 * each.shortfall * along[1]))
        return _Points(x, log_det, penalty)

    def _seen(self, step: Step, rows: int, generator: torch.Generator) -> _Seen:
        """Return the values at a step, and the tangents and cotangents that their gradient needs."""
        _, log_det = torch.linalg.slogdet(step.jacobian[:rows].double())
        lowest, u = _lowest_eigenpairs(step.jacobian)
        v = torch.sign(standard_normal(step.x.shape, step.x, generator)).flatten(1)
        w = torch.linalg.solve_ex(step.jacobian.mT, v[..., None])[0].squeeze(-1)
        w = torch.where(w.isfinite().all(1, keepdim=True), w, 0.0)
        shape = (2, *step.x.shape)
        return _Seen(
            log_det.to(step.x), self._shortfall(lowest),
            torch.stack([v, u]).reshape(shape), torch.stack([w, u]).reshape(shape),
        )  # fmt: skip

    def _shortfall(self, lowest: Tensor) -> Tensor:
        """Return by how much eigenvalues fall short of the margin."""
        return (self.margin - lowest).relu()


class _Seen(NamedTuple):
    """Values at one step, and the tangents (2, batch, *event) and cotangents of their gradient."""

    log_det: Tensor
    shortfall: Tensor
    tangents: Tensor
    cotangents: Tensor


def with_neighbours(
    batch: Batch, generator: torch.Generator, spread: tuple[float, float] = SPREAD, share: float = 1.0
) -> Batch:
    """Return rows, and points around some of them, at distances of every order.

    Args:
        batch: Rows, shape (n, *event), and contexts.
        generator: Source of the points.
        spread: Least and largest standard deviation of a point from its row.
        share: Number of points, as a share of the rows.

    Returns:
        The rows and the points, which have the contexts and weights of their rows.
    """
    (low, high), some = spread, batch[: max(1, round(share * len(batch)))]
    order = torch.rand(len(some), *[1] * (batch.x.ndim - 1), generator=generator, device=generator.device)
    distance = (low * (high / low) ** order).to(batch.x)
    near = some.x + distance * standard_normal(some.x.shape, some.x, generator)
    return batch.joined(some.with_x(near))


def lowest_eigenvalue(flow: Flow, points: Batch) -> Tensor:
    """Return the lowest eigenvalue of all steps on the way of each point.

    Args:
        flow: Flow with explicit steps from the data, without preprocessing.
        points: Points, shape (batch, *event), and contexts.

    Returns:
        Eigenvalues of the symmetric parts of the steps' Jacobians, shape (batch,).
    """
    x, lowest = points.x, points.x.new_full((len(points),), math.inf)
    for transform in cast(Iterable[Transform], flow.transforms):
        if isinstance(transform, Stepped):
            for step in transform.walk(x, points.context):
                x, lowest = step.y, torch.minimum(lowest, lowest_eigenvalues(step.jacobian))
        else:
            x, _ = transform.to_base(x, points.context)
    return lowest


def lowest_eigenvalues(jacobian: Tensor) -> Tensor:
    """Return the lowest eigenvalues of the symmetric parts of matrices.

    Args:
        jacobian: Matrices, shape (batch, d, d).

    Returns:
        Eigenvalues, shape (batch,).
    """
    return torch.linalg.eigvalsh(0.5 * (jacobian + jacobian.mT))[:, 0]


def _lowest_eigenpairs(jacobian: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest eigenvalues of the symmetric parts of matrices, and their eigenvectors, shape (batch, d)."""
    values, vectors = torch.linalg.eigh(0.5 * (jacobian + jacobian.mT))
    return values[:, 0], vectors[..., 0]


def _with_gradient(value: Tensor, slope: Tensor) -> Tensor:
    """Return a value as it is, with the gradient of another added."""
    return value + (slope - slope.detach())
