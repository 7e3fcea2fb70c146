"""The judges agree with closed forms, and the baselines with densities that are known."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from ffjord_kit.datasets import DATASETS, load
from ffjord_kit.metrics import (
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
)

SCALES = np.array([1.0, 30.0, 0.01])
BASELINES = {"mixture": lambda a, b: best_gaussian_mixture(a, b, seed=0), "kde": best_kde}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_standard_error_is_that_of_a_mean():
    assert mean_and_standard_error([1.0, 2.0, 3.0, 6.0]) == (3.0, pytest.approx(np.sqrt(14 / 3 / 4)))
    mean, error = mean_and_standard_error([5.0])
    assert mean == 5.0 and np.isnan(error)


def test_uniform_bytes_have_eight_bits_per_dimension():
    assert bits_per_dim(3 * np.log(256), 3) == pytest.approx(8)
    np.testing.assert_allclose(bits_per_dim(np.log([2.0, 4.0]), 1), [1, 2])


def test_the_divergence_of_two_gaussians_is_within_standard_errors_of_its_closed_form(rng):
    x = rng.standard_normal(20_000)
    mean, error = kl_divergence(norm.logpdf(x), norm.logpdf(x, loc=1, scale=2))
    assert abs(mean - (np.log(2) + 2 / 8 - 0.5)) < 4 * error < 0.05
    assert kl_divergence(norm.logpdf(x), norm.logpdf(x)) == (0.0, 0.0)


def test_the_divergence_is_infinite_where_q_is_zero():
    mean, error = kl_divergence(np.array([-1.0, -1.0]), np.array([-1.0, -np.inf]))
    assert mean == np.inf and np.isnan(error)


def test_a_grid_has_a_row_of_midpoints_for_each_height_from_the_bottom():
    points, area = grid(((0.0, 4.0), (-1.0, 1.0)), 2)
    np.testing.assert_array_equal(points, [[1, -0.5], [3, -0.5], [1, 0.5], [3, 0.5]])
    assert area == 2.0


def test_a_gaussian_integrates_to_one_and_half_of_it_to_a_half():
    log_prob = multivariate_normal([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]]).logpdf
    assert abs(integral_on_grid(log_prob, ((-9, 9), (-9, 9)), 100) - 1) < 1e-12
    assert abs(integral_on_grid(log_prob, ((0, 9), (-9, 9)), 400) - 0.5) < 1e-3  # cut, so of second order in the cell


@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
def test_a_baseline_answers_in_the_units_of_the_data(baseline, rng):
    train, validation = rng.standard_normal((300, 3)), rng.standard_normal((100, 3))
    plain, scaled = baseline(train, validation), baseline(train * SCALES + 5, validation * SCALES + 5)
    expected = plain.score_samples(validation) - np.log(SCALES).sum()
    np.testing.assert_allclose(scaled.score_samples(validation * SCALES + 5), expected, atol=2e-3)


@pytest.mark.parametrize("word", ["moons", "8gaussians"])
@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
def test_a_baseline_integrates_to_one_and_comes_near_the_truth_but_not_past_it(baseline, word):
    train, validation, test = load(word, rows=2000).x, load(word, rows=500, seed=1).x, load(f"{word}:test", rows=5000)
    model = baseline(train, validation)
    assert abs(integral_on_grid(model.score_samples, ((-6, 6), (-6, 6)), 100) - 1) < 1e-3  # the kernels' own precision
    divergence, error = kl_divergence(test.log_prob(test.x), model.score_samples(test.x))
    assert -4 * error < divergence < 0.1 + 4 * error


def test_the_mixture_finds_as_many_components_as_there_are(rng):
    density = DATASETS["8gaussians"].density()
    mixture = best_gaussian_mixture(density.sample(2000, rng), density.sample(2000, rng), seed=0)
    divergence, error = kl_divergence(density.log_prob(x := density.sample(2000, rng)), mixture.score_samples(x))
    assert mixture.n_components == 8 and divergence < 0.02 + 4 * error
    samples, _ = mixture.sample(2000)  # a scaled mixture draws from the density that it scores
    mean, error = mean_and_standard_error(mixture.score_samples(samples) - density.log_prob(samples))
    assert abs(mean) < 0.02 + 4 * error


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_the_parameters_of_a_mixture_agree_with_each_other_in_the_units_of_the_data(kind, rng, monkeypatch):
    monkeypatch.setattr("ffjord_kit.metrics.baselines.COVARIANCES", (kind,))
    x = rng.standard_normal((400, 3)) * SCALES
    mixture = best_gaussian_mixture(x[:300], x[300:], seed=0)
    covariances = mixture.covariances_ if kind == "full" else [np.diag(each) for each in mixture.covariances_]
    terms = [multivariate_normal(m, c).logpdf(x) for m, c in zip(mixture.means_, covariances, strict=True)]
    np.testing.assert_allclose(mixture.score_samples(x), logsumexp(terms, axis=0, b=mixture.weights_[:, None]))
    times, one = (np.matmul, np.eye(3)) if kind == "full" else (np.multiply, np.ones(3))
    np.testing.assert_allclose(times(mixture.covariances_, mixture.precisions_)[0], one, atol=1e-9)


def test_the_kernel_estimate_is_the_mean_of_its_kernels_also_in_the_tail(rng):
    train = rng.standard_normal((500, 2)) * [1, 10]
    kde = best_kde(train, rng.standard_normal((200, 2)) * [1, 10])
    x = np.array([[0.0, 0.0], [2.0, -15.0], [40.0, 100.0]])
    deviations = kde.bandwidth * train.std(axis=0)
    terms = norm.logpdf(x[:, None], loc=train, scale=deviations).sum(axis=2)
    np.testing.assert_allclose(kde.score_samples(x), logsumexp(terms, axis=1) - np.log(500), atol=1e-3)


def test_settings_that_the_rows_do_not_allow_are_left_out(rng):
    assert best_gaussian_mixture(rng.standard_normal((5, 3)), rng.standard_normal((5, 3)), seed=0).n_components <= 4


def test_baselines_with_the_same_seed_are_the_same(rng):
    x = rng.standard_normal((300, 2))
    first, second = (best_gaussian_mixture(x[:200], x[200:], seed=7).score_samples(x) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_baselines_change_nothing_that_they_are_given(rng):
    train, validation = rng.standard_normal((50, 2)), rng.standard_normal((50, 2))
    before = train.copy(), validation.copy()
    for baseline in BASELINES.values():
        baseline(train, validation).score_samples(train)
    np.testing.assert_array_equal((train, validation), before)


BAD = {
    "no values": (lambda: mean_and_standard_error([]), "at least one number"),
    "unequal shapes": (lambda: kl_divergence(np.zeros(2), np.zeros((2, 1))), r"same shape; got \(2,\) and \(2, 1\)"),
    "bounds in a wrong order": (lambda: grid(((1.0, 0.0), (0.0, 1.0)), 3), "x0 < x1"),
    "no cells": (lambda: grid(((0.0, 1.0), (0.0, 1.0)), 0), "size >= 1"),
    "other columns": (lambda: best_kde(np.zeros((3, 2)), np.zeros((3, 1))), r"got \(3, 2\) and \(3, 1\)"),
    "one row": (lambda: best_gaussian_mixture(np.zeros((1, 2)), np.zeros((3, 2)), seed=0), "need two rows"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_a_bad_argument_is_refused_with_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


TWO_SAMPLES = {"energy": energy_test, "mmd": mmd_test, "classifier": classifier_test}


@pytest.mark.parametrize("test", TWO_SAMPLES.values(), ids=TWO_SAMPLES)
def test_samples_of_one_law_are_told_apart_no_more_often_than_chance_has_it(test):
    rng = np.random.default_rng(0)
    found = [test(*rng.normal(size=(2, 60, 3)), seed=seed).p_value for seed in range(20)]
    assert sum(p < 0.05 for p in found) <= 4  # binomial, 0.997


@pytest.mark.parametrize("test", TWO_SAMPLES.values(), ids=TWO_SAMPLES)
def test_samples_of_two_laws_are_told_apart(test):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 3)), rng.normal(size=(300, 3)) * [1, 1, 2]
    assert test(x, y).p_value < 0.01
    assert test(x * SCALES, y * SCALES) == pytest.approx(test(x, y), rel=1e-6)  # units do not matter


def test_the_energy_distance_of_two_shifted_normals_is_the_closed_form():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2000, 1)), rng.normal(2.0, size=(2000, 1))
    between = 2 * np.sqrt(1 / np.pi) * np.exp(-1) + 2 * (2 * norm.cdf(2 / np.sqrt(2)) - 1)  # E|N(2, 2)|
    assert energy_test(x, y).statistic == pytest.approx(2 * between - 4 / np.sqrt(np.pi), rel=0.08)


@pytest.mark.parametrize("test", TWO_SAMPLES.values(), ids=TWO_SAMPLES)
def test_samples_that_cannot_be_compared_are_refused(test):
    with pytest.raises(ValueError, match=r"shapes \(n, d\) and \(m, d\); got \(20, 3\) and \(20, 2\)"):
        test(np.zeros((20, 3)), np.zeros((20, 2)))
    with pytest.raises(ValueError, match="at least 10 points; got 9 and 20"):
        test(np.zeros((9, 3)), np.zeros((20, 3)))
