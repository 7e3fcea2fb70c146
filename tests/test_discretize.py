"""A continuous flow in few steps: schemes chosen on held-out rows, and training by exact likelihood."""

import copy

import pytest
import torch

from ffjord_kit import CNF, Flow, FlowMatching, Phase, ResidualDynamics, fit_flow
from ffjord_kit.data import Batch
from ffjord_kit.objectives import SteppedLikelihood
from ffjord_kit.training import TrainConfig
from ffjord_kit.training.discretize import FAST_PENALTY, in_steps, rank_steps, suited, train_steps
from ffjord_kit.transforms import Standardize


def rows(n, seed):
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.stack([z[:, 0], 0.3 * z[:, 1] + z[:, 0].square()], 1)


@pytest.fixture(scope="module")
def flow():
    x = rows(2000, 0)
    torch.manual_seed(0)
    flow = Flow([CNF(ResidualDynamics((2,), hidden=(32, 32)), (2,))], preprocess=[Standardize.of(x)])
    fit_flow(flow, x, schedule=[Phase(FlowMatching(), 300, 8e-3)], config=TrainConfig(batch_size=256, ema_decay=0.9))
    return flow


def test_the_best_candidate_comes_first_and_keeps_to_its_evaluations(flow):
    candidates = rank_steps(flow, Batch(rows(500, 1)), evaluations=8)
    scores = [candidate.nll + candidate.penalty for candidate in candidates]
    assert scores == sorted(scores)
    assert {(candidate.steps.method, candidate.steps.steps) for candidate in candidates} == {
        ("euler", 8), ("midpoint", 4), ("heun2", 4), ("heun3", 2), ("rk4", 2)
    }  # fmt: skip
    best = candidates[0]
    with torch.no_grad():
        steps = in_steps(flow, *best.steps)
        assert -steps.log_prob(rows(500, 1)).mean().item() == pytest.approx(best.nll, abs=1e-4)


def test_many_steps_are_the_continuous_flow(flow):
    with torch.no_grad():
        many = in_steps(flow, "rk4", 60).log_prob(rows(50, 1))
        assert torch.allclose(many, flow.log_prob(rows(50, 1)), atol=2e-3)


def test_steps_of_many_rows_of_few_columns_learn_faster_with_a_lighter_penalty():
    phase = Phase(SteppedLikelihood(weight=1000.0), 10, 1.0)

    def trained(columns, rows, steps=6):
        flow = Flow([CNF(ResidualDynamics((columns,), hidden=(8,)), (columns,))])
        return suited(phase, in_steps(flow, "euler", steps), rows)

    fast, few_rows, nine, long = trained(2, 10_000), trained(2, 1000), trained(9, 10_000), trained(2, 10_000, steps=4)
    assert fast.objective.weight == FAST_PENALTY * 1000.0
    assert few_rows.objective == nine.objective == long.objective == phase.objective
    assert fast.learning_rate == long.learning_rate > few_rows.learning_rate == nine.learning_rate


@pytest.mark.slow
def test_training_lowers_the_held_out_nll_and_leaves_the_flow_as_it_is(flow):
    held_out, weights = Batch(rows(500, 1)), [p.clone() for p in flow.parameters()]
    frozen = copy.deepcopy(flow).requires_grad_(False)  # as a fitted model's
    steps = in_steps(frozen, "midpoint", 4, learn_grid=True)
    with torch.no_grad():
        before = -steps.log_prob(held_out.x).mean().item()
    history = train_steps(
        steps,
        rows(2000, 0),
        phase=Phase(SteppedLikelihood(), 150, 2e-3),
        validation=held_out,
        config=TrainConfig(batch_size=256, validate_every=30),
    )
    with torch.no_grad():
        after = -steps.log_prob(held_out.x).mean().item()
    assert after == pytest.approx(history.best_nll, abs=1e-4)
    assert after < before
    trained = zip(steps.transforms[0].dynamics.parameters(), flow.transforms[0].dynamics.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in trained)
    assert all(torch.equal(a, b) for a, b in zip(weights, flow.parameters(), strict=True))


def test_only_continuous_transforms_are_taken_in_steps():
    x = rows(50, 0)
    with pytest.raises(ValueError, match="this one has none"):
        in_steps(Flow([Standardize.of(x)]), "euler", 4)
