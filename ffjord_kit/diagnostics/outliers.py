r"""Scores of how far a row is from what a model knows, the higher the further: three, as one alone is known to fail.

    likelihood   -log p(x), nats. Raw likelihood can be higher for data of another kind, if they are simpler (a model of
                 coloured photographs prefers house numbers, Nalisnick et al. 2019a): say nothing by it alone
    typicality   |log p(x) - E log p| over rows that the model has not seen: in many dimensions draws have nearly one
                 log-density, and a row with a higher one is no draw either (Nalisnick et al. 2019b, for one row)
    gradient     |d log p / dy| at the row's place y before the continuous layers: small where rows are plentiful,
                 however high the density (approximate mass, Grathwohl et al. 2020)

The gradient is that of a solve by fixed graded steps, exact for these, and in y since that of grey levels is mostly the
logit's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.cnf import Integration
from ffjord_kit.estimator.peeled import Peeled
from ffjord_kit.estimator.reports import checked, chunk_rows, chunks
from ffjord_kit.estimator.results import spread, to_numpy
from ffjord_kit.solver import Solver
from ffjord_kit.trace import OwnTrace

if TYPE_CHECKING:
    from ffjord_kit.estimator.ffjord import FFJORD

SCORES = ("likelihood", "typicality", "gradient")
SLOPES = Solver("rk4", steps=16, grading=2.0, gradient="checkpointed")


def outlier_scores(
    model: FFJORD,
    X: Any,
    *,
    context: Any = None,
    reference: float,
    tell: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """The scores of rows or images X (n, ...), word -> (n,); `reference` is the mean log-density of rows held out.

    `tell` is told of the rows done and of all. A row outside the support is infinitely far by each score.
    """
    x, c, inside = checked(model, X, context)
    flow, log_probs, norms, done = Peeled(model.flow_), [np.empty(0)], [np.empty(0)], 0
    for part, given in chunks(chunk_rows(model), x, c):
        log_probs.append(flow.evaluate(part, given, 1.0, model.integration).log_prob)
        norms.append(to_numpy(_gradient_norms(flow, part, given, model.integration)))
        done += len(part)
        if tell is not None:
            tell(done, len(x))
    log_prob = spread(np.concatenate(log_probs), inside)
    norm = spread(np.concatenate(norms), inside, np.inf)
    return dict(zip(SCORES, (-log_prob, np.abs(log_prob - reference), norm), strict=True))


def _gradient_norms(flow: Peeled, x: Tensor, context: Tensor | None, how: Integration) -> Tensor:
    """|d log p / dy|, (n,)."""
    data = flow.fixed.prepare(x, context, flow.like)
    trace = how.trace.of(x) if isinstance(how.trace, OwnTrace) else how.trace
    with torch.enable_grad():
        point = data.x.requires_grad_()
        log_prob, _ = flow.rest.evaluate_log_prob(point, data.context, integration=Integration(trace, SLOPES))
        (slope,) = torch.autograd.grad(log_prob.sum(), point)
    return slope.flatten(1).norm(dim=1)
