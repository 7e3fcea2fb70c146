"""The area under the ROC curve agrees with its definition, with scikit-learn, and its error with what draws show."""

import numpy as np
import pytest
from scipy.special import ndtr
from sklearn.metrics import roc_auc_score

from ffjord_kit.metrics import auroc

INF = np.inf
SCORES = {
    "apart by one": lambda rng: (rng.normal(size=70), 1 + rng.normal(size=40)),
    "many ties": lambda rng: (rng.integers(0, 4, 60).astype(float), rng.integers(1, 5, 90).astype(float)),
    "lower outside": lambda rng: (rng.normal(size=30), rng.normal(size=30) - 2),
    "infinite": lambda rng: (np.r_[-INF, INF, rng.normal(size=30)], np.r_[-INF, INF, INF, rng.normal(size=20)]),
    "two of each": lambda rng: (np.array([0.0, 2.0]), np.array([1.0, 3.0])),
}


def by_definition(x, y):
    """The area and DeLong's error from all pairs."""
    pairs = (x[:, None] < y) + 0.5 * (x[:, None] == y)
    variance = pairs.mean(0).var(ddof=1) / len(y) + pairs.mean(1).var(ddof=1) / len(x)
    return pairs.mean(), np.sqrt(variance)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", SCORES)
def test_ranks_give_what_all_pairs_give(name, rng):
    x, y = SCORES[name](rng)
    assert auroc(x, y) == pytest.approx(by_definition(x, y), abs=1e-12)


@pytest.mark.parametrize("name", SCORES)
def test_the_area_is_that_of_scikit_learn(name, rng):
    x, y = SCORES[name](rng)
    finite = np.clip(np.concatenate([x, y]), -1e6, 1e6)  # scikit-learn takes no infinite score
    labels = np.repeat([0, 1], [len(x), len(y)])
    assert auroc(x, y)[0] == pytest.approx(roc_auc_score(labels, finite), abs=1e-12)


def test_two_gaussians_have_the_area_of_their_closed_form(rng):
    area, error = auroc(rng.normal(size=4000), 1 + rng.normal(size=3000))
    assert abs(area - ndtr(1 / np.sqrt(2))) < 4 * error < 0.04


def test_the_error_is_the_deviation_of_the_area_over_draws(rng):
    found = np.array([auroc(rng.normal(size=60), 1 + 2 * rng.normal(size=40)) for _ in range(1000)])
    variance, noise = found[:, 0].var(ddof=1), found[:, 0].var() * np.sqrt(2 / 999)
    assert abs(variance - np.mean(found[:, 1] ** 2)) < 4 * noise  # s^2 has no bias


def test_the_area_of_exchanged_sets_is_the_rest_of_one(rng):
    x, y = SCORES["many ties"](rng)
    (area, error), (other, same) = auroc(x, y), auroc(y, x)
    assert (area + other, error) == (pytest.approx(1), pytest.approx(same))


def test_only_the_order_of_scores_counts(rng):
    x, y = SCORES["apart by one"](rng)
    assert auroc(np.exp(x), np.exp(y)) == auroc(x, y)


def test_sets_that_do_not_overlap_have_area_one_or_zero_and_equal_ones_a_half():
    assert auroc([1, 2, 3], [4, INF]) == (1.0, 0.0)
    assert auroc([1, 2, 3], [-INF, 0]) == (0.0, 0.0)
    assert auroc([1, 1, 1], [1, 1]) == (0.5, 0.0)


def test_a_single_value_has_an_area_and_no_error():
    area, error = auroc([1.0, 2.0, 3.0], [2.5])
    assert area == pytest.approx(2 / 3) and np.isnan(error)


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        ([], [1.0], r"inside must have shape \(n,\) with n at least 1; got \(0,\)"),
        ([1.0], [], r"outside must have shape \(n,\) with n at least 1; got \(0,\)"),
        (np.ones((3, 1)), [1.0], r"inside must have shape \(n,\) with n at least 1; got \(3, 1\)"),
        (1.0, [1.0], r"inside must have shape \(n,\) with n at least 1; got \(\)"),
        ([1.0], [np.nan, 2.0, INF], "outside must be numbers that can be ranked; got 1 of 3 that are nan"),
    ],
)
def test_what_cannot_be_ranked_is_refused(inside, outside, message):
    with pytest.raises(ValueError, match=message):
        auroc(inside, outside)
