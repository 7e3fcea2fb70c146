r"""Reflow: flow matching on the pairs that a trained flow joins, so that sampling takes a few steps.

    z ~ base,   x = to_data(z) by a converged solve,   L = E_t |f(t, (1 - t) z + t x) - (x - z)|^2

(Liu et al. 2023). The straight lines between the pairs hardly cross, so the field that fits them is nearly constant
along its paths. It carries the base to the distribution of the old flow, up to the error of the fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.objectives.base import Loss, Objective
from ffjord_kit.objectives.flow_matching import FlowMatching, split_transforms


@dataclass(frozen=True)
class Reflow(Objective[Flow]):
    """Flow matching on given pairs of end points.

    The rows of a batch hold both end points, shape (batch, 2, *event), the base's side first: see `stack_pairs`.

    Args:
        matching: Flow matching, whose time density is used.
        name: Word for logs.

    Example:
        >>> from ffjord_kit import CNF, Flow, ResidualDynamics
        >>> from ffjord_kit.data import Batch
        >>> flow = Flow([CNF(ResidualDynamics((2,)), (2,))])
        >>> start = torch.zeros(8, 2)
        >>> batch = Batch(stack_pairs(start, start + 3))
        >>> Reflow().loss(flow, batch, torch.Generator()).value.item()  # an untrained field is zero
        9.0

    References:
        Liu et al. 2023, https://arxiv.org/abs/2209.03003.
    """

    matching: FlowMatching = field(default_factory=FlowMatching)
    name: str = "reflow"

    def loss(self, model: Flow, batch: Batch, generator: torch.Generator) -> Loss:
        start, end = batch.x.unbind(1)
        return self.matching.match(split_transforms(model)[1], start, batch.with_x(end), generator)


def stack_pairs(start: Tensor, end: Tensor) -> Tensor:
    """Stack the end points of pairs as rows for `Reflow`.

    Args:
        start: End points on the side of the base, shape (n, *event).
        end: End points on the side of the data, shape (n, *event).

    Returns:
        Pairs, shape (n, 2, *event).
    """
    return torch.stack([start, end], 1)
