r"""Comparison of two samples: energy distance, maximum mean discrepancy (MMD), a classifier, nearest neighbours.

For x_1..x_n ~ P and y_1..y_m ~ Q, with a = (1/n, ..., -1/m, ...) over the points u of both samples,

    energy distance = -a^T D a,    D_ij = |u_i - u_j|                               (Szekely & Rizzo 2013)
    MMD^2           =  a^T K a,    K_ij = exp(-|u_i - u_j|^2 / (2 h^2)), h the median distance   (Gretton et al. 2012)

Both are >= 0, and 0 for equal samples. If P = Q, all permutations of the points are equally likely, and the p-value is
the fraction of permutations with a statistic at least as large. A classifier that separates P from Q is right on half
of the points that it was not trained on if P = Q (Lopez-Paz & Oquab 2017); its p-value is the probability of its
accuracy by chance. All tests standardise each column by the mean and standard deviation of the first sample.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict

PERMUTATIONS = 500
FOLDS = 5
MIN_POINTS = 10  # of each sample
TREES, DEPTH = 30, 3
CHUNK_ELEMENTS = 1 << 22  # array elements that `nearest` compares at once


class TwoSampleTest(NamedTuple):
    """Result of a test whether two samples have the same distribution.

    Args:
        statistic: Value of the test statistic.
        p_value: Probability of a value at least as large if both samples have the same distribution.

    Example:
        >>> result = TwoSampleTest(statistic=0.02, p_value=0.6)
        >>> result.p_value < 0.01
        False
    """

    statistic: float
    p_value: float


def energy_test(x: np.ndarray, y: np.ndarray, *, seed: int = 0) -> TwoSampleTest:
    """Test two samples by their energy distance, in standard deviations of the first sample.

    Args:
        x: First sample, shape (n, d), n at least 10.
        y: Second sample, shape (m, d), m at least 10.
        seed: Seed of the permutations.

    Returns:
        The energy distance and its p-value.

    Raises:
        ValueError: If the shapes do not match or a sample has fewer than 10 points.

    References:
        Szekely & Rizzo, Journal of Statistical Planning and Inference 143, 1249 (2013).

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 2))
        >>> energy_test(x, x + 2).p_value < 0.01
        True
    """
    return _permutation_test(-_distances(*_standardize(x, y)), len(x), seed)


def mmd_test(x: np.ndarray, y: np.ndarray, *, seed: int = 0) -> TwoSampleTest:
    """Test two samples by their maximum mean discrepancy with a Gaussian kernel.

    Args:
        x: First sample, shape (n, d), n at least 10.
        y: Second sample, shape (m, d), m at least 10.
        seed: Seed of the permutations.

    Returns:
        The discrepancy, between 0 and sqrt(2), and its p-value.

    Raises:
        ValueError: If the shapes do not match or a sample has fewer than 10 points.

    References:
        Gretton et al., Journal of Machine Learning Research 13, 723 (2012).

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 2))
        >>> mmd_test(x, x + 2).p_value < 0.01
        True
    """
    distances = _distances(*_standardize(x, y))
    width = np.median(distances[np.triu_indices(len(distances), 1)]) or 1.0
    squared = _permutation_test(np.exp(-0.5 * (distances / width) ** 2), len(x), seed)
    return TwoSampleTest(float(np.sqrt(max(squared.statistic, 0.0))), squared.p_value)


def classifier_test(x: np.ndarray, y: np.ndarray, *, seed: int = 0) -> TwoSampleTest:
    """Test two samples by the cross-validated accuracy of boosted trees that separate them.

    Only the first min(n, m) points of each sample are used.

    Args:
        x: First sample, shape (n, d), n at least 10.
        y: Second sample, shape (m, d), m at least 10.
        seed: Seed of the folds and of the trees.

    Returns:
        The accuracy, about 0.5 for equal distributions, and its p-value.

    Raises:
        ValueError: If the shapes do not match or a sample has fewer than 10 points.

    References:
        Lopez-Paz & Oquab, Revisiting classifier two-sample tests, ICLR 2017, arXiv:1610.06545.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 2))
        >>> classifier_test(x, x + 2).statistic > 0.75
        True
    """
    x, y = _standardize(x, y)
    count = min(len(x), len(y))
    points, labels = np.concatenate([x[:count], y[:count]]), np.repeat([0, 1], count)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    trees = HistGradientBoostingClassifier(max_iter=TREES, max_depth=DEPTH, random_state=seed)
    accuracy = (cross_val_predict(trees, points, labels, cv=folds) == labels).mean()
    return TwoSampleTest(float(accuracy), float(ndtr((0.5 - accuracy) * 2 * np.sqrt(2 * count))))


def nearest(x: np.ndarray, among: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest neighbours of each event in a data set, such as those of samples in the training data.

    The distance is the root mean square of the differences of the elements. Memory grows with n m.

    Args:
        x: Events, shape (n, *event).
        among: Events of the data set, shape (m, *event).
        count: Number of neighbours.

    Returns:
        Indices into `among` and distances, both of shape (n, count), in ascending distance.

    Raises:
        ValueError: If the shapes of the events differ or `count` is not between 1 and m.

    Example:
        >>> indices, distances = nearest(np.array([[0.0]]), np.array([[3.0], [-1.0], [2.0]]), count=2)
        >>> indices.tolist(), distances.tolist()
        ([[1, 2]], [[1.0, 2.0]])
    """
    if x.shape[1:] != among.shape[1:] or not 1 <= count <= len(among):
        raise ValueError(f"expected {count} or more events of shape {x.shape[1:]}; got {among.shape}")
    rows, size = x.reshape(len(x), -1).astype(np.float64), int(np.prod(x.shape[1:]))
    step = max(1, CHUNK_ELEMENTS // size)
    chunks = [_squared_distances(rows, among[start : start + step]) for start in range(0, len(among), step)]
    distances = np.sqrt(np.concatenate(chunks, axis=1) / size)
    indices = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return indices, np.take_along_axis(distances, indices, axis=1)


def _squared_distances(rows: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """Return the squared distances (n, k) of rows (n, d) from the events of a chunk (k, *event)."""
    others = chunk.reshape(len(chunk), -1).astype(np.float64)
    products = rows @ others.T
    return np.maximum((rows**2).sum(1)[:, None] - 2 * products + (others**2).sum(1), 0)


def _standardize(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check two samples and standardise both by the mean and standard deviation of the first."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"samples must have shapes (n, d) and (m, d); got {x.shape} and {y.shape}")
    if min(len(x), len(y)) < MIN_POINTS:
        raise ValueError(f"samples must have at least {MIN_POINTS} points; got {len(x)} and {len(y)}")
    scale = x.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    return (x - x.mean(0)) / scale, (y - x.mean(0)) / scale


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distances between all points of both samples, shape (n + m, n + m)."""
    points = np.concatenate([x, y])
    squares = (points**2).sum(1)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0.0))


def _permutation_test(kernel: np.ndarray, n: int, seed: int) -> TwoSampleTest:
    """Compute a^T kernel a for the first n points against the others, and its p-value from permutations of a."""
    size = len(kernel)
    weights = np.where(np.arange(size) < n, 1 / n, -1 / (size - n))
    rng = np.random.default_rng(seed)
    permutations = np.stack([weights, *(rng.permutation(weights) for _ in range(PERMUTATIONS))])
    values = ((permutations @ kernel) * permutations).sum(1)
    return TwoSampleTest(float(values[0]), float(np.mean(values >= values[0] - 1e-12)))
