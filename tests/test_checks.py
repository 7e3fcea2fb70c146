"""Data on which a likelihood has no bound are told of, by the columns' names, and good data are not."""

import time
import warnings

import numpy as np
import pandas as pd
import pytest

from ffjord_kit import FFJORD, datasets
from ffjord_kit.diagnostics.columns import DegenerateDataWarning, check_columns
from ffjord_kit.estimator.tables.names import in_order

NAMES = ("a", "b", "c", "sum")


def told(x, names=NAMES):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_columns(x, names[: x.shape[1]])
    assert all(w.category is DegenerateDataWarning for w in caught)
    return [str(w.message) for w in caught]


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(500, 3)) * [1.0, 1e6, 1e-6]


def test_a_column_is_told_of_once_with_a_cure_that_it_has():
    rng = np.random.default_rng(0)
    kids, y = rng.poisson(2, 900).astype(float), rng.normal(size=900)
    rain = np.where(rng.random(900) < 0.4, 0.0, np.exp(2 * rng.normal(size=900)))
    counts, many_zeros = told(np.stack([kids, rain, y], axis=1))  # rain also goes far out
    assert "column 'a' (" in counts and "give it the type integer (--columns a=integer)" in counts
    assert "column 'b' (" in many_zeros and "lie on no grid" in many_zeros
    assert len(told(kids[:, None])) == 1  # its rows are repeated, too
    (equal,) = told(np.stack([kids, kids, y], axis=1))
    assert "are equal" in equal
    assert told((kids + rng.random(900) - 0.5)[:, None]) == []


def test_ordinary_columns_of_any_scale_are_silent(x):
    assert told(x) == []
    assert told(datasets.load("moons", rows=400, seed=0).x) == []
    assert told(np.c_[x[:, 0], x[:, 0] + 0.02 * np.random.default_rng(1).normal(size=500)]) == []


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_a_sum_of_columns_is_told_with_those_that_it_sums(x, noise):
    z = x / x.std(0)
    total = 2 * z[:, 0] - z[:, 2] + noise * np.random.default_rng(2).normal(size=500)
    (text,) = told(np.c_[x, total])
    assert "'sum'" in text
    assert "'a'" in text
    assert "'c'" in text
    assert "'b'" not in text
    assert "linearly dependent" in text
    assert "drop one of them" in text


def test_another_unit_is_told(x):
    (text,) = told(np.c_[x[:, 0], x[:, 0] * 9 / 5 + 32], ("celsius", "fahrenheit"))
    assert "columns 'celsius', 'fahrenheit' are linearly dependent" in text


def test_equal_columns_are_told_once(x):
    (text,) = told(np.c_[x[:, 0], x[:, 0]])
    assert "columns 'a' and 'b' are equal" in text


def test_many_equal_columns_are_told_once_by_the_first_ten(x):
    names = [f"c{i}" for i in range(3000)]
    (text,) = [text for text in told(np.tile(x[:, :1], (1, 3000)), names) if "equal" in text]
    assert ", ".join(repr(name) for name in names[:10]) + " and 2990 more equal others" in text
    assert "'c10'" not in text


def test_many_columns_with_rows_far_out_are_told_once(x):
    x[7] *= 1e6
    (text,) = [text for text in told(x) if "middle half" in text]
    assert "column 'a' reaches" in text
    assert "; others as far out: 'b', 'c': drop" in text


def test_columns_are_brought_in_order_in_linear_time():
    def seconds(count):
        names = [f"c{i}" for i in range(count)]
        frame = pd.DataFrame(np.arange(2.0 * count).reshape(2, -1), columns=names[::-1])
        start = time.process_time()
        assert list(in_order(frame, names).columns) == names
        return time.process_time() - start

    assert min(seconds(40_000) for _ in range(3)) < 10 * seconds(10_000) + 0.1  # by a search for each name 16 times
    names = [f"c{i}" for i in range(40_000)]
    frame = pd.DataFrame(np.arange(80_000.0).reshape(2, -1), columns=names[::-1])
    with pytest.raises(ValueError, match=r"lacks columns of the fit: z; it has c39999, .* and 39990 more$"):
        in_order(frame, [*names, "z"])


def test_repeated_names_are_refused_in_one_line(x):
    frame = pd.DataFrame(x, columns=["a", "b", "a"])
    with pytest.raises(ValueError, match="^two columns are called 'a': give each its own name$"):
        FFJORD().fit(frame)


def test_a_value_that_many_rows_share_is_told_with_its_share(x):
    x[:100, 1] = 0.0
    (text,) = told(x)
    assert "one value in many rows of column 'b' (20%)" in text
    assert "use it as context, or leave it out; its values lie on no grid" in text
    x[:, 1] = np.round(x[:, 1] / 1e6)
    (text,) = told(x)
    assert "use it as context, or give it the type integer (--columns b=integer), which is for counts" in text
    x[:, 1] = x[:, 1] / 4
    (text,) = told(x)
    assert "use it as context, or pass dequantize=['b'], for noise of the width of its steps" in text


def test_few_rows_and_few_ties_are_silent(x):
    x[:20, 1] = 0.0
    assert told(x) == []
    assert told(np.arange(60.0).reshape(20, 3) ** 1.5 % 7) == []


def test_many_rows_are_told_from_some():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200_000, 3))
    x[:, 2] = x[:, 0] - x[:, 1]
    (text,) = told(x)
    assert "linearly dependent" in text


def test_rows_that_are_there_ten_times_are_learned_and_told_of(x):
    many = np.tile(x, (10, 1))
    with pytest.warns(DegenerateDataWarning, match="100% of the rows occur more than once: those held out are trained"):
        model = FFJORD(schedule=[("flow_matching", 20)], hidden=(8,), random_state=0).fit(many)
    assert np.isfinite(model.score_samples(x)).all()
    assert told(np.concatenate([x, x[:20]])) == []
