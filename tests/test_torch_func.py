"""Transforms of torch.func run through a flow of fixed steps, and are refused by steps that adapt."""

import pytest
import torch
from oracles import F64, SmoothMLP, close, randn
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from ffjord_kit.flow import Flow
from ffjord_kit.nn import ConcatSquashDynamics
from ffjord_kit.ode import AdaptiveSolver, FixedSolver, PerRowSolver
from ffjord_kit.trace import ExactTrace
from ffjord_kit.transforms import CNF, Standardize

X, CONTEXT = randn(4, 2), randn(4, 3, seed=1)
FIELDS = {
    "vector_field": lambda: ConcatSquashDynamics((2,), hidden=(6,), context_dim=3),
    "any module": lambda: SmoothMLP(context_dim=3),
}


def a_flow(word, solver, **options):
    torch.manual_seed(0)
    return Flow([CNF(FIELDS[word](), (2,), solver=solver)], context_dim=3, **options).double()


def of_one(flow):
    return lambda x, context: flow.log_prob(x[None], context[None])[0]


class LogProb(nn.Module):
    """The log-density as a module, which functional_call can call."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x, context):
        return self.flow.log_prob(x, context)


def by_parameters(flow):
    module = LogProb(flow)
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return weights, lambda w, x, context: functional_call(module, w, (x, context))


FIXED = [FixedSolver(method, 4) for method in ("euler", "midpoint", "heun2", "heun3", "rk4")]
FIXED += [FixedSolver(method, 4) for method in ("fractal3", "linear_multistep", "asynchronous_leapfrog")]
FIXED.append(FixedSolver("rk4", 4, adjoint="checkpointed"))


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "preprocessed"])
@pytest.mark.parametrize("solver", FIXED, ids=lambda solver: f"{solver.method}-{solver.adjoint}")
@pytest.mark.parametrize("word", FIELDS)
def test_derivatives_of_rows_are_those_of_autograd(word, solver, scaled):
    flow = a_flow(word, solver, preprocess=[Standardize(randn(2), randn(2, seed=2).exp())] if scaled else ())
    one, score = of_one(flow), flow.score(X, CONTEXT)
    close(vmap(one)(X, CONTEXT), flow.log_prob(X, CONTEXT), 1e-12)
    close(grad(lambda x: flow.log_prob(x, CONTEXT).sum())(X), score, 1e-12)
    for derivative in (grad, jacrev):
        close(vmap(derivative(one))(X, CONTEXT), score, 1e-12)
    close(jvp(lambda x: flow.log_prob(x, CONTEXT), (X,), (torch.ones_like(X),))[1], score.sum(1), 1e-12)
    close(vmap(lambda x, c: flow.score(x[None], c[None])[0])(X, CONTEXT), score, 1e-12)


@pytest.mark.parametrize("word", FIELDS)
def test_second_derivatives_of_rows_are_those_of_autograd(word):
    flow = a_flow(word, FixedSolver("rk4", 3))
    ours = vmap(hessian(of_one(flow)))(X, CONTEXT)
    for row, context, second in zip(X, CONTEXT, ours, strict=True):
        theirs = torch.autograd.functional.hessian(lambda x, c=context: of_one(flow)(x, c), row)
        close(second, theirs, 1e-10)


@pytest.mark.parametrize("word", FIELDS)
def test_derivatives_by_the_context_are_those_of_autograd(word):
    flow, context = a_flow(word, FixedSolver("rk4", 3)), CONTEXT.clone().requires_grad_()
    (expected,) = torch.autograd.grad(flow.log_prob(X, context).sum(), context)
    close(grad(lambda c: flow.log_prob(X, c).sum())(CONTEXT), expected, 1e-12)
    close(vmap(grad(of_one(flow), argnums=1))(X, CONTEXT), expected, 1e-12)
    close(vmap(lambda c: of_one(flow)(X[0], c))(CONTEXT), flow.log_prob(X[:1].expand(4, 2), CONTEXT), 1e-12)
    tangent = jvp(lambda c: flow.log_prob(X, c), (CONTEXT,), (torch.ones_like(CONTEXT),))[1]
    close(tangent, expected.sum(1), 1e-12)
    assert vmap(hessian(of_one(flow), argnums=1))(X, CONTEXT).shape == (4, 3, 3)


@pytest.mark.parametrize("word", FIELDS)
def test_gradients_of_the_weights_may_be_taken_row_by_row(word):
    flow = a_flow(word, FixedSolver("rk4", 3))
    weights, log_prob = by_parameters(flow)
    rows = vmap(grad(lambda w, x, c: log_prob(w, x[None], c[None])[0]), (None, 0, 0))(weights, X, CONTEXT)
    expected = torch.autograd.grad(flow.log_prob(X, CONTEXT).sum(), list(flow.parameters()))
    for ours, theirs in zip(rows.values(), expected, strict=True):
        close(ours.sum(0), theirs, 1e-10)


@pytest.mark.parametrize("word", FIELDS)
def test_an_ensemble_of_weights_is_evaluated_at_once(word):
    flow = a_flow(word, FixedSolver("rk4", 3))
    weights, log_prob = by_parameters(flow)
    two = {name: torch.stack([value, 0.5 * value]) for name, value in weights.items()}
    values = vmap(log_prob, (0, None, None))(two, X, CONTEXT)
    for member, value in enumerate(values):
        close(value, log_prob({name: both[member] for name, both in two.items()}, X, CONTEXT), 1e-12)


ADAPTIVE = [
    AdaptiveSolver(), AdaptiveSolver("bosh3", 1e-3, 1e-3), AdaptiveSolver(adjoint="adjoint"), PerRowSolver(),
    FixedSolver("explicit_adams", 5), FixedSolver("rk4", 4, adjoint="adjoint"),
    FixedSolver("rk4", 4, adjoint="reversible"),
]  # fmt: skip
CALLS = {
    "grad of x": lambda flow: grad(lambda x: flow.log_prob(x, CONTEXT).sum())(X),
    "vmap of x": lambda flow: vmap(of_one(flow))(X, CONTEXT),
    "vmap of the context": lambda flow: vmap(lambda c: of_one(flow)(X[0], c))(CONTEXT),
    "jvp of the context": lambda flow: jvp(lambda c: flow.log_prob(X, c), (CONTEXT,), (CONTEXT,)),
    "hessian": lambda flow: hessian(lambda x: flow.log_prob(x, CONTEXT).sum())(X),
    "score": lambda flow: vmap(lambda x, c: flow.score(x[None], c[None]))(X, CONTEXT),
    "grad of weights": lambda flow: grad(lambda w: by_parameters(flow)[1](w, X, CONTEXT).sum())(by_parameters(flow)[0]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("solver", ADAPTIVE, ids=lambda solver: f"{solver.method}-{solver.adjoint}")
def test_other_solvers_refuse_in_one_sentence(solver, call):
    with pytest.raises(
        ValueError, match=r"^torch.func cannot look into .*: pass a solver of fixed steps, e.g. FixedSolver"
    ):
        call(a_flow("vector_field", solver))


def test_evaluations_are_counted_inside_transforms_too():
    solver, counts = FixedSolver("rk4", 3), []

    def last(x):
        solution = solver.solve(lambda t, s: (s[0].sin(),), (x[None],), torch.tensor([0.0, 1.0]))
        counts.append(solution.stats.nfe)
        return solution.states[0][-1, 0].sum()

    vmap(grad(last))(X)
    assert counts == [12]


def test_an_exact_trace_inside_vmap_is_that_outside():
    flow = a_flow("any module", FixedSolver("midpoint", 3))
    inside = vmap(lambda x, c: flow.log_prob(x[None], c[None], trace=ExactTrace())[0])(X, CONTEXT)
    close(inside, flow.log_prob(X, CONTEXT), 1e-12)
    assert inside.dtype == F64
