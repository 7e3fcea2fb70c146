"""A flow is a distribution: its values and all their derivatives agree with matrix exponentials and differences."""

import copy
import math
import random

import pytest
import torch
from oracles import (
    ADAPTIVE_ADJOINTS,
    F64,
    LinearDynamics,
    SmoothMLP,
    Stack,
    close,
    difference_along,
    gaussian_mixture,
    linear,
    randn,
)
from torch import distributions as d

from ffjord_kit.data import LEAST_SCORED
from ffjord_kit.distributions import StandardNormal
from ffjord_kit.flow import Flow
from ffjord_kit.nn import ResidualDynamics
from ffjord_kit.ode import ADJOINTS, FixedSolver, SolveError, make_solver
from ffjord_kit.trace import TRACE_ESTIMATORS, HutchinsonTrace, OrthogonalTrace
from ffjord_kit.transforms import CNF, Softplus, Standardize

EXACT = FixedSolver("rk4", 24)
END = 0.7


def a_solver(method, adjoint="backprop"):
    return make_solver(method, tolerance=1e-9, steps=24 if method == "rk4" else None, adjoint=adjoint)


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def linear_flow(field, solver=EXACT, *, context_dim=0, event_shape=None, **options):
    cnf = CNF(field, (len(field.a),) if event_shape is None else event_shape, solver=solver, end_time=END)
    return Flow([cnf], context_dim=context_dim, **options).double()


def curved_flow(solver=EXACT, *, context_dim=0, **options):
    cnf = CNF(SmoothMLP(context_dim=context_dim), (2,), solver=solver, end_time=END)
    return Flow([cnf], context_dim=context_dim, **options).double()


@pytest.mark.parametrize(
    ("method", "adjoint"), [("dopri5", a) for a in ADAPTIVE_ADJOINTS] + [("rk4", a) for a in ADJOINTS]
)
@pytest.mark.parametrize("word", TRACE_ESTIMATORS)
def test_log_prob_and_all_its_gradients_are_those_of_the_matrix_exponential(word, method, adjoint):
    field, trace = linear(3, context_dim=2, rate=0.5), TRACE_ESTIMATORS[word](2)
    flow = linear_flow(field, a_solver(method, adjoint), context_dim=2)
    x, context = randn(4, 3).requires_grad_(), randn(4, 2, seed=9).requires_grad_()
    got = flow.log_prob(x, context, trace=trace, generator=seeded())
    expected = field.log_prob(x, END, context, None if word == "exact" else trace.draw(x, seeded()))
    close(got, expected)
    inputs = (field.a, field.b, field.c, x, context)
    for ours, theirs in zip(*(torch.autograd.grad(v @ randn(4, seed=7), inputs) for v in (got, expected)), strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("adjoint", ADAPTIVE_ADJOINTS)
@pytest.mark.parametrize("trace", [OrthogonalTrace(3), HutchinsonTrace(1)], ids=["orthogonal", "rademacher"])
def test_probes_that_are_exact_by_construction_give_the_exact_gradient(trace, adjoint):
    matrix = randn(3, 3) if isinstance(trace, OrthogonalTrace) else randn(3).diag()
    field, x = LinearDynamics(matrix), randn(4, 3, seed=1)
    got = linear_flow(field, a_solver("dopri5", adjoint)).log_prob(x, trace=trace, generator=seeded())
    expected = field.log_prob(x, END)
    close(got, expected)
    (ours,), (theirs,) = (torch.autograd.grad(v.sum(), field.a) for v in (got, expected))
    close(ours.diag(), theirs.diag())
    if isinstance(trace, OrthogonalTrace):
        close(ours, theirs)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "dopri5_by_row"])
def test_samples_are_the_base_draws_pushed_forward_and_carry_gradients(method):
    field = linear(3, rate=0.5)
    flow, z = linear_flow(field, a_solver(method)), StandardNormal((3,)).double().sample(6, seeded())
    expected = field.flow(z, 0.0, END)
    x, log_prob = flow.sample_with_log_prob(6, generator=seeded())
    close(flow.sample(6, generator=seeded()), expected)
    close(x, expected)
    close(log_prob, field.log_prob(expected, END))
    ours, theirs = (torch.autograd.grad((v * randn(6, 3)).sum(), field.a)[0] for v in (x, expected))
    close(ours, theirs)


