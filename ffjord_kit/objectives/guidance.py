r"""Classes as contexts, their random omission in training, and classifier-free guidance in sampling.

A class is a one-hot vector; zeros stand for no class. Trained with the class omitted in some rows, one network knows
p(x | c) and p(x), and samples may follow

    v(t, x) = v(t, x, none) + w (v(t, x, c) - v(t, x, none)),

which with w > 1 go further into the class than the data (classifier-free guidance): such samples do not follow the
model's density. By Bayes' rule a conditional flow is a classifier, P(c | x) = p(x | c) P(c) / sum_c' p(x | c') P(c').

References:
    Ho and Salimans 2021, Classifier-free diffusion guidance, https://arxiv.org/abs/2207.12598.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow, with_transforms
from ffjord_kit.objectives.base import Loss, Objective
from ffjord_kit.transforms.base import Transform
from ffjord_kit.transforms.cnf import CNF


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return class labels as one-hot contexts.

    Args:
        labels: Labels, 0 to classes - 1, shape (n,).
        classes: Number of classes.

    Returns:
        Contexts in float64, shape (n, classes).

    Raises:
        ValueError: If the labels have another shape or range.

    Example:
        >>> one_hot(torch.tensor([2, 0]), 3).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    if labels.dim() != 1 or not bool(((labels >= 0) & (labels < classes)).all()):
        raise ValueError(f"labels must have shape (n,) and lie in 0 .. {classes - 1}; got {tuple(labels.shape)}")
    return F.one_hot(labels.long(), classes).double()


@dataclass(frozen=True)
class DropContext(Objective):
    """An objective with the context of random rows set to zero.

    Args:
        objective: The objective.
        share: Probability that a row loses its context.

    Raises:
        ValueError: Unless 0 <= share <= 1; from `loss`, for a batch without contexts.

    Example:
        >>> from ffjord_kit.objectives import FlowMatching
        >>> DropContext(FlowMatching(), share=0.1).name
        'flow_matching'

    References:
        Ho and Salimans 2021, https://arxiv.org/abs/2207.12598.
    """

    objective: Objective
    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie in [0, 1]; got {self.share}")

    @property
    def name(self) -> str:
        """Word of the objective."""
        return self.objective.name

    def loss(self, model: Flow, batch: Batch, generator: torch.Generator) -> Loss:
        if batch.context is None:
            raise ValueError("there is no context to leave out: pass context=, or the objective itself")
        draws = torch.rand(len(batch), 1, generator=generator, device=generator.device)
        dropped = draws.to(batch.context.device) < self.share
        hidden = replace(batch, context=torch.where(dropped, 0.0, batch.context))
        return self.objective.loss(model, hidden, generator)


class GuidedField(nn.Module):
    """A vector field with classifier-free guidance, v(t, x, 0) + w (v(t, x, c) - v(t, x, 0)).

    Args:
        dynamics: Vector field v, trained with and without contexts.
        strength: Strength w; 0 ignores the context, 1 is the field itself.

    Example:
        >>> from ffjord_kit.nn import ConcatDynamics
        >>> field, c = ConcatDynamics((2,), context_dim=1), torch.ones(3, 1)
        >>> t, x = torch.tensor(0.5), torch.zeros(3, 2)
        >>> torch.allclose(GuidedField(field, 1.0)(t, x, c), field(t, x, c))
        True

    References:
        Ho and Salimans 2021, https://arxiv.org/abs/2207.12598.
    """

    def __init__(self, dynamics: nn.Module, strength: float) -> None:
        super().__init__()
        self.dynamics, self.strength = dynamics, strength

    def forward(self, t: Tensor, x: Tensor, context: Tensor) -> Tensor:
        """Return the guided velocity.

        Args:
            t: Time, () or (batch,).
            x: States, shape (batch, *event).
            context: Contexts, shape (batch, context_dim).

        Returns:
            dx/dt, shape (batch, *event).
        """
        unconditional = self.dynamics(t, x, torch.zeros_like(context))
        return torch.lerp(unconditional, self.dynamics(t, x, context), self.strength)


def guided(flow: Flow, strength: float) -> Flow:
    """Return a flow with guided vector fields, for sampling.

    Args:
        flow: Conditional flow; it stays as it is, and shares its weights with the new one.
        strength: Strength w of the guidance; 1 changes nothing.

    Returns:
        The guided flow.

    Raises:
        ValueError: If the flow takes no context.

    Example:
        >>> from ffjord_kit import ConcatDynamics
        >>> flow = Flow([CNF(ConcatDynamics((2,), context_dim=1), (2,))], context_dim=1)
        >>> z, c = torch.zeros(1, 2), torch.ones(1, 1)
        >>> torch.allclose(guided(flow, 1.0).to_data(z, c)[0], flow.to_data(z, c)[0])
        True
    """
    if not flow.context_dim:
        raise ValueError("guidance needs a conditional flow: this one takes no context")

    def guide(transform: Transform) -> Transform:
        if not isinstance(transform, CNF):
            return transform
        field = GuidedField(transform.dynamics, strength)
        return CNF(field, transform.event_shape, solver=transform.solver, end_time=transform.end_time)

    return with_transforms(flow, [guide(cast(Transform, transform)) for transform in flow.transforms])


def class_log_probs(
    log_prob: Callable[[Tensor, Tensor], Tensor], x: Tensor, classes: int, *, log_prior: Tensor | None = None
) -> Tensor:
    """Return log P(c | x) of each class by Bayes' rule.

    Args:
        log_prob: From x and contexts to log p(x | c), shape (n,), e.g. `Flow.log_prob`.
        x: Events, shape (n, *event).
        classes: Number of classes.
        log_prior: log P(c), shape (classes,); uniform if None.

    Returns:
        Log-probabilities, shape (n, classes).

    Example:
        >>> def log_prob(x, c):  # of classes around -1 and 1, with deviation 1
        ...     return -0.5 * (x - c @ torch.tensor([[-1.0], [1.0]])).square().sum(1)
        >>> class_log_probs(log_prob, torch.tensor([[0.0], [1.0]]), 2)[:, 1].exp()  # 1 / (1 + e^-2x)
        tensor([0.5000, 0.8808])
    """
    contexts = one_hot(torch.arange(classes), classes).to(x)
    joint = torch.stack([log_prob(x, context.expand(len(x), -1)) for context in contexts], dim=1)
    return (joint if log_prior is None else joint + log_prior).log_softmax(dim=1)
