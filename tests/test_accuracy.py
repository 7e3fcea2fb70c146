"""Log-densities with their errors: the truth lies within what is stated, which is not much larger than it must be."""

import math

import numpy as np
import pytest
import torch
from oracles import randn
from torch import nn

from ffjord_kit import datasets
from ffjord_kit.accuracy import MAX_STEP
from ffjord_kit.estimator import FFJORD
from ffjord_kit.flow import Flow
from ffjord_kit.nn import DYNAMICS, ConcatDynamics, ConcatSquashDynamics, ResidualDynamics
from ffjord_kit.ode import PerRowSolver, SolveError
from ffjord_kit.transforms import CNF, Standardize

F64 = torch.float64
KINDS = ((ResidualDynamics, 0.3), (ConcatSquashDynamics, 1.0), (ConcatDynamics, 1.0))
SCALES, DIMENSIONS = (0.5, 1.0, 1.5, 2.5), (1, 2, 3, 5)
TOLERANCES = tuple(10.0**-k for k in range(2, 9))
EXACT = PerRowSolver(1e-12, 1e-12, max_nfe=10**6)


def network(number, kind, size, scale, width=16):
    """A random field, from smooth to so stiff that a tolerance of 1e-2 leaves errors of a tenth of a nat."""
    torch.manual_seed(number)
    net = kind((size,), hidden=(width, width)).double()
    for p in net.parameters():
        nn.init.normal_(p, 0.0, scale / math.sqrt(p.shape[1]) if p.dim() > 1 else 0.5 * scale)
    return Flow([CNF(net.requires_grad_(False), (size,))])


def random_flow(number):
    kind, own = KINDS[number % 3]
    size = DIMENSIONS[number % 4]
    return network(number, kind, size, own * SCALES[(number // 3) % 4]), 2 * randn(40, size, seed=number)


def covered(numbers, tolerances):
    """For each tolerance: the share of rows whose truth lies within the stated error, and the errors' median ratio."""
    found = {tolerance: [] for tolerance in tolerances}
    for number in numbers:
        flow, x = random_flow(number)
        truth = flow.log_prob(x, solver=EXACT)
        for tolerance in tolerances:
            result = flow.evaluate(x, tolerance=tolerance, max_nfe=10**6)
            found[tolerance].append(torch.stack([(result.value - truth).abs(), result.error]))
    for pairs in found.values():
        actual, stated = torch.cat(pairs, dim=1)
        yield float((actual <= stated).double().mean()), float((stated / actual.clamp(min=1e-15)).median())


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [range(3, 9)])
def test_the_truth_lies_within_the_stated_error(numbers):
    for share, ratio in covered(numbers, (1e-2, 1e-5, 1e-8)):
        assert share >= 0.99
        assert 1 < ratio < 10


@pytest.mark.slow
def test_the_truth_lies_within_the_stated_error_of_thirty_networks_at_every_tolerance():
    for share, ratio in covered(range(30), TOLERANCES):
        assert share >= 0.99
        assert 1 < ratio < 10


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-8])
def test_a_linear_flow_whose_density_is_known_in_closed_form(tolerance):
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.tensor([[0.6, 1.5], [-1.2, -0.4]], dtype=F64))

        def forward(self, t, x, context=None):
            return x @ self.matrix.T

    field, x = Linear(), randn(300, 2)
    shift, scale = torch.tensor([[1.0, -2.0], [3.0, 0.1]], dtype=F64)
    flow, z = Flow([Standardize(shift, scale), CNF(field, (2,))]), (x - shift) / scale
    back = z @ torch.matrix_exp(-field.matrix.detach()).T
    truth = -0.5 * back.square().sum(1) - math.log(2 * math.pi) - 0.2 - math.log(3.0 * 0.1)
    result = flow.evaluate(x, tolerance=tolerance)
    actual = (result.value - truth).abs()
    assert float((actual <= result.error).double().mean()) >= 0.99
    assert float((result.error / actual.clamp(min=1e-15)).median()) < 10


def test_the_value_is_that_of_a_solve_without_an_error():
    flow, x = random_flow(1)
    plain = flow.log_prob(x, solver=PerRowSolver(1e-4, 1e-4, max_step=MAX_STEP))
    assert torch.equal(flow.evaluate(x, tolerance=1e-4).value, plain)


