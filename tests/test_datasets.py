"""Contracts over every word in DATASETS, and the exactness of the toys' densities."""

import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image
from scipy.integrate import quad
from scipy.stats import chisquare

from ffjord_kit.datasets import DATASETS, describe, load, split_columns
from ffjord_kit.metrics import grid

TOYS = [row.name for row in describe() if row.truth_known]
CARRIED = [word for word in DATASETS if word != "galaxies"]  # which are downloaded: test_galaxies.py
TABLES = [row.name for row in describe() if not row.truth_known and row.name in CARRIED]
CURVES = ["moons", "spirals", "swissroll"]
BOXES = np.arange(-4, 5)


@cache
def sample(word):
    return load(word)


@cache
def surface(word):
    """Points, log-densities and cell area of a fine grid, aligned with whatever has edges."""
    if word == "image":  # the middle of each of its 427 by 640 pixels
        row, column = np.mgrid[:427, :640] + 0.5
        points, area = np.stack([column.ravel() - 320, 213.5 - row.ravel()], axis=1) / 80, 1 / 80**2
    else:
        points, area = grid(((-6, 6), (-6, 6)), 192)
    return points, sample(word).log_prob(points), area


# ---- the menu


@pytest.mark.parametrize("word", CARRIED)
def test_a_data_set_is_a_finite_named_table_that_its_seed_reproduces(word):
    first, again = load(word, rows=50, seed=3), load(word, rows=50, seed=3)
    np.testing.assert_array_equal(first.x, again.x)
    assert first.x.shape == (50, len(first.columns)) and first.x.dtype == np.float64
    assert np.isfinite(first.x).all() and len(set(first.columns)) == len(first.columns)
    assert not np.array_equal(first.x, load(word, rows=50, seed=4).x)


@pytest.mark.parametrize("row", [row for row in describe() if row.name in CARRIED], ids=lambda row: row.name)
def test_the_description_says_what_load_gives(row):
    dataset = load(row.name)
    assert dataset.x.shape == (row.rows or 10_000, row.dimensions)
    assert (dataset.log_prob is not None) == row.truth_known
    assert row.summary and row.source and dataset.name == row.name


@pytest.mark.parametrize("word", TOYS)
def test_the_splits_of_a_toy_are_independent_draws_and_none_means_train(word):
    plain, train, test = (load(name, rows=100).x for name in (word, f"{word}:train", f"{word}:test"))
    np.testing.assert_array_equal(plain, train)
    assert not np.isin(test, train).any()


@pytest.mark.parametrize("word", TABLES)
def test_the_splits_of_a_table_are_parts_of_the_whole_whatever_the_seed(word):
    whole, train, test = (load(name, seed=1).x for name in (word, f"{word}:train", f"{word}:test"))
    assert len(train) == int(0.8 * len(whole))
    both = np.concatenate([train, test])
    np.testing.assert_array_equal(both[np.lexsort(both.T)], whole[np.lexsort(whole.T)])
    np.testing.assert_array_equal(np.floor(load(f"{word}:test", seed=1).x), np.floor(load(f"{word}:test", seed=2).x))


def test_digits_are_pictures_in_their_own_units_with_noise_below_one():
    digits = load("digits")
    assert digits.image_shape == (8, 8) and digits.columns[9] == "pixel_1_1"
    assert digits.x.min() >= 0 and digits.x.max() < 17 and np.floor(digits.x).max() == 16
    assert (len(load("digits:train").x), len(load("digits:test").x)) == (1437, 360)


def test_context_columns_are_separated_by_name_or_index():
    dataset = load("diabetes")
    parts = split_columns(dataset, ["sex", "-1", "0"])
    assert parts.context_columns == ("sex", "s6", "age") and "sex" not in parts.columns
    np.testing.assert_array_equal(parts.context, dataset.x[:, [1, 9, 0]])
    assert parts.x.shape == (442, 7) == (442, len(parts.columns))
    assert split_columns(dataset, []).context.shape == (442, 0)


def test_the_sets_in_the_menu_load_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for word in CARRIED:
            load(word, rows=20)


# ---- the densities


@pytest.mark.parametrize("word", TOYS)
def test_the_density_integrates_to_one(word):
    _, log_prob, area = surface(word)
    assert abs(np.exp(log_prob).sum() * area - 1) < 1e-7


@pytest.mark.parametrize("word", TOYS)
def test_samples_have_the_entropy_of_the_density(word):
    _, log_prob, area = surface(word)
    negative_entropy = np.sum(np.exp(log_prob) * np.where(np.isinf(log_prob), 0, log_prob)) * area
    values = sample(word).log_prob(sample(word).x)
    assert abs(values.mean() - negative_entropy) < 4 * values.std() / np.sqrt(len(values)) + 1e-9


