"""The guard on the solver: it measures the loss's discretisation error, and keeps training from exploiting it."""

import pytest
import torch

from ffjord_kit import CNF, FFJORD, ConcatSquashDynamics, Flow, MaximumLikelihood, Phase, Solver, datasets, fit
from ffjord_kit.trace import ExactTrace
from ffjord_kit.training import Guard
from ffjord_kit.training.guard import at_level

CONVERGED = Solver("dopri5", 1e-6, 1e-6)


def trained(guard, steps=140):
    """A flow that is trained by likelihood with two steps of Euler, the history, and its data."""
    x = torch.tensor(datasets.load("checkerboard", rows=1500, seed=0).x)
    x = ((x - x.mean(0)) / x.std(0)).float()
    torch.manual_seed(0)
    flow = Flow([CNF(ConcatSquashDynamics((2,), hidden=(32, 32)), (2,))])
    objective = MaximumLikelihood(ExactTrace(), solver=Solver("euler", steps=2))
    history = fit(flow, x, schedule=[Phase(objective, steps, 3e-2)], batch_size=128, seed=0, guard=guard)
    return flow, history, x, objective


def gap(flow, x, solver):
    """How far the solver's own mean log-likelihood is from the converged one."""
    with torch.no_grad():
        return float(flow.log_prob(x, solver=solver).mean() - flow.log_prob(x, solver=CONVERGED).mean())


def test_without_a_guard_training_exploits_the_solvers_error_and_with_it_does_not():
    loose, _, x, objective = trained(0.0)
    held, history, _, _ = trained(0.1)
    last = [record for record in history.records if "solver_error" in record][-1]
    own = Solver("euler", steps=last["solver_steps"], grading=last["grading"])
    assert gap(loose, x, objective.solver) > 0.5  # its own figure flatters it by nats
    assert abs(gap(held, x, own)) < 3 * last["loss_noise"]
    assert last["solver_steps"] > 2
    with torch.no_grad():
        gain = held.log_prob(x, solver=CONVERGED).mean() - loose.log_prob(x, solver=CONVERGED).mean()
    assert gain > 0.5


def test_a_single_step_is_judged_by_more_than_itself():
    torch.manual_seed(0)
    dynamics = ConcatSquashDynamics((2,), hidden=(8,))
    for parameter in dynamics.parameters():
        parameter.data.mul_(3.0)
    flow, x = Flow([CNF(dynamics, (2,))]), torch.randn(64, 2)
    objective = MaximumLikelihood(ExactTrace(), solver=Solver("euler", steps=1))
    verdict = Guard(1e-9).judge(flow, objective, (x, None), (0, "guard", 0), (-4, 1.0))
    assert verdict.error > 0
    assert verdict.solver.steps > 1


def test_a_level_changes_tolerance_or_steps_and_never_the_method():
    assert at_level(Solver("dopri5", 1e-3, 1e-3), 2, 1.0).rtol == pytest.approx(1e-4)
    assert at_level(Solver("dopri5", 1e-3, 1e-3), 10, 1.0).rtol == 1e-6
    assert at_level(Solver("rk4", steps=4), 2, 2.0) == Solver("rk4", steps=8, grading=2.0)
    assert at_level(Solver("rk4", steps=1), -4, 1.0).steps == 1
    assert at_level(Solver("explicit_adams", steps=4), 2, 2.0).grading == 1.0


def test_a_field_that_any_step_solves_is_given_the_coarsest():
    flow = Flow([CNF(ConcatSquashDynamics((2,), hidden=(4,)), (2,))])
    for parameter in flow.parameters():
        torch.nn.init.zeros_(parameter)
    objective = MaximumLikelihood(ExactTrace(), solver=Solver("rk4", steps=8))
    batch = (torch.randn(64, 2, generator=torch.Generator().manual_seed(0)), None)
    verdict = Guard().judge(flow, objective, batch, (0, "guard", 0), (0, 1.0))
    assert (verdict.error, verdict.level) == (0.0, -1)


def test_a_resumed_run_goes_on_with_the_solver_that_it_had(tmp_path):
    model = FFJORD(
        schedule="mle:24", solver="rk4", steps=2, hidden=(8,), batch_size=64, validate_every=4, random_state=0
    )
    x = datasets.load("moons", rows=300).x
    whole = model.fit(x, run=tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(record):
        if record["step"] == 17:
            raise Stop

    with pytest.raises(Stop):
        model.fit(x, run=tmp_path / "cut", on_step=stop)
    again = model.fit(x, run=tmp_path / "cut", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.flow_.parameters(), again.flow_.parameters(), strict=True))
    watched = [[r["solver_error"] for r in m.history_.records if "solver_error" in r] for m in (whole, again)]
    assert watched[0] == watched[1]
    assert len(watched[0]) == 3


def test_the_judge_is_always_finer_and_a_users_own_tolerance_is_never_loosened():
    torch.manual_seed(0)
    flow = Flow([CNF(ConcatSquashDynamics((2,), hidden=(8,)), (2,))])
    batch, key = (torch.randn(64, 2), None), (0, "guard", 0)
    verdict = Guard(1e-12).judge(flow, MaximumLikelihood(ExactTrace(), solver=Solver()), batch, key, (0, 1.0))
    assert verdict.error > 0
    assert at_level(Solver(rtol=5e-7, atol=5e-7), 2, 1.0).rtol == 5e-7


def test_a_single_row_shows_no_noise_and_is_not_watched():
    flow = Flow([CNF(ConcatSquashDynamics((2,), hidden=(8,)), (2,))])
    assert not Guard().watches(flow, MaximumLikelihood(), 1)
    assert Guard().watches(flow, MaximumLikelihood(), 2)


def test_a_negative_share_is_refused():
    with pytest.raises(ValueError, match="guard must be at least 0, the share of the loss's noise; got -1"):
        FFJORD(guard=-1).fit(datasets.load("moons", rows=100).x)
