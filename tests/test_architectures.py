"""Architectures of residual networks as schemes: what each is on a linear field, and what it is not."""

import copy
from dataclasses import replace

import pytest
import torch
from oracles import F64, SmoothMLP, close, randn

from ffjord_kit import CNF, ConcatDynamics, Flow, MaximumLikelihood, Phase, fit_flow
from ffjord_kit.ode import FixedSolver
from ffjord_kit.ode.architectures import LinearMultistep, fractal, linear_multistep, poly
from ffjord_kit.ode.explicit import EXPLICIT_SCHEMES
from ffjord_kit.trace import ExactTrace
from ffjord_kit.training import TrainConfig
from ffjord_kit.transforms.cnf import SolveOptions

POLYNOMIALS = {  # of z = h lambda on x' = lambda x
    "euler": lambda z: 1 + z,
    "poly2": lambda z: 1 + z + z**2,
    "poly3": lambda z: 1 + z + z**2 + z**3,
    "fractal2": lambda z: ((1 + z) + (1 + z / 2) ** 2) / 2,
    "fractal3": lambda z: ((1 + z) + (((1 + z / 2) + (1 + z / 4) ** 2) / 2) ** 2) / 2,
    "midpoint": lambda z: 1 + z + z**2 / 2,
    "rk4": lambda z: 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24,
}


def clock(*times):
    return torch.tensor(times, dtype=F64)


def one_step(method, rhs, x, size):
    with torch.no_grad():
        return FixedSolver(method, 1).solve(rhs, (x,), clock(0, size)).states[0][-1]


@pytest.mark.parametrize("method", POLYNOMIALS)
def test_a_step_on_a_linear_field_is_the_architectures_polynomial(method):
    z = torch.view_as_complex(randn(20, 2))
    one = torch.tensor([1.0, 0.0], dtype=F64).expand(20, 2)  # real and imaginary part
    got = one_step(method, lambda t, s: (torch.view_as_real(z * torch.view_as_complex(s[0].contiguous())),), one, 1.0)
    close(torch.view_as_complex(got), POLYNOMIALS[method](z), 1e-13)


@pytest.mark.parametrize("degree", [2, 3])
def test_polynet_iterates_backward_euler_and_goes_to_its_solution(degree):
    field, x, h = SmoothMLP(2), randn(4, 2), 0.05
    end, y = torch.tensor(h, dtype=F64), x
    with torch.no_grad():
        for _ in range(degree):
            y = x + h * field(end, y)
        close(one_step(f"poly{degree}", lambda t, s: (field(t, s[0]),), x, h), y, 1e-14)
        step = poly(30).scheme().change(lambda t, s: (field(t, s[0]),), (end,) * 30, h, (x,))[0]
        close(step, h * field(end, x + step), 1e-12)


def test_polynets_polynomial_read_literally_solves_another_equation():
    """x + F(x) + F(F(x)) on x' = 1 has a slope of 2, and the scheme one of 1."""
    one, x, h = torch.ones(3, 1, dtype=F64), randn(3, 1), 0.1
    close(x + h * one + h * one, x + 2 * h)
    close(one_step("poly2", lambda t, state: (one,), x, h), x + h)


@pytest.mark.parametrize("columns", [2, 3])
def test_fractalnet_is_its_own_recursion_on_euler_steps(columns):
    field, x, h = SmoothMLP(2), randn(4, 2), 0.3

    def expanded(c, t, y, size):
        shallow = y + size * field(torch.tensor(t, dtype=F64), y)
        if c == 1:
            return shallow
        middle = expanded(c - 1, t, y, size / 2)
        return (shallow + expanded(c - 1, t + size / 2, middle, size / 2)) / 2

    with torch.no_grad():
        close(one_step(f"fractal{columns}", lambda t, s: (field(t, s[0]),), x, h), expanded(columns, 0.0, x, h), 1e-14)
    assert EXPLICIT_SCHEMES[f"fractal{columns}"].stages == 2 ** (columns - 1)


def test_a_fractal_joined_by_richardsons_weights_is_the_midpoint_rule():
    tableau = fractal(2, shallow=-1)
    assert tableau.weights == (0, 1)
    assert (tableau.nodes, tableau.rows) == ((0, 0.5), ((), (0.5,)))


def multistep(k, steps, grading=1.0):
    """Return x(1) of x' = (1 + t) x from x(0) = 1."""
    grid = torch.linspace(0, 1, steps + 1, dtype=F64) ** grading
    start = (torch.ones(1, 1, dtype=F64),)
    return linear_multistep(lambda t, s: ((1 + t) * s[0],), start, grid, clock(0, 1), lambda *_: None, [k] * steps)[-1][
        0
    ]


@pytest.mark.parametrize("grading", [1.0, 2.0], ids=["equal", "graded"])
@pytest.mark.parametrize(("k", "order"), [(-0.5, 1), (0.0, 1), (0.5, 1), (1.0, 2)])
def test_the_linear_multistep_method_has_order_two_for_leapfrog_alone(k, order, grading):
    truth = torch.tensor(1.5, dtype=F64).exp()
    errors = [abs(float(multistep(k, steps, grading) - truth)) for steps in (400, 800)]
    assert abs(torch.tensor(errors[0] / errors[1]).log2() - order) < 0.25


