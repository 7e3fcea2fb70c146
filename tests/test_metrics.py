"""Metrics agree with closed forms and with scikit-learn; baselines agree with known densities."""

import numpy as np
import pytest
from scipy.special import logsumexp, ndtr
from scipy.stats import multivariate_normal, norm
from sklearn.metrics import roc_auc_score

from ffjord_kit.datasets import DATASETS, load
from ffjord_kit.metrics import (
    auroc,
    best_gaussian_mixture,
    best_kde,
    bits_per_dim,
    classifier_test,
    energy_test,
    grid,
    integral_on_grid,
    kl_divergence,
    mean_and_standard_error,
    mmd_test,
    nearest,
)

INF = np.inf
SCALES = np.array([1.0, 30.0, 0.01])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---- averages, divergences, integrals


def test_standard_error_of_a_mean():
    assert mean_and_standard_error([1.0, 2.0, 3.0, 6.0]) == (3.0, pytest.approx(np.sqrt(14 / 3 / 4)))
    mean, error = mean_and_standard_error([5.0])
    assert mean == 5.0 and np.isnan(error)


def test_uniform_bytes_have_eight_bits_per_dimension():
    assert bits_per_dim(3 * np.log(256), 3) == pytest.approx(8)
    np.testing.assert_allclose(bits_per_dim(np.log([2.0, 4.0]), 1), [1, 2])


def test_divergence_of_two_gaussians_agrees_with_its_closed_form(rng):
    x = rng.standard_normal(20_000)
    mean, error = kl_divergence(norm.logpdf(x), norm.logpdf(x, loc=1, scale=2))
    assert abs(mean - (np.log(2) + 2 / 8 - 0.5)) < 4 * error < 0.05
    assert kl_divergence(norm.logpdf(x), norm.logpdf(x)) == (0.0, 0.0)


def test_divergence_is_infinite_where_q_vanishes():
    mean, error = kl_divergence(np.array([-1.0, -1.0]), np.array([-1.0, -np.inf]))
    assert mean == np.inf and np.isnan(error)


def test_grid_has_a_row_of_midpoints_for_each_y():
    points, area = grid(((0.0, 4.0), (-1.0, 1.0)), 2)
    np.testing.assert_array_equal(points, [[1, -0.5], [3, -0.5], [1, 0.5], [3, 0.5]])
    assert area == 2.0


def test_gaussian_integrates_to_one_and_its_half_to_one_half():
    log_prob = multivariate_normal([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]]).logpdf
    assert abs(integral_on_grid(log_prob, ((-9, 9), (-9, 9)), 100) - 1) < 1e-12
    assert abs(integral_on_grid(log_prob, ((0, 9), (-9, 9)), 400) - 0.5) < 1e-3  # cut, so of second order in the cell


# ---- baselines


def few_mixtures(train, validation, seed=0):
    return best_gaussian_mixture(train, validation, seed=seed, components=(1, 2, 4, 8, 16))


BASELINES = {"mixture": few_mixtures, "kde": best_kde}
each_baseline = pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)


@each_baseline
def test_baseline_has_the_units_of_the_data(baseline, rng):
    train, validation = rng.standard_normal((300, 3)), rng.standard_normal((100, 3))
    plain, scaled = baseline(train, validation), baseline(train * SCALES + 5, validation * SCALES + 5)
    expected = plain.score_samples(validation) - np.log(SCALES).sum()
    np.testing.assert_allclose(scaled.score_samples(validation * SCALES + 5), expected, atol=2e-3)


@pytest.mark.parametrize("name", ["moons", "8gaussians"])
@each_baseline
def test_baseline_is_normalized_and_comes_near_the_truth_but_not_past_it(baseline, name):
    train, validation, test = load(name, rows=2000).x, load(name, rows=500, seed=1).x, load(f"{name}:test", rows=5000)
    model = baseline(train, validation)
    assert abs(integral_on_grid(model.score_samples, ((-6, 6), (-6, 6)), 100) - 1) < 1e-3  # the kernels' own precision
    divergence, error = kl_divergence(test.log_prob(test.x), model.score_samples(test.x))
    assert -4 * error < divergence < 0.1 + 4 * error


