"""Reversible schemes: there and back to rounding, exact gradients, and memory that does not grow with the steps."""

import weakref

import pytest
import torch
from oracles import F64, SmoothMLP, close, randn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.nn import ConcatSquashDynamics
from ffjord_kit.objectives import MaximumLikelihood
from ffjord_kit.ode import AdaptiveSolver, FixedSolver, PerRowSolver, SolveError
from ffjord_kit.ode.explicit import EXPLICIT_SCHEMES
from ffjord_kit.ode.grids import graded_grid
from ffjord_kit.ode.reversible import REVERSIBLE_SCHEMES, Pull, Walk, coupled, reversible_scheme, walk_on_grid
from ffjord_kit.trace import ExactTrace
from ffjord_kit.transforms import CNF

METHODS = [*EXPLICIT_SCHEMES, *REVERSIBLE_SCHEMES]
TIMES = torch.tensor([1.0, 0.3, 0.0], dtype=F64)


class Joint:
    """Velocity, an integral, and a cost: a state of three parts."""

    def __init__(self):
        self.field = SmoothMLP(2)

    def __call__(self, t, state):
        velocity = self.field(t, state[0])
        return velocity, (velocity * state[0]).sum(1), velocity.square().sum(1)

    @property
    def params(self):
        return list(self.field.parameters())


def start(rows=5):
    x = randn(rows, 2).requires_grad_()
    return x, x.new_zeros(rows), x.new_zeros(rows)


@pytest.mark.parametrize("method", METHODS)
def test_the_inverse_of_a_hundred_steps_leads_back_to_the_start(method):
    rhs, state = Joint(), tuple(part.detach() for part in start())
    grid = torch.linspace(1, 0, 101, dtype=F64)
    walk = Walk(reversible_scheme(method), rhs, grid, grid[[0, -1]], state[0], lambda *_: None)
    first = walk.scheme.start(rhs, walk.first, state)
    with torch.no_grad():
        pair = walk.forwards(state)[1]
    assert float((pair[0][0] - state[0]).abs().max()) > 0.1
    zero, pull = (tuple(map(torch.zeros_like, state)),) * 2, Pull([])
    for n in reversed(range(100)):
        for shear in reversed(walk._shears(n)):
            pair, _ = walk._undone(shear, pair, zero, pull)
    for ours, theirs in zip(pair[0] + pair[1], first[0] + first[1], strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grading", [1.0, 2.0])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_backpropagation_through_the_same_steps(method, grading):
    rhs, found = Joint(), []
    for constant in (True, False):
        state = start()
        if constant:
            solver = FixedSolver(method, 20, grading=grading, adjoint="reversible")
            states = solver.solve(rhs, state, TIMES, params=rhs.params).states
        else:
            grid = graded_grid(TIMES, 0.0, 1.0, 20, grading)
            walked = walk_on_grid(reversible_scheme(method), rhs, state, grid, TIMES, lambda *_: None)
            states = tuple(map(torch.stack, zip(*walked, strict=True)))
        loss = sum((part * randn(*part.shape, seed=i)).sum() for i, part in enumerate(states))
        found.append((*states, *torch.autograd.grad(loss, [state[0], *rhs.params])))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", REVERSIBLE_SCHEMES)
def test_a_reversible_method_makes_the_same_steps_by_every_way_back(method):
    rhs, found = Joint(), []
    for adjoint in ("backprop", "checkpointed", "reversible"):
        state = start()
        states = FixedSolver(method, 12, adjoint=adjoint).solve(rhs, state, TIMES, params=rhs.params).states
        loss = sum(part.square().sum() for part in states)
        found.append((*states, *torch.autograd.grad(loss, [state[0], *rhs.params])))
    for ours, others in zip(zip(*found[1:], strict=True), found[0], strict=True):
        for one in ours:
            assert torch.allclose(one, others, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("method", EXPLICIT_SCHEMES)
def test_a_coupled_scheme_keeps_its_order(method):
    rhs, errors = Joint(), []
    with torch.no_grad():
        state = tuple(part.detach() for part in start())
        truth = FixedSolver("rk4", 1000).solve(rhs, state, TIMES).states[0][-1]
        for steps in (16, 32):
            states = FixedSolver(method, steps, adjoint="reversible").solve(rhs, state, TIMES).states
            errors.append(float((states[0][-1] - truth).abs().max()))
    order = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}.get(method, 1)
    assert torch.tensor(errors[0] / errors[1]).log2() > order - 0.3


def test_revnet_is_the_coupling_of_euler_and_two_alternating_residual_streams():
    field, x, h = SmoothMLP(2), randn(4, 2), 0.1
    grid = torch.linspace(0, 0.3, 4, dtype=F64)
    first, second = x, x
    with torch.no_grad():
        for t in grid[:-1]:
            first = first + h * field(t, second)
            second = second + h * field(t + h, first)
        ours = FixedSolver("revnet", 3).solve(lambda t, s: (field(t, s[0]),), (x,), grid[[0, -1]]).states[0][-1]
        scheme = coupled(EXPLICIT_SCHEMES["euler"], 1.0)
        alone = walk_on_grid(scheme, lambda t, s: (field(t, s[0]),), (x,), grid, grid[[0, -1]], lambda *_: None)
    close(ours, (first + second) / 2, 1e-13)
    close(alone[-1][0], first, 1e-13)


def flow_of(adjoint, steps, method="rk4", context_dim=0):
    torch.manual_seed(0)
    field = ConcatSquashDynamics((2,), hidden=(16, 16), context_dim=context_dim)
    solver = FixedSolver(method, steps, adjoint=adjoint, max_nfe=10**5)
    return Flow([CNF(field, (2,), solver=solver)], context_dim=context_dim).double()


def saved(adjoint, steps):
    """Return the number of tensors that the way forward saves, and their bytes."""
    sizes, count, flow, kept = {}, 0, flow_of(adjoint, steps, "euler"), []

    def pack(value):
        nonlocal count
        count += 1
        sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        kept.append(flow.log_prob(randn(16, 2)).mean())
    return count, sum(sizes.values())


def test_what_is_saved_does_not_grow_with_the_steps():
    few, some, many = (saved("reversible", steps) for steps in (10, 100, 1000))
    assert few == some == many
    assert saved("backprop", 100)[1] > 5 * saved("backprop", 10)[1] > 5 * few[1]


@pytest.mark.slow
def test_no_graph_is_alive_beyond_one_step_on_the_way_back(monkeypatch):
    """The tensors that autograd saves at any time of the way back, which is where the local graphs are."""
    alive, most = set(), {}

    class Saved:
        def __init__(self, value):
            self.value = value
            alive.add(id(self))
            most[steps] = max(most.get(steps, 0), len(alive))

        def __del__(self):
            alive.discard(id(self))

    for steps in (10, 100, 1000):
        alive.clear()
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda held: held.value):
            flow_of("reversible", steps, "euler").log_prob(randn(4, 2)).mean().backward()
    assert most[1000] == most[100] == most[10] > 0


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors that are alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        for storage in [each.untyped_storage() for each in tree_leaves(outputs) if isinstance(each, torch.Tensor)]:
            if storage._cdata not in self.alive:
                self.alive.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.ended, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return outputs

    def ended(self, key, size):
        self.alive.discard(key)
        self.now -= size