class Field(nn.Module):
    def __init__(self, velocity):
        super().__init__()
        self.velocity = velocity

    def forward(self, t, x, context=None):
        return self.velocity(t.reshape(-1, 1) if t.dim() else t, x)


def normal_log_prob(z):
    return -0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)


def pulse(time, width):
    """Return dx/dt = 2 g(t) x with a Gaussian density g, rows, and their log-densities."""
    density = torch.distributions.Normal(torch.tensor(time, dtype=F64), torch.tensor(width, dtype=F64))
    grown = 2 * float(density.cdf(torch.ones((), dtype=F64)) - density.cdf(torch.zeros((), dtype=F64)))
    x = randn(40, 1)
    flow = Flow([CNF(Field(lambda t, x: 2 * density.log_prob(t).exp() * x), (1,))])
    return flow, x, normal_log_prob(x * math.exp(-grown)) - grown


def switch(time, rate):
    """Return a linear field whose rate leaps at a time, rows, and their log-densities."""
    flow, x = Flow([CNF(Field(lambda t, x: (0.5 + rate * (t > time).to(F64)) * x), (2,))]), randn(40, 2)
    grown = 0.5 + rate * (1 - time)
    return flow, x, normal_log_prob(x * math.exp(-grown)) - 2 * grown


def wall(place, rate):
    """Return a velocity that leaps at a place, rows, and their log-densities; autograd sees no part of its trace."""
    flow, x = Flow([CNF(Field(lambda t, x: 1 + rate * (x > place).to(F64) + 0 * x), (1,))]), randn(60, 1) + 1
    on_this_side = ((x - place) / (1 + rate)).clamp(0, 1)
    start = torch.where(x > place, x - (1 + rate) * on_this_side - (1 - on_this_side), x - 1)
    crossed = (x > place) & (on_this_side < 1)
    return flow, x, normal_log_prob(start) - math.log1p(rate) * crossed[:, 0].to(F64)


IRREGULAR = {
    **{f"pulse {width} at {time}": (pulse, time, width) for time, width in ((0.66, 0.01), (0.31, 0.02), (0.5, 0.005))},
    **{f"switch at {time}": (switch, time, rate) for time, rate in ((0.37, 1.0), (0.82, 3.0))},
    **{f"wall at {place}": (wall, place, rate) for place, rate in ((0.0, 1.0), (0.5, 0.3))},
}


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("name", IRREGULAR)
def test_pulses_and_leaps_are_within_the_stated_error(name, tolerance):
    make, *numbers = IRREGULAR[name]
    flow, x, truth = make(*numbers)
    result = flow.evaluate(x, tolerance=tolerance)
    assert float(((result.value - truth).abs() <= result.error + 1e-12).double().mean()) >= 0.98
    assert float(result.longest_step.max()) <= MAX_STEP
    asked = flow.evaluate(x, tolerance=tolerance, error=1e-4)
    assert bool(((asked.value - truth).abs() <= 1e-4)[asked.met].all())


@pytest.mark.slow
def test_a_density_that_leaps_is_never_said_to_be_met():
    flow, x, truth = wall(0.0, 1.0)
    result = flow.evaluate(x, error=1e-3)
    wrong = (result.value - truth).abs() > 1e-3
    assert bool(wrong.any()) and not bool(result.met[wrong].any())


def test_an_error_below_rounding_is_not_searched_for():
    flow, x = random_flow(4)
    calls = []
    flow.transforms[0].dynamics.register_forward_hook(lambda *_: calls.append(1))
    assert not bool(flow.evaluate(x, tolerance=1e-9, error=1e-15).met.any())
    once = len(calls)
    flow.evaluate(x, tolerance=1e-9)
    assert len(calls) == 2 * once


@pytest.mark.slow
@pytest.mark.parametrize("probes", [None, 16])
def test_an_error_that_is_asked_for_is_met_row_by_row(probes):
    flow, x = network(1, ConcatSquashDynamics, 6, 2.5), randn(60, 6)
    truth = flow.log_prob(x, solver=EXACT)
    generator = torch.Generator().manual_seed(0)
    result = flow.evaluate(x, tolerance=1e-2, probes=probes, error=1e-3, generator=generator)
    assert bool(result.met.all())
    assert float(result.error.max()) <= 1e-3
    assert float(((result.value - truth).abs() <= result.error).double().mean()) >= 0.99
    assert len(result.tolerance.unique()) > 1  # hard rows alone were solved again
    assert bool((result.accepted > 0).all())


