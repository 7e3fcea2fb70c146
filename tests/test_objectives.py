"""What training minimises: times, weights and least values of flow matching; likelihoods with their costs."""

import math

import pytest
import torch
from oracles import F64, GaussianTransport, LearntAffine, Recorder, SmoothMLP, close, linear, randn
from torch import nn

from ffjord_kit.cnf import CNF, Integration
from ffjord_kit.dynamics import ResidualDynamics
from ffjord_kit.flow import Flow
from ffjord_kit.layers import Layer, Standardize
from ffjord_kit.objectives import (
    LIKELIHOOD_FLOOR,
    OBJECTIVES,
    TIME_DENSITIES,
    FlowMatching,
    LayersLikelihood,
    MaximumLikelihood,
)
from ffjord_kit.regularizers import REGULARIZERS
from ffjord_kit.solver import GRADIENTS, Solver
from ffjord_kit.trace import ExactTrace, HutchinsonTrace

EXACT = Solver("rk4", steps=20)
COSTS = {word: REGULARIZERS[word] for word in ("kinetic", "jacobian")}
TOP = 1 + LIKELIHOOD_FLOOR
SPAN = math.log(TOP / LIKELIHOOD_FLOOR)
DENSITIES = {  # density, distribution function and weight of t
    "uniform": (lambda t: torch.ones_like(t), lambda t: t, lambda t: torch.ones_like(t)),
    "likelihood": (lambda t: 1 / (SPAN * (TOP - t)), lambda t: (TOP / (TOP - t)).log() / SPAN, lambda t: t),
}


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def a_flow(*layers, context_dim=0, **options):
    return Flow(list(layers), context_dim=context_dim, **options).double()


def mean_and_error(values):
    values = torch.stack(values).double()
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def test_every_time_density_has_its_closed_form_in_these_tests():
    assert set(TIME_DENSITIES) == set(DENSITIES)


