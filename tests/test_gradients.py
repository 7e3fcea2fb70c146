"""Ways back through a solve: the same gradient, for different amounts of memory and of work."""

import pytest
import torch
from oracles import ADAPTIVE_ADJOINTS, F64, SmoothMLP, close, randn

from ffjord_kit.flow import Flow
from ffjord_kit.nn import ConcatSquashDynamics
from ffjord_kit.ode import ADJOINTS, AdaptiveSolver, FixedSolver, SolveError, make_solver
from ffjord_kit.transforms import CNF

FIELDS = {  # with tangents of its own, and with products by automatic differentiation inside the evaluation
    "vector_field": lambda: ConcatSquashDynamics((2,), hidden=(16, 16)),
    "autograd": lambda: SmoothMLP(2, hidden=16),
}


def a_flow(word, method, adjoint, tolerance=1e-9, steps=None):
    field = FIELDS[word]().double()
    with torch.no_grad():
        for seed, parameter in enumerate(field.parameters()):
            parameter.copy_(0.3 * randn(*parameter.shape, seed=seed))
    solver = make_solver(method, tolerance=tolerance, steps=steps, adjoint=adjoint)
    return Flow([CNF(field, (2,), solver=solver)]).double()


def saved_bytes(flow, x):
    """What the graph of the likelihood keeps for the way back."""
    sizes, kept = {}, []

    def pack(value):
        kept.append(value)
        sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        kept.append(flow.log_prob(x).mean())
    return sum(sizes.values())


@pytest.mark.parametrize("method", ["rk4", "dopri5", "dopri5_by_row"])
@pytest.mark.parametrize("word", FIELDS)
def test_every_gradient_of_a_likelihood_is_that_of_backpropagation(word, method):
    x, found = randn(5, 2), {}
    options = {"steps": 24} if method == "rk4" else {}
    for adjoint in {"dopri5_by_row": ("backprop", "checkpointed"), "dopri5": ADAPTIVE_ADJOINTS}.get(method, ADJOINTS):
        flow = a_flow(word, method, adjoint, **options)
        found[adjoint] = torch.autograd.grad(flow.log_prob(x).mean(), list(flow.parameters()))
    for adjoint, values in found.items():
        for ours, theirs in zip(values, found["backprop"], strict=True):
            close(ours, theirs, 1e-12 if adjoint == "checkpointed" else 1e-6)


@pytest.mark.parametrize("word", FIELDS)
def test_what_a_checkpointed_solve_keeps_grows_many_times_slower_with_the_steps(word):
    x, grown = randn(32, 2), {}
    for adjoint in ("backprop", "checkpointed"):
        few, many = (saved_bytes(a_flow(word, "rk4", adjoint, steps=n), x) for n in (4, 12))
        grown[adjoint] = many - few
    assert grown["backprop"] > 20 * grown["checkpointed"] > 0


@pytest.mark.parametrize("method", ["dopri5", "dopri5_by_row"])
def test_a_checkpointed_solve_by_tolerance_keeps_little_too(method):
    x = randn(16, 2)
    kept = [saved_bytes(a_flow("vector_field", method, g, 1e-4), x) for g in ("backprop", "checkpointed")]
    assert kept[0] > 20 * kept[1]


@pytest.mark.parametrize("method", ["rk4", "dopri5_by_row"])
@pytest.mark.parametrize("word", FIELDS)
def test_a_checkpointed_solve_differentiates_twice(word, method):
    found, options = [], {"steps": 6} if method == "rk4" else {"tolerance": 1e-5}
    for adjoint in ("backprop", "checkpointed"):
        flow, x = a_flow(word, method, adjoint, **options), randn(3, 2).requires_grad_()
        slope = flow.score(x, create_graph=True).square().sum()
        found.append(torch.autograd.grad(slope, [x, *flow.parameters()], allow_unused=True))
    for theirs, ours in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_nothing_is_checkpointed_where_no_gradient_is_recorded(monkeypatch):
    monkeypatch.setattr("ffjord_kit.ode.field.checkpoint", lambda *_, **__: pytest.fail("checkpointed"))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            a_flow("vector_field", "rk4", "checkpointed", steps=2).log_prob(randn(3, 2))


