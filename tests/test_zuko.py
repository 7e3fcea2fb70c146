"""Transforms of zuko: the contract of transforms, their training before the continuous ones, and the way into a run."""

import builtins

import numpy as np
import pytest
import torch
from oracles import F64, SmoothMLP, close, jacobian, randn
from torch import nn

from ffjord_kit import FFJORD
from ffjord_kit.estimator import search
from ffjord_kit.flow import Flow
from ffjord_kit.objectives import FlowMatching, TransformsLikelihood
from ffjord_kit.training import Phase, TrainConfig, fit_flow
from ffjord_kit.transforms import CNF, Standardize
from ffjord_kit.transforms.zuko import ZUKO_TRANSFORMS, ZukoTransform, zuko_transform

zuko = pytest.importorskip("zuko")
SIZES = [(word, size) for word in ZUKO_TRANSFORMS for size in (1, 2, 5) if (word, size) != ("nice", 1)]
CASES = [(word, size, context_dim) for word, size in SIZES for context_dim in (0, 3)]
QUICK = {"hidden": (16,), "random_state": 0, "validate_every": 50}
SHORT = [("transforms", 10), ("flow_matching", 10)]


def made(word, size, context_dim=0, count=2):
    """Return a transform with weights larger than initially, so that it is not linear."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transform = zuko_transform(word, count, size, context_dim).double()
        for parameter in transform.parameters():
            nn.init.normal_(parameter, std=0.2)
    return transform


def rows(size, context_dim, n=6, scale=1.0):
    return scale * randn(n, size), randn(n, context_dim, seed=1) if context_dim else None


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize(("word", "size", "context_dim"), CASES)
def test_the_two_maps_are_inverse_and_their_log_determinants_opposite(word, size, context_dim, scale):
    transform, (x, context) = made(word, size, context_dim), rows(size, context_dim, scale=scale)
    z, down = transform.to_base(x, context)
    back, up = transform.to_data(z, context)
    assert z.shape == x.shape
    assert up.shape == down.shape == (6,)
    close(back, x, 1e-8)
    close(up, -down, 1e-8)


@pytest.mark.parametrize(("word", "size", "context_dim"), CASES)
def test_the_log_determinants_are_those_of_autograds_jacobian(word, size, context_dim):
    transform, (x, context) = made(word, size, context_dim), rows(size, context_dim, n=1)
    for carry in (transform.to_base, transform.to_data):
        expected = torch.linalg.slogdet(jacobian(lambda y, carry=carry: carry(y, context)[0], x))[1]
        close(carry(x, context)[1], expected, 1e-8)


@pytest.mark.parametrize("word", ZUKO_TRANSFORMS)
def test_maps_and_log_determinants_are_differentiable_both_ways(word):
    transform, x = made(word, 3), randn(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(transform.to_base, x, fast_mode=True, atol=1e-4)
    assert torch.autograd.gradcheck(transform.to_data, x, fast_mode=True, atol=1e-4)


def test_any_lazy_transform_is_a_transform():
    transform = ZukoTransform(zuko.flows.SOSPF(3, transforms=1).transform, 3).double()
    x = randn(5, 3)
    close(transform.to_data(transform.to_base(x)[0])[0], x, 1e-4)  # its inverse is a bisection


@pytest.mark.parametrize("word", ZUKO_TRANSFORMS)
def test_a_conditional_transform_uses_its_context(word):
    transform, (x, context) = made(word, 3, 2), rows(3, 2)
    assert not torch.allclose(transform.to_base(x, context)[0], transform.to_base(x, -context)[0])


def test_flow_matching_leaves_the_weights_of_the_transforms_as_their_own_phase_left_them():
    x = torch.cat([randn(300, 1), randn(300, 1).square()], 1)
    flow = Flow([made("maf", 2).float(), CNF(SmoothMLP(2).float(), (2,))], preprocess=[Standardize.of(x)])
    steps = [Phase(TransformsLikelihood(), 20), Phase(FlowMatching(), 20)]
    config = TrainConfig(weight_decay=0.1, ema_decay=0.9, batch_size=64)
    before = [p.clone() for p in flow.parameters()]
    fit_flow(flow, x, schedule=steps[:1], config=config)
    between = [p.clone() for p in flow.parameters()]
    fit_flow(flow, x, schedule=steps[1:], config=config)
    ours = len(list(flow.transforms[0].parameters()))
    changed = [[not torch.equal(a, b) for a, b in zip(*pair, strict=True)] for pair in
               ((before, between), (between, list(flow.parameters())))]  # fmt: skip
    assert any(changed[0][:ours])
    assert not any(changed[0][ours:])
    assert not any(changed[1][:ours])
    assert any(changed[1][ours:])


def bent(n, seed=0):
    """Return rows along a parabola."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    return np.stack([x[:, 0], 0.3 * x[:, 1] + x[:, 0] ** 2], 1)


