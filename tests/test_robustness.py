"""The worst rows near given ones, and training against them."""

import numpy as np
import pytest
import torch
from torch import nn

from ffjord_kit import CNF, FFJORD, ConcatDynamics, FixedSolver, Flow, FlowMatching, MaximumLikelihood, Phase, fit_flow
from ffjord_kit.data import Batch
from ffjord_kit.diagnostics import attack
from ffjord_kit.models import ODENetClassifier, ODENetRegressor
from ffjord_kit.objectives import CrossEntropy, Neighbourhood, made_robust

SOLVER = FixedSolver("rk4", 4)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(x):
    """-log p of the standard normal, without its constant."""
    return 0.5 * x.square().sum(1)


@pytest.fixture(scope="module")
def table():
    return np.random.default_rng(0).normal(size=(300, 2)) * [1.0, 5.0]


@pytest.fixture(scope="module")
def classes(table):
    return table, np.where(table[:, 0] + table[:, 1] / 5 > 0, "yes", "no")


@pytest.mark.parametrize("steps", [1, 10])
def test_the_worst_rows_of_a_normal_density_are_the_corners_and_the_far_points(steps):
    x, eps = randn(40, 3), 0.3
    box = attack(normal, x, Neighbourhood(eps, steps))
    np.testing.assert_allclose(box.x, (x + eps * x.sign()).numpy(), atol=1e-12)
    np.testing.assert_allclose(box.before, normal(x).numpy())
    np.testing.assert_allclose(box.after, normal(x + eps * x.sign()).numpy())
    ball = attack(normal, x, Neighbourhood(eps, steps, norm="2"))
    np.testing.assert_allclose(ball.x, (x * (1 + eps / x.norm(dim=1, keepdim=True))).numpy(), atol=1e-3)


def test_units_of_columns_scale_the_moves():
    x, scale = randn(10, 2), torch.tensor([1.0, 100.0])
    moved = attack(normal, x, Neighbourhood(0.1), scale=scale)
    np.testing.assert_allclose(np.abs(moved.x - x.numpy()), np.broadcast_to([0.1, 10.0], (10, 2)))


def test_no_search_leaves_the_neighbourhood_or_ends_below_its_start():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1)).double()
    x = randn(50, 3)
    losses = lambda rows: (20 * net(rows)).sin()[:, 0]  # noqa: E731
    for norm, size in (("inf", lambda d: np.abs(d).max(1)), ("2", lambda d: np.linalg.norm(d, axis=1))):
        found = [attack(losses, x, Neighbourhood(0.5, 7, norm), starts=starts) for starts in (0, 3)]
        for each in found:
            assert (size(each.x - x.numpy()) <= 0.5 + 1e-12).all()
            assert (each.after >= each.before).all()
            np.testing.assert_allclose(losses(torch.as_tensor(each.x)).detach().numpy(), each.after)
        assert (found[1].after >= found[0].after).all() and found[1].after.mean() > found[0].after.mean()


