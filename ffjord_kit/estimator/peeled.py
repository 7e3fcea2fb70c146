"""A fitted flow whose leading fitted layers, exact in float64, stand apart from what was learned behind them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ffjord_kit.accuracy import LogDensity
from ffjord_kit.cnf import Integration
from ffjord_kit.estimator.results import Evaluation, to_numpy
from ffjord_kit.flow import Flow
from ffjord_kit.solver import Solver
from ffjord_kit.trace import OwnTrace
from ffjord_kit.training.data import peel
from ffjord_kit.training.precision import all_digits


class Peeled:
    """A flow in two parts: leading fitted layers, in float64 on the CPU, and the rest as it is, or copied to float32.

    Rows x (n, *event) come and go in float64, with contexts (n, context_dim).
    """

    def __init__(self, flow: Flow, *, single: bool = False) -> None:
        self.base, (self.fixed, rest) = flow.base, peel(flow)
        self.rest = copy.deepcopy(rest).float() if single else rest
        self.like = next(self.rest.parameters())

    @torch.no_grad()
    def evaluate(self, x: Tensor, context: Tensor | None, time: float, how: Integration) -> Evaluation:
        """Log-densities (n,) of rows, and the evaluations that they took."""
        data = self.fixed.prepare(x, context, self.like)
        how = replace(how, trace=how.trace.of(x)) if isinstance(how.trace, OwnTrace) else how
        with all_digits():
            log_prob, moved = self.rest.evaluate_log_prob(data.x, data.context, time=time, integration=how)
        return Evaluation(to_numpy(log_prob) + to_numpy(data.log_det), moved.nfe)

    def certify(self, x: Tensor, context: Tensor | None, **asked: Any) -> LogDensity:
        """Log-densities of rows with their errors, as `Flow.evaluate` is asked for them."""
        data = self.fixed.prepare(x, context, self.like)
        with all_digits():
            found = self.rest.evaluate(data.x, data.context, **asked)
        return replace(found, value=found.value.cpu().double() + data.log_det)

    def sample(
        self, n: int, context: Tensor | None, *, solver: Solver, generator: torch.Generator, time: float = 1.0
    ) -> Tensor:
        """Draw (n, *event), or the states at `time` of draws, from the noise that the flow itself would draw."""
        context = None if context is None else context.expand(n, -1)
        return self.to_data(self.base.sample(n, generator), context, solver, time=time)

    @torch.no_grad()
    def to_base(self, x: Tensor, context: Tensor | None, solver: Solver) -> Tensor:
        """The places of rows at the base, (n, *event)."""
        data = self.fixed.prepare(x, context, self.like)
        return self.rest.to_base(data.x, data.context, integration=Integration(trace=None, solver=solver))[0]

    @torch.no_grad()
    def to_data(self, z: Tensor, context: Tensor | None, solver: Solver, *, time: float = 1.0) -> Tensor:
        """The rows, or their states at `time`, that places z (n, *event) at the base lead to."""
        how, context = Integration(trace=None, solver=solver), self.fixed.scaled(context, self.like)
        moved, _ = self.rest.to_data(z.to(self.like), context, time=time, integration=how)
        return self.fixed.restore(moved)
