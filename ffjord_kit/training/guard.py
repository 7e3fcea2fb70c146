r"""A guard on the solver, which keeps training from learning the solver's error instead of the density.

A loss under too few steps can be lowered by a field that the solver integrates wrongly. So every few steps the
discretisation error of the losses l_i of a batch is measured against a finer solve with the same noise,

    error = |mean_i (l_i - l_i^fine)|,        noise = std_i(l_i) / sqrt(batch).

The solver is made finer until error <= share * noise, and coarser if the error is far below that. An adaptive solver
changes its tolerances by factors of sqrt(10), one of fixed steps their number by factors of sqrt(2) and, if it lowers
the error, their grading in time. The level is a whole number, so a resumed run continues with the same solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ffjord_kit.data import Batch
from ffjord_kit.noise import keyed_generator
from ffjord_kit.objectives import SolvedObjective
from ffjord_kit.ode import FINEST_SINGLE, AdaptiveSolver, FixedSolver, PerRowSolver, Solver
from ffjord_kit.transforms import CNF

EVERY = 10  # steps between measurements
ROWS = 128
LEVELS = range(-4, 11)  # from coarsest to finest
FINER = 3  # levels by which the reference solve is finer
EASY = 1 / 10  # of the allowed error: below it the solver may be coarser
GRADINGS = (1.0, 2.0)


@dataclass(frozen=True)
class GuardResult:
    """A measurement of the guard, and the solver for the next steps.

    Attributes:
        error: Solver error of the loss.
        noise: Standard error of the loss.
        level: Level of the solver for the next steps.
        grading: Grading of its steps.
        solver: The solver itself.
    """

    error: float
    noise: float
    level: int
    grading: float
    solver: Solver

    def record(self) -> dict[str, float | int]:
        """Return the result as plain numbers for the log.

        Returns:
            Numbers by name.
        """
        setting: dict[str, float | int] = {}
        if isinstance(self.solver, FixedSolver):
            setting = {"solver_steps": self.solver.steps}
        elif isinstance(self.solver, (AdaptiveSolver, PerRowSolver)):
            setting = {"tolerance": self.solver.rtol}
        return {"solver_error": self.error, "loss_noise": self.noise, **setting, "grading": self.grading}


@dataclass(frozen=True)
class Guard:
    """Keep the solver's error of the loss below a share of the loss's standard error.

    Args:
        share: Largest ratio of error and standard error; 0 for no guard.

    Example:
        >>> from ffjord_kit import CNF, FixedSolver, Flow, MaximumLikelihood, ResidualDynamics
        >>> flow = Flow([CNF(ResidualDynamics((2,)), (2,), solver=FixedSolver("rk4", steps=8))])
        >>> batch, objective = Batch(torch.zeros(64, 2)), MaximumLikelihood()
        >>> result = Guard().measure(flow, objective, batch, key=(0, "guard"), level=0, grading=1.0)
        >>> result.error  # an untrained field is zero, and any solver is exact
        0.0
    """

    share: float = 0.1

    def applies(self, model: nn.Module, rows: int) -> bool:
        """Return whether the loss comes from a solve, and has enough rows to show its noise.

        Args:
            model: Model to train.
            rows: Number of rows in one part of a batch.

        Returns:
            True if there is an error to measure.
        """
        return self.share > 0 and rows > 1 and any(isinstance(module, CNF) for module in model.modules())

    @torch.no_grad()
    def measure(
        self,
        model: nn.Module,
        objective: SolvedObjective[Any],
        batch: Batch,
        key: tuple[int | str, ...],
        *,
        level: int,
        grading: float,
        size: int | None = None,
    ) -> GuardResult:
        """Measure the error, and choose the solver for the next steps.

        Args:
            model: Model to train.
            objective: Objective of the phase.
            batch: Rows and contexts.
            key: Key of the noise, which is the same for both solves.
            level: Present level.
            grading: Present grading.
            size: Number of rows of the loss, if `batch` is only a part of them.

        Returns:
            The measurement and the chosen solver.
        """
        start, rows = level, batch[: min(ROWS, len(batch))]
        base = objective.solver or _own_solver(model)

        def losses(solver: Solver) -> Tensor:
            return objective.row_losses(model, rows, keyed_generator(rows.x.device, *key), solver)

        while True:
            values, error, grading = _best_grading(losses, base, level, grading)
            noise = float(values.std()) / math.sqrt(size or len(batch))
            if error <= self.share * noise or not _can_refine(base, level):
                break
            level += 1
        if error < EASY * self.share * noise and level == start and _can_coarsen(base, level):
            level -= 1
        return GuardResult(error, noise, level, grading, at_level(base, level, grading))


def guarded(model: nn.Module, objective: SolvedObjective[Any], level: int, grading: float) -> SolvedObjective[Any]:
    """Return an objective with its solver at another level.

    Args:
        model: Model to train; its solver is used if the objective has none.
        objective: Objective of the phase.
        level: Level, above 0 for finer.
        grading: Grading of fixed steps.

    Returns:
        The new objective.
    """
    return objective.with_solver(at_level(objective.solver or _own_solver(model), level, grading))


def at_level(solver: Solver, level: int, grading: float) -> Solver:
    """Return a finer or coarser solver of the same method.

    Args:
        solver: Solver at level 0.
        level: Level, above 0 for finer.
        grading: Grading of fixed steps.

    Returns:
        The solver with other tolerances, or with another number and grading of its steps.
    """
    if isinstance(solver, FixedSolver):
        graded = grading if solver.gradable else solver.grading
        return replace(solver, steps=max(1, round(solver.steps * 2 ** (level / 2))), grading=graded)
    if not isinstance(solver, (AdaptiveSolver, PerRowSolver)):
        return solver
    rtol, atol = (max(own * 10 ** (-level / 2), min(own, FINEST_SINGLE)) for own in (solver.rtol, solver.atol))
    return replace(solver, rtol=rtol, atol=atol)


def _best_grading(
    losses: Callable[[Solver], Tensor], base: Solver, level: int, grading: float
) -> tuple[Tensor, float, float]:
    """Return the losses at a level, their error against a finer solve, and the grading with the least error."""
    reference = losses(at_level(at_level(base, level, grading), FINER, grading))
    choices = GRADINGS if isinstance(base, FixedSolver) and base.gradable else (grading,)
    values = {choice: losses(at_level(base, level, choice)) for choice in choices}
    errors = {choice: float((value - reference).mean().abs()) for choice, value in values.items()}
    best = min(errors, key=lambda choice: errors[choice])
    return values[best], errors[best], best


def _can_refine(base: Solver, level: int) -> bool:
    """Return whether the next level is finer, and there is a still finer one to measure its error."""
    finer = at_level(base, level + 1, 1.0)
    return level < LEVELS[-1] and _is_finer(at_level(finer, FINER, 1.0), finer)


def _can_coarsen(base: Solver, level: int) -> bool:
    """Return whether the previous level is coarser."""
    return level > LEVELS[0] and _is_finer(at_level(base, level, 1.0), at_level(base, level - 1, 1.0))


def _is_finer(solver: Solver, other: Solver) -> bool:
    """Return whether a solver has more steps, or a tolerance that is smaller by more than rounding."""
    if isinstance(solver, FixedSolver) and isinstance(other, FixedSolver):
        return solver.steps > other.steps
    by_tolerance = (AdaptiveSolver, PerRowSolver)
    return isinstance(solver, by_tolerance) and isinstance(other, by_tolerance) and solver.rtol < 0.99 * other.rtol


def _own_solver(model: nn.Module) -> Solver:
    """Return the solver of the model's first continuous transform."""
    return next(module.solver for module in model.modules() if isinstance(module, CNF))