def test_mixture_finds_the_true_number_of_components(rng):
    density = DATASETS["8gaussians"].density()
    mixture = few_mixtures(density.sample(2000, rng), density.sample(2000, rng))
    divergence, error = kl_divergence(density.log_prob(x := density.sample(2000, rng)), mixture.score_samples(x))
    assert mixture.n_components == 8 and divergence < 0.02 + 4 * error
    samples, _ = mixture.sample(2000)  # a scaled mixture draws from the density that it scores
    mean, error = mean_and_standard_error(mixture.score_samples(samples) - density.log_prob(samples))
    assert abs(mean) < 0.02 + 4 * error


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_scaled_parameters_of_a_mixture_agree_with_each_other(kind, rng, monkeypatch):
    monkeypatch.setattr("ffjord_kit.metrics.baselines.COVARIANCES", (kind,))
    x = rng.standard_normal((400, 3)) * SCALES
    mixture = few_mixtures(x[:300], x[300:])
    covariances = mixture.covariances_ if kind == "full" else [np.diag(each) for each in mixture.covariances_]
    terms = [multivariate_normal(m, c).logpdf(x) for m, c in zip(mixture.means_, covariances, strict=True)]
    np.testing.assert_allclose(mixture.score_samples(x), logsumexp(terms, axis=0, b=mixture.weights_[:, None]))
    times, one = (np.matmul, np.eye(3)) if kind == "full" else (np.multiply, np.ones(3))
    np.testing.assert_allclose(times(mixture.covariances_, mixture.precisions_)[0], one, atol=1e-9)


def test_kernel_estimate_is_the_mean_of_its_kernels_also_in_the_tail(rng):
    train = rng.standard_normal((500, 2)) * [1, 10]
    kde = best_kde(train, rng.standard_normal((200, 2)) * [1, 10])
    x = np.array([[0.0, 0.0], [2.0, -15.0], [40.0, 100.0]])
    deviations = kde.bandwidth * train.std(axis=0)
    terms = norm.logpdf(x[:, None], loc=train, scale=deviations).sum(axis=2)
    np.testing.assert_allclose(kde.score_samples(x), logsumexp(terms, axis=1) - np.log(500), atol=1e-3)


def test_mixture_leaves_out_candidates_with_too_few_rows(rng):
    assert best_gaussian_mixture(rng.standard_normal((5, 3)), rng.standard_normal((5, 3)), seed=0).n_components <= 4


def test_equal_seeds_give_equal_mixtures(rng):
    x = rng.standard_normal((300, 2))
    first, second = (few_mixtures(x[:200], x[200:], seed=7).score_samples(x) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@each_baseline
def test_baseline_does_not_change_its_arguments(baseline, rng):
    train, validation = rng.standard_normal((50, 2)), rng.standard_normal((50, 2))
    before = train.copy(), validation.copy()
    baseline(train, validation).score_samples(train)
    np.testing.assert_array_equal((train, validation), before)


# ---- two samples


TWO_SAMPLES = {"energy": energy_test, "mmd": mmd_test, "classifier": classifier_test}
each_test = pytest.mark.parametrize("test", TWO_SAMPLES.values(), ids=TWO_SAMPLES)


@each_test
def test_samples_of_one_distribution_are_separated_no_more_often_than_by_chance(test, rng):
    p_values = [test(*rng.normal(size=(2, 60, 3)), seed=seed).p_value for seed in range(20)]
    assert sum(p < 0.05 for p in p_values) <= 4  # binomial, 0.997


@each_test
def test_samples_of_two_distributions_are_separated_in_any_units(test, rng):
    x, y = rng.normal(size=(200, 3)), rng.normal(size=(300, 3)) * [1, 1, 2]
    assert test(x, y).p_value < 0.01
    assert test(x * SCALES, y * SCALES) == pytest.approx(test(x, y), rel=1e-6)


def test_energy_distance_of_two_shifted_normals_agrees_with_its_closed_form(rng):
    x, y = rng.normal(size=(1000, 1)), rng.normal(2.0, size=(1000, 1))
    between = 2 * np.sqrt(1 / np.pi) * np.exp(-1) + 2 * (2 * norm.cdf(2 / np.sqrt(2)) - 1)  # E|N(2, 2)|
    assert energy_test(x, y).statistic == pytest.approx(2 * between - 4 / np.sqrt(np.pi), rel=0.08)


@each_test
def test_samples_that_cannot_be_compared_are_rejected(test):
    with pytest.raises(ValueError, match=r"shapes \(n, d\) and \(m, d\); got \(20, 3\) and \(20, 2\)"):
        test(np.zeros((20, 3)), np.zeros((20, 2)))
    with pytest.raises(ValueError, match="at least 10 points; got 9 and 20"):
        test(np.zeros((9, 3)), np.zeros((20, 3)))


@pytest.mark.parametrize("chunk", [1 << 22, 7])
def test_nearest_agrees_with_all_distances(chunk, rng, monkeypatch):
    monkeypatch.setattr("ffjord_kit.metrics.two_sample.CHUNK_ELEMENTS", chunk)
    x, among = rng.integers(0, 256, (5, 2, 3), np.uint8), rng.integers(0, 256, (90, 2, 3), np.uint8)
    indices, distances = nearest(x, among, 4)
    expected = np.sqrt(((x[:, None].astype(float) - among) ** 2).mean((2, 3)))
    np.testing.assert_array_equal(indices, np.argsort(expected, axis=1)[:, :4])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :4])


# ---- outlier scores


