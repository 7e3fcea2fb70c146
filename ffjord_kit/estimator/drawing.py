"""Draws of a fitted model, and the paths that they come on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ffjord_kit.estimator import build
from ffjord_kit.estimator.arrays import check_context, seed_from
from ffjord_kit.estimator.results import NumpyTrajectory, to_numpy
from ffjord_kit.estimator.single import Single
from ffjord_kit.solver import Solver

if TYPE_CHECKING:
    from ffjord_kit.estimator.ffjord import FFJORD

CHUNK_ROWS = 32_768


def draw(model: FFJORD, n: int, context: Any, random_state: Any, steps: int | None, method: str) -> np.ndarray:
    """Rows (n, d), by a converged solve, or by so many fixed steps in float32."""
    generator, context = _drawing(model, n, context, random_state)
    solver, parts = build.reporting(model).solver if steps is None else Solver(method, steps=steps), []
    sample = model.flow_.sample if steps is None else Single(model.flow_).sample
    for start in range(0, n, CHUNK_ROWS):
        end = min(start + CHUNK_ROWS, n)
        part = None if context is None else context[start:end]
        with torch.no_grad():
            parts.append(to_numpy(sample(end - start, part, solver=solver, generator=generator)))
    return np.concatenate(parts)


def follow(model: FFJORD, n: int, frames: int, context: Any, random_state: Any) -> NumpyTrajectory:
    """New samples from the base to the data, at so many times."""
    if frames < 2:
        raise ValueError(f"frames must be at least 2; got {frames}")
    generator, context = _drawing(model, n, context, random_state)
    solver, times = build.reporting(model).solver, np.linspace(0.0, 1.0, frames)
    with torch.no_grad():
        start = model.flow_.sample(n, context, time=0.0, generator=generator)
        path = model.flow_.trajectory(start, times.tolist(), context, solver=solver)
    return NumpyTrajectory(times, to_numpy(path.x), to_numpy(path.log_prob))


def _drawing(model: FFJORD, n: int, context: Any, random_state: Any) -> tuple[torch.Generator, Tensor | None]:
    check_is_fitted(model, "flow_")
    if n < 1:
        raise ValueError(f"n_samples must be at least 1; got {n}")
    context = None if context is None else model.tensor(check_context(context, n, model.flow_.context_dim))
    return torch.Generator().manual_seed(seed_from(random_state)), context