WAYS = {
    "upward": ((0.0, 0.3, 0.72, 0.9, 1.0), EXACT),
    "downward": ((1.0, 0.8, 0.72, 0.2, 0.0), EXACT),
    "inside by the adjoint": ((0.9, 0.2), a_solver("dopri5", "adjoint")),
    "inside by tolerance": ((0.4, 0.8), a_solver("dopri5")),
}


@pytest.mark.parametrize(("times", "solver"), WAYS.values(), ids=WAYS)
def test_trajectories_through_stacked_layers_agree_with_the_closed_form(times, solver):
    stack, z = Stack(solver), randn(4, 2, seed=4).requires_grad_()
    path = stack.flow.trajectory(stack.at(z, times[0])[0], times)
    states, log_probs = map(torch.stack, zip(*(stack.at(z, t) for t in times), strict=True))
    close(path.x, states)
    close(path.log_prob, log_probs)
    close(path.times.double(), torch.tensor(times, dtype=F64))
    inputs = (z, stack.outer.a, stack.inner.b)
    pairs = [(path.x, path.log_prob), (states, log_probs)]
    losses = [(x * randn(*x.shape)).sum() + log_prob.square().sum() for x, log_prob in pairs]
    for ours, theirs in zip(*(torch.autograd.grad(loss, inputs) for loss in losses), strict=True):
        close(ours, theirs, 1e-6)


@pytest.mark.parametrize("time", [0.0, 0.35, 0.72, 1.0])
def test_log_prob_and_samples_at_a_time_are_those_of_the_trajectory(time):
    stack, z = Stack(EXACT), StandardNormal((2,)).double().sample(5, seeded())
    x, log_prob = stack.at(z, time)
    close(stack.flow.log_prob(x, time=time), log_prob)
    close(stack.flow.sample(5, time=time, generator=seeded()), x)


def test_to_base_and_to_data_are_inverse_and_their_log_determinants_opposite():
    stack, z = Stack(EXACT), randn(5, 2)
    x, up = stack.flow.to_data(z)
    back, down = stack.flow.to_base(x)
    close(back, z)
    close(down, -up)
    close(up, stack.flow.base.log_prob(z) - stack.at(z, 1.0)[1])


@pytest.mark.parametrize("time", [0.1, 0.5, 0.72, 0.9])
def test_velocity_is_the_derivative_of_the_trajectory_in_the_units_of_the_data(time):
    stack, step = Stack(EXACT), 1e-4
    x, _ = stack.at(randn(4, 2), time)
    ahead = [stack.flow.trajectory(x, [time, time + k * step]).x[-1] for k in (1, 2)]
    forward = (4 * ahead[0] - ahead[1] - 3 * x) / (2 * step)  # one-sided: at 0.72 one layer hands over to the other
    close(stack.flow.velocity(x, time), forward, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("word", TRACE_ESTIMATORS)
def test_the_gradient_in_the_parameters_is_that_of_finite_differences(word, adjoint):
    flow, x = curved_flow(a_solver("rk4", adjoint)), randn(4, 2)

    def value():
        return flow.log_prob(x, trace=TRACE_ESTIMATORS[word](1), generator=seeded()).sum()

    gradients = torch.autograd.grad(value(), list(flow.parameters()))
    for parameter, gradient in zip(flow.parameters(), gradients, strict=True):
        direction = randn(*parameter.shape, seed=8)
        expected = difference_along(value, parameter, direction)
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_the_score_and_its_parameter_gradient_are_those_of_finite_differences():
    flow, x = curved_flow(), randn(4, 2)
    score = flow.score(x)
    assert not score.requires_grad
    direction = randn(4, 2, seed=3)
    expected = difference_along(lambda: flow.log_prob(x).sum(), x, direction)
    assert float((score * direction).sum()) == pytest.approx(expected, rel=1e-7)
    weight = next(flow.parameters())
    (gradient,) = torch.autograd.grad(flow.score(x, create_graph=True).square().sum(), weight)
    direction = randn(*weight.shape, seed=4)
    expected = difference_along(lambda: flow.score(x).square().sum(), weight, direction)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "dopri5_by_row"])
