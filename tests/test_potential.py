"""Gradient fields against automatic differentiation of their potential, and the Hamilton-Jacobi-Bellman equation."""

import copy

import pytest
import torch
from oracles import F64, SmoothMLP, close, jacobian, linear, randn

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.nn import ConcatSquashDynamics
from ffjord_kit.nn.potential import Potential, PotentialDynamics, log_cosh, potential_of
from ffjord_kit.objectives import MaximumLikelihood
from ffjord_kit.ode import ADJOINTS, FixedSolver, PerRowSolver
from ffjord_kit.regularizers import REGULARIZERS
from ffjord_kit.trace import ExactTrace, evaluate_field
from ffjord_kit.transforms.cnf import CNF, SolveOptions

HALF = torch.tensor(0.5, dtype=F64)
TIMES = torch.linspace(0.1, 0.9, 4, dtype=F64)


def build(size=3, dim=0, hidden=(8, 8, 5)):
    field = PotentialDynamics((size,), context_dim=dim, hidden=hidden).double()
    with torch.no_grad():
        for seed, parameter in enumerate(field.parameters()):
            parameter.copy_(0.5 * randn(*parameter.shape, seed=seed))
    return field


@pytest.mark.parametrize("dim", [0, 2])
@pytest.mark.parametrize("time", [HALF, TIMES], ids=["one time", "a time a row"])
@pytest.mark.parametrize("hidden", [(8,), (8, 8, 5)])
def test_the_field_is_minus_the_gradient_of_the_potential(hidden, time, dim):
    field, x, context = build(3, dim, hidden), randn(4, 3).requires_grad_(), randn(4, dim, seed=1) if dim else None
    (slope,) = torch.autograd.grad(field.potential(time, x, context).sum(), x)
    close(field(time, x, context), -slope, 1e-12)


def test_its_jacobian_is_symmetric_and_its_exact_trace_is_the_laplacian_of_the_potential():
    field, x = build(), randn(4, 3)
    matrix = jacobian(lambda y: field(HALF, y), x)
    close(matrix, matrix.mT, 1e-13)
    rows = [torch.autograd.functional.hessian(lambda y: field.potential(HALF, y[None]).sum(), row) for row in x]
    close(matrix, -torch.stack(rows), 1e-12)
    close(evaluate_field(field, HALF, x, ExactTrace().draw(x)).trace, matrix.diagonal(dim1=1, dim2=2).sum(1), 1e-12)


def test_log_cosh_is_that_of_the_definition_and_does_not_overflow():
    u = torch.linspace(-300, 300, 601, dtype=F64).requires_grad_()
    close(log_cosh(u), torch.cosh(u).log(), 1e-12)
    close(torch.autograd.grad(log_cosh(u).sum(), u)[0], u.tanh(), 1e-12)
    large = log_cosh(torch.tensor([-1e30, 1e30]))
    close(large, torch.full((2,), 1e30), 1e-6)


@pytest.mark.parametrize("dim", [0, 2])
def test_it_starts_close_to_the_identity_flow(dim):
    field, x = PotentialDynamics((3,), context_dim=dim).double(), randn(200, 3)
    context = randn(200, dim) if dim else None
    assert float(field(HALF, x, context).detach().abs().max()) < 0.05


def test_another_activation_is_refused():
    with pytest.raises(ValueError, match="activation 'tanh' and no other, .*; got 'silu': leave it out"):
        PotentialDynamics((2,), activation="silu")


class Converging(Potential):
    """Phi = |x|^2 / (2 (c - t)): straight trajectories to one point at time c, an optimal transport until then."""

    def potential(self, t, x, context=None):
        return x.square().sum(1) / (2 * (1.5 - t))

    def forward(self, t, x, context=None):
        return -x / (1.5 - t).reshape(-1, 1)

    def jvp(self, t, x, tangents, context=None):
        return self(t, x), -tangents.expand(-1, len(x), -1) / (1.5 - t).reshape(-1, 1)


class Still(Converging):
    """Phi = |x|^2 at every time."""

    def potential(self, t, x, context=None):
        return x.square().sum(1) + 0 * t

    def forward(self, t, x, context=None):
        return -2 * x


@pytest.mark.parametrize("time", [HALF, TIMES], ids=["one time", "a time a row"])
def test_the_hjb_cost_is_zero_along_straight_trajectories_and_known_elsewhere(time):
    x = randn(4, 3)
    costs = [
        REGULARIZERS["hjb"](evaluate_field(field, time, x, ExactTrace().draw(x))) for field in (Converging(), Still())
    ]
    close(costs[0], torch.zeros(4, dtype=F64), 1e-13)
    close(costs[1], 2 * x.square().sum(1), 1e-13)


def test_straight_trajectories_have_no_acceleration_and_no_jerk():
    x = randn(4, 3)
    for word in ("acceleration", "jerk"):
        cost = REGULARIZERS[word](evaluate_field(Converging(), TIMES, x, ExactTrace().draw(x)))
        close(cost, torch.zeros(4, dtype=F64), 1e-24)


@pytest.mark.parametrize("field", [SmoothMLP(2), linear(2)])
def test_the_hjb_cost_refuses_dynamics_without_a_potential(field):
    options = SolveOptions(regularizers={"hjb": REGULARIZERS["hjb"]})
    for owner in (CNF(field, (2,)), CNF(field, (2,), learn_end_time=True)):
        with pytest.raises(ValueError, match=f"'hjb' needs dynamics with a potential; got {type(field).__name__}"):
            owner.double().integrate(randn(3, 2), [0.0, 1.0], options=options)
    with pytest.raises(ValueError, match="choose dynamics='potential'"):
        potential_of(field)


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize(
    ("field", "words"),
    [
        (PotentialDynamics((2,), hidden=(8, 8)), ("acceleration", "hjb")),
        (ConcatSquashDynamics((2,), hidden=(8,), activation="silu"), ("jerk",)),
    ],
)
def test_costs_of_higher_derivatives_go_with_every_adjoint(field, words, adjoint):
    field, gradients = copy.deepcopy(field).double(), {}
    with torch.no_grad():
        for seed, parameter in enumerate(field.parameters()):
            parameter.copy_(0.2 * randn(*parameter.shape, seed=seed))
    for word in ("backprop", adjoint):
        flow = Flow([CNF(field, (2,), solver=FixedSolver("rk4", steps=4, adjoint=word))]).double()
        loss = MaximumLikelihood(ExactTrace(), dict.fromkeys(words, 0.1)).loss(flow, Batch(randn(4, 2)), None)
        gradients[word] = torch.autograd.grad(loss.value, list(field.parameters()))
    for ours, theirs in zip(gradients[adjoint], gradients["backprop"], strict=True):
        assert torch.allclose(ours, theirs, rtol=0.0, atol=1e-3 * float(theirs.abs().max()) + 1e-9)


@pytest.mark.parametrize("word", ["acceleration", "hjb"])
def test_costs_of_higher_derivatives_leave_each_row_its_own_clock(word):
    x, solver = randn(5, 2), PerRowSolver(1e-6, 1e-6)
    options = SolveOptions(ExactTrace(), solver, {word: REGULARIZERS[word]})
    cnf = CNF(build(2), (2,))
    with torch.no_grad():
        together = cnf.integrate(x, [1.0, 0.0], options=options).costs[word]
        alone = cnf.integrate(x[2:3], [1.0, 0.0], options=options).costs[word]
    close(together[2:3], alone, 1e-9)
