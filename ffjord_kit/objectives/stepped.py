r"""Maximum likelihood through explicit steps, with each step held monotone.

    L = -(1/n) sum_i log p(x_i) + w (1/m) sum_j sum_k max(0, margin - lambda_kj)^2

lambda_kj is the lowest eigenvalue of the symmetric part of the Jacobian of step k at point j: the rows, and points near
them. Where all are positive the steps are injective, and the exact determinants make a density. Without the second term
training finds steps that fold, whose likelihood is worthless.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.noise import standard_normal
from ffjord_kit.objectives.base import Loss, Objective
from ffjord_kit.transforms.base import Transform
from ffjord_kit.transforms.stepped import Stepped


@dataclass(frozen=True)
class SteppedLikelihood(Objective[Flow]):
    """The mean negative log-likelihood of a flow of explicit steps from the data, and a penalty on steps that may fold.

    Args:
        weight: Weight w of the penalty; 0 for none.
        margin: Eigenvalue below which a step is penalised.
        spread: Least and largest standard deviation of the points around rows, one for each.
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

    weight: float = 100.0
    margin: float = 0.1
    spread: tuple[float, float] = (0.1, 1.6)
    name: str = "stepped"

    def __post_init__(self) -> None:
        if self.weight < 0 or not min(self.spread) > 0:
            raise ValueError(f"weight must not be negative, and spread positive; got {self.weight} and {self.spread}")

    def loss(self, model: Flow, batch: Batch, generator: torch.Generator) -> Loss:
        rows = len(batch)
        points = self._with_neighbours(batch, generator) if self.weight else batch
        x, log_det, penalty = points.x, points.x.new_zeros(len(points)), points.x.new_zeros(())
        for transform in cast(Iterable[Transform], model.transforms):
            if not isinstance(transform, Stepped):
                x, change = transform.to_base(x, points.context)
                log_det = log_det + change
                continue
            if transform.explicit_from != "data":
                raise ValueError("training by likelihood takes steps from the data: explicit_from='data'")
            for step in transform.walk(x, points.context):
                x, log_det = step.y, log_det + step.log_det.to(log_det)
                if self.weight:
                    penalty = penalty + (self.margin - lowest_eigenvalues(step.jacobian)).relu().square().mean()
        nll = -(model.base.log_prob(x[:rows]) + log_det[:rows]).mean()
        return Loss(nll + self.weight * penalty, {"nll": nll, "monotonicity": penalty})

    def _with_neighbours(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the rows, and a point near each, at distances of every order."""
        low, high = self.spread
        share = torch.rand(len(batch), *[1] * (batch.x.ndim - 1), generator=generator, device=generator.device)
        distance = (low * (high / low) ** share).to(batch.x)
        near = batch.x + distance * standard_normal(batch.x.shape, batch.x, generator)
        context = None if batch.context is None else batch.context.repeat(2, 1)
        return Batch(torch.cat([batch.x, near]), context)


def lowest_eigenvalues(jacobian: Tensor) -> Tensor:
    """Return the lowest eigenvalues of the symmetric parts of matrices.

    Args:
        jacobian: Matrices, shape (batch, d, d).

    Returns:
        Eigenvalues, shape (batch,).
    """
    return torch.linalg.eigvalsh(0.5 * (jacobian + jacobian.mT))[:, 0]
