r"""A guard on the solver: it keeps training from learning the solver's error in place of the density.

A loss under too few steps can be lowered by a field that the solver gets wrong. So every few steps the discretisation error
of the loss is measured on rows of the batch against a finer solve with the same noise,

    error = |mean_i (l_i - l_i^fine)|,        noise = std_i(l_i) / sqrt(batch),

the solver is made finer until error <= share * noise, and coarser where the error is far below that. An adaptive method
changes its tolerance by sqrt(10), one of fixed steps their number by sqrt(2) and, where it is cheaper, their grading in
time. The level is a whole number, so a resumed run goes on with the solver that it had.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ffjord_kit.data import Batch
from ffjord_kit.noise import keyed_generator
from ffjord_kit.objectives import Objective, SolvedObjective
from ffjord_kit.ode import FINEST_SINGLE, FixedSolver, Solver
from ffjord_kit.transforms import CNF

EVERY = 10  # steps between measurements
ROWS = 128
LEVELS = range(-4, 11)  # from coarsest to finest
FINER = 3  # levels by which the reference solve is finer
EASY = 1 / 10  # of the allowed error: below it the solver may be coarser
GRADINGS = (1.0, 2.0)


@dataclass(frozen=True)
class GuardResult:
    """A measurement of the guard, and the solver to go on with.

    Attributes:
        error: Error of the loss by the solver.
        noise: Standard error of the loss.
        level: Level of the solver to go on with.
        grading: Grading of its steps.
        solver: That solver.
    """

    error: float
    noise: float
    level: int
    grading: float
    solver: Solver

    def record(self) -> dict[str, float | int]:
        """Return the numbers that a log shows.

        Returns:
            Numbers by name.
        """
        fixed = isinstance(self.solver, FixedSolver)
        setting = {"solver_steps": self.solver.steps} if fixed else {"tolerance": self.solver.rtol}
        return {"solver_error": self.error, "loss_noise": self.noise, **setting, "grading": self.grading}


@dataclass(frozen=True)
class Guard:
    """Hold the solver's error of the loss below a share of the loss's own noise.

    Args:
        share: The share; 0 for no guard.
    """

    share: float = 0.1

    def applies(self, model: nn.Module, objective: Objective, rows: int) -> bool:
        """Say whether a solver makes the loss, and its rows show the noise.

        Args:
            model: Model that trains.
            objective: Objective of the phase.
            rows: Rows of a part of a batch.

        Returns:
            True where there is something to guard.
        """
        solved = any(isinstance(module, CNF) for module in model.modules())
        return self.share > 0 and rows > 1 and solved and isinstance(objective, SolvedObjective)

    @torch.no_grad()
    def measure(
        self,
        model: nn.Module,
        objective: SolvedObjective,
        batch: Batch,
        key: tuple[int | str, ...],
        *,
        level: int,
        grading: float,
        size: int | None = None,
    ) -> GuardResult:
        """Measure the error, and settle on the coarsest solver that is good enough.

        Args:
            model: Model that trains.
            objective: Objective of the phase.
            batch: Rows and contexts.
            key: Seed of the noise.
            level: Present level.
            grading: Present grading.
            size: Rows of the loss, if `batch` is a part of them.

        Returns:
            The measurement and the solver to go on with.
        """
        start, few = level, batch[: min(ROWS, len(batch))]
        base = objective.solver or _own_solver(model)

        def losses(solver: Solver) -> Tensor:
            return objective.row_losses(model, few, keyed_generator(few.x.device, *key), solver)

        while True:
            values, error, grading = _best_grading(losses, base, level, grading)
            noise = float(values.std()) / math.sqrt(size or len(batch))
            if error <= self.share * noise or not _can_refine(base, level):
                break
            level += 1
        if error < EASY * self.share * noise and level == start and _can_coarsen(base, level):
            level -= 1
        return GuardResult(error, noise, level, grading, at_level(base, level, grading))


def guarded(model: nn.Module, objective: SolvedObjective, level: int, grading: float) -> SolvedObjective:
    """Return an objective with its solver at another level.

    Args:
        model: Model that trains; its solver is used where the objective has none.
        objective: Objective.
        level: Level, above 0 for finer.
        grading: Grading of fixed steps.

    Returns:
        The objective.
    """
    return objective.with_solver(at_level(objective.solver or _own_solver(model), level, grading))


def at_level(solver: Solver, level: int, grading: float) -> Solver:
    """Return a finer or coarser solver: by tolerance, or by steps and their grading in time.

    Args:
        solver: Solver at level 0.
        level: Level, above 0 for finer.
        grading: Grading of fixed steps.

    Returns:
        The solver.
    """
    if isinstance(solver, FixedSolver):
        graded = grading if solver.gradable else solver.grading
        return replace(solver, steps=max(1, round(solver.steps * 2 ** (level / 2))), grading=graded)
    rtol, atol = (max(own * 10 ** (-level / 2), min(own, FINEST_SINGLE)) for own in (solver.rtol, solver.atol))
    return replace(solver, rtol=rtol, atol=atol)


def _best_grading(
    losses: Callable[[Solver], Tensor], base: Solver, level: int, grading: float
) -> tuple[Tensor, float, float]:
    """Return losses at a level, their error against a finer solve, and the grading under which it is least."""
    reference = losses(at_level(at_level(base, level, grading), FINER, grading))
    choices = GRADINGS if isinstance(base, FixedSolver) and base.gradable else (grading,)
    values = {choice: losses(at_level(base, level, choice)) for choice in choices}
    errors = {choice: float((rows - reference).mean().abs()) for choice, rows in values.items()}
    best = min(errors, key=errors.get)
    return values[best], errors[best], best


def _can_refine(base: Solver, level: int) -> bool:
    """Say whether there is a finer solver than that of this level, and one finer still to measure it."""
    finer = at_level(base, level + 1, 1.0)
    return level < LEVELS[-1] and _is_finer(at_level(finer, FINER, 1.0), finer)


def _can_coarsen(base: Solver, level: int) -> bool:
    """Say whether there is a coarser solver than that of this level."""
    return level > LEVELS[0] and _is_finer(at_level(base, level, 1.0), at_level(base, level - 1, 1.0))


def _is_finer(solver: Solver, other: Solver) -> bool:
    """Say whether a solver has more steps, or a tolerance that is smaller by more than rounding."""
    if isinstance(solver, FixedSolver):
        return solver.steps > other.steps
    return solver.rtol < 0.99 * other.rtol


def _own_solver(model: nn.Module) -> Solver:
    """Return the solver of the model's first continuous transform."""
    return next(module.solver for module in model.modules() if isinstance(module, CNF))
