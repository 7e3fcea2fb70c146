"""Objectives: times, weights and least values of flow matching; likelihoods with their costs."""

import math

import pytest
import torch
from oracles import F64, GaussianTransport, LearntAffine, Recorder, SmoothMLP, close, linear, randn
from torch import nn

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.nn import ResidualDynamics
from ffjord_kit.objectives import (
    OBJECTIVES,
    TIME_DENSITIES,
    FlowMatching,
    MaximumLikelihood,
    Reflow,
    SolvedObjective,
    SteppedLikelihood,
    TransformsLikelihood,
)  # fmt: skip
from ffjord_kit.objectives.flow_matching import LIKELIHOOD_FLOOR
from ffjord_kit.objectives.reflow import stack_pairs
from ffjord_kit.ode import ADJOINTS, AdaptiveSolver, FixedSolver
from ffjord_kit.regularizers import REGULARIZERS
from ffjord_kit.trace import ExactTrace, HutchinsonTrace
from ffjord_kit.transforms import CNF, Standardize, Stepped
from ffjord_kit.transforms.cnf import SolveOptions

EXACT = FixedSolver("rk4", steps=20)
COSTS = {word: REGULARIZERS[word] for word in ("kinetic", "jacobian")}
TOP = 1 + LIKELIHOOD_FLOOR
SPAN = math.log(TOP / LIKELIHOOD_FLOOR)
DENSITIES = {  # density, distribution function and weight of t
    "uniform": (lambda t: torch.ones_like(t), lambda t: t, lambda t: torch.ones_like(t)),
    "likelihood": (lambda t: 1 / (SPAN * (TOP - t)), lambda t: (TOP / (TOP - t)).log() / SPAN, lambda t: t),
}


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def a_flow(*transforms, **options):
    return Flow(list(transforms), **options).double()


def continuous(word, field):
    """Return the continuous transform that an objective trains, or its steps, some of which may fold."""
    steep = CNF(field, (2,), solver=EXACT)
    return Stepped(field, (2,), method="euler", steps=1, end_time=8.0) if word == "steps" else steep


def loss_of(objective, flow, x, context=None, seed=5):
    return objective.loss(flow, Batch(x, context), seeded(seed))


def mean_and_error(values):
    values = torch.stack(values).double()
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def test_every_time_density_has_its_closed_form_in_these_tests():
    assert set(TIME_DENSITIES) == set(DENSITIES)


@pytest.mark.parametrize("word", TIME_DENSITIES)
def test_times_are_stratified_draws_of_their_density(word):
    recorder, count = Recorder(SmoothMLP(1)), 20_000
    with torch.no_grad():
        loss_of(FlowMatching(word), a_flow(CNF(recorder, (1,))), randn(count, 1))
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


@pytest.mark.parametrize("start", [(0.0, 1.0), (-1.0, 2.0)], ids=["base", "base seen through a transform"])
@pytest.mark.parametrize("word", TIME_DENSITIES)
def test_the_exact_velocity_of_a_gaussian_has_the_least_loss_of_theory_and_no_gradient(word, start):
    field, data = GaussianTransport((1.5, 0.5), start), 1.5 + 0.5 * randn(60, 400, 2, seed=1)
    below = Standardize(*(torch.full((2,), v, dtype=F64) for v in start))
    flow = a_flow(CNF(field, (2,)), below)
    values, slopes = [], []
    for seed, x in enumerate(data):
        value = loss_of(FlowMatching(word), flow, x, seed=seed).value
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
    flow, x = a_flow(CNF(GaussianTransport((1.5, 0.5)), (1,), solver=AdaptiveSolver("dopri5", 1e-9, 1e-9))), randn(5, 1)
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
    blocks = a_flow(*blocks, context_dim=3)
    losses = [loss_of(FlowMatching(word), flow, x, context).value for flow in (whole, blocks)]
    close(losses[1], losses[0], 1e-12)
    gradients = [torch.autograd.grad(loss, list(field.parameters())) for loss in losses]
    for theirs, ours in zip(*gradients, strict=True):
        close(ours, theirs, 1e-12)


def test_the_end_of_time_belongs_to_the_last_block(monkeypatch):
    monkeypatch.setitem(TIME_DENSITIES, "end", lambda u: (torch.ones_like(u), torch.ones_like(u)))
    field, x = SmoothMLP(2), randn(8, 2)
    flows = a_flow(CNF(field, (2,), end_time=2.0)), a_flow(CNF(Later(field, 1.0), (2,)), CNF(field, (2,)))
    whole, blocks = (loss_of(FlowMatching("end"), flow, x).value for flow in flows)
    close(blocks, whole, 1e-12)


REFUSED = {
    "an exact transform between": [
        CNF(SmoothMLP(2), (2,)), Standardize(randn(2), randn(2).exp()), CNF(SmoothMLP(2), (2,)),
    ],
    "no continuous transform": [Standardize(randn(2), randn(2).exp())],
}  # fmt: skip


