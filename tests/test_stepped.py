"""Few steps with exact determinants: against autograd, closed forms and their own way back."""

import math

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

from ffjord_kit import CNF, Flow, ResidualDynamics
from ffjord_kit.ode import FixedSolver, SolveError
from ffjord_kit.ode.explicit import EXPLICIT_SCHEMES
from ffjord_kit.transforms import Stepped
from ffjord_kit.transforms.cnf import SolveOptions

CONTEXT = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)


class Plain(nn.Module):
    """A field without tangents of its own."""

    def forward(self, t, x, context=None):
        shift = 0 if context is None else context.sum(1, keepdim=True)
        return torch.sin(2 * x.flip(1)) * (0.5 + t) + 0.3 * torch.tanh(x + shift)


def network(size=3, context=0, scale=0.25):
    torch.manual_seed(0)
    field = ResidualDynamics((size,), hidden=(16, 16), context_dim=context).double()
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=scale)
    return field


def rows(n=4, size=3, seed=0):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("explicit_from", ["data", "base"])
@pytest.mark.parametrize("method", EXPLICIT_SCHEMES)
@pytest.mark.parametrize("make", [network, lambda size, context: Plain()])
def test_the_determinant_is_that_of_the_whole_map_and_the_way_back_is_exact(make, method, explicit_from):
    steps = Stepped(make(3, 2), (3,), method=method, steps=5, grading=2.0, explicit_from=explicit_from)
    there, back = (steps.to_base, steps.to_data) if explicit_from == "data" else (steps.to_data, steps.to_base)
    x = rows()
    with torch.no_grad():
        y, log_det = there(x, CONTEXT)
        again, minus = back(y, CONTEXT)
    for i in range(len(x)):
        whole = jacobian(lambda row, i=i: there(row[None], CONTEXT[i : i + 1])[0][0], x[i])
        assert log_det[i] == pytest.approx(torch.linalg.slogdet(whole)[1].item(), abs=1e-10)
    assert torch.allclose(again, x, rtol=0, atol=1e-10)
    assert torch.allclose(minus, -log_det, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", EXPLICIT_SCHEMES)
def test_the_steps_are_those_of_the_solver(method):
    field = network()
    steps = Stepped(field, (3,), method=method, steps=6, grading=2.0)
    options = SolveOptions(trace=None, solver=FixedSolver(method, 6, grading=2.0))
    with torch.no_grad():
        path = CNF(field, (3,)).integrate(rows(), [1.0, 0.0], options=options)
        assert torch.allclose(steps.to_base(rows())[0], path.x[-1], rtol=0, atol=1e-12)


def test_a_density_in_one_dimension_integrates_to_one_at_any_number_of_steps():
    grid = torch.linspace(-12, 12, 24001, dtype=torch.float64)[:, None]
    for steps in (1, 2, 5):
        flow = Flow([Stepped(network(1), (1,), method="euler", steps=steps)]).double()
        with torch.no_grad():
            log_prob = flow.log_prob(grid)
            eigenvalues = [step.jacobian.min() for step in flow.transforms[0].walk(grid)]
        assert min(eigenvalues) > 0
        assert torch.trapezoid(log_prob.exp(), grid[:, 0]).item() == pytest.approx(1, abs=1e-6)


def test_draws_have_the_density_that_the_flow_says():
    flow = Flow([Stepped(network(2), (2,), method="midpoint", steps=4, explicit_from="base")]).double()
    with torch.no_grad():
        x, log_prob = flow.sample_with_log_prob(50, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(flow.log_prob(x), log_prob, rtol=0, atol=1e-9)


def test_importance_weights_of_draws_have_mean_one():
    """Draws by explicit steps from the base weigh a normal target of another width."""
    flow = Flow([Stepped(network(2, scale=0.15), (2,), steps=4, explicit_from="base")]).double()
    with torch.no_grad():
        x, log_q = flow.sample_with_log_prob(20_000, generator=torch.Generator().manual_seed(0))
    target = -0.5 * (x / 0.7).square().sum(1) - math.log(2 * math.pi * 0.49)
    weights = (target - log_q).exp()
    assert abs(weights.mean() - 1) < 4 * weights.std() / math.sqrt(len(x))


@pytest.mark.parametrize("explicit_from", ["data", "base"])
def test_gradients_go_through_both_ways(explicit_from):
    steps = Stepped(network(2, scale=0.15), (2,), steps=2, explicit_from=explicit_from, learn_grid=True).double()
    for way in (steps.to_base, steps.to_data):

        def total(x, way=way):
            y, log_det = way(x)
            return y.sum() + log_det.sum()

        x = rows(3, 2).requires_grad_()
        assert torch.autograd.gradcheck(total, (x,), atol=1e-6)
        total(x.detach()).backward()
        numeric = numeric_gradient(steps, lambda total=total, x=x: total(x.detach()))
        assert steps.log_scales.grad[0].item() == pytest.approx(numeric, abs=1e-6)
        steps.zero_grad()


def numeric_gradient(steps, loss, small=1e-6):
    """Return the central difference of a loss by the first width."""
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            steps.log_scales[0] += sign * small
            values.append(loss().item())
            steps.log_scales[0] -= sign * small
    return (values[0] - values[1]) / (2 * small)


def test_a_point_that_no_step_reaches_is_an_error():
    class Square(nn.Module):  # one Euler step from the data gives x + x^2 - ..., at least -1/4
        def forward(self, t, x, context=None):
            return -x.square()

    with pytest.raises(SolveError, match=r"1 of 2 rows \(first: \[1\]\) are reached by no step of 'euler'"):
        Stepped(Square(), (1,), method="euler", steps=1).to_data(torch.tensor([[1.0], [-2.0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "linear_multistep"},
            "carries the state before the last, .* has no determinant: choose one of",
        ),
        ({"method": "revnet"}, "carries two copies of the state, so its step is no map of x alone"),
        ({"method": "dopri5"}, "method must be one of euler, midpoint, .*; got 'dopri5'"),
        ({"explicit_from": "end"}, "explicit_from must be one of data, base; got 'end'"),
        ({"steps": 0}, "must be positive; got 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Stepped(network(), (3,), **options)
