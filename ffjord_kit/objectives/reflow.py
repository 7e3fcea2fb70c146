r"""Reflow: flow matching on pairs of ends that belong together already, so that sampling takes a few steps.

    z ~ base,   x = to_data(z) by a converged solve,   then   E_t |f(t, (1 - t) z + t x) - (x - z)|^2

(Liu et al. 2023). The pairs are what a flow joins, so their lines hardly cross: the field that fits them is nearly constant
along its paths, and carries the base to the law of the old flow, to the error of the fit.
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
class Reflow(Objective):
    """Flow matching on given pairs.

    The rows of a batch hold both ends, stacked: shape (batch, 2, *event), the base's side first.

    Args:
        matching: Flow matching, whose time density is used.
        name: Word for logs.
    """

    matching: FlowMatching = field(default_factory=FlowMatching)
    name: str = "reflow"

    def loss(self, model: Flow, batch: Batch, generator: torch.Generator) -> Loss:
        start, end = batch.x.unbind(1)
        return self.matching.match(split_transforms(model)[1], start, batch.with_x(end), generator)


def stack_pairs(start: Tensor, end: Tensor) -> Tensor:
    """Stack the ends of pairs as the objective takes them.

    Args:
        start: Ends at the base's side, shape (n, *event).
        end: Ends at the data's side, shape (n, *event).

    Returns:
        Pairs, shape (n, 2, *event).
    """
    return torch.stack([start, end], 1)
