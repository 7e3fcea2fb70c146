"""Losses of classifiers and regressors, whose targets stand in the place of the contexts."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffjord_kit.data import Batch
from ffjord_kit.objectives.base import Loss, Objective


class SupervisedLoss(Objective[nn.Module]):
    """A mean over rows of a loss between outputs and targets, of a model that gives (outputs, counts of its solve)."""

    @abstractmethod
    def compare(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss.

        Args:
            outputs: Outputs of the model, shape (batch, k).
            targets: Targets, as the loss takes them.

        Returns:
            The loss, ().
        """

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Loss:
        if batch.context is None:
            raise ValueError("a supervised loss needs targets: pass Batch(x, targets); got none")
        outputs, stats = model(batch.x)
        return Loss(self.compare(outputs, batch.context), {}, (stats,))


class CrossEntropy(SupervisedLoss):
    """The mean negative log-probability of the right class, nats; targets are numbers of classes, (batch,).

    Example:
        >>> CrossEntropy().compare(torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.6931)
    """

    name = "cross_entropy"

    def compare(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)


class SquaredError(SupervisedLoss):
    """The mean squared error of targets (batch, k).

    Example:
        >>> SquaredError().compare(torch.zeros(2, 1), torch.ones(2, 1))
        tensor(1.)
    """

    name = "squared_error"

    def compare(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets)