def test_a_row_does_not_know_its_company():
    flow, x = random_flow(10)
    together = flow.evaluate(x, tolerance=1e-3, error=1e-4)
    for row in (0, 17, 39):
        alone = flow.evaluate(x[row : row + 1], tolerance=1e-3, error=1e-4)
        assert float((alone.value - together.value[row]).abs()) < 1e-12
        assert int(alone.accepted) == int(together.accepted[row])
        assert float(alone.tolerance) == float(together.tolerance[row])


def far_flow(number, rows):
    """A stiff network, and rows so far out that its kinks are short against the rows' steps."""
    return network(number, ResidualDynamics, 2, 0.7, width=64), 100 * randn(rows, 2, seed=number)


@pytest.mark.slow
def test_a_far_row_does_not_know_its_company():
    """Rounding that differs with the batch must not steer the steps, which would drift apart by whole nats."""
    flow, x = far_flow(1, 60)
    solver = PerRowSolver(1e-5, 1e-5, max_step=MAX_STEP)
    together = flow.log_prob(x, solver=solver)
    halves = torch.cat([flow.log_prob(half, solver=solver) for half in x.chunk(2)])
    alone = torch.cat([flow.log_prob(row, solver=solver) for row in x.split(1)])
    assert torch.allclose(together, alone, rtol=1e-13)
    assert torch.allclose(together, halves, rtol=1e-13)


@pytest.mark.slow
def test_the_truth_of_far_rows_lies_within_the_stated_error():
    """Errors of many steps cancel by chance in the difference of two solves; the stated error must not."""
    flow, x = far_flow(5, 150)
    truth = flow.log_prob(x, solver=PerRowSolver(1e-8, 1e-8, max_nfe=10**6))
    result = flow.evaluate(x, tolerance=1e-5)
    apart = (result.value - truth).abs()
    assert bool((apart <= result.error).all())
    assert float((result.error / apart).median()) < 10


@pytest.mark.slow
def test_the_error_of_few_probes_is_known():
    flow, x = network(2, ConcatSquashDynamics, 12, 1.2), randn(200, 12)
    truth = flow.log_prob(x, solver=EXACT)
    for probes in (4, 8):
        result = flow.evaluate(x, probes=probes, generator=torch.Generator().manual_seed(1))
        apart = (result.value - truth).abs()
        assert float((apart <= result.error).double().mean()) > 0.97
        assert float((result.trace_error / apart).median()) == pytest.approx(1 / 0.7, rel=0.3)  # of a normal law
    exact = flow.evaluate(x, probes=12)
    assert float(exact.trace_error.max()) == 0
    assert int(exact.probes.max()) == 0


