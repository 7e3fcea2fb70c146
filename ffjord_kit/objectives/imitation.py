r"""Imitation: a field learns another one, at points of its paths, with its slope along a random direction.

    L = mean |f(t, x) - f*(t, x)|^2 + weight |J v - J* v|^2,    v_i = -1 or 1 at random

The velocity alone would not do: the log-density integrates the trace of J. Targets are exact, so that far fewer steps
are needed than to learn a field from data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ffjord_kit.data import Batch
from ffjord_kit.objectives.base import Loss, Objective
from ffjord_kit.trace import HutchinsonTrace, evaluate_field


@dataclass(frozen=True)
class Imitation(Objective[nn.Module]):
    """The squared error of a field and of its slope, on points made by `points_to_imitate`.

    Args:
        weight: Weight of the slope.
        name: Word for logs.

    Example:
        >>> from ffjord_kit import ResidualDynamics
        >>> field = ResidualDynamics((2,))
        >>> points = points_to_imitate(field, torch.rand(8), Batch(torch.randn(8, 2)), torch.Generator())
        >>> Imitation().loss(field, points, torch.Generator()).value.item()
        0.0
    """

    weight: float = 0.1
    name: str = "imitation"

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Loss:
        size = (batch.x.shape[1] - 1) // 4
        t, x, probe, velocity, product = batch.x.split([1, size, size, size, size], dim=1)
        point = evaluate_field(model, t[:, 0], x, probe[None], batch.context)
        errors = [
            (found - target).square().sum(1).mean()
            for found, target in ((point.dx, velocity), (point.products[0], product))
        ]
        return Loss(errors[0] + self.weight * errors[1], {"velocity": errors[0], "slope": errors[1]})


@torch.no_grad()
def points_to_imitate(field: nn.Module, t: Tensor, batch: Batch, generator: torch.Generator) -> Batch:
    """Return points with what a field is there, for `Imitation`.

    Args:
        field: Field to imitate, of events with one axis.
        t: Times, shape (n,).
        batch: States, shape (n, d), and contexts.
        generator: Source of the random directions.

    Returns:
        Rows of time, state, direction, velocity and slope along it, shape (n, 1 + 4 d), and contexts.
    """
    probes = HutchinsonTrace().draw(batch.x, generator)
    point = evaluate_field(field, t, batch.x, probes, batch.context)
    return batch.with_x(torch.cat([t[:, None], batch.x, probes[0], point.dx, point.products[0]], dim=1))