@pytest.mark.parametrize("word", TIME_DENSITIES)
def test_times_are_stratified_draws_of_their_density(word):
    recorder, count = Recorder(SmoothMLP(1)), 20_000
    with torch.no_grad():
        FlowMatching(word).loss(a_flow(CNF(recorder, (1,))), randn(count, 1), None, seeded())
    u = DENSITIES[word][1](recorder.times[0])
    assert float(u.min()) >= 0
    assert float(u.max()) <= 1
    place = u * count - torch.arange(count)  # of each time within its own stratum
    assert float(place.min()) > -1e-6
    assert float(place.max()) < 1 + 1e-6
    assert abs(float(place.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / count)
    assert abs(float(place.square().mean()) - 1 / 3) < 5 * math.sqrt(4 / 45 / count)
    pairs = (place[1:] - 0.5) * (place[:-1] - 0.5)
    assert abs(float(pairs.mean())) < 5 / 12 / math.sqrt(count)


def test_the_likelihood_density_times_its_weight_is_that_of_the_likelihood_bound():
    t = torch.linspace(0, 0.9, 10, dtype=F64)
    density, _, weight = DENSITIES["likelihood"]
    close(density(t) * weight(t) * SPAN, t / (1 - t + LIKELIHOOD_FLOOR), 1e-12)
    drawn, weights = TIME_DENSITIES["likelihood"](t)
    close(weights, drawn, 0.0)


@pytest.mark.parametrize("start", [(0.0, 1.0), (-1.0, 2.0)], ids=["base", "base seen through a layer"])
@pytest.mark.parametrize("word", TIME_DENSITIES)
def test_the_exact_velocity_of_a_gaussian_has_the_least_loss_of_theory_and_no_gradient(word, start):
    field, data = GaussianTransport((1.5, 0.5), start), 1.5 + 0.5 * randn(60, 400, 2, seed=1)
    below = Standardize(*(torch.full((2,), v, dtype=F64) for v in start))
    flow = a_flow(CNF(field, (2,)), below)
    values, slopes = [], []
    for seed, x in enumerate(data):
        value = FlowMatching(word).loss(flow, x, None, seeded(seed)).value
        values.append(value.detach())
        slopes.append(torch.autograd.grad(value, field.shift)[0])
    t = (torch.arange(100_000, dtype=F64) + 0.5) / 100_000
    density, _, weight = DENSITIES[word]
    least = float((density(t) * weight(t) * field.remainder(t)).mean())
    mean, error = mean_and_error(values)
    assert abs(mean - least) < 4 * error < 0.1 * least
    slope, slope_error = mean_and_error(slopes)
    assert abs(slope) < 4 * slope_error


def test_the_exact_velocity_of_a_gaussian_has_its_density():
    flow, x = a_flow(CNF(GaussianTransport((1.5, 0.5)), (1,), solver=Solver("dopri5", 1e-9, 1e-9))), randn(5, 1)
    close(flow.log_prob(x), torch.distributions.Normal(1.5, 0.5).log_prob(x)[:, 0])


class Later(nn.Module):
    """The field from `start` on, on a clock that begins at zero there."""

    def __init__(self, field, start):
        super().__init__()
        self.field, self.start = field, start

    def forward(self, t, x, context=None):
        return self.field(t + self.start, x, context)


@pytest.mark.parametrize("word", TIME_DENSITIES)
def test_blocks_side_by_side_share_time_as_one_block_of_their_whole_length(word):
    field, x, context = SmoothMLP(2, context_dim=3), randn(64, 2), randn(64, 3)
    whole = a_flow(CNF(field, (2,), end_time=2.5), context_dim=3)
    lengths, start = [0.5, 0.7, 1.3], 0.0
    blocks = []
    for length in lengths:
        blocks.insert(0, CNF(Later(field, start), (2,), end_time=length))
        start += length
    losses = [FlowMatching(word).loss(f, x, context, seeded()).value for f in (whole, a_flow(*blocks, context_dim=3))]
    close(losses[1], losses[0], 1e-12)
    gradients = [torch.autograd.grad(loss, list(field.parameters())) for loss in losses]
    for theirs, ours in zip(*gradients, strict=True):
        close(ours, theirs, 1e-12)


def test_the_end_of_time_belongs_to_the_last_block(monkeypatch):
    monkeypatch.setitem(TIME_DENSITIES, "end", lambda u: (torch.ones_like(u), torch.ones_like(u)))
    field, x = SmoothMLP(2), randn(8, 2)
    flows = a_flow(CNF(field, (2,), end_time=2.0)), a_flow(CNF(Later(field, 1.0), (2,)), CNF(field, (2,)))
    whole, blocks = (FlowMatching("end").loss(flow, x, None, seeded()).value for flow in flows)
    close(blocks, whole, 1e-12)


REFUSED = {
    "an exact layer between": [CNF(SmoothMLP(2), (2,)), Standardize(randn(2), randn(2).exp()), CNF(SmoothMLP(2), (2,))],
    "no continuous layer": [Standardize(randn(2), randn(2).exp())],
}


@pytest.mark.parametrize("layers", REFUSED.values(), ids=REFUSED)
def test_flow_matching_refuses_flows_whose_continuous_layers_are_not_side_by_side(layers):
    with pytest.raises(ValueError, match="side by side"):
        FlowMatching().loss(a_flow(*layers), randn(4, 2), None, seeded())


def test_flow_matching_gives_exact_layers_no_gradient_and_their_likelihood_gives_the_continuous_none():
    layers = [LearntAffine(2), CNF(SmoothMLP(2), (2,)), LearntAffine(2)]
    flow, x = a_flow(*layers), randn(20, 2)
    for objective, learns in ((FlowMatching(), 1), (LayersLikelihood(), (0, 2))):
        flow.zero_grad()
        objective.loss(flow, x, None, seeded()).value.backward()
        moved = [i for i, layer in enumerate(layers) if any(p.grad is not None for p in layer.parameters())]
        assert tuple(moved) == ((learns,) if learns == 1 else learns)


def test_the_likelihood_of_the_layers_is_that_of_the_flow_without_its_continuous_ones():
    layers, x = [Standardize(randn(2), randn(2).exp()), LearntAffine(2), CNF(SmoothMLP(2), (2,))], randn(20, 2)
    nn.init.normal_(layers[1].log_scale)
    loss = LayersLikelihood().loss(a_flow(*layers), x, None, seeded()).value
    close(loss, -a_flow(*layers[:2]).log_prob(x).mean(), 1e-12)


def test_the_likelihood_of_the_layers_refuses_a_flow_without_such_weights():
    with pytest.raises(ValueError, match="no exact layer of this flow has weights"):
        LayersLikelihood().loss(a_flow(CNF(SmoothMLP(2), (2,))), randn(4, 2), None, seeded())


class Conditional(Layer):
    """An exact layer that shifts by the context."""

    def to_base(self, x, context=None):
        return x - context, x.new_zeros(len(x))

    def to_data(self, z, context=None):
        return z + context, z.new_zeros(len(z))


@pytest.mark.parametrize("word", OBJECTIVES)
def test_every_layer_sees_the_scaled_context(word):
    scaling, x, context = Standardize(randn(2, seed=1), randn(2, seed=2).exp()), randn(6, 2), randn(6, 2, seed=3)
    layers = [LearntAffine(2), CNF(SmoothMLP(2, context_dim=2), (2,), solver=EXACT), Conditional()]
    scaled = a_flow(*layers, context_dim=2, context_layer=scaling, base=a_flow(layers[1]).base)
    plain = a_flow(*layers, context_dim=2, base=a_flow(layers[1]).base)
    ours = OBJECTIVES[word]().loss(scaled, x, context, seeded()).value
    close(ours, OBJECTIVES[word]().loss(plain, x, scaling.to_base(context)[0], seeded()).value, 1e-12)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("trace", [ExactTrace(), HutchinsonTrace(2)], ids=["exact", "hutchinson"])
def test_maximum_likelihood_is_the_mean_of_minus_log_prob_plus_weighted_costs(trace, gradient):
    solver = Solver("rk4", steps=20, gradient=gradient)
    scaling, cnf, x = Standardize(randn(2), randn(2).exp()), CNF(SmoothMLP(2), (2,), end_time=0.8), randn(6, 2)
    flow, weights = a_flow(scaling, cnf), {"kinetic": 0.3, "jacobian": 0.02}
    loss = MaximumLikelihood(trace, weights, solver).loss(flow, x, None, seeded())
    path = cnf.transport(scaling.to_base(x)[0], [0.8, 0.0], integration=Integration(trace, EXACT, COSTS, seeded()))
    nll = -flow.log_prob(x, trace=trace, solver=EXACT, generator=seeded()).mean()
    expected = nll + sum(weight * path.costs[name].mean() for name, weight in weights.items())
    close(loss.value, expected, 1e-10)
    assert set(loss.terms) == {"nll", "kinetic", "jacobian"}
    close(loss.terms["nll"], nll, 1e-10)
    for name, cost in path.costs.items():
        close(loss.terms[name], cost.mean(), 1e-10)
    gradients = [torch.autograd.grad(value, list(flow.parameters())) for value in (loss.value, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        close(ours, theirs, 1e-6)
    assert [e.forward for e in loss.evaluations] == [80]
    assert [e.backward for e in loss.evaluations] == [80 * (gradient != "backprop")]


@pytest.mark.parametrize("steer", [0.5, 0.9])
def test_the_end_time_is_steered_uniformly_by_the_generator_and_by_no_other_noise(steer):
    recorder, x, ends = Recorder(linear(2)), randn(1, 2), []
    flow = a_flow(CNF(recorder, (2,), end_time=2.0, solver=Solver("euler", steps=1)))
    with torch.no_grad():
        for seed in range(400):
            recorder.times.clear()
            MaximumLikelihood(ExactTrace(), steer=steer).loss(flow, x, None, seeded(seed))
            ends.append(recorder.times[0].clone())
    place = (torch.stack(ends) / 2 - 1) / steer  # in [-1, 1]
    assert float(place.abs().max()) <= 1
    assert abs(float(place.mean())) < 5 * math.sqrt(1 / 3 / 400)
    assert abs(float(place.square().mean()) - 1 / 3) < 5 * math.sqrt(4 / 45 / 400)
    state = torch.get_rng_state()
    values = [MaximumLikelihood(steer=steer).loss(flow, x, None, seeded(s)).value.detach() for s in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert float(values[0]) == float(values[1]) != float(values[2])


def test_every_block_is_steered_and_what_is_reported_is_not():
    fields, x = [Recorder(linear(2, seed=s)) for s in (0, 1)], randn(3, 2)
    solver = Solver("euler", steps=1)
    flow = a_flow(*(CNF(f, (2,), solver=solver, end_time=length) for f, length in zip(fields, (1.0, 3.0), strict=True)))
    with torch.no_grad():
        MaximumLikelihood(ExactTrace(), steer=0.5).loss(flow, x, None, seeded())
        flow.log_prob(x)
    (steered, plain), (deep, whole) = (f.times for f in fields)
    assert (float(plain), float(whole)) == (1.0, 3.0)
    assert 0.5 <= float(steered) <= 1.5
    assert 1.5 <= float(deep) <= 4.5
    assert float(steered) != 1.0
    assert float(deep) / 3 != float(steered)


@pytest.mark.parametrize("bad", [-0.1, 1.0, float("nan")])
def test_a_steer_that_could_reach_no_time_is_refused(bad):
    with pytest.raises(ValueError, match=rf"steer must be in \[0, 1\), a part of the end time; got {bad}"):
        MaximumLikelihood(steer=bad)


def test_the_costs_of_several_blocks_are_added():
    blocks, x = [CNF(linear(2, seed=s), (2,), solver=EXACT) for s in (0, 1)], randn(5, 2)
    terms = MaximumLikelihood(regularizers={"kinetic": 1.0}).loss(a_flow(*blocks), x, None, seeded()).terms
    how = Integration(regularizers=COSTS)
    first = blocks[0].transport(x, [1.0, 0.0], integration=how)
    second = blocks[1].transport(first.x[-1], [1.0, 0.0], integration=how)
    close(terms["kinetic"], (first.costs["kinetic"] + second.costs["kinetic"]).mean(), 1e-10)


@pytest.mark.parametrize("word", OBJECTIVES)
def test_a_loss_takes_all_its_noise_from_the_generator_and_changes_nothing(word):
    flow, x = a_flow(LearntAffine(2), CNF(SmoothMLP(2), (2,), solver=EXACT)), randn(6, 2)
    kept, state, weights = x.clone(), torch.get_rng_state(), [p.detach().clone() for p in flow.parameters()]
    first, again, other = (OBJECTIVES[word]().loss(flow, x, None, seeded(s)).value.detach() for s in (1, 1, 2))
    assert float(first) == float(again)
    assert (float(first) != float(other)) == (word != "layers")  # which has no noise
    assert torch.equal(torch.get_rng_state(), state)
    close(x, kept, 0.0)
    assert all(torch.equal(p, w) and p.grad is None for p, w in zip(flow.parameters(), weights, strict=True))


LEARNERS = {
    "flow matching": (FlowMatching(), 800),
    "flow matching for the likelihood": (FlowMatching("likelihood"), 800),
    "flow matching with coupled ends": (FlowMatching(coupling="optimal_transport"), 800),
    "maximum likelihood": (MaximumLikelihood(), 80),
    "likelihood of the layers": (LayersLikelihood(), 600),
}


def test_every_objective_learns_in_these_tests():
    assert {objective.name for objective, _ in LEARNERS.values()} == set(OBJECTIVES)


@pytest.mark.parametrize(("objective", "steps"), LEARNERS.values(), ids=LEARNERS)
def test_a_short_training_reaches_the_entropy_of_a_gaussian(objective, steps):
    truth, generator = torch.distributions.Normal(1.5, 0.5), seeded(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        above = [LearntAffine(1)] if objective.name == "layers" else []
        flow = Flow([*above, CNF(ResidualDynamics((1,), hidden=(32,)), (1,), solver=Solver("rk4", steps=6))])
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x = 1.5 + 0.5 * torch.randn(256, 1, generator=generator)
        optimizer.zero_grad()
        objective.loss(flow, x, None, generator).value.backward()
        optimizer.step()
        schedule.step()
    quantiles = truth.icdf((torch.arange(512) + 0.5) / 512)[:, None]
    with torch.no_grad():
        excess = (truth.log_prob(quantiles)[:, 0] - flow.log_prob(quantiles)).mean()
    print("EXC", float(excess))
    assert abs(float(excess)) < 0.02
