"""A fitted model as a density estimator of sbi; what needs sbi is skipped where it is not installed."""

import sys

import numpy as np
import pytest
import torch

import ffjord_kit.sbi as adapter
from ffjord_kit import FFJORD
from ffjord_kit.sbi import density_estimator

QUICK = {"schedule": [("flow_matching", 3)], "hidden": (6,), "random_state": 0}
THETA = np.random.default_rng(0).uniform(0.1, 0.9, size=(40, 2))
X = THETA[:, :1] + THETA[:, 1:]


@pytest.fixture(scope="module")
def fitted():
    return FFJORD(**QUICK, support=("bounded", 0, 1)).fit(THETA, context=X)


def test_the_estimator_agrees_with_the_model(fitted):
    pytest.importorskip("sbi")
    estimator, x = density_estimator(fitted), torch.tensor([[0.9], [1.1]])
    theta = torch.tensor([[[0.3, 0.4], [0.5, 0.2]], [[0.6, 0.1], [1.5, 0.5]]])
    values = estimator.log_prob(theta, x)
    for batch, context in enumerate(x.tolist()):
        known = fitted.score_samples(theta[:, batch].numpy(), context=context)
        assert values[:, batch].numpy() == pytest.approx(known, abs=1e-4)
    assert values[1, 1] == -torch.inf
    assert torch.equal(estimator.loss(theta[0], x), -values[0])
    assert estimator.sample((3,), x).shape == (3, 2, 2)
    point = theta[0].clone().requires_grad_()
    estimator.log_prob(point, x).sum().backward()
    assert point.grad.numpy() == pytest.approx(fitted.grad_log_prob(theta[0].numpy(), context=x.numpy()), abs=1e-3)


def test_a_model_without_context_is_refused():
    with pytest.raises(ValueError, match="sbi takes conditional models: fit with context="):
        density_estimator(FFJORD(**QUICK).fit(THETA))


def test_without_sbi_its_name_is_told(fitted, monkeypatch):
    monkeypatch.setitem(sys.modules, "sbi.neural_nets.estimators.base", None)
    adapter._estimator_class.cache_clear()
    with pytest.raises(ImportError, match=r"density_estimator needs the package sbi .*: pip install sbi"):
        density_estimator(fitted)
