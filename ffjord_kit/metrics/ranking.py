r"""Does a score tell what is outside from what is inside? The area under the ROC curve (AUROC), with its error.

For scores x_1..x_n of what is inside and y_1..y_m of what is outside, the area is the probability that a value from
outside is the higher of a pair, ties counted half (Hanley & McNeil 1982):

    A = 1/(nm) sum_ij h(x_i, y_j),   h(x, y) = 1 if x < y, 1/2 if x = y, 0 if x > y.

With u_j = mean_i h(x_i, y_j) and v_i = mean_j h(x_i, y_j), both of mean A, its error is (DeLong et al. 1988)

    s^2 = var(u)/m + var(v)/n,

which supposes no law of the scores. All of u and v come from ranks, in O((n + m) log(n + m)) (Sun & Xu 2014): the rank
of y_j among all, less its rank among y, counts the x below it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from ffjord_kit.metrics.densities import mean_and_standard_error


def auroc(inside: np.ndarray | Sequence[float], outside: np.ndarray | Sequence[float]) -> tuple[float, float]:
    """Area under the ROC curve of a score that is to be higher `outside` (m,) than `inside` (n,), and its error.

    One where all of `outside` is higher, one half by chance. Infinite scores rank first or last. The standard error is
    DeLong's: nan for a single value, and 0 where the two do not overlap, which says little for a few values.
    Raises ValueError for another shape, no values, or NaN.
    """
    x, y = _scores("inside", inside), _scores("outside", outside)
    n, m = len(x), len(y)
    ranks = rankdata(np.concatenate([x, y]))
    below = (ranks[n:] - rankdata(y)) / n
    above = 1 - (ranks[:n] - rankdata(x)) / m
    area, error_outside = mean_and_standard_error(below)
    _, error_inside = mean_and_standard_error(above)
    return area, float(np.hypot(error_inside, error_outside))


def _scores(name: str, values: np.ndarray | Sequence[float]) -> np.ndarray:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"{name} must have shape (n,) with n at least 1; got {scores.shape}")
    bad = int(np.isnan(scores).sum())
    if bad:
        raise ValueError(f"{name} must be numbers that can be ranked; got {bad} of {len(scores)} that are nan")
    return scores