SCORES = {
    "one apart": lambda rng: (rng.normal(size=70), 1 + rng.normal(size=40)),
    "many ties": lambda rng: (rng.integers(0, 4, 60).astype(float), rng.integers(1, 5, 90).astype(float)),
    "lower outside": lambda rng: (rng.normal(size=30), rng.normal(size=30) - 2),
    "infinite": lambda rng: (np.r_[-INF, INF, rng.normal(size=30)], np.r_[-INF, INF, INF, rng.normal(size=20)]),
    "two of each": lambda rng: (np.array([0.0, 2.0]), np.array([1.0, 3.0])),
}


@pytest.mark.parametrize("name", SCORES)
def test_area_agrees_with_its_definition_and_with_scikit_learn(name, rng):
    x, y = SCORES[name](rng)
    pairs = (x[:, None] < y) + 0.5 * (x[:, None] == y)
    variance = pairs.mean(0).var(ddof=1) / len(y) + pairs.mean(1).var(ddof=1) / len(x)  # DeLong
    assert auroc(x, y) == pytest.approx((pairs.mean(), np.sqrt(variance)), abs=1e-12)
    finite = np.clip(np.concatenate([x, y]), -1e6, 1e6)  # scikit-learn accepts no infinite score
    labels = np.repeat([0, 1], [len(x), len(y)])
    assert auroc(x, y)[0] == pytest.approx(roc_auc_score(labels, finite), abs=1e-12)


def test_area_of_two_gaussians_agrees_with_its_closed_form(rng):
    area, error = auroc(rng.normal(size=4000), 1 + rng.normal(size=3000))
    assert abs(area - ndtr(1 / np.sqrt(2))) < 4 * error < 0.04


def test_error_of_the_area_is_its_standard_deviation_over_samples(rng):
    results = np.array([auroc(rng.normal(size=60), 1 + 2 * rng.normal(size=40)) for _ in range(1000)])
    variance, noise = results[:, 0].var(ddof=1), results[:, 0].var() * np.sqrt(2 / 999)
    assert abs(variance - np.mean(results[:, 1] ** 2)) < 4 * noise  # s^2 has no bias


def test_areas_of_exchanged_sets_sum_to_one(rng):
    x, y = SCORES["many ties"](rng)
    (area, error), (other, same) = auroc(x, y), auroc(y, x)
    assert (area + other, error) == (pytest.approx(1), pytest.approx(same))


def test_area_depends_only_on_the_order_of_scores(rng):
    x, y = SCORES["one apart"](rng)
    assert auroc(np.exp(x), np.exp(y)) == auroc(x, y)


@pytest.mark.parametrize(
    ("inside", "outside", "area"),
    [([1, 2, 3], [4, INF], 1.0), ([1, 2, 3], [-INF, 0], 0.0), ([1, 1, 1], [1, 1], 0.5)],
)
def test_area_of_separate_and_of_equal_sets(inside, outside, area):
    assert auroc(inside, outside) == (area, 0.0)


def test_single_value_has_an_area_without_error():
    area, error = auroc([1.0, 2.0, 3.0], [2.5])
    assert area == pytest.approx(2 / 3) and np.isnan(error)


# ---- bad arguments


BAD = {
    "no values": (lambda: mean_and_standard_error([]), "at least one number"),
    "unequal shapes": (lambda: kl_divergence(np.zeros(2), np.zeros((2, 1))), r"same shape; got \(2,\) and \(2, 1\)"),
    "descending bounds": (lambda: grid(((1.0, 0.0), (0.0, 1.0)), 3), "x0 < x1"),
    "no cells": (lambda: grid(((0.0, 1.0), (0.0, 1.0)), 0), "size >= 1"),
    "other columns": (lambda: best_kde(np.zeros((3, 2)), np.zeros((3, 1))), r"got \(3, 2\) and \(3, 1\)"),
    "one row": (lambda: best_gaussian_mixture(np.zeros((1, 2)), np.zeros((3, 2)), seed=0), "need two rows"),
    "too few events": (lambda: nearest(np.zeros((5, 2)), np.zeros((9, 2)), 10), r"expected 10 or more .*\(9, 2\)"),
    "other events": (lambda: nearest(np.zeros((5, 2)), np.zeros((9, 3)), 1), r"shape \(2,\); got \(9, 3\)"),
    "no inliers": (lambda: auroc([], [1.0]), r"inside must have shape \(n,\) with n at least 1; got \(0,\)"),
    "no outliers": (lambda: auroc([1.0], []), r"outside must have shape \(n,\) with n at least 1; got \(0,\)"),
    "a table of scores": (lambda: auroc(np.ones((3, 1)), [1.0]), r"inside must have shape .* got \(3, 1\)"),
    "a number for scores": (lambda: auroc(1.0, [1.0]), r"inside must have shape .* got \(\)"),
    "nan": (lambda: auroc([1.0], [np.nan, 2.0, INF]), "outside must not contain nan; got 1 nan among 3 values"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_argument_is_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
