"""Probes, their products with the Jacobian, and the costs along the path that use them."""

import math

import numpy as np
import pytest
import torch
from oracles import F64, LinearDynamics, SmoothMLP, close, jacobian, linear, randn

from ffjord_kit.nn import DYNAMICS, PotentialDynamics
from ffjord_kit.ode import AdaptiveSolver, make_solver
from ffjord_kit.regularizers import REGULARIZERS, jacobian_norm
from ffjord_kit.trace import TRACE_ESTIMATORS, ExactTrace, HutchinsonTrace, OrthogonalTrace, evaluate_field
from ffjord_kit.transforms.cnf import CNF, SolveOptions

HALF = torch.tensor(0.5, dtype=F64)
COSTS = {word: cost for word, cost in REGULARIZERS.items() if word != "hjb"}  # for dynamics without a potential
NETWORKS = [
    *((word, {}) for word in DYNAMICS),
    ("residual", {"fourier_features": 2}),
    ("residual", {"input_scales": 3}),
]
STOCHASTIC = [word for word in TRACE_ESTIMATORS if word != "exact"]


def within_standard_errors(samples, expected, count=5.0):
    """Judge the mean over the first axis; values that do not vary at all must be equal."""
    error = samples.std(0) / math.sqrt(len(samples))
    return bool(((samples.mean(0) - expected).abs() <= count * error + 1e-12).all())


def repeated(row, count):
    return row.expand(count, *row.shape[1:])


@pytest.mark.parametrize("probes", [1, 2, 3])
@pytest.mark.parametrize("word", TRACE_ESTIMATORS)
def test_the_probes_outer_products_sum_to_the_identity_on_average(word, probes, generator):
    v = TRACE_ESTIMATORS[word](probes).draw(torch.empty(20_000, 3, dtype=F64), generator)
    assert v.shape == ((3, 1, 3) if word == "exact" else (probes, 20_000, 3))
    assert v.dtype == F64
    v = v.expand(-1, 20_000, -1)
    assert within_standard_errors(torch.einsum("kbi,kbj->bij", v, v), torch.eye(3, dtype=F64))


def test_as_many_orthogonal_probes_as_dimensions_are_exact_and_more_are_not_drawn(generator):
    v = OrthogonalTrace(7).draw(torch.empty(5, 2, 2, dtype=F64), generator).flatten(2)
    assert v.shape == (4, 5, 4)
    close(torch.einsum("kbi,kbj->bij", v, v), torch.eye(4, dtype=F64).expand(5, 4, 4), 1e-12)


@pytest.mark.parametrize("word", TRACE_ESTIMATORS)
def test_probes_are_reproduced_by_the_generator_and_otherwise_differ(word):
    estimator, x = TRACE_ESTIMATORS[word](2), torch.empty(8, 3, dtype=F64)
    first, again = (estimator.draw(x, torch.Generator().manual_seed(1)) for _ in range(2))
    close(again, first, 0.0)
    other = estimator.draw(x, torch.Generator().manual_seed(2))
    assert bool((other == first).all()) == (word == "exact")
    assert bool((estimator.draw(x) == first).all()) == (word == "exact")


@pytest.mark.parametrize(("kind", "bad"), [(HutchinsonTrace, 0), (OrthogonalTrace, -1)])
def test_fewer_than_one_probe_is_refused(kind, bad):
    with pytest.raises(ValueError, match=f"at least 1; got {bad}"):
        kind(bad)


def test_an_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="'rademacher' or 'gaussian'; got 'cauchy'"):
        HutchinsonTrace(noise="cauchy")


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 2)])
def test_the_exact_trace_and_norm_are_those_of_autograds_jacobian(shape):
    field, x = SmoothMLP(math.prod(shape), context_dim=2), randn(4, *shape)
    context = randn(1, 2)
    matrix = jacobian(lambda y: field(HALF, y, context), x)
    point = evaluate_field(field, HALF, x, ExactTrace().draw(x), context.expand(4, 2))
    close(point.trace, matrix.diagonal(dim1=1, dim2=2).sum(1), 1e-12)
    close(jacobian_norm(point), matrix.square().sum((1, 2)), 1e-12)
    close(point.dx, field(HALF, x, context.expand(4, 2)), 0.0)