@pytest.mark.slow
def test_the_default_schedule_begins_with_the_transforms_and_a_run_of_it_is_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "TRANSFORMS_STEPS", 150)
    monkeypatch.setattr(search, "STEPS", 40)
    model = FFJORD(transforms=[("maf", 2), ("nsf", 1)], **QUICK).fit(bent(600), run=tmp_path / "run")
    phases = [record["event"] for record in model.history_.records if "event" in record]
    assert [text.split()[0] for text in phases] == ["nothing", "no", "chosen:", "transforms", "flow_matching", "kept"]
    nll = [record["validation_nll"] for record in model.history_.records if "validation_nll" in record]
    assert min(nll) < nll[0]
    loaded, x = FFJORD.load(tmp_path / "run"), bent(20, seed=1)
    close(torch.tensor(loaded.score_samples(x)), torch.tensor(model.score_samples(x)), 1e-12)
    close(torch.tensor(loaded.sample(5, random_state=0)), torch.tensor(model.sample(5, random_state=0)), 1e-12)
    assert model.draft(x) == pytest.approx(model.score_samples(x), abs=0.05)
    model.save(tmp_path / "again")
    assert np.array_equal(FFJORD.load(tmp_path / "again").score_samples(x), loaded.score_samples(x))


@pytest.mark.slow
def test_a_run_interrupted_among_the_transforms_goes_on_as_if_it_had_not_been(tmp_path):
    fields = {
        "transforms": [("maf", 2)],
        "schedule": [("transforms", 20), ("flow_matching", 20), ("mle", 2)],
        **QUICK,
    }
    whole = FFJORD(**fields).fit(bent(200), run=tmp_path / "whole")

    def stop(record):
        if record["step"] == 27:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FFJORD(**fields).fit(bent(200), run=tmp_path / "run", on_step=stop)
    resumed = FFJORD(**fields).fit(bent(200), run=tmp_path / "run", resume=True)
    for a, b in zip(whole.flow_.parameters(), resumed.flow_.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_conditional_flow_gives_its_context_to_its_transforms():
    x = bent(300)
    model = FFJORD(transforms=[("maf", 1)], schedule=[("transforms", 60), ("flow_matching", 20)], **QUICK).fit(
        x[:, 1:], context=x[:, :1]
    )
    low, high = (model.score_samples([[4.0]], context=[[c]])[0] for c in (0.0, 2.0))
    assert high > low + 1
    assert model.sample(3, context=[1.0], random_state=0).shape == (3, 1)


def test_the_seed_draws_the_weights_of_the_transforms():
    first, again, other = (
        FFJORD(transforms=[("maf", 1)], schedule=[("transforms", 1)], hidden=(4,), random_state=seed).fit(bent(50))
        for seed in (0, 0, 1)
    )
    weights = [next(m.flow_.transforms[1].parameters()) for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_without_zuko_the_error_says_what_to_install(monkeypatch):
    import_module = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "zuko":
            raise ImportError(name)
        return import_module(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"transforms='maf:3' needs zuko: pip install 'ffjord-kit\[zuko\]'"):
        FFJORD(transforms=[("maf", 3)]).fit(bent(50))


def test_a_single_column_cannot_be_coupled():
    with pytest.raises(ValueError, match="'nice' couple columns and need two or more; got 1"):
        FFJORD(transforms=[("nice", 2)]).fit(bent(50)[:, :1])


def test_velocity_and_trajectory_pass_through_the_transforms():
    model = FFJORD(transforms=[("maf", 1)], schedule=SHORT, **QUICK).fit(bent(100))
    path = model.trajectory(4, frames=3, random_state=0)
    close(torch.tensor(path.log_prob[-1]), torch.tensor(model.score_samples(path.x[-1])), 1e-3)
    h = 1e-4
    with torch.no_grad():
        x = torch.tensor(path.x[1], dtype=F64)
        ahead = model.flow_.trajectory(x, [0.5, 0.5 + h]).x[-1]
    assert model.velocity(path.x[1], 0.5) == pytest.approx(((ahead - x) / h).numpy(), abs=1e-2)
