"""Solves by a few fixed steps: where in time they are best placed, and the errors that they leave.

Steps may crowd towards one end of the way (`Solver.grading`). A field that was fitted to data is stiffest near them;
a straightened one where its paths begin, for there the mass forks. So the place is measured, and kept with the model.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ffjord_kit.estimator.peeled import Peeled
from ffjord_kit.failures import SolveError
from ffjord_kit.solver import Solver

if TYPE_CHECKING:
    from ffjord_kit.estimator.ffjord import FFJORD

STEP_COUNTS = (1, 2, 4, 8)
STEP_METHODS = ("euler", "midpoint")
GRADINGS = (0.4, 0.5, 0.6, 0.75, 1.0, 1.5, 2.0)
MEASURED_ROWS = 4_096  # the error is that of few rows, where paths fork
MEASURED_METHOD, MEASURED_STEPS = "rk4", (3, 6)


def solver_of(model: FFJORD, method: str, steps: int) -> Solver:
    """So many steps of a method, placed where a straightening found them best; equal ones of another model."""
    solver = Solver(method, steps=steps)
    return Solver(method, steps=steps, grading=kept_grading(model)) if solver.gradable else solver


def kept_grading(model: FFJORD) -> float:
    """The grading that the last straightening measured; 1 where there was none."""
    return next((note["grading"] for note in reversed(model.config_.get("straightened", [])) if "grading" in note), 1.0)


def best_grading(model: FFJORD, context: np.ndarray | None, seed: int) -> float:
    """The one of GRADINGS with which samples by a few steps are nearest to those of a converged solve.

    By the mean, over numbers of steps, of the logarithm of the error.
    """
    flow, generator = Peeled(model.flow_, single=True), torch.Generator().manual_seed(seed)
    z = model.flow_.base.sample(MEASURED_ROWS, generator)
    c = None if context is None else torch.as_tensor(np.resize(context, (MEASURED_ROWS, context.shape[1])))
    truth = flow.to_data(z, c, Solver("dopri5", 1e-5, 1e-5))

    def error(grading: float, steps: int) -> float:
        try:
            moved = flow.to_data(z, c, Solver(MEASURED_METHOD, steps=steps, grading=grading))
        except SolveError:  # steps so placed leave the field's reach
            return math.inf
        return float(((moved - truth) / truth.std(0)).square().mean().log())

    return min(GRADINGS, key=lambda grading: sum(error(grading, steps) for steps in MEASURED_STEPS))


def few_step_sample_errors(
    model: FFJORD, *, n: int = 2_000, context: Any = None, random_state: Any = 0
) -> dict[tuple[str, int], float]:
    """The root mean square error of samples by a few fixed steps, {(method, steps): error}.

    Against converged samples of the same noise, in their standard deviations.
    """
    truth = model.sample(n, context=context, random_state=random_state)
    errors = {}
    for method in STEP_METHODS:
        for steps in STEP_COUNTS:
            rows = model.sample(n, context=context, random_state=random_state, steps=steps, method=method)
            errors[method, steps] = float(np.sqrt((((rows - truth) / truth.std(0)) ** 2).mean()))
    return errors


def few_step_score_errors(model: FFJORD, X: Any, log_prob: np.ndarray, *, context: Any = None) -> dict[int, float]:
    """The mean error of log-densities of the rows X (n, d) by a few steps of rk4, {steps: nats}.

    Against `log_prob` (n,), those of a converged solve.
    """
    drafts = {steps: model.draft(X, context=context, steps=steps) for steps in STEP_COUNTS}
    return {steps: float(np.abs(draft - log_prob).mean()) for steps, draft in drafts.items()}
