"""Compiled training: the same numbers, the same names of weights, and nothing left behind."""

import pytest
import torch
from ffjord_kit.training.compiled import MODES, compiled

from ffjord_kit import FFJORD, datasets

FIELDS = {"schedule": "flow_matching:6,mle:2", "hidden": (8,), "random_state": 0, "batch_size": 32}


@pytest.fixture
def calls(monkeypatch):
    """torch.compile by its plainest backend, which takes no minute; what it was asked for."""
    asked, real = [], torch.compile

    def plain(function, **options):
        asked.append((function.__name__, options))
        return real(function, backend="eager")

    monkeypatch.setattr(torch, "compile", plain)
    return asked


def test_training_is_the_same_and_the_flow_is_plain_again(calls, tmp_path):
    x = datasets.load("moons", rows=80, seed=0).x
    plain = FFJORD(**FIELDS).fit(x)
    assert calls == []
    model = FFJORD(**FIELDS, compile="reduce-overhead").fit(x, run=tmp_path / "run")
    assert calls == [(name, {"mode": "reduce-overhead"}) for name in ("forward", "push", "diverge")]
    assert model.score_samples(x[:9]) == pytest.approx(plain.score_samples(x[:9]), abs=1e-4)
    assert not {"forward", "push", "diverge"} & set(vars(model.flow_.layers[-1].dynamics))
    assert FFJORD.load(tmp_path / "run").score_samples(x[:9]) == pytest.approx(model.score_samples(x[:9]), abs=1e-9)


def test_the_field_is_plain_again_after_an_error(calls):
    flow = FFJORD(**FIELDS).fit(datasets.load("moons", rows=80, seed=0).x).flow_
    with pytest.raises(RuntimeError, match="in between"), compiled(flow, MODES[0]):
        raise RuntimeError("in between")
    assert "forward" not in vars(flow.layers[-1].dynamics)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="compile must be one of default, reduce-overhead, max-autotune, or None"):
        FFJORD(**FIELDS, compile="fast").fit(datasets.load("moons", rows=80, seed=0).x)