@pytest.mark.parametrize("probes", [1, 2])
@pytest.mark.parametrize("word", STOCHASTIC)
def test_estimates_of_trace_and_norm_are_right_within_standard_errors(word, probes, generator):
    field, row = SmoothMLP(3), randn(1, 3)
    matrix = jacobian(lambda y: field(HALF, y), row)[0]
    x = repeated(row, 20_000)
    point = evaluate_field(field, HALF, x, TRACE_ESTIMATORS[word](probes).draw(x, generator))
    assert within_standard_errors(point.trace.detach(), matrix.trace())
    assert within_standard_errors(jacobian_norm(point).detach(), matrix.square().sum())


def test_rademacher_probes_have_the_variance_of_theory_and_orthogonal_ones_less_than_gaussian(generator):
    matrix, x = randn(4, 4) + randn(4, 4).T, torch.zeros(20_000, 4, dtype=F64)
    spread = {}
    for word in STOCHASTIC:
        trace = evaluate_field(
            LinearDynamics(matrix), HALF, x, TRACE_ESTIMATORS[word](2).draw(x, generator)
        ).trace.detach()
        spread[word] = (trace - matrix.trace()).square()
    off_diagonal = matrix.square().sum() - matrix.diagonal().square().sum()
    assert within_standard_errors(spread["rademacher"], 2 * off_diagonal / 2)
    assert within_standard_errors(spread["gaussian"], 2 * matrix.square().sum() / 2)
    assert spread["orthogonal"].mean() < spread["gaussian"].mean()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("estimator", [ExactTrace(), HutchinsonTrace(1)])
def test_without_gradients_nothing_keeps_a_graph_and_the_values_are_the_same(estimator, mode, generator):
    field, x = SmoothMLP(2, context_dim=3), randn(4, 2).requires_grad_()
    probes, context = estimator.draw(x, generator), randn(4, 3)
    expected = evaluate_field(field, HALF, x, probes, context)
    with mode():
        point = evaluate_field(field, HALF.clone(), x.clone(), probes.clone(), context.clone())
    assert not (point.dx.requires_grad or point.products.requires_grad or point.trace.requires_grad)
    close(point.dx, expected.dx, 1e-14)
    close(point.products, expected.products, 1e-14)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("estimator", [ExactTrace(), HutchinsonTrace(1)])
@pytest.mark.parametrize("field", [lambda t, x, c: torch.ones_like(x), lambda t, x, c: (0 * x).detach() + t])
def test_a_field_that_is_constant_in_x_has_no_trace(field, estimator, gradients):
    x = randn(4, 2)
    with torch.set_grad_enabled(gradients):
        point = evaluate_field(field, HALF, x, estimator.draw(x))
    close(point.trace, torch.zeros(4, dtype=F64), 0.0)
    assert point.products.shape == (len(point.probes), 4, 2)


def test_a_learned_shift_has_no_trace_but_a_gradient():
    shift, x = randn(2).requires_grad_(), randn(4, 2)
    point = evaluate_field(lambda t, x, c: shift.expand_as(x), HALF, x, ExactTrace().draw(x))
    close(point.trace, torch.zeros(4, dtype=F64), 0.0)
    close(torch.autograd.grad(point.dx.sum(), shift)[0], torch.full((2,), 4.0, dtype=F64))


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "dopri5_by_row"])
@pytest.mark.parametrize("word", TRACE_ESTIMATORS)
def test_probes_are_held_during_a_solve_so_noise_costs_no_evaluations(word, method):
    field, x, solver = SmoothMLP(3), randn(2, 3), make_solver(method, tolerance=1e-7)
    estimator, times = TRACE_ESTIMATORS[word](1), torch.tensor([1.0, 0.0], dtype=F64)
    options = SolveOptions(estimator, solver, generator=torch.Generator().manual_seed(3))
    probes = estimator.draw(x, torch.Generator().manual_seed(3))

    def deterministic(t, state):
        matrix = torch.func.vmap(torch.func.jacrev(lambda y, s: field(s, y[None])[0]))(state[0], t.expand(2))
        return field(t, state[0]), torch.einsum("kbi,bij,kbj->b", probes, matrix, probes)

    path = CNF(field, (3,)).integrate(x, times, options=options)
    solution = solver.solve(deterministic, (x, x.new_zeros(2)), times)
    assert path.nfe == solution.stats.nfe
    close(path.log_det[-1], solution.states[1][-1], 1e-12)


