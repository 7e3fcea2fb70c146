"""The guard on the solver: it measures the loss's discretisation error, and keeps training from exploiting it."""

import pytest
import torch

from ffjord_kit import datasets
from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.nn import ConcatSquashDynamics
from ffjord_kit.objectives import MaximumLikelihood
from ffjord_kit.ode import AdaptiveSolver, FixedSolver, PerRowSolver
from ffjord_kit.run import Run
from ffjord_kit.trace import ExactTrace
from ffjord_kit.training import Guard, Phase, TensorData, TrainConfig, fit, fit_flow
from ffjord_kit.training.guard import at_level
from ffjord_kit.transforms import CNF

CONVERGED = AdaptiveSolver("dopri5", 1e-6, 1e-6)
KEY = (0, "guard", 0)


def flow_of(hidden=(8,), scale=1.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dynamics = ConcatSquashDynamics((2,), hidden=hidden)
    with torch.no_grad():
        for parameter in dynamics.parameters():
            parameter.mul_(scale)
    return Flow([CNF(dynamics, (2,))])


def rows(n=64):
    return Batch(torch.randn(n, 2, generator=torch.Generator().manual_seed(0)))


def exact(solver):
    return MaximumLikelihood(ExactTrace(), solver=solver)


def trained(guard, x, objective):
    """Return a flow that is trained by likelihood, and the last record of its guard."""
    flow = flow_of((32, 32))
    config = TrainConfig(batch_size=128, guard=guard)
    history = fit_flow(flow, x, schedule=[Phase(objective, 140, 3e-2)], config=config)
    return flow, next((record for record in reversed(history.records) if "solver_error" in record), None)


def gap(flow, x, solver):
    """Return the difference of the solver's own mean log-likelihood from the converged one."""
    with torch.no_grad():
        return float(flow.log_prob(x, solver=solver).mean() - flow.log_prob(x, solver=CONVERGED).mean())


@pytest.mark.slow
def test_without_a_guard_training_exploits_the_solvers_error_and_with_it_does_not():
    x = torch.tensor(datasets.load("checkerboard", rows=1500, seed=0).x)
    x = ((x - x.mean(0)) / x.std(0)).float()
    objective = exact(FixedSolver("midpoint", steps=1))
    loose, unwatched = trained(0.0, x, objective)
    held, last = trained(0.1, x, objective)
    own = FixedSolver("midpoint", steps=last["solver_steps"], grading=last["grading"])
    assert unwatched is None
    assert gap(loose, x, objective.solver) > 0.5  # its own figure flatters it by nats
    assert abs(gap(held, x, own)) < 3 * last["loss_noise"]
    assert last["solver_steps"] > 1
    with torch.no_grad():
        gain = held.log_prob(x, solver=CONVERGED).mean() - loose.log_prob(x, solver=CONVERGED).mean()
    assert gain > 0.5


def test_a_single_step_is_measured_by_more_than_itself():
    objective = exact(FixedSolver("euler", steps=1))
    result = Guard(1e-9).measure(flow_of(scale=3.0), objective, rows(), KEY, level=-4, grading=1.0)
    assert result.error > 0
    assert result.solver.steps > 1


@pytest.mark.parametrize("solver", [AdaptiveSolver(), PerRowSolver()], ids=["adaptive", "per row"])
def test_the_reference_is_always_finer_than_the_finest_level(solver):
    result = Guard(1e-12).measure(flow_of(), exact(solver), rows(), KEY, level=0, grading=1.0)
    assert result.error > 0
    assert result.record()["tolerance"] == result.solver.rtol < solver.rtol


def test_a_level_changes_tolerance_or_steps_and_never_the_method():
    assert at_level(AdaptiveSolver("bosh3", 1e-3, 1e-2), 2, 1.0) == AdaptiveSolver("bosh3", 1e-4, 1e-3)
    assert at_level(PerRowSolver(1e-3, 1e-3), 10, 1.0) == PerRowSolver(1e-6, 1e-6)
    assert at_level(AdaptiveSolver(rtol=5e-7, atol=5e-7), 2, 1.0).rtol == 5e-7  # a user's own is never loosened
    assert at_level(FixedSolver("rk4", steps=4), 2, 2.0) == FixedSolver("rk4", steps=8, grading=2.0)
    assert at_level(FixedSolver("rk4", steps=1), -4, 1.0).steps == 1
    assert at_level(FixedSolver("explicit_adams", steps=4), 2, 2.0).grading == 1.0


def test_the_noise_is_the_standard_error_of_the_whole_batch():
    objective, flow, batch = exact(FixedSolver("rk4", steps=8)), flow_of(), rows(200)
    whole, part = (Guard().measure(flow, objective, batch, KEY, level=0, grading=1.0, size=n) for n in (None, 800))
    losses = objective.row_losses(flow, batch[:128], torch.Generator(), objective.solver).detach()
    assert whole.noise == pytest.approx(float(losses.std()) / 200**0.5, rel=1e-3)
    assert part.noise == pytest.approx(whole.noise / 2)


def test_a_field_that_any_step_solves_gets_a_coarser_solver():
    objective = exact(FixedSolver("rk4", steps=8))
    result = Guard().measure(flow_of(scale=0.0), objective, rows(), KEY, level=0, grading=1.0)
    assert (result.error, result.level) == (0.0, -1)


def test_a_resumed_run_goes_on_with_the_solver_that_it_had(tmp_path):
    class Stop(Exception):
        pass

    def stop(record):
        if record["step"] == 17:
            raise Stop

    def train(run, **options):
        flow, config = flow_of(), TrainConfig(batch_size=64, validate_every=4)
        schedule = [Phase(exact(FixedSolver("rk4", steps=2)), 24, 1e-2)]
        history = fit(flow, TensorData(rows(300)), schedule, config=config, run=run, **options)
        measured = [record["solver_error"] for record in history.records if "solver_error" in record]
        return torch.cat([p.detach().flatten() for p in flow.parameters()]), measured

    weights, measured = train(None)
    run = Run.create(tmp_path / "cut", {})
    with pytest.raises(Stop):
        train(run, on_step=stop)
    again, measured_again = train(run, resume=True)
    assert torch.equal(weights, again)
    assert measured == measured_again
    assert len(measured) == 3


def test_only_a_solved_loss_of_several_rows_is_guarded():
    assert Guard().applies(flow_of(), 2)
    assert not Guard().applies(flow_of(), 1)  # shows no noise
    assert not Guard(0.0).applies(flow_of(), 2)
    assert not Guard().applies(torch.nn.Linear(2, 2), 2)


def test_a_negative_share_is_refused():
    with pytest.raises(ValueError, match="guard must be at least 0, the share of the loss's noise; got -1"):
        TrainConfig(guard=-1)
