"""A fitted conditional model as a density estimator of the package sbi, for its posteriors, samplers and tests.

    FFJORD().fit(theta, context=x)      the posterior p(theta | x):  sbi's DirectPosterior
    FFJORD().fit(x, context=theta)      the likelihood p(x | theta): sbi's MCMCPosterior and the like

sbi is an optional dependency, which this file alone imports, when it is first needed. The adapter has the interface of
`sbi.neural_nets.estimators.base.ConditionalDensityEstimator` (sbi 0.27).

References:
    Tejero-Cantero et al. 2020, sbi: a toolkit for simulation-based inference, https://doi.org/10.21105/joss.02505.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from ffjord_kit.data import Batch
from ffjord_kit.estimator.ffjord import FFJORD
from ffjord_kit.estimator.model import DensityModel
from ffjord_kit.precision import double_precision, full_precision
from ffjord_kit.transforms.cnf import SolveOptions

ROWS_AT_ONCE = 5000


def density_estimator(model: FFJORD | DensityModel) -> Any:
    """Return a fitted model as a density estimator of sbi.

    Its log-density is that which reports, and differentiable by inputs and conditions; the weights stay as they are.

    Args:
        model: Model of a table, fitted with a context, all of whose columns are real and without steps.

    Returns:
        An instance of sbi's `ConditionalDensityEstimator`: inputs are rows, conditions are contexts.

    Raises:
        ImportError: If sbi is not installed.
        ValueError: If the model has no context, or is not of real columns.
    """
    fitted = model.model_ if isinstance(model, FFJORD) else model
    fitted.domain.require_table("density_estimator", "its flow is model.flow_")
    fitted.domain.require_real("density_estimator", "leave this column out of the fit")
    if not fitted.context_dim:
        raise ValueError("sbi takes conditional models: fit with context=, the observations beside the parameters")
    return _estimator_class()(fitted)


class _ConditionalDensity:
    """The methods of a `ConditionalDensityEstimator`, beside those of sbi's class."""

    def __init__(self, model: DensityModel) -> None:
        flow = double_precision(model.reporting_flow)
        shapes = torch.Size(model.event_shape), torch.Size((model.context_dim,))
        super().__init__(net=flow, input_shape=shapes[0], condition_shape=shapes[1])  # type: ignore[call-arg]
        self._model, self._flow = model, flow

    @property
    def embedding_net(self) -> nn.Module:
        """The identity: conditions are contexts as they are."""
        return nn.Identity()

    def log_prob(self, input: Tensor, condition: Tensor, **_: Any) -> Tensor:
        """Return log-densities.

        Args:
            input: Rows, shape (samples, batch, d) or (batch, d).
            condition: Contexts, shape (batch, c) or (samples, batch, c).

        Returns:
            Nats, shape (samples, batch); minus infinity outside the support.
        """
        rows, contexts, _ = cast(Any, self)._broadcast_and_align(input, condition)
        batch = Batch(rows.flatten(0, 1).double(), contexts.flatten(0, 1).double())
        return torch.cat([self._solved(part) for part in batch.split(ROWS_AT_ONCE)]).view(rows.shape[:2]).to(input)

    def loss(self, input: Tensor, condition: Tensor, **_: Any) -> Tensor:
        """Return negative log-densities.

        Args:
            input: Rows, shape (batch, d).
            condition: Contexts, shape (batch, c).

        Returns:
            Nats, shape (batch,).
        """
        return -self.log_prob(input[None], condition)[0]

    def sample(self, sample_shape: Sequence[int], condition: Tensor, **_: Any) -> Tensor:
        """Draw rows, from a seed that torch's global generator gives.

        Args:
            sample_shape: Shape of the draws for each context.
            condition: Contexts, shape (batch, c).

        Returns:
            Draws, shape (*sample_shape, batch, d).
        """
        count, batch = math.prod(sample_shape), len(condition)
        contexts = condition.detach().cpu().double().expand(count, *condition.shape).flatten(0, 1).numpy()
        seed = int(torch.randint(2**31, ()))
        draws = torch.as_tensor(self._model.sample(count * batch, context=contexts, random_state=seed))
        return draws.view(*sample_shape, batch, draws.shape[-1]).to(condition)

    def _solved(self, batch: Batch) -> Tensor:
        """Return the log-densities of rows solved at once."""
        inside = self._flow.support.check(batch.x)
        result = batch.x.new_full((len(batch),), -math.inf)
        if bool(inside.any()):
            part = batch[inside.nonzero()[:, 0]]
            options = SolveOptions(solver=self._model.config.reporting.solver)
            with full_precision():
                result[inside] = self._flow.evaluate_log_prob(part.x, part.context, options=options)[0].double()
        return result


@cache
def _estimator_class() -> type:
    """Return the adapter, derived from sbi's class."""
    try:
        from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
    except ImportError as error:
        raise ImportError(f"density_estimator needs the package sbi ({error}): pip install sbi") from error
    return type("FlowDensityEstimator", (_ConditionalDensity, ConditionalDensityEstimator), {})