@pytest.mark.parametrize("transforms", REFUSED.values(), ids=REFUSED)
def test_flow_matching_refuses_flows_whose_continuous_transforms_are_not_side_by_side(transforms):
    flow, x = a_flow(*transforms), randn(4, 2)
    for objective, rows in ((FlowMatching(), x), (Reflow(), stack_pairs(x, x))):
        with pytest.raises(ValueError, match="side by side"):
            loss_of(objective, flow, rows)


def test_flow_matching_gives_exact_transforms_no_gradient_and_their_likelihood_gives_the_continuous_none():
    transforms = [LearntAffine(2), CNF(SmoothMLP(2), (2,)), LearntAffine(2)]
    flow, x = a_flow(*transforms), randn(20, 2)
    rows = {"reflow": stack_pairs(x, x + 1)}
    for objective, learns in ((FlowMatching(), [1]), (Reflow(), [1]), (TransformsLikelihood(), [0, 2])):
        flow.zero_grad()
        loss_of(objective, flow, rows.get(objective.name, x)).value.backward()
        moved = [i for i, transform in enumerate(transforms) if any(p.grad is not None for p in transform.parameters())]
        assert moved == learns


@pytest.mark.parametrize("word", TIME_DENSITIES)
def test_reflow_is_flow_matching_on_its_pairs(word):
    """It uses the time density of the matching, and no exact transform of the flow."""
    cnf, start, end, context = CNF(SmoothMLP(2, context_dim=1), (2,)), randn(9, 2), randn(9, 2, seed=1), randn(9, 1)
    flow = a_flow(LearntAffine(2), cnf, context_dim=1)
    ours = loss_of(Reflow(FlowMatching(word)), flow, stack_pairs(start, end), context)
    theirs = FlowMatching(word).match([cnf], start, Batch(end, context), seeded())
    close(ours.value, theirs.value, 0.0)
    assert list(ours.terms) == ["matching"]


def test_the_likelihood_of_the_transforms_is_that_of_the_flow_without_its_continuous_ones():
    transforms, x = [Standardize(randn(2), randn(2).exp()), LearntAffine(2), CNF(SmoothMLP(2), (2,))], randn(20, 2)
    nn.init.normal_(transforms[1].log_scale)
    close(
        loss_of(TransformsLikelihood(), a_flow(*transforms), x).value,
        -a_flow(*transforms[:2]).log_prob(x).mean(),
        1e-12,
    )


def test_the_likelihood_of_the_transforms_refuses_a_flow_without_such_weights():
    with pytest.raises(ValueError, match="no exact transform of this flow has weights"):
        loss_of(TransformsLikelihood(), a_flow(CNF(SmoothMLP(2), (2,))), randn(4, 2))


class Unconditional(LearntAffine):
    """An exact transform with weights that ignores the context."""

    def to_base(self, x, context=None):
        return super().to_base(x)

    def to_data(self, z, context=None):
        return super().to_data(z)


class UnconditionalField(SmoothMLP):
    def forward(self, t, x, context=None):
        return super().forward(t, x)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["above", "continuous", "below"])
@pytest.mark.parametrize("word", OBJECTIVES)
def test_every_transform_sees_the_context(word, place):
    """Only the transform at one place depends on the context, and so does the loss."""
    field = SmoothMLP(2, context_dim=2) if place == 1 else UnconditionalField(2)
    transforms = [Unconditional(2), continuous(word, field), Unconditional(2)]
    if place != 1:
        transforms[place] = LearntAffine(2)
    flow, x, context = a_flow(*transforms, context_dim=2), randn(6, 2), randn(6, 2, seed=3)
    with torch.no_grad():
        one, other = (float(loss_of(OBJECTIVES[word](), flow, x, c).value) for c in (context, context.flip(0)))
    assert (abs(one - other) > 1e-4) == ((word, place) != ("transforms", 1))


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("trace", [ExactTrace(), HutchinsonTrace(2)], ids=["exact", "hutchinson"])
def test_maximum_likelihood_is_the_mean_of_minus_log_prob_plus_weighted_costs(trace, adjoint):
    solver = FixedSolver("rk4", steps=20, adjoint=adjoint)
    scaling, cnf, x = Standardize(randn(2), randn(2).exp()), CNF(SmoothMLP(2), (2,), end_time=0.8), randn(6, 2)
    flow, weights = a_flow(scaling, cnf), {"kinetic": 0.3, "jacobian": 0.02}
    loss = loss_of(MaximumLikelihood(trace, weights, solver), flow, x)
    path = cnf.integrate(scaling.to_base(x)[0], [0.8, 0.0], options=SolveOptions(trace, EXACT, COSTS, seeded()))
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
    nfe = 160 if adjoint == "reversible" else 80  # two coupled solutions
    assert [stats.nfe for stats in loss.stats] == [nfe]
    assert [stats.nfe_backward for stats in loss.stats] == [nfe * (adjoint != "backprop")]