def test_the_hessian_of_a_linear_flow_is_that_of_its_gaussian(method):
    field = linear(3, rate=0.5)
    flow, growth = linear_flow(field, a_solver(method)), field.flow(torch.eye(3, dtype=F64), END, 0.0)
    growth = (growth - field.flow(torch.zeros(1, 3, dtype=F64), END, 0.0)).T
    hessian = torch.autograd.functional.hessian(lambda x: flow.log_prob(x[None]).sum(), randn(3))
    close(hessian, -growth.T @ growth)


def test_the_adjoint_refuses_a_second_derivative():
    flow = curved_flow(a_solver("rk4", "adjoint"))
    with pytest.raises(SolveError, match="first derivatives only"):
        flow.score(randn(2, 2), create_graph=True)


def test_the_density_of_a_curved_flow_integrates_to_one():
    middle = torch.linspace(-7, 7, 71, dtype=F64)[:-1] + 0.1
    with torch.no_grad():
        log_prob = curved_flow(FixedSolver("rk4", 15)).log_prob(torch.cartesian_prod(middle, middle))
    assert abs(float(log_prob.exp().sum()) * 0.2**2 - 1) < 1e-3


CALLS = {
    "log_prob": lambda flow, x, c, g: flow.log_prob(x, c, trace=HutchinsonTrace(), generator=g),
    "sample": lambda flow, x, c, g: flow.sample(len(x), c, generator=g),
    "sample_with_log_prob": lambda flow, x, c, g: flow.sample_with_log_prob(len(x), c, generator=g)[1],
    "to_base": lambda flow, x, c, g: flow.to_base(x, c)[0],
    "to_data": lambda flow, x, c, g: flow.to_data(x, c)[1],
    "trajectory": lambda flow, x, c, g: flow.trajectory(x, [1.0, 0.4, 0.6], c, generator=g).x,
    "velocity": lambda flow, x, c, g: flow.velocity(x, 0.4, c),
    "score": lambda flow, x, c, g: flow.score(x, c),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_context_acts_row_by_row_in_every_call_as_the_field_that_it_stands_for(call):
    field, x, context = linear(2, context_dim=3, rate=0.5), randn(3, 2), randn(3, 3, seed=6)
    scaling = Standardize(randn(3), randn(3, seed=2).exp())
    got = call(linear_flow(field, context_dim=3, context_preprocess=scaling), x, context, seeded())
    for row, drift in enumerate(field.drift(scaling.to_base(context)[0])):
        alone = linear_flow(LinearDynamics(field.a, drift.detach(), rate=0.5))
        expected = call(alone, x, None, seeded())
        close(*((v[:, row] if v.dim() == 3 else v[row]) for v in (got, expected)), 1e-12)


def test_one_context_vector_stands_for_every_sample():
    flow, context = curved_flow(context_dim=3), randn(3)
    many = flow.sample(4, context.expand(4, 3), generator=seeded())
    close(flow.sample(4, context, generator=seeded()), many, 0.0)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_leaves_the_global_noise_its_arguments_and_the_modules_as_they_were(call):
    flow, x, context = curved_flow(context_dim=3), randn(3, 2).requires_grad_(), randn(3, 3).requires_grad_()
    flow.base = Flow([], base=gaussian_mixture(randn(2, 2), 0.5)).base

    def everything():
        modules = [(sorted(vars(m)), m.training) for m in flow.modules()]
        noise = (torch.get_rng_state().tolist(), random.getstate())
        tensors = {"x": x, "context": context, **flow.state_dict()}
        grads = [p.grad for p in (x, context, *flow.parameters())]
        return modules, noise, {name: tensor.tolist() for name, tensor in tensors.items()}, grads

    before = copy.deepcopy(everything())
    call(flow, x, context, None)
    call(flow, x, context, seeded())
    assert everything() == before


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_gives_the_same_without_gradients_and_in_inference_mode(call):
    transforms = [Softplus(torch.full((2,), -9.0, dtype=F64)), *curved_flow(context_dim=3).transforms]
    flow, x, context = Flow(transforms, context_dim=3).double(), randn(3, 2), randn(3, 3)
    expected = call(flow, x, context, seeded())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            close(call(flow, x.clone(), context.clone(), seeded()), expected, 1e-12)


BASES = {
    "laplace": lambda: d.Independent(d.Laplace(torch.tensor([0.5, -1.0]), torch.tensor([0.7, 2.0])), 1),
    "mixture": lambda: gaussian_mixture(torch.tensor([[1.0, 0.0], [-1.0, 2.0]]), 0.6),
    "normal": lambda: d.MultivariateNormal(torch.tensor([1.0, 2.0]), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
}


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_any_distribution_is_a_base_and_moves_with_the_flow(make):
    flow = curved_flow(base=make())
    x, log_prob = flow.sample_with_log_prob(5, generator=seeded())
    assert x.dtype == F64
    z, log_det = flow.to_base(x)
    close(log_prob, make().log_prob(z.float()).double() + log_det, 1e-5)
    close(log_prob, flow.log_prob(x))
    close(flow.sample(5, generator=seeded()), x)
    assert bool((flow.sample(5, generator=seeded(6)) != x).all())


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_a_base_that_moves_leaves_the_callers_distribution_as_it_was(make):
    given = make()
    curved_flow(base=given)
    assert given.sample().dtype == torch.float32


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2, 2)])
def test_an_event_may_have_any_shape(shape):
    size = math.prod(shape)
    field, x = linear(size, rate=0.5), randn(4, *shape)
    flow = linear_flow(field, event_shape=shape)
    close(flow.log_prob(x), field.log_prob(x, END))
    close(flow.trajectory(x, [1.0, 0.0]).x[-1], field.flow(x, END, 0.0))
    assert flow.sample(3).shape == (3, *shape)


