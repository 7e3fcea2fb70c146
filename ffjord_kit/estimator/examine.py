"""A fitted model, examined."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ffjord_kit.diagnostics import Diagnosis, diagnose
from ffjord_kit.estimator import build
from ffjord_kit.estimator.images import refuse_images
from ffjord_kit.estimator.reports import checked, reported

if TYPE_CHECKING:
    from ffjord_kit.estimator.ffjord import FFJORD


def examine(
    model: FFJORD,
    X: Any,
    *,
    context: Any = None,
    rows: int = 1000,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> Diagnosis:
    """The diagnosis of a model on rows X (n, d) that it has not seen, of which at most `rows` are drawn.

    The solver of its reports is judged, and that of a training by likelihood that no guard kept true.
    Raises ValueError for rows outside the support, which have no place at the base.
    """
    refuse_images(model, "examine", "score its bits per dimension, and look at its pictures")
    x, context, inside = checked(model, X, context)
    x = reported(model, model.grid.noisy(x.numpy(force=True), seed))
    if not inside.all():
        raise ValueError(
            f"{(~inside).sum()} of {len(inside)} rows lie outside the support {model.support!r}, where the density is "
            f"0 (first: row {int((~inside).argmax())}): leave them out"
        )
    solvers = {"of reports": model.integration.solver}
    if "mle" in model.schedule and not model.guard:
        solvers["in training"] = build.training_solver(model.settled)
    return diagnose(model.flow_, x, context, solvers=solvers, rows=rows, seed=seed, tell=tell)
