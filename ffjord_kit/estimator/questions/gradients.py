r"""The gradient of the log-density at rows of a table, d log p(x) / dx.

The density is the one that reports. The gradient of few exact steps goes back through the steps, that of the continuous
flow through its converged solve. On a circle it is the slope per radian. On a sphere it is the tangent vector

    (1 / cos(latitude) d/d longitude, d/d latitude) log p,    per radian, towards east and north,

with p per steradian.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.columns.types import Circle, Sphere, Types
from ffjord_kit.data import Batch
from ffjord_kit.estimator.data import to_numpy
from ffjord_kit.estimator.sampling import SamplingModel
from ffjord_kit.estimator.scoring import placed
from ffjord_kit.estimator.tables.table import TableDomain
from ffjord_kit.ode import PerRowSolver, Solver
from ffjord_kit.precision import double_precision, full_precision

ROWS_AT_ONCE = 256  # whose solves are kept until their gradients are made


@dataclass(frozen=True, eq=False)
class DifferentiableModel(SamplingModel):
    """A fitted flow that has gradients; see `ffjord_kit.estimator.model.DensityModel`."""

    def grad_log_prob(self, X: Any, *, context: Any = None) -> np.ndarray:
        """Return the gradient of the log-density (the score function) at rows of a table.

        It is computed in float64 by the density that reports; that of the continuous flow is as exact as the field
        `tolerance`. Categories, whole numbers and other columns of equal steps have no derivative: their entries are
        NaN, and the others are the derivatives at the given values of these.

        Args:
            X: Rows, shape (n, d).
            context: Contexts.

        Returns:
            Gradients in nats per unit of each column, shape (n, d). On a circle they are per radian; on a sphere they
            are the parts towards east and north, per radian, in the places of longitude and latitude.

        Raises:
            ValueError: If rows lie outside the support, or the data are images.

        Example:
            >>> from ffjord_kit import FFJORD
            >>> x = np.random.default_rng(0).normal(size=(100, 2))
            >>> model = FFJORD(schedule=[("flow_matching", 2)], hidden=(8,), random_state=0).fit(x)
            >>> bool(model.grad_log_prob([[3.0, 0.0]])[0, 0] < 0)  # p rises towards smaller x0
            True
        """
        self.domain.require_table("grad_log_prob", "differentiate the log-density of their flow, model.flow_")
        batch = self._batch_inside(X, context, "grad_log_prob")
        flow, solver = double_precision(self.reporting_flow), self._recomputing_solver

        def log_prob(rows: Batch) -> Tensor:
            rows = placed(flow, rows)
            return flow.log_prob(rows.x, rows.context, solver=solver)

        parts = [value_and_gradient(log_prob, part)[1] for part in batch.split(ROWS_AT_ONCE)]
        return self._in_columns(to_numpy(batch.x), to_numpy(torch.cat(parts)))

    @property
    def _recomputing_solver(self) -> Solver:
        """The solver of reports, which keeps states alone for a gradient."""
        solver = self._solver
        return replace(solver, adjoint="checkpointed") if isinstance(solver, PerRowSolver) else solver

    def _in_columns(self, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Return gradients at rows, both as the flow has them, by the columns of the table; NaN for the others."""
        domain = cast(TableDomain, self.domain)
        slopes = _on_columns(x, gradient, domain.types, domain.columns)
        slopes[:, np.array(domain.grid.step) > 0] = np.nan
        result = np.full((len(x), len(domain.all_columns)), np.nan)
        result[:, [domain.all_columns.index(name) for name in domain.columns]] = slopes
        return result


def value_and_gradient(function: Callable[[Batch], Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """Return a function of rows and its gradient by the rows.

    Args:
        function: Function of rows and contexts, each value by its own row, to shape (batch,).
        batch: Rows and contexts.

    Returns:
        Values, shape (batch,), and gradients, shape (batch, *event).

    Example:
        >>> value_and_gradient(lambda batch: batch.x.square().sum(1), Batch(torch.ones(1, 2)))
        (tensor([2.]), tensor([[2., 2.]]))
    """
    with torch.inference_mode(False), torch.enable_grad(), full_precision():
        x = batch.x.detach().clone().requires_grad_()
        value = function(batch.with_x(x))
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def _on_columns(x: np.ndarray, gradient: np.ndarray, types: Types, names: tuple[str, ...]) -> np.ndarray:
    """Return gradients of rows of the flow by typed columns: per radian on circles, tangent to spheres."""
    places, behind, result = {name: i for i, name in enumerate(names)}, len(names), gradient[:, : len(names)].copy()
    for own, kind in types.items():
        columns = [places[name] for name in own]
        if isinstance(kind, Circle):
            result[:, columns[0]] *= kind.period / (2 * math.pi)
        if isinstance(kind, Sphere):
            point = [*columns, behind]
            result[:, columns] = _tangent(x[:, point], gradient[:, point])
            behind += 1
    return result


def _tangent(point: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Return the parts towards east and north of gradients at points of the unit sphere, shape (n, 2)."""
    longitude, across = np.arctan2(point[:, 1], point[:, 0]), np.hypot(point[:, 0], point[:, 1])
    cosine, sine, up = np.cos(longitude), np.sin(longitude), point[:, 2]
    east = np.stack([-sine, cosine, np.zeros_like(up)], axis=1)
    north = np.stack([-up * cosine, -up * sine, across], axis=1)
    return np.stack([(gradient * east).sum(1), (gradient * north).sum(1)], axis=1)
