"""A fitted flow in float32, for what may be quick: pictures, samples by a few steps."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.cnf import Integration
from ffjord_kit.estimator.results import to_numpy
from ffjord_kit.flow import Flow
from ffjord_kit.solver import Solver
from ffjord_kit.training.data import peel


class Single:
    """A flow whose leading fitted layers stay as they are, and whose other layers are copied to float32."""

    def __init__(self, flow: Flow) -> None:
        self.base, (self.fixed, rest) = flow.base, peel(flow)
        self.rest = copy.deepcopy(rest).float()
        self.like = next(self.rest.parameters())

    @torch.no_grad()
    def log_prob(self, x: Tensor, context: Tensor | None, time: float, solver: Solver) -> np.ndarray:
        """Log-densities (n,) of rows x (n, *event), float64, given contexts (n, context_dim)."""
        data = self.fixed.prepare(x, context, self.like)
        return to_numpy(self.rest.log_prob(data.x, data.context, time=time, solver=solver)) + to_numpy(data.log_det)

    @torch.no_grad()
    def sample(self, n: int, context: Tensor | None, *, solver: Solver, generator: torch.Generator) -> Tensor:
        """Draw (n, *event), float64, from the noise that the flow itself would draw."""
        z = self.base.sample(n, generator).to(self.like)
        if context is not None:
            context = self.fixed.scaled(context.expand(n, -1), self.like)
        x, _ = self.rest.to_data(z, context, integration=Integration(trace=None, solver=solver))
        return self.fixed.restore(x)