def test_row_losses_have_the_loss_as_their_mean_by_whatever_solver():
    flow, x = a_flow(CNF(SmoothMLP(2), (2,))), randn(6, 2)
    objective, coarse = MaximumLikelihood(HutchinsonTrace(2)), FixedSolver("euler", 2)
    assert isinstance(objective, SolvedObjective)
    rows = objective.row_losses(flow, Batch(x), seeded(), coarse)
    assert rows.shape == (6,)
    close(rows.mean(), loss_of(objective.with_solver(coarse), flow, x).value, 1e-12)


@pytest.mark.parametrize("steer", [0.5, 0.9])
def test_the_end_time_is_steered_uniformly_by_the_generator_and_by_no_other_noise(steer):
    recorder, x, ends = Recorder(linear(2)), randn(1, 2), []
    flow = a_flow(CNF(recorder, (2,), end_time=2.0, solver=FixedSolver("euler", steps=1)))
    with torch.no_grad():
        for seed in range(400):
            recorder.times.clear()
            loss_of(MaximumLikelihood(ExactTrace(), steer=steer), flow, x, seed=seed)
            ends.append(recorder.times[0].clone())
    place = (torch.stack(ends) / 2 - 1) / steer  # in [-1, 1]
    assert float(place.abs().max()) <= 1
    assert abs(float(place.mean())) < 5 * math.sqrt(1 / 3 / 400)
    assert abs(float(place.square().mean()) - 1 / 3) < 5 * math.sqrt(4 / 45 / 400)
    state = torch.get_rng_state()
    values = [loss_of(MaximumLikelihood(steer=steer), flow, x, seed=s).value.detach() for s in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert float(values[0]) == float(values[1]) != float(values[2])


def test_every_block_is_steered_and_what_is_reported_is_not():
    fields, x = [Recorder(linear(2, seed=s)) for s in (0, 1)], randn(3, 2)
    solver = FixedSolver("euler", steps=1)
    flow = a_flow(*(CNF(f, (2,), solver=solver, end_time=length) for f, length in zip(fields, (1.0, 3.0), strict=True)))
    with torch.no_grad():
        loss_of(MaximumLikelihood(ExactTrace(), steer=0.5), flow, x)
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
    terms = loss_of(MaximumLikelihood(regularizers={"kinetic": 1.0}), a_flow(*blocks), x).terms
    options = SolveOptions(regularizers=COSTS)
    first = blocks[0].integrate(x, [1.0, 0.0], options=options)
    second = blocks[1].integrate(first.x[-1], [1.0, 0.0], options=options)
    close(terms["kinetic"], (first.costs["kinetic"] + second.costs["kinetic"]).mean(), 1e-10)


@pytest.mark.parametrize("word", OBJECTIVES)
def test_a_loss_takes_all_its_noise_from_the_generator_and_changes_nothing(word):
    flow, x = a_flow(LearntAffine(2), continuous(word, SmoothMLP(2))), randn(6, 2)
    kept, state, weights = x.clone(), torch.get_rng_state(), [p.detach().clone() for p in flow.parameters()]
    first, again, other = (loss_of(OBJECTIVES[word](), flow, x, seed=s).value.detach() for s in (1, 1, 2))
    assert float(first) == float(again)
    assert (float(first) != float(other)) == (word != "transforms")  # which has no noise
    assert torch.equal(torch.get_rng_state(), state)
    close(x, kept, 0.0)
    assert all(torch.equal(p, w) and p.grad is None for p, w in zip(flow.parameters(), weights, strict=True))


LEARNERS = {
    "flow matching": (FlowMatching(), 300),
    "flow matching for the likelihood": (FlowMatching("likelihood"), 400),
    "flow matching with coupled ends": (FlowMatching(coupling="optimal_transport"), 250),
    "maximum likelihood": (MaximumLikelihood(), 60),
    "likelihood of the transforms": (TransformsLikelihood(), 400),
    "likelihood of few steps": (SteppedLikelihood(), 100),
}


def test_every_objective_learns_in_these_tests():
    assert {objective.name for objective, _ in LEARNERS.values()} == set(OBJECTIVES)


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "steps"), LEARNERS.values(), ids=LEARNERS)
def test_a_short_training_reaches_the_entropy_of_a_gaussian(objective, steps):
    truth, generator = torch.distributions.Normal(1.5, 0.5), seeded(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        above = [LearntAffine(1)] if objective.name == "transforms" else []
        field, solver = ResidualDynamics((1,), hidden=(32,)), FixedSolver("rk4", steps=6)
        flow = Flow([*above, Stepped(field, (1,)) if objective.name == "steps" else CNF(field, (1,), solver=solver)])
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x = 1.5 + 0.5 * torch.randn(256, 1, generator=generator)
        optimizer.zero_grad()
        objective.loss(flow, Batch(x), generator).value.backward()
        optimizer.step()
        schedule.step()
    quantiles = truth.icdf((torch.arange(512) + 0.5) / 512)[:, None]
    with torch.no_grad():
        excess = (truth.log_prob(quantiles)[:, 0] - flow.log_prob(quantiles)).mean()
    assert abs(float(excess)) < 0.02
