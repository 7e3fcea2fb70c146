"""Validation of a flow by the likelihood of held-out rows, with the measured error of its solve."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.noise import keyed_generator
from ffjord_kit.objectives.deconvolution import mean_over_draws, noise_removed
from ffjord_kit.objectives.stepped import MOST_UNCERTIFIED, SPREAD, lowest_eigenvalue, with_neighbours
from ffjord_kit.ode import FINEST_SINGLE, AdaptiveSolver, PerRowSolver, SolveError
from ffjord_kit.precision import full_precision
from ffjord_kit.trace import PerRowTrace
from ffjord_kit.training.data import TensorData
from ffjord_kit.training.distributed import Workers
from ffjord_kit.training.micro_batches import run_together
from ffjord_kit.transforms.cnf import SolveOptions
from ffjord_kit.weights import mean_and_error

ERROR_ROWS = 32
STEPPED_ROWS = 1000  # at which, and near which, explicit steps are examined
NOISE_DRAWS = 32  # of the measurement error of each row
FINER = 0.1  # factor of the tolerance for the solve that measures the solver's error


@dataclass(frozen=True)
class ValidationScore:
    """A negative log-likelihood, nats, in the units of the data.

    Attributes:
        mean: Mean over the rows, by their weights.
        standard_error: Standard error of the mean.
        solver_error: Mean absolute difference of some rows from a solve ten times finer; None for a solver without a
            tolerance.
        uncertified: Share of points where an explicit step may fold; None for a flow without such steps.
    """

    mean: float
    standard_error: float
    solver_error: float | None
    uncertified: float | None = None

    @property
    def sound(self) -> bool:
        """Whether the likelihood is one: explicit steps that fold have none."""
        return (self.uncertified or 0.0) <= MOST_UNCERTIFIED

    def record(self) -> dict[str, float]:
        """Return the score as plain numbers for the log.

        Returns:
            Numbers by name.
        """
        others = {"solver_error": self.solver_error, "uncertified": self.uncertified}
        known = {f"validation_{name}": value for name, value in others.items() if value is not None}
        name = "validation_nll" if self.sound else "unsound_nll"  # no likelihood, which nobody may take for one
        return {name: self.mean, "validation_standard_error": self.standard_error, **known}


Validator = Callable[[Workers, int], ValidationScore]  # from the workers, and the least number of pieces to share


@dataclass(frozen=True)
class LikelihoodValidation:
    """Score a flow by the likelihood of held-out rows.

    Args:
        flow: Flow behind its preprocessing.
        data: Preprocessed held-out rows.
        options: Trace and solver.
    """

    flow: Flow
    data: TensorData
    options: SolveOptions

    @torch.no_grad()
    def __call__(self, workers: Workers, pieces: int) -> ValidationScore:
        """Score all rows.

        Args:
            workers: Workers that share the rows; the first one measures the solver's error.
            pieces: Least number of pieces into which the rows are divided.

        Returns:
            The score.

        Raises:
            SolveError: If a log-density is not finite.
        """
        rows = min(self.flow.rows_at_once, math.ceil(len(self.data) / pieces))
        nll = torch.zeros(len(self.data), dtype=torch.float64)

        def score_own() -> float | None:
            for start in range(0, len(self.data), rows)[workers.rank :: workers.size]:
                piece = slice(start, start + rows)
                nll[piece] = self._nll(piece, self.options)
            if not bool(nll.isfinite().all()):
                raise SolveError("the validation NLL is not finite")
            return self._solver_error(nll[: min(ERROR_ROWS, rows)]) if workers.is_first else None

        error = run_together(workers, score_own)
        solver_error = workers.broadcast(lambda: error)
        workers.all_reduce_(nll)
        weight = self.data.batch.weight
        return ValidationScore(*mean_and_error(nll, None if weight is None else weight.cpu()), solver_error)

    def _solver_error(self, nll: Tensor) -> float | None:
        """Return the mean absolute difference of the first rows' values from a finer solve."""
        solver = self.options.solver
        if not isinstance(solver, (AdaptiveSolver, PerRowSolver)):
            return None
        rtol, atol = (max(tolerance * FINER, FINEST_SINGLE) for tolerance in (solver.rtol, solver.atol))
        finer = replace(self.options, solver=replace(solver, rtol=rtol, atol=atol))
        return float((nll - self._nll(slice(0, len(nll)), finer)).abs().mean())

    def _nll(self, rows: slice, options: SolveOptions) -> Tensor:
        """Return the negative log-likelihood of some rows in float64, nats, shape (batch,)."""
        batch = self.data.batch[rows]
        if isinstance(options.trace, PerRowTrace):
            options = replace(options, trace=options.trace.of(batch.x))
        log_prob = self._log_prob(batch, options)
        log_det = 0.0 if self.data.log_det is None else self.data.log_det[rows]
        return -(log_prob.cpu().double() + log_det)

    def _log_prob(self, batch: Batch, options: SolveOptions) -> Tensor:
        """Return the log-densities of preprocessed rows."""
        with full_precision():
            return self.flow.evaluate_log_prob(batch.x, batch.context, options=options)[0]


@dataclass(frozen=True)
class SteppedValidation(LikelihoodValidation):
    """Score a flow of explicit steps, and look for steps that may fold at some held-out rows and close to them.

    Of rows with measurement errors it scores what was observed, by a density of true values.
    """

    def _log_prob(self, batch: Batch, options: SolveOptions) -> Tensor:
        many = noise_removed(batch, NOISE_DRAWS, keyed_generator(torch.device("cpu"), "measurement errors"))
        return mean_over_draws(super()._log_prob(many, options), len(batch))

    @torch.no_grad()
    def __call__(self, workers: Workers, pieces: int) -> ValidationScore:
        score = super().__call__(workers, pieces)
        return replace(score, uncertified=workers.broadcast(self._uncertified))

    def _uncertified(self) -> float:
        near, device = (SPREAD[0], SPREAD[0]), self.data.device
        points = with_neighbours(self.data.batch[:STEPPED_ROWS], keyed_generator(device, "folds"), near)
        lowest = torch.cat([lowest_eigenvalue(self.flow, part) for part in points.split(self.flow.rows_at_once)])
        return float((lowest <= 0).double().mean())