@pytest.mark.parametrize("word", TRACE_ESTIMATORS)
def test_the_right_hand_side_is_one_function_of_time_and_state_throughout_a_solve(word):
    field, x, seen = SmoothMLP(3), randn(4, 3), []

    def spy(point):
        seen.append(point)
        return point.trace.detach().square()

    CNF(field, (3,)).integrate(x, [0.0, 1.0], options=SolveOptions(TRACE_ESTIMATORS[word](1), regularizers={"": spy}))
    assert len(seen) > 6
    for point in seen:
        close(evaluate_field(field, point.t, point.x, seen[0].probes).trace, point.trace, 0.0)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 2)])
@pytest.mark.parametrize("trace", [ExactTrace(), HutchinsonTrace(2)])
@pytest.mark.parametrize(("word", "options"), NETWORKS)
def test_tangents_carried_by_the_network_are_those_of_automatic_differentiation(word, options, trace, shape):
    field = DYNAMICS[word](shape, context_dim=2, hidden=(6, 6, 5), **options).double()
    with torch.no_grad():
        for seed, parameter in enumerate(field.parameters()):
            parameter.copy_(0.5 * randn(*parameter.shape, seed=seed))
    x, context, t = randn(4, *shape).requires_grad_(), randn(4, 2, seed=1), torch.linspace(0.2, 0.8, 4, dtype=F64)
    probes = trace.draw(x, torch.Generator().manual_seed(0))
    mine, its = evaluate_field(field, t, x, probes, context), evaluate_field(field.forward, t, x, probes, context)
    close(mine.dx, its.dx, 1e-12)
    close(mine.trace, its.trace, 1e-12)
    gradients = [
        torch.autograd.grad(p.trace.square().sum(), [x, *field.parameters()], allow_unused=True) for p in (mine, its)
    ]
    for a, b in zip(*gradients, strict=True):
        close(torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b, 1e-10)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 2)])
@pytest.mark.parametrize("hidden", [(6,), (6, 5)])
@pytest.mark.parametrize(("word", "options"), NETWORKS)
def test_the_trace_that_a_network_knows_by_itself_is_the_exact_one(word, options, hidden, shape):
    field = DYNAMICS[word](shape, context_dim=2, hidden=hidden, **options).double()
    with torch.no_grad():
        for seed, parameter in enumerate(field.parameters()):
            parameter.copy_(0.5 * randn(*parameter.shape, seed=seed))
    x, context, t = randn(4, *shape).requires_grad_(), randn(4, 2, seed=1), torch.linspace(0.2, 0.8, 4, dtype=F64)
    dx, trace = field.divergence(t, x, context)
    point = evaluate_field(field.forward, t, x, ExactTrace().draw(x), context)
    close(dx, point.dx, 1e-12)
    close(trace, point.trace, 1e-12)
    mine, its = (
        torch.autograd.grad(values.square().sum(), [x, *field.parameters()], allow_unused=True)
        for values in (trace, point.trace)
    )
    for a, b in zip(mine, its, strict=True):
        close(torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b, 1e-10)


def a_point(field, x, estimator, generator=None):
    return evaluate_field(field, HALF, x, estimator.draw(x, generator))


def field_of(word, size, scale=1.0):
    """A smooth field that the cost `word` can judge, with random parameters, or all of them scaled."""
    field = PotentialDynamics((size,), hidden=(6,)).double() if word == "hjb" else SmoothMLP(size)
    with torch.no_grad():
        for seed, parameter in enumerate(field.parameters()):
            parameter.copy_(0.5 * scale * randn(*parameter.shape, seed=seed))
    return field


