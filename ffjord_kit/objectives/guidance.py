r"""Classes as context: a one-hot vector, and zeros where the class is not told.

Trained with the class left out of a share of the rows, one network knows p(x | c) and p(x); samples may then follow

    v(t, x) = v(t, x, none) + w (v(t, x, c) - v(t, x, none)),

with w > 1 further into the class than the data are (classifier-free guidance, Ho & Salimans 2021): such draws have no
likelihood of the model's. By Bayes' rule a conditional flow is a classifier, P(c | x) = p(x | c) P(c) / sum of all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow, with_transforms
from ffjord_kit.objectives.base import Loss, Objective
from ffjord_kit.transforms.cnf import CNF


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels (n,), 0 to classes - 1, as contexts (n, classes). Raises ValueError for others."""
    if labels.dim() != 1 or not bool(((labels >= 0) & (labels < classes)).all()):
        raise ValueError(f"labels must have shape (n,) and lie in 0 .. {classes - 1}; got {tuple(labels.shape)}")
    return F.one_hot(labels.long(), classes).double()


@dataclass(frozen=True)
class DropContext(Objective):
    """An objective whose context is left out, all zeros, of a `share` of the rows.

    Raises ValueError unless 0 <= share <= 1.
    """

    objective: Objective
    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie in [0, 1]; got {self.share}")

    @property
    def name(self) -> str:
        """That of the objective."""
        return self.objective.name

    def loss(self, model: Flow, batch: Batch, generator: torch.Generator) -> Loss:
        if batch.context is None:
            raise ValueError("there is no context to leave out: pass context=, or the objective itself")
        draws = torch.rand(len(batch), 1, generator=generator, device=generator.device)
        dropped = draws.to(batch.context.device) < self.share
        return self.objective.loss(model, Batch(batch.x, torch.where(dropped, 0.0, batch.context)), generator)


class Guided(nn.Module):
    """Dynamics that follow their context by a `strength`: 0 not at all, 1 as they were trained, more beyond."""

    def __init__(self, dynamics: nn.Module, strength: float) -> None:
        super().__init__()
        self.dynamics, self.strength = dynamics, strength

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Shapes: t () or (batch,), x (batch, *event), context (batch, context_dim) -> (batch, *event)."""
        free = self.dynamics(t, x, torch.zeros_like(context))
        return torch.lerp(free, self.dynamics(t, x, context), self.strength)


def guided(flow: Flow, strength: float) -> Flow:
    """The flow with guided dynamics, for sampling; its weights are those of the flow, which stays as it is.

    Raises ValueError for a flow without context.
    """
    if not flow.context_dim:
        raise ValueError("guidance needs a conditional flow: this one takes no context")

    def stronger(layer: nn.Module) -> nn.Module:
        if not isinstance(layer, CNF):
            return layer
        return CNF(Guided(layer.dynamics, strength), layer.event_shape, solver=layer.solver, end_time=layer.end_time)

    return with_transforms(flow, [stronger(transform) for transform in flow.transforms])


def class_log_probs(
    log_prob: Callable[[Tensor, Tensor], Tensor], x: Tensor, classes: int, *, log_prior: Tensor | None = None
) -> Tensor:
    """log P(c | x) by Bayes' rule, (n, classes), from `log_prob(x, context)`, such as a flow's.

    The prior is uniform if None. Shapes: x (n, *event), log_prior (classes,).
    """
    told = one_hot(torch.arange(classes), classes).to(x)
    joint = torch.stack([log_prob(x, context.expand(len(x), -1)) for context in told], dim=1)
    return (joint if log_prior is None else joint + log_prior).log_softmax(dim=1)