def test_a_robust_loss_is_that_of_the_moved_rows_with_the_same_noise():
    x, flow = randn(20, 2), Flow([CNF(ConcatDynamics((2,), hidden=(8,)), (2,), solver=SOLVER)]).double()
    plain = MaximumLikelihood()
    robust = made_robust(plain, 0.2)
    loss = robust.loss(flow, Batch(x), torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    rows = x.clone().requires_grad_()
    at_rows = plain.loss(flow, Batch(rows), generator.clone_state()).value
    (slope,) = torch.autograd.grad(at_rows, rows)
    expected = plain.loss(flow, Batch(x + 0.2 * slope.sign()), generator).value
    torch.testing.assert_close(loss.value, expected)
    torch.testing.assert_close(loss.terms["plain"], at_rows.detach())
    assert robust.name == "mle" and loss.stats[0].nfe == 32 and loss.value.requires_grad
    finer = robust.with_solver(FixedSolver("rk4", 8))
    assert finer.solver.steps == 8 and finer.near == robust.near


def test_every_loss_of_rows_can_be_made_robust():
    x, flow = randn(20, 2), Flow([CNF(ConcatDynamics((2,), hidden=(8,)), (2,))]).double()
    loss = made_robust(FlowMatching(), 0.1, steps=3).loss(flow, Batch(x), torch.Generator().manual_seed(5))
    assert loss.value > loss.terms["plain"]


@pytest.mark.slow
def test_a_robust_fit_of_a_normal_density_widens_it_as_its_closed_form_says():
    """With log p = -a - z^2 / 2, z = x exp(-a), the worst z is |z| + eps: a solves E (|x| + eps)^2 = exp(2a)."""

    class Stretch(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.zeros(()))

        def forward(self, t, x, context=None):
            return x * self.rate

    x, rates = randn(50, 1), []
    for robust in (False, True):
        flow = Flow([CNF(Stretch(), (1,), solver=SOLVER)]).double()
        objective = made_robust(MaximumLikelihood(), 0.5) if robust else MaximumLikelihood()
        fit_flow(flow, x, schedule=[Phase(objective, 100, 0.1)])
        rates.append(float(flow.transforms[0].dynamics.rate.detach()))
    expected = [float((x.abs() + eps).square().mean().log() / 2) for eps in (0, 0.5)]
    np.testing.assert_allclose(rates, expected, atol=0.02)


def test_the_field_robust_trains_ffjord_by_the_robust_likelihood(table):
    schedule = [("flow_matching", 20), ("mle", 20)]
    model = FFJORD(schedule=schedule, hidden=(8,), solver="rk4", solver_steps=3, robust=0.2, random_state=0).fit(table)
    records = [r for r in model.history_.records if r.get("phase") == "mle" and "plain" in r]
    assert records and all(r["loss"] > r["plain"] for r in records)
    found = model.attack(table[:50], 0.2, steps=3)
    np.testing.assert_allclose(-found.before, model.score_samples(table[:50]), atol=1e-3)
    assert found.cost[0] > 0 and (np.abs(found.x - table[:50]) <= 0.2 * table[:50].std(0) + 1e-12).all()
    loss = model.weight_loss(table[:50])
    assert loss.value() == pytest.approx(-model.score(table[:50]), abs=0.01)
    assert loss.gradient().isfinite().all()


@pytest.mark.parametrize("block", ["ode", "resnet", "rk", "lm"])
def test_odenets_have_a_loss_of_their_weights_and_an_adversary(classes, block):
    X, y = classes
    model = ODENetClassifier(block, width=8, layers=2, epochs=3, random_state=0).fit(X, y)
    loss = model.weight_loss(X, y)
    proba = model.predict_proba(X)[np.arange(len(X)), (y == "yes").astype(int)]
    assert loss.value() == pytest.approx(-np.log(proba).mean(), rel=1e-2)
    loss.check_smooth()
    found = model.attack(X, y, 0.3)
    assert found.cost[0] > 0 and model.score(found.x, y) < model.score(X, y)
    assert (np.abs(found.x - X) <= 0.3 * X.std(0) * (1 + 1e-5)).all()


def test_a_robust_classifier_loses_less_to_an_adversary(classes):
    X, y = classes
    costs = []
    for robust in (None, 0.5):
        model = ODENetClassifier("rk", width=16, layers=3, epochs=20, robust=robust, random_state=0).fit(X, y)
        costs.append(model.attack(X, y, 0.5, steps=5).after.mean())
    assert costs[1] < 0.7 * costs[0]


def test_a_regressor_has_both_too(table):
    y = table[:, 0] ** 2
    model = ODENetRegressor("rk", width=8, epochs=3, random_state=0).fit(table, y)
    scaled = ((y - model.predict(table)) / y.std()) ** 2
    assert model.weight_loss(table, y).value() == pytest.approx(scaled.mean(), rel=1e-4)
    assert model.attack(table, y, 0.1).cost[0] > 0


def test_bad_input_is_refused_in_one_line(table, classes):
    for eps in (0, -1.0, float("nan"), "0.1"):
        with pytest.raises(ValueError, match="eps must be positive, the largest move of a row; got"):
            Neighbourhood(eps)
    with pytest.raises(ValueError, match="steps must be a whole number"):
        Neighbourhood(0.1, 0)
    with pytest.raises(ValueError, match="norm must be 'inf' or '2'; got '1'"):
        made_robust(CrossEntropy(), 0.1, norm="1")
    with pytest.raises(ValueError, match="expected a loss for each of 5 rows; got shape"):
        attack(lambda x: x.sum(), torch.zeros(5, 2), Neighbourhood(0.1))
    with pytest.raises(ValueError, match="depends on the rows"):
        attack(lambda x: torch.ones(5), torch.zeros(5, 2), Neighbourhood(0.1))
    for schedule in ("auto", [("flow_matching", 10)]):
        with pytest.raises(ValueError, match="robust is for a schedule with a phase of maximum likelihood"):
            FFJORD(schedule=schedule, robust=0.1).fit(table)
    with pytest.raises(ValueError, match="robust must be positive; got 0"):
        FFJORD(schedule=[("mle", 10)], robust=0.0).fit(table)
    X, y = classes
    with pytest.raises(ValueError, match="eps must be positive"):
        ODENetClassifier(robust=0).fit(X, y)
    fitted = ODENetClassifier("rk", width=4, epochs=1).fit(X, y)
    with pytest.raises(ValueError, match="expected labels of the fit's classes"):
        fitted.weight_loss(X, np.full(len(X), "maybe"))


def test_bounded_columns_and_rows_that_are_equal_are_refused(table):
    positive = FFJORD(schedule=[("mle", 1)], hidden=(4,), support="positive", random_state=0).fit(np.abs(table))
    with pytest.raises(ValueError, match="takes columns with support='real'"):
        positive.attack(np.abs(table), 0.1)
    model = FFJORD(schedule=[("mle", 1)], hidden=(4,), random_state=0).fit(table)
    with pytest.raises(ValueError, match="expected rows that differ in each column"):
        model.attack(table[:1], 0.1)
    assert model.attack(table[:1], 0.1, scale=[1.0, 5.0]).x.shape == (1, 2)