def test_the_fixed_coefficient_has_a_third_of_eulers_error():
    truth = torch.tensor(1.5, dtype=F64).exp()
    own, euler = (float(multistep(k, 2000) - truth) for k in (0.5, 0.0))
    assert own / euler == pytest.approx(1 / 3, abs=0.01)


def test_the_learned_coefficients_get_better():
    torch.manual_seed(0)
    field, x, steps = SmoothMLP(2), randn(32, 2), 4
    grid, learned = torch.linspace(0, 1, steps + 1, dtype=F64), LinearMultistep(steps).double()

    def rhs(t, state):
        return (field(t, state[0]),)

    with torch.no_grad():
        truth = FixedSolver("rk4", 50).solve(rhs, (x,), clock(0, 1)).states[0][-1]
        same = FixedSolver("linear_multistep", steps).solve(rhs, (x,), clock(0, 1)).states[0][-1]
        close(learned(rhs, (x,), grid)[0], same, 1e-7)  # the first coefficients are in single precision
    optimizer, losses = torch.optim.Adam(learned.parameters(), 0.05), []
    for _ in range(40):
        loss = (learned(rhs, (x,), grid)[0] - truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    assert bool((learned.memory.abs() < 1).all())


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 3, "memory": 1.0}])
def test_a_learned_method_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match=r"expected steps >= 1 and memory in \(-1, 1\); got"):
        LinearMultistep(**options)


def test_a_learned_method_serves_any_number_of_steps_both_ways():
    learned, like = LinearMultistep(3).double(), torch.ones((), dtype=F64)
    with torch.no_grad():
        learned.unbounded.copy_(torch.tensor([-0.5, 0.1, 0.5]))
    first, second, third = learned.memory.tolist()
    for grid, expected in [
        (torch.linspace(0, 1, 4), [first, second, third]),
        (torch.linspace(1, 0, 4), [third, second, first]),
        (torch.linspace(0, 1, 7), [first, first, second, second, third, third]),
        (torch.linspace(0, 1, 3), [first, second]),
    ]:
        assert [k.item() for k in learned.coefficients(grid, like)] == expected


def test_a_flow_learns_the_coefficients_of_its_steps():
    """By likelihood, which goes down with the field fixed and k alone free; finer steps are the flow of the field."""
    torch.manual_seed(0)
    solver = FixedSolver(LinearMultistep(4), steps=4)
    field = ConcatDynamics((2,), hidden=(8,))
    with torch.no_grad():
        for weights in field.parameters():
            weights.copy_(randn(*weights.shape))
    flow, x = Flow([CNF(field, (2,), solver=solver)]), randn(64, 2).float()
    field.requires_grad_(False)
    before = flow.log_prob(x).detach().mean()
    phase = Phase(MaximumLikelihood(ExactTrace()), 60, 3e-2)
    fit_flow(flow, x, schedule=[phase], config=TrainConfig(batch_size=64, ema_decay=0.5, warmup=1, guard=0.0))
    assert bool((solver.method.memory - 0.5).abs().max() > 0.05)
    with torch.no_grad():
        assert flow.log_prob(x).mean() > before + 1e-3
        truth = flow.log_prob(x, solver=FixedSolver("rk4", 40))
        errors = [float((flow.log_prob(x, solver=replace(solver, steps=n)) - truth).abs().max()) for n in (64, 128)]
    assert errors[1] < 0.6 * errors[0]


def test_a_copy_of_a_flow_has_coefficients_of_its_own_which_its_state_holds():
    flow = Flow([CNF(ConcatDynamics((2,)), (2,), solver=FixedSolver(LinearMultistep(4), steps=4))])
    twin = copy.deepcopy(flow)
    with torch.no_grad():
        flow.transforms[0].method.unbounded.zero_()
    assert twin.transforms[0].solver.method is twin.transforms[0].method
    assert bool((twin.transforms[0].method.memory == 0.5).all())
    assert "transforms.0.method.unbounded" in flow.state_dict()


@pytest.mark.parametrize("adjoint", ["adjoint", "seminorm", "reversible"])
def test_a_learned_method_has_no_other_way_back_than_its_steps(adjoint):
    with pytest.raises(ValueError, match="pass .*adjoint='(backprop|checkpointed)'"):
        FixedSolver(LinearMultistep(4), steps=4, adjoint=adjoint)


def test_a_learned_method_gives_the_same_gradients_with_checkpoints():
    flow, found = CNF(ConcatDynamics((2,)), (2,), solver=FixedSolver(LinearMultistep(3), steps=3)).double(), []
    with torch.no_grad():
        for weights in flow.dynamics.parameters():
            weights.copy_(randn(*weights.shape))
    for adjoint in ("backprop", "checkpointed"):
        path = flow.integrate(
            randn(5, 2), [1.0, 0.0], options=SolveOptions(solver=replace(flow.solver, adjoint=adjoint))
        )
        found.append(torch.autograd.grad(path.x[-1].sum() + path.log_det[-1].sum(), list(flow.parameters())))
    for ours, theirs in zip(*found, strict=True):
        close(ours, theirs, 1e-12)
