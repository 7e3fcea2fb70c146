"""Integration of ordinary differential equations: solvers, their statistics and their errors."""

from ffjord_kit.ode.errors import BlowUpError, NonFiniteError, SolveError, StepSizeUnderflow, TooManyEvaluations
from ffjord_kit.ode.field import RowSteps, SolverStats
from ffjord_kit.ode.solver import (
    FINEST_SINGLE,
    METHODS,
    AdaptiveSolver,
    FixedSolver,
    PerRowSolver,
    Solution,
    Solver,
    make_solver,
)  # fmt: skip
from ffjord_kit.ode.time_limit import OutOfTime, time_limit
from ffjord_kit.words import ADJOINTS

__all__ = [
    "ADJOINTS", "FINEST_SINGLE", "METHODS", "AdaptiveSolver", "BlowUpError", "FixedSolver", "NonFiniteError",
    "OutOfTime", "PerRowSolver", "RowSteps", "Solution", "SolveError", "Solver", "SolverStats", "StepSizeUnderflow",
    "TooManyEvaluations", "make_solver", "time_limit",
]  # fmt: skip
