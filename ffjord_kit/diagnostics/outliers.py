r"""Outlier scores: how far a row is from the data that a flow models; higher is further.

    likelihood   -log p(x), nats. Simpler data of another kind can have a higher likelihood (a model of colour
                 photographs prefers house numbers, Nalisnick et al. 2019a), so it does not suffice alone
    typicality   |log p(x) - E log p|, with the expectation over held-out rows. In many dimensions all samples have
                 nearly one log-density, and a row with a higher one is atypical too (Nalisnick et al. 2019b, for one
                 row)
    gradient     |d log p / dy| at the preprocessed row y: small where rows are plentiful, whatever the density
                 (approximate mass, Grathwohl et al. 2020)

The gradient is exact for a solve by fixed graded steps. It is taken in y because the gradient in grey levels is mostly
that of their logit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.examination import preprocessed
from ffjord_kit.flow import Flow
from ffjord_kit.ode import FixedSolver
from ffjord_kit.precision import full_precision
from ffjord_kit.trace import PerRowTrace
from ffjord_kit.transforms.cnf import SolveOptions

SCORES = ("likelihood", "typicality", "gradient")
GRADIENT_SOLVER = FixedSolver("rk4", steps=16, grading=2.0, adjoint="checkpointed")


def outlier_scores(
    flow: Flow,
    batch: Batch,
    *,
    reference: float,
    options: SolveOptions | None = None,
    rows: int = 1024,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Score rows by likelihood, typicality and gradient.

    Args:
        flow: Flow.
        batch: Rows in the units of the data, shape (n, *event), and contexts.
        reference: Mean log-density of held-out rows, nats.
        options: Trace and solver of the log-densities, and the trace of the gradients.
        rows: Number of rows solved at once.
        on_progress: Called with the number of rows done and of all rows.

    Returns:
        Scores by the words of SCORES, each in float64 on the CPU, shape (n,).

    Example:
        >>> scores = outlier_scores(Flow([], base=torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1))),
        ...                         Batch(torch.tensor([[0.0], [3.0]])), reference=-1.4)
        >>> [round(value, 2) for value in scores["likelihood"].tolist()]
        [0.92, 5.42]
        >>> scores["gradient"].tolist()
        [0.0, 3.0]
    """
    options = options or SolveOptions()
    log_probs, norms = [torch.empty(0, dtype=torch.float64)], [torch.empty(0, dtype=torch.float64)]
    done = 0
    for chunk in batch.split(rows):
        log_prob, norm = _score(flow, chunk, options)
        log_probs.append(log_prob)
        norms.append(norm)
        done += len(chunk)
        if on_progress is not None:
            on_progress(done, len(batch))
    log_prob = torch.cat(log_probs)
    return dict(zip(SCORES, (-log_prob, (log_prob - reference).abs(), torch.cat(norms)), strict=True))


def _score(flow: Flow, batch: Batch, options: SolveOptions) -> tuple[Tensor, Tensor]:
    """Return log-densities and gradient norms, each (batch,), in float64 on the CPU."""
    if isinstance(options.trace, PerRowTrace):
        options = replace(options, trace=options.trace.of(batch.x))
    inner, log_det = preprocessed(flow, Batch(batch.x.detach(), batch.context))
    with torch.no_grad(), full_precision():
        log_prob, _ = flow.inner.evaluate_log_prob(inner.x, inner.context, options=options)
    return log_prob.cpu().double() + log_det, _gradient_norms(flow.inner, inner, options).cpu().double()


def _gradient_norms(inner: Flow, batch: Batch, options: SolveOptions) -> Tensor:
    """Return |d log p / dy| at preprocessed rows y, (batch,)."""
    with torch.enable_grad():
        point = batch.x.detach().requires_grad_()
        gradient_options = SolveOptions(options.trace, GRADIENT_SOLVER)
        log_prob, _ = inner.evaluate_log_prob(point, batch.context, options=gradient_options)
        (slope,) = torch.autograd.grad(log_prob.sum(), point)
    return slope.flatten(1).norm(dim=1)
