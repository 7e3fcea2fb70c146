"""A solve always ends, and an error says when, where and what to do; rows that can go on may be saved from it."""

import math

import pytest
import torch
from oracles import randn
from torch import nn

from ffjord_kit.flow import Flow
from ffjord_kit.ode import (
    BlowUpError,
    NonFiniteError,
    PerRowSolver,
    SolveError,
    StepSizeUnderflow,
    TooManyEvaluations,
    make_solver,
)  # fmt: skip
from ffjord_kit.transforms import CNF

F64 = torch.float64
CLOCK = torch.tensor([0.0, 1.0], dtype=F64)
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun", "dopri5_by_row")


def solve(rhs, start, method="dopri5", **options):
    with torch.no_grad():
        return make_solver(method, tolerance=1e-6, **options).solve(rhs, (start,), CLOCK, for_rows=lambda rows: rhs)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_field_that_is_no_number_tells_its_rows_time_and_last_good_state(method):
    def rhs(t, state):
        bad = (torch.arange(len(state[0])) == 2)[:, None] & (t.reshape(-1, 1) > 0.5)
        return (torch.where(bad, torch.nan, 1.0).to(F64) * torch.ones_like(state[0]),)

    with pytest.raises(NonFiniteError, match="check those rows for outliers") as caught:
        solve(rhs, torch.zeros(4, 1, dtype=F64), method)
    error = caught.value
    assert error.rows == (2,)
    assert 0.5 < error.time <= 1
    assert 0 < error.step <= 1
    assert error.nfe > 0
    assert error.state.shape == (4, 1)
    assert bool(error.state.isfinite().all())


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "dopri5_by_row"])
def test_a_solution_that_leaves_for_infinity_has_an_error_of_its_own(method):
    with pytest.raises(
        BlowUpError, match=r"the state grew to \d.*leaves for infinity in finite time; bound it"
    ) as caught:
        solve(lambda t, state: (state[0] ** 2,), torch.full((2, 1), 2.0, dtype=F64), method)
    assert caught.value.time == pytest.approx(0.5, abs=1e-3)
    assert float(caught.value.state.abs().max()) > 1e8


@pytest.mark.parametrize("method", ADAPTIVE)
def test_too_many_evaluations_have_an_error_of_their_own(method):
    with pytest.raises(TooManyEvaluations, match="raise max_nfe") as caught:
        solve(lambda t, state: (torch.sin(300 * state[0]),), randn(3, 1), method, max_nfe=40)
    assert caught.value.nfe == 40
    assert 0 <= caught.value.time < 1


@pytest.mark.parametrize("method", ["dopri5", "dopri5_by_row"])
def test_a_step_that_vanishes_has_an_error_of_its_own(method):
    def rhs(t, state):  # half way through there is an edge that no step gets across
        return (-1e12 * state[0].sign(),)

    with pytest.raises(StepSizeUnderflow, match="too stiff for .* Loosen the tolerance, or solve in float64") as caught:
        make_solver(method, tolerance=1e-13).solve(rhs, (torch.full((2, 1), 5e11, dtype=F64),), CLOCK)
    assert caught.value.time == pytest.approx(0.5, abs=1e-6)
    assert 0 < caught.value.step < 1e-12
    assert caught.value.rows == ((0, 1) if method == "dopri5_by_row" else ())


@pytest.mark.parametrize("kind", [NonFiniteError, BlowUpError, StepSizeUnderflow, TooManyEvaluations])
def test_each_is_a_solve_error(kind):
    assert issubclass(kind, SolveError)
    assert kind("text").rows == ()


@pytest.mark.parametrize("method", ADAPTIVE)
def test_steps_are_counted(method):
    rows = randn(6, 1)
    easy, hard = (solve(lambda t, s, k=k: (torch.cos(k * s[0]),), rows, method).stats for k in (1.0, 30.0))
    for count in (easy, hard):
        assert int(torch.as_tensor(count.accepted).min()) >= 1
        assert int(torch.as_tensor(count.rejected).min()) >= 0
    assert int(torch.as_tensor(hard.accepted).sum()) > int(torch.as_tensor(easy.accepted).sum())
    if method == "dopri5_by_row":
        assert easy.accepted.shape == (6,)


def test_a_fixed_number_of_steps_tells_no_counts():
    done = solve(lambda t, s: (s[0],), randn(2, 1), "rk4", steps=4).stats
    assert (done.accepted, done.rejected) == (None, None)


class Partly(nn.Module):
    """A field that is fine for x < 0, and for x > 0 as the word says."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def forward(self, t, x, context=None):
        fine = torch.sin(x)
        late = t.reshape(-1, 1) < 0.4 if t.dim() else t < 0.4
        if self.fault == "no number":
            return torch.where((x > 0) & late, torch.nan, fine)
        if self.fault == "infinity":
            return torch.where(x > 0, -((1 + x.abs()) ** 3), fine)
        return torch.where(x > 0, torch.cos(2e4 * t.reshape(-1, 1)) * 20 + fine * 0, fine)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["no number", "infinity", "too many"])
def test_forgiven_rows_are_nan_and_the_others_are_as_they_were_alone(fault):
    flow = Flow([CNF(Partly(fault), (1,))]).double()
    good = -randn(5, 1).abs() - 0.1
    x = torch.cat([good[:2], torch.tensor([[5.0], [4.0]], dtype=F64), good[2:]])
    with pytest.raises(SolveError):
        flow.evaluate(x, max_nfe=3000)
    result = flow.evaluate(x, max_nfe=3000, error=1e-4, on_failure="nan")
    lost = torch.tensor([False, False, True, True, False, False, False])
    assert torch.equal(result.value.isnan(), lost)
    assert torch.equal(result.met, ~lost)
    alone = flow.evaluate(good, max_nfe=3000, error=1e-4)
    assert float((result.value[~lost] - alone.value).abs().max()) < 1e-12
    assert bool((result.error[~lost] <= 1e-4).all())


def test_a_row_of_nan_is_refused_by_the_estimator_and_ends_no_solve_for_ever():
    flow = Flow([CNF(Partly("no number"), (1,))]).double()
    x = torch.tensor([[-1.0], [math.nan]], dtype=F64)
    with pytest.raises(NonFiniteError, match=r"first: \[1\]"):
        flow.log_prob(x, solver=PerRowSolver())
    with pytest.raises(NonFiniteError, match=r"in 1 of 2 rows \(first: \[1\]\)") as caught:
        flow.evaluate(x)
    assert caught.value.rows == (1,)
    assert flow.evaluate(x, on_failure="nan").value.isnan().tolist() == [False, True]
