"""Log-densities of a fitted model's rows with their errors, as arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ffjord_kit.accuracy import LogDensity
from ffjord_kit.estimator.defaults import is_image
from ffjord_kit.estimator.peeled import Peeled
from ffjord_kit.estimator.reports import checked, chunk_rows, chunks
from ffjord_kit.estimator.results import spread, to_numpy

if TYPE_CHECKING:
    from ffjord_kit.estimator.ffjord import FFJORD

FEWEST_PROBES = 4  # of images, to show their error


class LogDensities(NamedTuple):
    """Log-densities (n,) in nats, and their errors (n,), as `LogDensity` has them.

    A row outside the support has the log-density minus infinity, exactly. `taken` are the steps of each row, and
    `refused` those that were tried besides.
    """

    log_prob: np.ndarray
    error: np.ndarray
    solver_error: np.ndarray
    trace_error: np.ndarray
    met: np.ndarray
    taken: np.ndarray
    refused: np.ndarray


def with_errors(
    model: FFJORD, X: Any, context: Any, *, time: float, error: float | None, probes: int | None, random_state: int
) -> LogDensities:
    """The log-densities of rows X (n, d), each with its error, at the model's tolerance or as fine as `error` asks."""
    x, c, inside = checked(model, X, context)
    generator, parts, flow = torch.Generator().manual_seed(random_state), [], Peeled(model.flow_)
    if is_image(model.event_shape_) and probes is None:
        probes = FEWEST_PROBES  # the exact trace has as many products as there are pixels
    for part, given in chunks(chunk_rows(model), x, c):
        parts.append(
            flow.certify(
                part, given, time=time, tolerance=model.tolerance, probes=probes, error=error,
                generator=generator, max_nfe=model.max_nfe,
            )
        )  # fmt: skip
    return LogDensities(
        spread(_column(parts, "value"), inside),
        *(spread(_column(parts, name), inside, 0.0) for name in ("error", "solver_error", "trace_error")),
        spread(_column(parts, "met"), inside, 1.0).astype(bool),
        *(spread(_column(parts, name), inside, 0.0).astype(int) for name in ("taken", "refused")),
    )


def _column(parts: list[LogDensity], name: str) -> np.ndarray:
    return np.concatenate([np.empty(0), *(to_numpy(getattr(part, name)) for part in parts)])
