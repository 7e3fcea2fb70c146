"""Plain fits are what they were: the NLL after a fixed number of steps in float64, to 1e-6 nats."""

import numpy as np
import pandas as pd
import pytest
import torch

from ffjord_kit import FFJORD

MIXING = np.array([[1, 0.5, 0], [0, 1, -0.5], [0, 0, 1]])
ROWS = np.random.default_rng(0).normal(size=(120, 3)) @ MIXING
HOLED = np.where((np.arange(120)[:, None] % 5 == 0) & (np.arange(3) == 1), np.nan, ROWS)
MIXED = pd.DataFrame({"a": ROWS[:, 0], "c": np.where(ROWS[:, 1] > 0, "u", "v")})


@pytest.fixture(autouse=True)
def in_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("rows, subsets, expected", [
    (ROWS, False, 4.3171950235), (HOLED, True, 4.0475053728), (MIXED, False, 2.1391458443),
], ids=["plain", "missing cells", "a category"])  # fmt: skip
def test_the_likelihood_of_a_short_fit_is_what_it_was(rows, subsets, expected):
    model = FFJORD(schedule=[("flow_matching", 20)], hidden=(8,), random_state=0, subsets=subsets).fit(rows)
    assert -model.score(rows[:40]) == pytest.approx(expected, abs=1e-6)
