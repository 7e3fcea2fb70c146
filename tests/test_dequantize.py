"""Columns of equal steps get noise of that width, and draws that lie on their grid."""

import numpy as np
import pytest
from scipy import stats

from ffjord_kit import FFJORD
from ffjord_kit.diagnostics.grid import find_grid
from ffjord_kit.run import RunError

QUICK = {"schedule": [("flow_matching", 400)], "hidden": (32, 32), "batch_size": 256, "random_state": 0}
NAMES = ("count", "score", "weight")


def table(n=2000, seed=0):
    rng = np.random.default_rng(seed)
    count = rng.binomial(8, 0.4, n)
    return np.stack([count, 0.5 * rng.integers(0, 5, n) + 0.25, count + rng.normal(size=n)], axis=1)


def test_steps_are_found_where_values_have_them():
    assert find_grid("auto", table(), NAMES).step == [1.0, 0.5, 0.0]
    assert find_grid(["score"], table(), NAMES).step == [0.0, 0.5, 0.0]
    assert find_grid({"count": 0.5, "score": None}, table(), NAMES).step == [0.5, 0.5, 0.0]
    assert find_grid(None, table(), NAMES).step == [0.0, 0.0, 0.0]
    assert find_grid("auto", np.array([[0.0], [0.1], [0.3], [0.7], [0.7]] * 3), "x").step[0] == pytest.approx(0.1)
    assert find_grid("auto", np.array([[0.0], [0.1], [0.3141]] * 3), "x").step == [0.0]


def test_decimals_kept_in_single_precision_are_steps():
    x = (np.random.default_rng(0).integers(-200, 400, 2000) / 10).astype(np.float32).astype(float)[:, None]
    assert find_grid("auto", x, "x").step[0] == pytest.approx(0.1, rel=1e-5)
    assert find_grid("auto", np.repeat(np.random.default_rng(0).normal(size=300), 3)[:, None], "x").step == [0.0]


@pytest.mark.parametrize("kind", [np.float64, np.float32])
@pytest.mark.parametrize(("step", "decimals"), [(0.1, 1), (0.05, 2), (0.0025, 4), (2.0, 0), (100.0, 0), (1 / 3, None)])
def test_draws_have_the_decimals_of_the_data(step, decimals, kind):
    k = np.random.default_rng(0).integers(-30, 60, (2000, 1))
    x = (k * step if decimals is None else np.round(17 * step + k * step, decimals)).astype(kind).astype(float)
    grid = find_grid("auto", x, "x")
    draws = grid.round(x + grid.step[0] * np.random.default_rng(1).uniform(-0.49, 0.49, x.shape))
    assert grid.decimals == [decimals]
    assert draws == pytest.approx(x, abs=1e-5)
    if decimals is not None:
        assert [float(value) for value in draws[:, 0]] == [float(f"{value:.{decimals}f}") for value in x[:, 0]]


@pytest.mark.slow
def test_counts_are_never_below_0_and_other_steps_may_be():
    x = np.random.default_rng(0).poisson(0.7, (2000, 1)).astype(float)
    assert FFJORD(dequantize="auto", **QUICK).fit(x).sample(3000, random_state=0).min() == 0
    assert find_grid("auto", x, "x").counts == [True]
    assert find_grid("auto", x - 3, "x").counts == [False]


def test_noise_is_as_wide_as_a_step_and_rounding_takes_it_away():
    x = table()
    grid = find_grid("auto", x, NAMES)
    noisy = grid.add_noise(x, 0)
    shift = (noisy - x)[:, :2] / [1.0, 0.5]
    assert all(stats.kstest(shift[:, i], stats.uniform(-0.5, 1).cdf).pvalue > 0.01 for i in range(2))
    assert np.array_equal(noisy[:, 2], x[:, 2])
    assert np.array_equal(grid.round(noisy), x)
    assert np.array_equal(noisy, grid.add_noise(x, 0)) and not np.array_equal(noisy, grid.add_noise(x, 1))


@pytest.mark.slow
def test_a_discrete_law_is_learned_with_its_probabilities(tmp_path, recwarn):
    x = table()[:, :1]
    model = FFJORD(dequantize="auto", **QUICK).fit(x)
    assert not recwarn.list  # the noise is no tie
    values = np.arange(1, 7)[:, None]
    log_p = model.score_samples(values) + np.log(1.0)
    assert np.exp(log_p) == pytest.approx(stats.binom(8, 0.4).pmf(values[:, 0]), abs=0.07)
    draws = model.sample(500, random_state=0)
    assert np.array_equal(draws, np.round(draws))
    model.save(tmp_path / "run")
    assert np.array_equal(FFJORD.load(tmp_path / "run").sample(20, random_state=1), model.sample(20, random_state=1))


def test_named_columns_alone_are_rounded():
    model = FFJORD(dequantize=["x1"], **{**QUICK, "schedule": [("flow_matching", 5)]}).fit(table())
    draws = model.sample(50, random_state=0)
    assert np.allclose((draws[:, 1] - 0.25) % 0.5, 0)
    assert not np.allclose(draws[:, 0] % 1, 0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["age"], "dequantize names a column 'age' that is not there; there are x0, x1, x2"),
        ({"x0": -1}, "dequantize must be 'auto', names such as .*, or positive steps such as .*; got {'x0': -1}"),
        ({"x0": "wide"}, "dequantize must be 'auto'"),
        ("x0", "dequantize must be 'auto', names such as .*; got 'x0'"),
        (["x2"], "column 'x2' has no values of equal steps: give its step, e.g. x2:0.5"),
        ({"x0": 0.7}, "column 'x0' has no values of equal steps of 0.7"),
    ],
)
def test_what_cannot_be_dequantized_is_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        FFJORD(dequantize=columns, **QUICK).fit(table())


def test_a_grid_that_was_tampered_with_is_refused(tmp_path):
    FFJORD(dequantize="auto", **{**QUICK, "schedule": [("flow_matching", 2)]}).fit(table()).save(tmp_path / "run")
    config = tmp_path / "run/config.json"
    config.write_text(config.read_text().replace('"step": [', '"step": [7, '))
    with pytest.raises(RunError, match=r"config.json is damaged .*grid must give a step"):
        FFJORD.load(tmp_path / "run")
