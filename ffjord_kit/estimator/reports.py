"""What a fitted model says of rows: their log-densities, exact or in draft, and the field at them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from ffjord_kit.cnf import Integration
from ffjord_kit.estimator import build
from ffjord_kit.estimator.arrays import check_context, tensor
from ffjord_kit.estimator.checks import inside_support
from ffjord_kit.estimator.peeled import Peeled
from ffjord_kit.estimator.results import Evaluation, spread, to_numpy
from ffjord_kit.estimator.words import support_of
from ffjord_kit.portions import scored_at_once
from ffjord_kit.solver import Solver

if TYPE_CHECKING:
    from ffjord_kit.estimator.ffjord import FFJORD

DRAFT = Solver(rtol=1e-3, atol=1e-3)


def checked(model: FFJORD, x: Any, context: Any) -> tuple[Tensor, Tensor | None, np.ndarray]:
    """The rows within the support and their contexts, and which of all the rows (n,) they are.

    Images come with the noise that each has of its own.
    """
    check_is_fitted(model, "flow_")
    if model.images is not None:
        rows, inside = model.images.pixels(x).fetch(slice(None)), np.ones(len(x), bool)
        context = contexts(model, context, len(x))
        return rows, None if context is None else tensor(context), inside
    x = validate_data(model, x, dtype=np.float64, reset=False)
    context = contexts(model, context, len(x))
    inside = inside_support(x, support_of(model.support, x.shape[1])).all(axis=1)
    return reported(model, x[inside]), None if context is None else reported(model, context[inside]), inside


def contexts(model: FFJORD, context: Any, rows: int) -> np.ndarray | None:
    """Contexts (rows, c) from those given; labels of classes become vectors."""
    if model.images is None or not model.images.classes:
        return check_context(context, rows, model.flow_.context_dim)
    return model.images.context(context, rows)


def reported(model: FFJORD, array: np.ndarray) -> Tensor:
    """An array where the flow lives, in the floats that it reports in."""
    device = next(model.flow_.parameters()).device
    return tensor(array).to(build.reporting_dtype(device)).to(device)


def evaluate(model: FFJORD, x: Any, context: Any, time: float) -> Evaluation:
    """Log-densities (n,) of rows, those outside the support being impossible."""
    rows, c, inside = checked(model, x, context)
    log_prob, nfe = evaluate_rows(model, rows, c, time)
    return Evaluation(spread(log_prob, inside), nfe)


def evaluate_rows(model: FFJORD, x: Tensor, context: Tensor | None, time: float = 1.0) -> Evaluation:
    """The same of rows that were checked: x (n, *event) within the support, context (n, c)."""
    return _evaluated(Peeled(model.flow_), chunks(chunk_rows(model), x, context), time, model.integration)


def draft(model: FFJORD, x: Any, context: Any, time: float, solver: Solver) -> np.ndarray:
    """Log-densities (n,) in float32, by another solver."""
    rows, c, inside = checked(model, x, context)
    how = replace(model.integration, solver=solver)
    found = _evaluated(Peeled(model.flow_, single=True), chunks(chunk_rows(model), rows, c), time, how)
    return spread(found.log_prob, inside)


def velocity(model: FFJORD, x: Any, context: Any, time: float) -> np.ndarray:
    """The field at rows (n, d)."""
    rows, c, inside = checked(model, x, context)
    field = np.zeros((len(inside), model.n_features_in_))  # nothing moves outside the support
    if inside.any():
        field[inside] = to_numpy(model.flow_.velocity(rows, time, c).detach())
    return field


def chunk_rows(model: FFJORD) -> int:
    """How many rows to solve for at once."""
    return scored_at_once(model.event_shape_, next(model.flow_.parameters()).device.type)


def chunks(rows: int, x: Tensor, context: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows x (n, *event) and their contexts (n, c) in parts of so many."""
    for start in range(0, len(x), rows):
        yield x[start : start + rows], None if context is None else context[start : start + rows]


def _evaluated(flow: Peeled, rows: Iterator[tuple[Tensor, Tensor | None]], time: float, how: Integration) -> Evaluation:
    parts = [flow.evaluate(part, c, time, how) for part, c in rows]
    log_prob = np.concatenate([np.empty(0), *(part.log_prob for part in parts)])
    return Evaluation(log_prob, max((part.nfe for part in parts), default=0))
