r"""A guard on the solver: it keeps training by likelihood from learning the solver's error in place of the density.

A loss under too few steps can be lowered by a field that the solver gets wrong. So every few steps the discretisation
error of the loss is measured on rows of the batch against a finer solve with the same probes,

    error = |mean_i (l_i - l_i^fine)|,        noise = std_i(l_i) / sqrt(batch),

the solver is made finer until error <= share * noise, and coarser where the error is far below that. An adaptive
method changes its tolerance by sqrt(10), one of fixed steps their number by sqrt(2) and, where it is cheaper, their
grading in time. The level is a whole number, so a resumed run goes on with the solver that it had.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ffjord_kit.cnf import CNF
from ffjord_kit.flow import Flow
from ffjord_kit.objectives import MaximumLikelihood
from ffjord_kit.solver import FINEST_SINGLE, Solver
from ffjord_kit.training.data import noise_generator

EVERY = 10  # steps between measurements
ROWS = 128
LEVELS = range(-4, 11)  # from coarsest to finest
FINER = 3  # levels by which the solve that judges is finer
EASY = 1 / 10  # of the error allowed: below it the solver may be coarser
GRADINGS = (1.0, 2.0)


@dataclass(frozen=True)
class Verdict:
    """The error of the loss that the solver makes, the loss's own noise, and the solver to go on with."""

    error: float
    noise: float
    level: int
    grading: float
    solver: Solver

    def record(self) -> dict[str, float | int]:
        """What the log shows."""
        how = {"tolerance": self.solver.rtol} if self.solver.steps is None else {"solver_steps": self.solver.steps}
        return {"solver_error": self.error, "loss_noise": self.noise, **how, "grading": self.grading}


def at_level(solver: Solver, level: int, grading: float) -> Solver:
    """The solver, finer (level > 0) or coarser: by tolerance, or by steps and their grading in time."""
    if solver.steps is not None:
        graded = grading if solver.gradable else solver.grading
        return replace(solver, steps=max(1, round(solver.steps * 2 ** (level / 2))), grading=graded)
    rtol, atol = (max(own * 10 ** (-level / 2), min(own, FINEST_SINGLE)) for own in (solver.rtol, solver.atol))
    return replace(solver, rtol=rtol, atol=atol)


@dataclass(frozen=True)
class Guard:
    """Holds the solver's error of the loss below `share` of the loss's own noise; a share of 0 is no guard.

    Raises ValueError for a negative share.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        if not self.share >= 0:
            raise ValueError(f"guard must be at least 0, the share of the loss's noise; got {self.share}")

    def watches(self, flow: Flow, objective: object, rows: int) -> bool:
        """Whether a solver makes the loss of so many rows, and they show its noise."""
        solved = any(isinstance(layer, CNF) for layer in flow.layers)
        return self.share > 0 and rows > 1 and solved and isinstance(objective, MaximumLikelihood)

    @torch.no_grad()
    def judge(
        self,
        flow: Flow,
        objective: MaximumLikelihood,
        batch: tuple[Tensor, Tensor | None],
        key: tuple,
        state: tuple,
        size: int | None = None,
    ) -> Verdict:
        """Measure at the level and grading of `state`, and settle on the coarsest solver that is good enough.

        Shapes: batch x (rows, *event), context (rows, context_dim) or None; `key` seeds the probes; `size` are the
        rows of the loss, where `batch` are some of them.
        """
        (level, grading), rows = state, min(ROWS, len(batch[0]))
        part = (batch[0][:rows], None if batch[1] is None else batch[1][:rows])
        base = objective.solver or _own(flow)

        def losses(solver: Solver) -> Tensor:
            generator = noise_generator(part[0].device, *key)
            return objective.losses(flow, *part, generator, solver)

        while True:
            values, error, grading = self._best(losses, base, level, grading)
            noise = float(values.std()) / math.sqrt(size or len(batch[0]))
            if error <= self.share * noise or not self._finer(base, level):
                break
            level += 1
        if error < EASY * self.share * noise and level == state[0] and self._coarser(base, level):
            level -= 1
        return Verdict(error, noise, level, grading, at_level(base, level, grading))

    @staticmethod
    def _best(
        losses: Callable[[Solver], Tensor], base: Solver, level: int, grading: float
    ) -> tuple[Tensor, float, float]:
        """Losses at this level, their error against a finer solve, and the grading under which it is least."""
        fine = losses(at_level(at_level(base, level, grading), FINER, grading))
        choices = GRADINGS if base.steps is not None and base.gradable else (grading,)
        found = {choice: losses(at_level(base, level, choice)) for choice in choices}
        errors = {choice: float((values - fine).mean().abs()) for choice, values in found.items()}
        best = min(errors, key=errors.get)
        return found[best], errors[best], best

    @staticmethod
    def _finer(base: Solver, level: int) -> bool:
        """Whether there is a finer solver than that of this level, and one finer still to judge it."""
        finer = at_level(base, level + 1, 1.0)
        return level < LEVELS[-1] and _is_finer(at_level(finer, FINER, 1.0), finer)

    @staticmethod
    def _coarser(base: Solver, level: int) -> bool:
        """Whether there is a coarser solver than that of this level."""
        return level > LEVELS[0] and _is_finer(at_level(base, level, 1.0), at_level(base, level - 1, 1.0))


def _is_finer(solver: Solver, other: Solver) -> bool:
    """Whether it has more steps, or a tolerance that is smaller by more than rounding."""
    return solver.rtol < 0.99 * other.rtol if solver.steps is None else solver.steps > other.steps


def guarded(flow: Flow, objective: MaximumLikelihood, level: int, grading: float) -> MaximumLikelihood:
    """The objective with its solver at another level."""
    return replace(objective, solver=at_level(objective.solver or _own(flow), level, grading))


def _own(flow: Flow) -> Solver:
    """The solver of the flow's first continuous layer."""
    return next(layer.solver for layer in flow.layers if isinstance(layer, CNF))