def test_the_noise_of_the_trace_comes_from_the_generator():
    flow, x = network(2, ConcatSquashDynamics, 9, 1.0), randn(6, 9)
    a, b, c = (flow.evaluate(x, probes=3, generator=torch.Generator().manual_seed(s)).value for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_rows_that_cannot_meet_it_are_named_and_keep_an_honest_error():
    flow, x = random_flow(4)
    result = flow.evaluate(x, tolerance=1e-3, error=1e-14)
    assert not bool(result.met.all())
    assert bool((result.error[~result.met] > 1e-14).all())
    single = flow.float().evaluate(x.float(), tolerance=1e-3, error=1e-6)
    truth = flow.double().log_prob(x.float().double(), solver=EXACT)
    assert not bool(single.met.any())
    assert float(((single.value - truth).abs() <= single.error).double().mean()) >= 0.99


def test_a_solve_that_cannot_be_made_finer_leaves_the_coarser_one():
    flow, x = random_flow(10)
    result = flow.evaluate(x, tolerance=1e-2, error=1e-6, max_nfe=200)
    assert 0 < int(result.met.sum()) < len(x)  # easy rows are solved as finely as they can be, whatever the others do
    assert bool(result.value.isfinite().all())
    assert bool((result.error[~result.met] > 1e-6).all())
    with pytest.raises(SolveError, match="max_nfe=7"):
        flow.evaluate(x, max_nfe=7)


@pytest.mark.slow
@pytest.mark.parametrize("word", DYNAMICS)
def test_context_and_several_continuous_layers_go_through(word):
    torch.manual_seed(0)
    transforms = [CNF(DYNAMICS[word]((2,), context_dim=1, hidden=(8,)), (2,)) for _ in range(2)]
    flow = Flow(transforms, context_dim=1).double().requires_grad_(False)
    for p in flow.parameters():
        nn.init.normal_(p, 0.0, 0.15)
    x, context = randn(9, 2), randn(9, 1, seed=2)
    truth = flow.log_prob(x, context, solver=EXACT)
    result = flow.evaluate(x, context, tolerance=1e-4)
    assert bool(((result.value - truth).abs() <= result.error).all())
    assert bool((result.accepted >= 2).all())
    half = flow.evaluate(x, context, time=0.5, tolerance=1e-6).value
    assert torch.allclose(half, flow.log_prob(x, context, time=0.5, solver=EXACT), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error": 0.0}, "error must be positive, in nats; got 0.0"),
        ({"error": float("nan")}, "error must be positive, in nats; got nan"),
        ({"probes": 1}, "probes must be at least 2, or None for the exact trace; got 1"),
        ({"tolerance": -1.0}, "rtol and atol must be positive"),
        ({"time": 2.0}, "times must lie in"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, message):
    flow, x = random_flow(1)
    with pytest.raises(ValueError, match=message):
        flow.evaluate(x, **options)


def test_step_doubling_needs_the_field_of_some_rows():
    with pytest.raises(ValueError, match="step doubling evaluates half of the rows at a time: pass for_rows="):
        rows = torch.ones(4, 1, dtype=F64)
        PerRowSolver(step_doubling=True).solve(lambda t, s: s, (rows,), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="two rows for each solution; got 3 rows"):
        PerRowSolver(step_doubling=True).solve(lambda t, s: s, (rows[:3],), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="on_failure must be 'raise' or 'nan'; got 'skip'"):
        PerRowSolver(on_failure="skip")


def test_preprocessing_changes_no_error_and_adds_its_log_determinant():
    flow, x = random_flow(7)
    size = x.shape[1]
    scaling = Standardize(randn(size, seed=3), randn(size, seed=4).exp())
    both = Flow(list(flow.transforms), preprocess=[scaling])
    z, log_det = scaling.to_base(x)
    inner, outer = (f.evaluate(rows, tolerance=1e-4, error=1e-5) for f, rows in ((flow, z), (both, x)))
    assert torch.equal(outer.value, inner.value + log_det)
    for name in ("error", "solver_error", "met", "tolerance", "accepted", "rejected"):
        assert torch.equal(getattr(outer, name), getattr(inner, name))


@pytest.mark.slow
def test_the_estimator_gives_the_same_with_its_support():
    x = datasets.load("moons", rows=200, seed=0).x
    model = FFJORD(schedule=[("flow_matching", 30)], hidden=(8,), random_state=0, support=("bounded", -9, 9)).fit(x)
    rows = np.concatenate([x[:5], [[-10.0, 0.0]]])
    log_prob, error = model.score_samples(rows, return_error=True)
    assert log_prob[:5] == pytest.approx(model.score_samples(rows)[:5], abs=2 * error.max())
    assert np.isneginf(log_prob[5])
    assert error[5] == 0
    assert (error[:5] > 0).all()
    certified = model.certify(rows, error=1e-7)
    assert certified.met.all()
    assert certified.error.max() <= 1e-7
    assert np.abs(certified.log_prob[:5] - log_prob[:5]).max() <= error.max()
    assert model.solver_error(rows[:5]) == pytest.approx(model.certify(rows[:5]).solver_error.mean())


@pytest.mark.slow
def test_a_smooth_network_meets_any_error_asked_for():
    """At turning points of the field long steps seem to leap: one finer solve that does not help proves nothing."""
    x = np.random.default_rng(0).normal(size=(500, 2))
    model = FFJORD(schedule=[("flow_matching", 300)], hidden=(32, 32), random_state=0).fit(x)
    rows = np.random.default_rng(1).normal(size=(200, 2))
    truth = model.certify(rows, error=1e-9)
    assert truth.met.all()
    for error in (1e-4, 1e-6):
        certified = model.certify(rows, error=error)
        assert certified.met.all()
        assert (np.abs(certified.log_prob - truth.log_prob) <= certified.error + truth.error).mean() >= 0.99