def peak_bytes(method, adjoint, steps):
    rhs, state = Joint(), start(rows=2000)
    solver = FixedSolver(method, steps, adjoint=adjoint)
    with LiveBytes() as memory:
        states = solver.solve(rhs, state, TIMES[[0, -1]], params=rhs.params).states
        sum(part[-1].sum() for part in states).backward()
    return memory.peak


@pytest.mark.slow
@pytest.mark.parametrize("method", ["euler", "revnet", "asynchronous_leapfrog"])
def test_the_peak_memory_of_a_gradient_does_not_grow_with_the_steps(method):
    few, some, many = (peak_bytes(method, "reversible", steps) for steps in (10, 100, 1000))
    assert some == pytest.approx(few, rel=0.05)
    assert many == pytest.approx(few, rel=0.05)
    assert peak_bytes(method, "backprop", 100) > 5 * peak_bytes(method, "backprop", 10) > 5 * few


@pytest.mark.parametrize("method", ["heun2", "asynchronous_leapfrog"])
def test_contexts_get_their_gradients_through_likelihood_and_costs(method):
    flow, context, direction = flow_of("reversible", 6, method, context_dim=2), randn(5, 2, seed=3), randn(5, 2, seed=4)
    objective = MaximumLikelihood(ExactTrace(), {"kinetic": 0.3, "jacobian": 0.1})

    def value(shift):
        return objective.loss(flow, Batch(randn(5, 2), context + shift * direction), None).value

    shift = torch.zeros((), dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(shift), shift)
    with torch.no_grad():
        difference = (value(1e-5) - value(-1e-5)) / 2e-5
    assert float(slope) == pytest.approx(float(difference), rel=1e-6)


@pytest.mark.parametrize("kind", [AdaptiveSolver, PerRowSolver])
def test_adaptive_steps_are_refused_in_one_line(kind):
    with pytest.raises(ValueError, match="walks back by fixed one-step schemes, and 'dopri5.*' is none: pass") as error:
        kind(adjoint="reversible")
    assert "\n" not in str(error.value)


def test_a_second_derivative_is_refused():
    with pytest.raises(SolveError, match="'reversible' gives first derivatives only: pass adjoint='backprop'"):
        flow_of("reversible", 4).score(randn(2, 2), create_graph=True)


def test_without_gradients_nothing_is_saved_and_the_states_are_the_same():
    x = randn(3, 2)
    with torch.no_grad():
        quiet = flow_of("reversible", 8).log_prob(x)
    assert torch.equal(quiet, flow_of("reversible", 8).log_prob(x).detach())
