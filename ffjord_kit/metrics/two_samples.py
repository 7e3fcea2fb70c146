r"""Do two samples come from one law? Energy distance, maximum mean discrepancy (MMD), and a classifier.

For x_1..x_n ~ P and y_1..y_m ~ Q, with a = (1/n, ..., -1/m, ...) over all points u of both,

    energy distance = -a^T D a,    D_ij = |u_i - u_j|                               (Szekely & Rizzo 2013)
    MMD^2           =  a^T K a,    K_ij = exp(-|u_i - u_j|^2 / (2 h^2)), h the median distance   (Gretton et al. 2012)

both >= 0, and 0 for equal samples. Under P = Q all orders of the points are equally likely, so the p-value is the rank
of the value among those of random orders. A classifier that is told P from Q on points that it has not seen is right
in half of the cases if P = Q (Lopez-Paz & Oquab 2017); its p-value is that of so many right answers by chance.
Distances are between columns in standard deviations of the first sample.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict

PERMUTATIONS = 500
FOLDS = 5
SMALLEST = 10  # points of a sample
TREES, DEPTH = 30, 3


class TwoSampleTest(NamedTuple):
    """The statistic of two samples, and the probability of one as large where both come from one law."""

    statistic: float
    p_value: float


def energy_test(x: np.ndarray, y: np.ndarray, *, seed: int = 0) -> TwoSampleTest:
    """The energy distance of samples x (n, d) and y (m, d), in standard deviations of x.

    Raises ValueError for samples of other shapes, or of fewer than 10 points.
    """
    return _permuted(-_distances(*_alike(x, y)), len(x), seed)


def mmd_test(x: np.ndarray, y: np.ndarray, *, seed: int = 0) -> TwoSampleTest:
    """The maximum mean discrepancy of samples x (n, d) and y (m, d), between 0 and sqrt(2).

    Raises ValueError for samples of other shapes, or of fewer than 10 points.
    """
    distances = _distances(*_alike(x, y))
    width = np.median(distances[np.triu_indices(len(distances), 1)]) or 1.0
    squared = _permuted(np.exp(-0.5 * (distances / width) ** 2), len(x), seed)
    return TwoSampleTest(float(np.sqrt(max(squared.statistic, 0.0))), squared.p_value)


def classifier_test(x: np.ndarray, y: np.ndarray, *, seed: int = 0) -> TwoSampleTest:
    """The share of right answers, cross-validated, of boosted trees that tell x (n, d) from y (m, d); 0.5: chance.

    Of the larger sample as many points are used as the smaller has.
    Raises ValueError for samples of other shapes, or of fewer than 10 points.
    """
    x, y = _alike(x, y)
    least = min(len(x), len(y))
    points, labels = np.concatenate([x[:least], y[:least]]), np.repeat([0, 1], least)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    trees = HistGradientBoostingClassifier(max_iter=TREES, max_depth=DEPTH, random_state=seed)
    right = (cross_val_predict(trees, points, labels, cv=folds) == labels).mean()
    return TwoSampleTest(float(right), float(ndtr((0.5 - right) * 2 * np.sqrt(2 * least))))


def _alike(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both samples in the first one's deviations."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"samples must have shapes (n, d) and (m, d); got {x.shape} and {y.shape}")
    if min(len(x), len(y)) < SMALLEST:
        raise ValueError(f"samples must have at least {SMALLEST} points; got {len(x)} and {len(y)}")
    scale = x.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    return (x - x.mean(0)) / scale, (y - x.mean(0)) / scale


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    points = np.concatenate([x, y])
    squares = (points**2).sum(1)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0.0))


def _permuted(kernel: np.ndarray, n: int, seed: int) -> TwoSampleTest:
    """a^T kernel a for the first n points against the others, and its rank among random orders."""
    size = len(kernel)
    weights = np.where(np.arange(size) < n, 1 / n, -1 / (size - n))
    rng = np.random.default_rng(seed)
    orders = np.stack([weights, *(rng.permutation(weights) for _ in range(PERMUTATIONS))])
    values = ((orders @ kernel) * orders).sum(1)
    return TwoSampleTest(float(values[0]), float(np.mean(values >= values[0] - 1e-12)))