def test_a_recomputed_evaluation_counts_on_the_way_back():
    flow, x = a_flow("vector_field", "rk4", "checkpointed", steps=5), randn(3, 2)
    log_prob, moved = flow.evaluate_log_prob(x)
    log_prob.sum().backward()
    assert [(stats.nfe, stats.nfe_backward) for stats in moved.stats] == [(20, 20)]


class Ripples(torch.nn.Module):
    """x' = sum_i k_i sin(8 i t) - x at k = 0: the state is smooth, and the parameters' part of the adjoint is not."""

    def __init__(self):
        super().__init__()
        self.k = torch.nn.Parameter(torch.zeros(40, 2, dtype=F64))

    def forward(self, t, x, context=None):
        return (8 * t.reshape(-1, 1) * torch.arange(1, 41)).sin() @ self.k - x


@pytest.mark.slow
def test_the_seminorm_takes_fewer_evaluations_back_where_parameters_are_many():
    count, fields = {}, {"ripples": Ripples(), "network": ConcatSquashDynamics((2,), hidden=(64, 64)).double()}
    for adjoint in ("adjoint", "seminorm"):
        for name, field in fields.items():
            solver = AdaptiveSolver("dopri5", 1e-6, 1e-6, adjoint=adjoint)
            path = CNF(field, (2,), solver=solver).integrate(randn(64, 2), [1.0, 0.0])
            path.x[-1].sum().backward()
            count[name, adjoint] = path.stats.nfe_backward
    assert count["ripples", "seminorm"] < 0.5 * count["ripples", "adjoint"]
    assert count["network", "seminorm"] <= count["network", "adjoint"]


def test_the_seminorm_still_follows_the_adjoint_of_the_state():
    flow, x = a_flow("vector_field", "dopri5", "seminorm", 1e-8), randn(5, 2).requires_grad_()
    (ours,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    (theirs,) = torch.autograd.grad(a_flow("vector_field", "dopri5", "backprop", 1e-8).log_prob(x).sum(), x)
    close(ours, theirs, 1e-6)


@pytest.mark.parametrize("adjoint", ["adjoint", "seminorm"])
def test_an_adjoint_refuses_a_second_derivative(adjoint):
    with pytest.raises(SolveError, match="first derivatives only: .*adjoint='backprop'"):
        a_flow("vector_field", "dopri5", adjoint, 1e-4).score(randn(2, 2), create_graph=True)


def bad_after(time, rows=(1, 3)):
    """A field at rest that is no number in some rows from a time on."""

    def rhs(t, state):
        inside = torch.isin(torch.arange(len(state[0])), torch.tensor(rows))[:, None]
        return (torch.where(inside & (t > time), torch.nan, torch.zeros_like(state[0])),)

    return rhs


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize(("method", "first"), [("rk4", "0.5333"), ("euler", "0.6"), ("dopri5", "")])
def test_a_bad_field_is_named_by_its_first_time_and_its_rows(method, first, adjoint):
    if (method, adjoint) == ("dopri5", "reversible"):
        return
    options = {} if method == "dopri5" else {"steps": 5}
    solver, x = make_solver(method, adjoint=adjoint, **options), torch.ones(5, 1, dtype=F64, requires_grad=True)
    with pytest.raises(SolveError, match=rf"at t = {first}.*in 2 of 5 rows \(first: \[1, 3\]\)"):
        solver.solve(bad_after(0.5), (x,), torch.tensor([0.0, 1.0], dtype=F64))


def test_a_fixed_number_of_steps_is_checked_once_at_the_end(monkeypatch):
    checks, plain = [], torch.Tensor.__bool__

    def counted(tensor):
        checks.append(tensor.shape)
        return plain(tensor)

    def evaluations(steps):
        checks.clear()
        with torch.no_grad():
            FixedSolver("rk4", steps).solve(lambda t, s: s, (torch.ones(3, 1),), torch.tensor([0.0, 1.0]))
        return len(checks)

    monkeypatch.setattr(torch.Tensor, "__bool__", counted)
    assert evaluations(20) == evaluations(10)
