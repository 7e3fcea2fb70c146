r"""Separation of outliers from inliers by a score: the area under the ROC curve (AUROC) with its standard error.

For scores x_1..x_n of inliers and y_1..y_m of outliers, the area is the probability that an outlier has a higher score
than an inlier, where ties count one half (Hanley & McNeil 1982):

    A = 1/(nm) sum_ij h(x_i, y_j),   h(x, y) = 1 if x < y, 1/2 if x = y, 0 if x > y.

With u_j = mean_i h(x_i, y_j) and v_i = mean_j h(x_i, y_j), both of mean A, its standard error s is

    s^2 = var(u)/m + var(v)/n

for any distribution of the scores (DeLong et al. 1988). All u and v follow from ranks in O((n + m) log(n + m)) (Sun &
Xu 2014): the rank of y_j among all scores minus its rank among y is the number of x below it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from ffjord_kit.metrics.density import mean_and_standard_error


def auroc(inside: np.ndarray | Sequence[float], outside: np.ndarray | Sequence[float]) -> tuple[float, float]:
    """Compute the area under the ROC curve of an outlier score and its standard error.

    The area is 1 if all outliers have higher scores than all inliers, and 1/2 on average for a score without
    information. An infinite score ranks first or last. The error is 0 where the two sets do not overlap, which means
    little for a few values.

    Args:
        inside: Scores of the inliers, shape (n,).
        outside: Scores of the outliers, shape (m,), expected to be higher.

    Returns:
        The area and its standard error; the error is nan if n or m is 1.

    Raises:
        ValueError: If an array is empty, has another shape, or contains nan.

    References:
        DeLong, DeLong & Clarke-Pearson, Biometrics 44, 837 (1988); Sun & Xu, IEEE Signal Processing Letters 21, 1389
        (2014).

    Example:
        >>> area, error = auroc([0.0, 1.0, 2.0], [1.5, 3.0])
        >>> print(f"{area:.3f} ± {error:.3f}")
        0.833 ± 0.236
    """
    x, y = _checked_scores("inside", inside), _checked_scores("outside", outside)
    n, m = len(x), len(y)
    ranks = rankdata(np.concatenate([x, y]))
    below = (ranks[n:] - rankdata(y)) / n
    above = 1 - (ranks[:n] - rankdata(x)) / m
    area, error_outside = mean_and_standard_error(below)
    _, error_inside = mean_and_standard_error(above)
    return area, float(np.hypot(error_inside, error_outside))


def _checked_scores(name: str, values: np.ndarray | Sequence[float]) -> np.ndarray:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"{name} must have shape (n,) with n at least 1; got {scores.shape}")
    bad = int(np.isnan(scores).sum())
    if bad:
        raise ValueError(f"{name} must not contain nan; got {bad} nan among {len(scores)} values")
    return scores
