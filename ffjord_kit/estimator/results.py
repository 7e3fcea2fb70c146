"""What FFJORD's verbs return, and its tensors on their way out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor


class Evaluation(NamedTuple):
    """Log-densities (n,), nats, and the evaluations of the dynamics that the slowest part of the rows took."""

    log_prob: np.ndarray
    nfe: int


class NumpyTrajectory(NamedTuple):
    """States along the way and their log-densities: times (T,), x (T, n, d), log_prob (T, n)."""

    times: np.ndarray
    x: np.ndarray
    log_prob: np.ndarray


def spread(values: np.ndarray, inside: np.ndarray, outside: float = -np.inf) -> np.ndarray:
    """Values of the rows inside the support, and another one, that of a log-density, for the others."""
    spread = np.full(len(inside), outside)
    spread[inside] = values
    return spread


def to_numpy(values: Tensor) -> np.ndarray:
    """Values as float64 on the host."""
    return values.cpu().double().numpy()
