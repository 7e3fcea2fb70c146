"""A continuous transform whose end time is learned: the same flow at another pace, and the gradient in closed form."""

import math

import pytest
import torch
from oracles import ADAPTIVE_ADJOINTS, F64, LinearDynamics, close, linear, randn

from ffjord_kit import FFJORD
from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.nn import DYNAMICS
from ffjord_kit.objectives import FlowMatching
from ffjord_kit.ode import AdaptiveSolver, make_solver
from ffjord_kit.regularizers import REGULARIZERS
from ffjord_kit.trace import ExactTrace, evaluate_field
from ffjord_kit.transforms.cnf import CNF, PacedField, SolveOptions

HALF = torch.tensor(0.5, dtype=F64)


def paced(field, end_time=0.8, pace=1.3, **options):
    """Return a transform whose learned end time is `pace` times `end_time`."""
    cnf = CNF(field, (2,), end_time=end_time, learn_end_time=True, **options).double()
    with torch.no_grad():
        cnf.dynamics.log_pace.fill_(math.log(pace))
    return cnf


@pytest.mark.parametrize("method", ["dopri5", "dopri5_by_row"])
def test_a_learned_end_time_is_an_end_time(method):
    field, x, solver = linear(2, rate=0.5), randn(5, 2), make_solver(method, tolerance=1e-9)
    learned = paced(field, solver=solver)
    assert float(learned.learned_end_time.detach()) == pytest.approx(1.04)
    assert float(CNF(field, (2,), end_time=0.8).learned_end_time) == pytest.approx(0.8)
    close(Flow([learned]).log_prob(x), field.log_prob(x, 1.04))
    close(learned.to_base(learned.to_data(x)[0])[0], x)


@pytest.mark.parametrize("adjoint", ADAPTIVE_ADJOINTS)
def test_the_gradient_in_the_end_time_is_the_closed_form(adjoint):
    a = randn(2, 2)
    field, x = LinearDynamics(a, torch.zeros(2, dtype=F64)), randn(5, 2)
    cnf = paced(field, solver=AdaptiveSolver("dopri5", 1e-9, 1e-9, adjoint=adjoint))
    z, _ = cnf.to_base(x)
    # d/dlog T of log N(e^{-A T} x) - T tr A, with dz/dT = -A z.
    expected = 1.04 * ((z * (z @ a.T)).sum() - 5 * a.trace())
    (got,) = torch.autograd.grad(Flow([cnf]).log_prob(x).sum(), cnf.dynamics.log_pace)
    close(got, expected, 1e-6)


@pytest.mark.parametrize("word", DYNAMICS)
def test_another_pace_carries_tangents_and_potentials_as_automatic_differentiation_does(word):
    field = DYNAMICS[word]((2,), hidden=(6,)).double()
    with torch.no_grad():
        for seed, parameter in enumerate(field.parameters()):
            parameter.copy_(0.5 * randn(*parameter.shape, seed=seed))
    dynamics, x = paced(field).dynamics, randn(4, 2)
    probes, t = ExactTrace().draw(x), torch.linspace(0.1, 0.9, 4, dtype=F64)
    mine, its = evaluate_field(dynamics, t, x, probes), evaluate_field(dynamics.forward, t, x, probes)
    close(mine.dx, 1.3 * field(1.3 * t, x), 1e-12)
    close(mine.dx, its.dx, 1e-12)
    close(mine.trace, its.trace, 1e-12)
    if word == "potential":
        y = x.clone().requires_grad_()
        close(-torch.autograd.grad(dynamics.potential(t, y).sum(), y)[0], mine.dx, 1e-12)
        assert float(REGULARIZERS["hjb"](mine).detach().min()) > 0


def test_a_field_without_tangents_can_be_paced_too():
    field, x = linear(2), randn(4, 2)
    point = evaluate_field(PacedField(field).double(), HALF, x, ExactTrace().draw(x))
    close(point.trace, field.a.trace().expand(4), 1e-12)


def test_costs_are_those_of_the_clock_so_a_longer_time_is_no_cheaper():
    """The same way in twice the time, at half the speed."""
    field, half = linear(2), LinearDynamics(*(0.5 * p.detach() for p in linear(2).parameters()))
    costs = [
        cnf.integrate(randn(4, 2), [0.8, 0.0], options=SolveOptions(regularizers={"k": REGULARIZERS["kinetic"]}))
        for cnf in (paced(field, pace=1.0), paced(half, pace=2.0))
    ]
    close(costs[1].costs["k"], costs[0].costs["k"], 1e-9)


def test_transforms_share_time_by_their_clocks_in_training_and_along_the_path():
    """A paced block beside another is the block of the paced field: flow matching, trajectory and velocity."""

    class Quick(torch.nn.Module):
        def forward(self, t, x, context=None):
            return 1.3 * field(1.3 * t, x)

    field, other, x = linear(2, rate=0.5), linear(2, seed=7), randn(16, 2)
    flows = [
        Flow([first, CNF(other, (2,), end_time=1.2)]).double()
        for first in (paced(field), CNF(Quick(), (2,), end_time=0.8))
    ]
    losses = [FlowMatching().loss(flow, Batch(x), torch.Generator().manual_seed(0)).value for flow in flows]
    close(losses[0], losses[1], 1e-12)
    with torch.no_grad():
        paths = [flow.trajectory(x, [1.0, 0.7, 0.4]) for flow in flows]
    close(paths[0].x, paths[1].x, 1e-9)
    close(paths[0].log_prob, paths[1].log_prob, 1e-9)
    close(flows[0].velocity(x, 0.9), flows[1].velocity(x, 0.9), 1e-12)
    (slope,) = torch.autograd.grad(losses[0], flows[0].transforms[0].dynamics.log_pace)
    assert float(slope) != 0


def test_a_learned_end_time_comes_back_from_its_state_and_moves_between_precisions():
    cnf, fresh = paced(linear(2)), paced(linear(2), pace=1.0)
    fresh.load_state_dict(cnf.state_dict())
    close(fresh.learned_end_time, cnf.learned_end_time, 0.0)
    x = randn(3, 2)
    with torch.no_grad():
        exact = Flow([cnf]).log_prob(x)
        single = Flow([cnf]).float().log_prob(x.float())
    assert single.dtype == torch.float32
    close(single.double(), exact, 1e-4)
    assert cnf.learned_end_time.dtype == torch.float32
    assert cnf.double().learned_end_time.dtype == F64


def test_it_is_learned_and_comes_back_from_a_run(tmp_path):
    x = 3.0 * randn(300, 2).numpy()
    network = {"dynamics": "concat_squash", "hidden": (8,), "scaling": "none"}
    fields = {
        "schedule": [("mle", 12)],
        "solver": "rk4",
        "solver_steps": 3,
        "mle_learning_rate": 0.05,
        "random_state": 0,
    }
    model = FFJORD(**network, **fields, end_time=0.5, learn_end_time=True)
    model.fit(x, run=tmp_path / "run")
    end = float(model.flow_.transforms[-1].learned_end_time)
    assert end != 0.5
    assert float(FFJORD.load(tmp_path / "run").flow_.transforms[-1].learned_end_time) == end