REFUSED = {
    "a wrong event": (0, lambda f: f.log_prob(randn(4, 3)), "(batch >= 1, 2); got (4, 3)"),
    "no batch": (0, lambda f: f.to_base(randn(2)), "(batch >= 1, 2); got (2,)"),
    "an empty batch": (0, lambda f: f.log_prob(randn(0, 2)), "(batch >= 1, 2); got (0, 2)"),
    "a missing context": (3, lambda f: f.log_prob(randn(4, 2)), "(4, 3); got None"),
    "a surplus context": (0, lambda f: f.log_prob(randn(4, 2), randn(4, 1)), "no context; got one of shape (4, 1)"),
    "a short context": (3, lambda f: f.velocity(randn(4, 2), 0.5, randn(4, 2)), "(4, 3); got (4, 2)"),
    "too few contexts": (3, lambda f: f.sample(4, randn(2, 3)), "(4, 3); got (2, 3)"),
    "no samples": (0, lambda f: f.sample(0), "at least 1; got 0"),
    "no length of time": (0, lambda f: CNF(f, (2,), end_time=0.0), "positive; got 0.0"),
    "a time above one": (0, lambda f: f.log_prob(randn(4, 2), time=1.5), "1.5"),
    "a time below zero": (0, lambda f: f.trajectory(randn(4, 2), [1.0, -0.5]), "-0.5"),
}


@pytest.mark.parametrize(("context_dim", "call", "text"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_with_what_was_expected_and_got(context_dim, call, text):
    with pytest.raises(ValueError) as caught:
        call(curved_flow(context_dim=context_dim))
    assert text in str(caught.value)


def test_as_many_rows_at_once_as_the_caches_hold_with_their_tangents():
    def at_once(columns, width):
        return Flow([CNF(ResidualDynamics((columns,), hidden=(width, width)), (columns,))]).rows_at_once

    assert at_once(9, 128) == 2**18 // (10 * 128)
    assert at_once(9, 64) == 2 * at_once(9, 128) + 1  # 409.6 and 204.8 rows
    assert at_once(2000, 256) == LEAST_SCORED
    assert Flow([Standardize.of(randn(5, 2))], base=StandardNormal((2,))).rows_at_once > 10_000  # no network
