"""Objectives: differentiable losses of a model on a batch, whose noise comes from a generator alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ffjord_kit.data import Batch
from ffjord_kit.ode import Solver, SolverStats

Model = TypeVar("Model", bound=nn.Module, contravariant=True)


class Loss(NamedTuple):
    """A loss on a batch.

    Attributes:
        value: Differentiable value, shape ().
        terms: Terms for the log, name -> shape ().
        stats: Counts of each solve; evaluations on the way back are added while the gradient is computed.

    Example:
        >>> Loss(torch.tensor(1.5), {"nll": torch.tensor(1.0)}, (SolverStats(nfe=8),)).record({"learning_rate": 0.01})
        {'loss': 1.5, 'learning_rate': 0.01, 'nll': 1.0, 'nfe_forward': 8, 'nfe_backward': 0}
    """

    value: Tensor
    terms: dict[str, Tensor]
    stats: tuple[SolverStats, ...] = ()

    def record(self, extra: Mapping[str, float | Tensor]) -> dict[str, float | int]:
        """Return the loss as plain numbers for the log.

        Args:
            extra: Further numbers, placed after the loss.

        Returns:
            Numbers by name: the loss, `extra`, the terms, and the evaluations of the field both ways.
        """
        values = {"loss": self.value.detach(), **extra, **{name: term.detach() for name, term in self.terms.items()}}
        return {
            **{name: float(value) for name, value in values.items()},
            "nfe_forward": sum(stats.nfe for stats in self.stats),
            "nfe_backward": sum(stats.nfe_backward for stats in self.stats),
        }


class Objective(ABC, Generic[Model]):
    """A loss of a model on a batch, which training minimises.

    Subclasses define `name` and `loss`; see `ffjord_kit.training.fit` for an example.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Word for logs and schedules."""

    @abstractmethod
    def loss(self, model: Model, batch: Batch, generator: torch.Generator) -> Loss:
        """Return the loss on a batch.

        Args:
            model: Model to train; densities take the flow behind its preprocessing.
            batch: Rows and contexts, as the model takes them.
            generator: Source of all noise.

        Returns:
            The loss, its terms and the counts of its solves.
        """


class SolvedObjective(Objective[Model]):
    """An objective whose loss is the result of a solve, so that the solver's error can be measured and bounded."""

    @property
    @abstractmethod
    def solver(self) -> Solver | None:
        """Solver of all continuous transforms; their own if None."""

    @abstractmethod
    def row_losses(self, model: Model, batch: Batch, generator: torch.Generator, solver: Solver) -> Tensor:
        """Return the loss of each row, solved for by one solver.

        Args:
            model: Model to train.
            batch: Rows and contexts.
            generator: Source of all noise.
            solver: Solver of all continuous transforms.

        Returns:
            Losses, shape (batch,).
        """

    @abstractmethod
    def with_solver(self, solver: Solver) -> SolvedObjective[Model]:
        """Return the objective with another solver.

        Args:
            solver: Solver of all continuous transforms.

        Returns:
            The new objective.
        """