@pytest.mark.parametrize("word", TOYS)
def test_samples_fall_into_boxes_as_the_density_says(word):
    points, log_prob, area = surface(word)
    x = sample(word).x
    expected = len(x) * np.histogram2d(*points.T, bins=[BOXES, BOXES], weights=np.exp(log_prob) * area)[0].ravel()
    counts = np.histogram2d(*x.T, bins=[BOXES, BOXES])[0].ravel()
    often = expected > 5
    expected, counts = (np.append(each[often], len(x) - each[often].sum()) for each in (expected, counts))
    keep = expected > 1e-3  # on the checkerboard nothing is left over
    assert counts[~keep].sum() == 0
    assert chisquare(counts[keep], expected[keep] * counts[keep].sum() / expected[keep].sum()).pvalue > 1e-4


@pytest.mark.parametrize("word", CURVES)
@pytest.mark.parametrize("distance", [1.0, 10.0, 100.0])
def test_twice_the_nodes_change_no_log_density(word, distance):
    density = DATASETS[word].density()
    x = distance * np.random.default_rng(0).standard_normal((300, 2))
    np.testing.assert_allclose(density.log_prob(x), replace(density, nodes=80).log_prob(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("word", CURVES)
def test_the_quadrature_agrees_with_an_adaptive_one_near_and_far(word):
    density = DATASETS[word].density()
    x = np.concatenate([sample(word).x[:5], [[0.0, 0.0], [7.0, -5.0], [-30.0, 20.0], [4.0, 100.0]]])
    np.testing.assert_allclose(density.log_prob(x), [adaptive(density, each) for each in x], rtol=0, atol=1e-6)


def adaptive(density, x):
    """log p(x) by scipy's quadrature of the textbook integrand, with breaks closing in on its peaks."""
    exponent = lambda arm, t: -np.sum((x - arm.at(np.atleast_1d(t))) ** 2, axis=1) / (2 * density.noise**2)  # noqa: E731
    fine = [np.linspace(arm.start, arm.end, 20_001) for arm in density.arms]
    top = max(exponent(arm, t).max() for arm, t in zip(density.arms, fine, strict=True))
    total = 0.0
    for arm, t in zip(density.arms, fine, strict=True):
        values, length = exponent(arm, t), arm.end - arm.start
        peaks = t[np.r_[True, np.diff(values) > 0] & np.r_[np.diff(values) <= 0, True]]
        breaks = (peaks[:, None] + np.outer([-1, 1], 0.1 ** np.arange(8)).ravel()).ravel()
        weight = lambda t, arm=arm, n=length: density.power * ((t - arm.start) / n) ** (density.power - 1) / n  # noqa: E731
        edges = np.unique(np.clip([*breaks, *peaks, arm.start, arm.end], arm.start, arm.end))
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            total += quad(lambda t, arm=arm, w=weight: w(t) * np.exp(exponent(arm, t)[0] - top), low, high)[0]
    return top + np.log(total / (2 * np.pi * density.noise**2 * len(density.arms)))


@pytest.mark.parametrize("word", TOYS)
def test_far_away_the_log_density_is_finite_or_the_support_has_ended(word):
    far = np.array([[1e3, -1e3], [-1e6, 1e5], [1e9, 0.0]])
    log_prob = sample(word).log_prob(far)
    bounded = word in ("checkerboard", "image")
    assert np.isneginf(log_prob).all() if bounded else (np.isfinite(log_prob) & (log_prob < -1e5)).all()


@pytest.mark.parametrize("word", TOYS)
def test_a_density_treats_each_row_alone_and_passes_nan_on(word):
    x = np.concatenate([sample(word).x[:3], [[np.nan, 0.0], [np.inf, 0.0], [1e200, 0.0]]])
    log_prob = sample(word).log_prob(x)
    np.testing.assert_allclose(log_prob[:3], sample(word).log_prob(sample(word).x)[:3], rtol=1e-12)
    assert np.isnan(log_prob[3]) and np.isneginf(log_prob[4:]).all()
    assert sample(word).log_prob(np.empty((0, 2))).shape == (0,)
    with pytest.raises(ValueError, match=r"x must have shape \(n, 2\); got \(2,\)"):
        sample(word).log_prob(np.zeros(2))


def test_a_picture_is_dense_where_it_is_bright_and_stands_upright(tmp_path):
    Image.fromarray(np.array([[0, 100], [200, 100], [0, 0], [0, 0]], dtype=np.uint8)).save(tmp_path / "p.png")
    dataset = load(f"image:{tmp_path / 'p.png'}:test", rows=2000)
    centres = np.array([[-1.0, 3.0], [1.0, 3.0], [-1.0, 1.0], [1.0, 1.0], [1.0, -3.0], [2.1, 3.0]])
    expected = [0, 1 / 16, 2 / 16, 1 / 16, 0, 0]  # shares of 1, 2, 1 quarters over pixels of area 4
    np.testing.assert_allclose(np.exp(dataset.log_prob(centres)), expected)
    share = np.mean(dataset.x[:, 0] < 0)
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(2000) and dataset.x[:, 1].min() >= 0
