"""The number of threads: measured, or left as the user has set it."""

import time

import numpy as np
import pytest
import torch

from ffjord_kit import FFJORD, threads
from ffjord_kit.threads import faster_threads

CPU = torch.device("cpu")


@pytest.fixture
def two_threads(monkeypatch):
    """A machine with two threads, of which nothing is set."""
    for name in threads.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "AT_START", 2)
    monkeypatch.setattr(threads, "_chosen", {})
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("best", [1, 2])
def test_the_faster_number_is_used_measured_once_and_given_back(two_threads, best):
    calls = []

    def work():
        calls.append(torch.get_num_threads())
        time.sleep(0.001 if calls[-1] == best else 0.02)

    for _ in range(2):
        with faster_threads(work, CPU, ("a",)):
            assert torch.get_num_threads() == best
        assert torch.get_num_threads() == 2
    assert len(calls) == 4 * threads.REPEATS


@pytest.mark.parametrize("types", [{}, {"x0": "circle:360"}, {"x0+x1": "sphere:deg"}])
def test_any_kind_of_row_is_scored_drawn_and_certified_by_the_faster_number(two_threads, types):
    x = np.random.default_rng(0).uniform(0, 80, (60, 2))
    model = FFJORD(columns=types, schedule=[("flow_matching", 2)], hidden=(8,), random_state=0).fit(x)
    assert np.isfinite(model.score_samples(x)).all() and np.isfinite(np.asarray(model.sample(3))).all()
    assert np.isfinite(model.certify(x[:3]).log_prob).all()
    assert {key[0] for key in threads._chosen} == {"fit", "solve"}


@pytest.mark.parametrize("how", ["environment", "call"])
def test_what_the_user_has_set_stays(two_threads, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    else:
        monkeypatch.setattr(threads, "AT_START", 8)
    with faster_threads(lambda: pytest.fail("measured"), CPU, ("a",)):
        assert torch.get_num_threads() == 2
