"""Objectives: losses of a model on a batch, all of whose noise comes from a generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.ode import Solver, SolverStats


class Loss(NamedTuple):
    """A loss on a batch.

    Attributes:
        value: Differentiable value, ().
        terms: Terms that a log shows, by name, each ().
        stats: Counts of the solves; the backward ones are counted later.
    """

    value: Tensor
    terms: dict[str, Tensor]
    stats: tuple[SolverStats, ...] = ()

    def record(self, extra: Mapping[str, float | Tensor]) -> dict[str, float | int]:
        """Return the numbers that a log shows.

        Args:
            extra: Further numbers, placed after the loss.

        Returns:
            Numbers by name.
        """
        values = {"loss": self.value.detach(), **extra, **{name: term.detach() for name, term in self.terms.items()}}
        return {
            **{name: float(value) for name, value in values.items()},
            "nfe_forward": sum(stats.nfe for stats in self.stats),
            "nfe_backward": sum(stats.nfe_backward for stats in self.stats),
        }


class Objective(ABC):
    """A loss of a model on a batch.

    Attributes:
        name: Word for logs and schedules.
    """

    name: str

    @abstractmethod
    def loss(self, model: Any, batch: Batch, generator: torch.Generator) -> Loss:
        """Return the loss on a batch.

        Args:
            model: Model to train, as the objective needs it: the inner flow for densities.
            batch: Rows and contexts, as the model sees them.
            generator: Source of all noise.

        Returns:
            The loss, with its terms and counts.
        """


class SolvedObjective(Objective):
    """An objective whose loss is solved for, so that the solver's error can be measured and bounded.

    Attributes:
        solver: Solver of all continuous transforms; their own if None.
    """

    solver: Solver | None

    @abstractmethod
    def row_losses(self, model: Any, batch: Batch, generator: torch.Generator, solver: Solver) -> Tensor:
        """Return the loss of each row by a given solver.

        Args:
            model: Model to train.
            batch: Rows and contexts.
            generator: Source of all noise.
            solver: Solver of all continuous transforms.

        Returns:
            Losses, shape (batch,).
        """

    @abstractmethod
    def with_solver(self, solver: Solver) -> SolvedObjective:
        """Return the objective with another solver.

        Args:
            solver: Solver of all continuous transforms.

        Returns:
            The objective.
        """
