"""The receipt of explicit steps: it holds for monotone ones, and catches those that fold or are not onto."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from ffjord_kit import CNF, Flow, FlowMatching, Phase, ResidualDynamics, datasets, fit_flow
from ffjord_kit.data import Batch
from ffjord_kit.diagnostics import Receipt, check_steps
from ffjord_kit.diagnostics.receipt import _there_and_back
from ffjord_kit.distributions import StandardNormal
from ffjord_kit.objectives import SteppedLikelihood
from ffjord_kit.training import TrainConfig
from ffjord_kit.transforms import Standardize, Stepped

CONFIG = TrainConfig(batch_size=256, ema_decay=0.9, seed=0)


def checkerboard(rows, seed):
    return torch.as_tensor(datasets.load("checkerboard", rows=rows, seed=seed).x)


@pytest.fixture(scope="module")
def matched():
    """A field fitted to a checkerboard by flow matching."""
    x = checkerboard(4000, 0)
    torch.manual_seed(0)
    flow = Flow([CNF(ResidualDynamics((2,), hidden=(64, 64)), (2,))], preprocess=[Standardize.of(x)])
    fit_flow(flow, x, schedule=[Phase(FlowMatching(), 600, 8e-3)], config=CONFIG)
    return flow


def stepped(flow, **options):
    """Return the flow's field in few steps."""
    dynamics = copy.deepcopy(flow.transforms[0].dynamics)
    return Flow([Stepped(dynamics, (2,), **options)], preprocess=flow.preprocess)


def trained(matched, weight):
    flow = stepped(matched, method="euler", steps=8)
    schedule = [Phase(SteppedLikelihood(weight=weight), 300, 2e-3)]
    fit_flow(flow, checkerboard(4000, 0), schedule=schedule, config=CONFIG)
    return flow, check_steps(flow, checkerboard(1000, 1))


@pytest.mark.slow
def test_training_without_the_penalty_folds_and_is_caught(matched):
    flow, receipt = trained(matched, 0.0)
    assert not receipt.holds
    assert receipt.uncertified > 0
    assert str(receipt).startswith("FAILS")


@pytest.mark.slow
def test_training_with_the_penalty_gains_and_holds(matched):
    test = checkerboard(1000, 1)
    before = stepped(matched, method="euler", steps=8)
    flow, receipt = trained(matched, 1000.0)
    assert receipt.holds
    assert receipt.round_trip < 1e-8
    assert abs(receipt.integral - 1) < 3 * receipt.integral_error + 0.01
    with torch.no_grad():
        assert flow.log_prob(test).mean() > before.log_prob(test).mean() + 0.02
        assert -flow.log_prob(test).mean() > 3.466 - 0.03  # nats: the entropy of the law


@pytest.mark.slow
@pytest.mark.parametrize("explicit_from", ["data", "base"])
def test_the_steps_of_a_smooth_field_hold_both_ways(matched, explicit_from):
    receipt = check_steps(
        stepped(matched, method="midpoint", steps=12, explicit_from=explicit_from), checkerboard(60, 1),
        integrate=False,
    )  # fmt: skip
    assert receipt.round_trip < 1e-8
    assert receipt.unreached == 0
    assert receipt.folded == 0


class Shrinking(nn.Module):
    """One Euler step from the data gives x + tanh(x) - x = tanh(x), which reaches (-1, 1) alone."""

    def forward(self, t, x, context=None):
        return x - x.tanh()


def test_steps_that_are_not_onto_are_caught():
    flow = Flow([Stepped(Shrinking(), (1,), method="euler", steps=1)])
    x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    receipt = check_steps(flow, x)
    assert receipt.lowest_eigenvalue >= 0
    assert receipt.unreached == pytest.approx(0.317, abs=0.06)  # P(|z| > 1)
    assert receipt.integral == pytest.approx(0.6827, abs=1e-3)
    assert not receipt.holds


def test_a_flow_without_steps_has_no_receipt(matched):
    with pytest.raises(ValueError, match="this one has none"):
        check_steps(matched, checkerboard(10, 0))


class OneSided(nn.Module):
    """One Euler step gives x where the context is positive, and exp(x) + 9 elsewhere, which no base point has."""

    def forward(self, t, x, context=None):
        return torch.where(context > 0, 0.0, x - x.exp() - 9)


def test_draws_are_examined_with_their_own_contexts():
    flow = Flow([Stepped(OneSided(), (1,), method="euler", steps=1)], context_dim=1)
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(400, 1, generator=generator), torch.randn(400, 1, generator=generator).sign()
    receipt = check_steps(flow, x, context)
    assert receipt.unreached == pytest.approx((context < 0).double().mean().item())
    batch = Batch(x.double(), context.double())
    _, _, draws, _ = _there_and_back(flow.double(), batch, generator)
    assert bool((draws.context > 0).all())


def test_an_integral_that_is_too_uncertain_decides_nothing():
    good = Receipt(100, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1e-12, 1e-5, 1.0, 0.01)
    assert good.holds
    unsure = dataclasses.replace(good, integral=3.0, integral_error=math.inf)
    assert unsure.holds
    assert "integral" not in str(unsure)
    assert not dataclasses.replace(good, integral=1.1).holds
    assert not dataclasses.replace(good, round_trip=math.inf).holds
    for flaw in ("uncertified", "unreached", "excess"):
        assert not dataclasses.replace(good, **{flaw: 0.01}).holds


def test_a_row_that_returns_to_another_point_is_mass_counted_twice_and_no_rounding():
    class Square:
        base = StandardNormal((1,))

        def to_base(self, x, context):
            return x.square(), None

        def to_data(self, z, context):
            return z.abs().sqrt(), None

    rows = Batch(torch.tensor([[1.0], [2.0], [-3.0], [0.5]], dtype=torch.float64))
    error, elsewhere, draws, unreached = _there_and_back(Square(), rows, torch.Generator().manual_seed(0))
    assert error < 1e-12
    assert (elsewhere, len(draws), unreached) == (0.25, 4, 0.0)