@pytest.mark.parametrize("time", [HALF, torch.linspace(0.1, 0.9, 5, dtype=F64)], ids=["one time", "a time a row"])
@pytest.mark.parametrize("shape", [(3,), (2, 2)])
@pytest.mark.parametrize("word", REGULARIZERS)
def test_a_cost_is_one_number_a_row_not_negative_and_zero_at_rest(word, shape, time, generator):
    x, cost = randn(5, *shape), REGULARIZERS[word]
    field, still = (field_of(word, math.prod(shape), scale) for scale in (1.0, 0.0))
    probes = HutchinsonTrace(2).draw(x, generator)
    value = cost(evaluate_field(field, time, x, probes))
    assert value.shape == (5,)
    assert bool((value > 0).all())
    close(cost(evaluate_field(still, time, x, probes)), torch.zeros(5, dtype=F64), 0.0)


@pytest.mark.parametrize("word", REGULARIZERS)
def test_a_cost_is_differentiable_in_state_and_parameters(word):
    field, x, cost = field_of(word, 2), randn(3, 2).requires_grad_(), REGULARIZERS[word]
    assert torch.autograd.gradcheck(lambda y: cost(a_point(field, y, ExactTrace())), x)
    gradients = torch.autograd.grad(cost(a_point(field, x, ExactTrace())).sum(), list(field.parameters()))
    assert all(bool((g != 0).any()) for g in gradients)


def test_the_kinetic_cost_is_the_squared_speed():
    field, x = SmoothMLP(2), randn(3, 2)
    close(REGULARIZERS["kinetic"](a_point(field, x, ExactTrace())), field(HALF, x).square().sum(1), 0.0)


def linear_derivatives(field, t, x):
    """The squares (batch,) of the first three derivatives of x' = s (A x + b), s = 1 + rate t; s' = rate."""
    s, y = 1 + field.rate * t, x @ field.a.T + field.b
    ay = y @ field.a.T
    parts = s * y, field.rate * y + s**2 * ay, 3 * field.rate * s * ay + s**3 * ay @ field.a.T
    return [part.square().sum(1) for part in parts]


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["backprop", "adjoint"])
@pytest.mark.parametrize("times", [(0.0, 0.3, 0.7), (0.7, 0.3, 0.0)], ids=["upward", "downward"])
def test_the_costs_of_a_way_are_their_closed_form_integrals_and_positive_in_both_directions(times, adjoint):
    field, x = linear(3, rate=0.5), randn(4, 3)
    nodes, weights = map(torch.tensor, np.polynomial.legendre.leggauss(16))
    solver = AdaptiveSolver("dopri5", 1e-9, 1e-9, adjoint=adjoint)
    path = CNF(field, (3,)).integrate(x, times, options=SolveOptions(ExactTrace(), solver, COSTS))
    clock = [float(0.7 * (1 + n) / 2) for n in nodes]
    derivatives = [linear_derivatives(field, t, field.flow(x, times[0], t)) for t in clock]
    integrals = [0.35 * torch.tensordot(weights, torch.stack(d), 1) for d in zip(*derivatives, strict=True)]
    norm = field.a.square().sum() * ((1 + 0.5 * 0.7) ** 3 - 1) / 1.5
    expected = {**dict(zip(("kinetic", "acceleration", "jerk"), integrals, strict=True)), "jacobian": norm.expand(4)}
    assert set(expected) == set(COSTS)
    for word, theirs in expected.items():
        close(path.costs[word], theirs)
    totals = [sum(costs[word].sum() for word in expected) for costs in (path.costs, expected)]
    close(*(torch.autograd.grad(total, field.a, retain_graph=True)[0] for total in totals), 1e-6)


def test_costs_do_not_steer_the_steps_of_a_way():
    cnf, x = CNF(SmoothMLP(2), (2,), solver=AdaptiveSolver("dopri5", 1e-4, 1e-4)), randn(4, 2)

    def rough(point):
        return 1e6 * (50 * point.x).sin().square().sum(1)

    paths = [cnf.integrate(x, [1.0, 0.0], options=SolveOptions(regularizers=r)) for r in ({}, {"rough": rough})]
    assert paths[0].nfe == paths[1].nfe
    close(paths[1].x, paths[0].x, 0.0)
