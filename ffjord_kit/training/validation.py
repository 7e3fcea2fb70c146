"""The held-out likelihood that training is judged by: exact, from a solve by tolerance, its solver's error measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ffjord_kit.cnf import Integration
from ffjord_kit.failures import SolveError
from ffjord_kit.flow import Flow
from ffjord_kit.portions import scored_at_once
from ffjord_kit.solver import FINEST_SINGLE
from ffjord_kit.trace import OwnTrace
from ffjord_kit.training.data import Data
from ffjord_kit.training.parts import together
from ffjord_kit.training.precision import all_digits
from ffjord_kit.training.workers import Workers

JUDGED_ROWS = 32
FINER = 0.1  # times the tolerance: the solve that measures the solver's error


@dataclass(frozen=True)
class Score:
    """A negative log-likelihood in nats and the units of the data: its mean, the mean's standard error, the solver's.

    The solver's error is the mean over some rows of how far each is from a solve ten times finer; None where the
    solver has no tolerance to be finer in.
    """

    mean: float
    standard_error: float
    solver_error: float | None

    def record(self) -> dict[str, float]:
        """What the log shows."""
        nll = {"validation_nll": self.mean, "validation_standard_error": self.standard_error}
        return nll if self.solver_error is None else {**nll, "validation_solver_error": self.solver_error}


@torch.no_grad()
def score(flow: Flow, data: Data, how: Integration, workers: Workers | None = None, parts: int = 1) -> Score:
    """The score of all rows, in at least so many parts, which workers share. Raises SolveError where it is not finite.

    The first worker measures the solver's error.
    """
    workers = workers or Workers()
    most = scored_at_once(data.x.shape[1:], data.device.type)
    rows = min(most, math.ceil(len(data) / parts))
    nll = torch.zeros(len(data), dtype=torch.float64)

    def mine() -> float | None:
        for start in range(0, len(data), rows)[workers.rank :: workers.size]:
            nll[start : start + rows] = _nll(flow, data, slice(start, start + rows), how)
        if not bool(nll.isfinite().all()):
            raise SolveError("the validation NLL is not finite")
        return _solver_error(flow, data, how, nll[: min(JUDGED_ROWS, rows)]) if workers.first else None

    error = together(workers, mine)
    solver_error = workers.told(lambda: error)
    workers.sum_(nll)
    return Score(float(nll.mean()), float(nll.std() / math.sqrt(len(nll))), solver_error)


def _solver_error(flow: Flow, data: Data, how: Integration, nll: Tensor) -> float | None:
    solver, few = how.solver, slice(0, len(nll))
    if solver is None or solver.steps is not None:
        return None
    rtol, atol = (max(tolerance * FINER, FINEST_SINGLE) for tolerance in (solver.rtol, solver.atol))
    finer = replace(how, solver=replace(solver, rtol=rtol, atol=atol))
    return float((nll - _nll(flow, data, few, finer)).abs().mean())


def _nll(flow: Flow, data: Data, part: slice, how: Integration) -> Tensor:
    context = None if data.context is None else data.context[part]
    how = replace(how, trace=how.trace.of(data.x[part])) if isinstance(how.trace, OwnTrace) else how
    with all_digits():
        log_prob, _ = flow.evaluate_log_prob(data.x[part], context, integration=how)
    return -(log_prob.cpu().double() + data.log_det[part])
