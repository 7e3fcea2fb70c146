r"""Every method of integration, on the logistic equation x' = k (1 + t) x (1 - x), whose solution is known:

x(t) = x_0 e^s / (1 - x_0 + x_0 e^s),    s = k (t + t^2 / 2) from t_0 to t.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchdiffeq
from oracles import F64, SmoothMLP, close, randn

from ffjord_kit.ode import (
    ADJOINTS,
    METHODS,
    AdaptiveSolver,
    FixedSolver,
    NonFiniteError,
    PerRowSolver,
    SolveError,
    make_solver,
)  # fmt: skip
from ffjord_kit.ode.explicit import RUNGE_KUTTA
from ffjord_kit.ode.field import FOLD, CheckedField
from ffjord_kit.ode.grids import graded_grid
from ffjord_kit.ode.solver import ADAMS, CONTINUOUS_ADJOINTS

ORDERS = {
    "euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4,
    "poly2": 1, "poly3": 1, "fractal2": 1, "fractal3": 1,
    "linear_multistep": 1, "revnet": 2, "asynchronous_leapfrog": 2,
    "explicit_adams": 4, "implicit_adams": 5, "fixed_adams": 5,
}  # fmt: skip
LOW = ("adaptive_heun", "fehlberg2", "bosh3")
ADAPTIVE = ("dopri5", "dopri8", "dopri5_by_row", "scipy_solver", *LOW)
GOVERNED = [word for word in ADAPTIVE if word != "scipy_solver"]
LOOSE = {
    "euler": 0.05,
    "poly2": 0.05,
    "poly3": 0.05,
    "fractal2": 0.05,
    "fractal3": 0.05,
    "linear_multistep": 0.05,
    "revnet": 1e-3,
    "asynchronous_leapfrog": 1e-3,
    "midpoint": 1e-3,
    "heun2": 1e-3,
    "heun3": 1e-5,
    "fehlberg2": 2e-3,
    "adaptive_heun": 1e-4,
    "bosh3": 1e-4,
}
WITH_EQUATION = [word for word in METHODS if word in (*RUNGE_KUTTA, *ADAMS, *ADAPTIVE) and word != "dopri5_by_row"]
REFUSED_ADJOINTS = {
    *[(word, adjoint) for word in METHODS if word not in WITH_EQUATION for adjoint in CONTINUOUS_ADJOINTS],
    *[(word, "reversible") for word in (*ADAPTIVE, *ADAMS, "linear_multistep")],
    *[("scipy_solver", adjoint) for adjoint in ("backprop", "checkpointed")],
}
ONE = torch.tensor([1.0], dtype=F64)


def a_solver(method, tolerance=1e-6, steps=40, **options):
    return make_solver(method, tolerance=tolerance, steps=steps if method in ORDERS else None, **options)


def clock(*times):
    return torch.tensor(times, dtype=F64)


class Logistic:
    """The equation with a strength k, a note of the times requested, and its closed form."""

    def __init__(self, k=1.5):
        self.k = torch.tensor(k, dtype=F64, requires_grad=True)
        self.x = torch.tensor([[0.1], [0.4], [0.7]], dtype=F64)
        self.requested = []

    def __call__(self, t, state):
        self.requested += t.detach().reshape(-1).tolist()
        return (self.k * (1 + t).reshape(-1, 1) * state[0] * (1 - state[0]),)

    def exact(self, start, times):
        grown = torch.exp(self.k * (times + times**2 / 2 - start - start**2 / 2)).reshape(-1, 1, 1)
        return self.x * grown / (1 - self.x + self.x * grown)

    def solve(self, solver, times):
        return solver.solve(self, (self.x,), times, params=(self.k,))


def test_every_method_has_its_place_in_these_tests():
    assert set(METHODS) == {*ORDERS, *ADAPTIVE}


@pytest.mark.parametrize("method", ORDERS)
def test_a_fixed_method_converges_at_its_order(method):
    corrected = method in ("implicit_adams", "fixed_adams")  # their corrector converges only for small steps
    steps, problem = np.array([48, 64, 96] if corrected else [8, 12, 16, 24, 32]), Logistic()
    with torch.no_grad():
        solved = [problem.solve(a_solver(method, steps=int(n)), clock(0, 1)) for n in steps]
        errors = [float((s.states[0][-1] - problem.exact(0.0, ONE)[0]).abs().max()) for s in solved]
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert ORDERS[method] - 0.3 < order < ORDERS[method] + 0.8


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7, 1e-10])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_an_adaptive_method_keeps_its_tolerance(method, tolerance):
    # torchdiffeq hands scipy's clock on in single precision.
    tolerance = max(tolerance, 1e-5 if method in LOW else 1e-7 if method == "scipy_solver" else 0)
    problem, times = Logistic(), clock(0, 0.4, 1)
    with torch.no_grad():
        states = problem.solve(a_solver(method, tolerance), times).states[0]
    # The error estimate of fehlberg2, h^2 x'' / 512, is far below the error of its second-order solution.
    close(states, problem.exact(0.0, times), (200 if method == "fehlberg2" else 10) * tolerance)


@pytest.mark.parametrize("method", [word for word in GOVERNED if word not in LOW])
def test_a_thousand_rows_at_rest_do_not_hide_the_error_of_one(method):
    problem = Logistic()
    problem.x = torch.cat([torch.zeros(1000, 1, dtype=F64), problem.x[:1]])
    with torch.no_grad():
        close(problem.solve(a_solver(method, 1e-6), clock(0, 1)).states[0][-1], problem.exact(0.0, ONE)[0], 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_there_and_back_is_where_it_was(method):
    problem = Logistic()
    start, solver = problem.x, a_solver(method, 1e-8 if method not in LOW else 1e-5, steps=60)
    with torch.no_grad():
        problem.x = problem.solve(solver, clock(0.2, 1)).states[0][-1]
        close(problem.solve(solver, clock(1, 0.2)).states[0][-1], start, LOOSE.get(method, 1e-6))


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_closed_form(method, adjoint):
    if (method, adjoint) in REFUSED_ADJOINTS:
        with pytest.raises(ValueError, match="adjoint"):
            Logistic().solve(a_solver(method, adjoint=adjoint), clock(0, 1))
        return
    problem, times = Logistic(), clock(0.9, 0.5, 0.1)
    problem.x.requires_grad_()
    solver = a_solver(method, 1e-5 if method in LOW else 1e-8, steps=60, adjoint=adjoint)
    weights = randn(3, 3, 1)
    pairs = problem.solve(solver, times).states[0], problem.exact(0.9, times)
    gradients = [torch.autograd.grad((weights * v).sum(), (problem.x, problem.k)) for v in pairs]
    for ours, theirs in zip(*gradients, strict=True):
        close(ours, theirs, LOOSE.get(method, 1e-6))


@pytest.mark.parametrize("times", [(0.0, 0.25, 1 / 3, 1.0), (1.0, 0.9, 0.2), (0.0, 0.1)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_every_time_is_hit_and_nothing_is_evaluated_outside_the_interval(method, times):
    for strength in (1.5, 1e-4):  # a slow field tempts the search for a first step to look far ahead
        problem = Logistic(strength)
        with torch.no_grad():
            states = problem.solve(a_solver(method, 1e-4), clock(*times)).states[0]
        assert states.shape == (len(times), 3, 1)
        assert min(times) <= min(problem.requested)
        assert max(problem.requested) <= max(times)
        hit = times[1:] if method in ("poly2", "poly3") else times[:-1]  # backward Euler looks at the ends of steps
        if method not in ("scipy_solver", "asynchronous_leapfrog"):  # which looks at the middles
            assert all(min(abs(t - time) for t in problem.requested) < 1e-12 for time in hit)


@pytest.mark.parametrize("times", [(0.0, 0.4, 1.0), (1.0, 0.4, 0.0)], ids=["upward", "downward"])
@pytest.mark.parametrize("method", WITH_EQUATION)
def test_the_adjoint_stays_inside_each_interval_on_its_way_back(method, times):
    problem, direction = Logistic(), np.sign(times[0] - times[-1])
    states = problem.solve(a_solver(method, 1e-4, adjoint="adjoint"), clock(*times)).states[0]
    forward = len(problem.requested)
    states[1:].sum().backward()
    assert min(problem.requested) >= 0
    assert max(problem.requested) <= 1
    way = direction * (np.array(problem.requested[forward:]) - times[1])
    second = np.argmax(way > 1e-7)  # once in the second interval, it never asks for its start again
    assert (way[second:] > 0).all()


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("method", ["dopri5", "rk4", "implicit_adams"])
def test_evaluations_are_counted_in_both_directions(method, adjoint):
    if (method, adjoint) in REFUSED_ADJOINTS:
        return
    problem = Logistic()
    solution = problem.solve(a_solver(method, adjoint=adjoint), clock(0, 0.5, 1))
    forward = len(problem.requested)
    solution.states[0][-1].sum().backward()
    assert solution.stats.nfe == forward
    assert solution.stats.nfe_backward == len(problem.requested) - forward
    assert (solution.stats.nfe_backward > 0) == (adjoint != "backprop")


@pytest.mark.parametrize("method", ADAPTIVE)
def test_only_the_first_components_govern_the_step_size(method):
    field, x = SmoothMLP(2), randn(4, 2)

    def evaluations(weight):
        def rhs(t, state):
            slope = field(t, state[0])
            return slope, slope.sum(1), weight * (50 * state[0]).sin().sum(1)

        parts = (x, x.new_zeros(4), x.new_zeros(4))
        with torch.no_grad():
            return a_solver(method, 1e-4).solve(rhs, parts, clock(0, 1), error_components=2).stats.nfe

    assert evaluations(1e6) == evaluations(0.0)


def by_row(rhs, x, times, tolerance=1e-6):
    return a_solver("dopri5_by_row", tolerance).solve(rhs, (x,), times).states[0]


def test_a_row_of_dopri5_by_row_does_not_know_its_company():
    def field(t, state):
        return (state[0] * (1 - state[0]) * (1 + t).reshape(-1, 1) * state[0][:, :1] * 5,)

    x = randn(6, 2).sigmoid() * torch.tensor([[0.01], [0.1], [0.3], [0.5], [0.8], [1.0]], dtype=F64)
    for times in (clock(0, 0.3, 1), clock(1, 0.8, 0)):
        together = by_row(field, x, times)
        for row in range(6):
            close(by_row(field, x[row : row + 1], times)[:, 0], together[:, row], 1e-12)


@pytest.mark.parametrize("times", [(0.0, 0.5, 1.0), (1.0, 0.5, 0.0)], ids=["upward", "downward"])
def test_dopri5_by_row_keeps_each_rows_tolerance_over_scales_of_speed(times):
    speed = torch.logspace(-3, 2, 6, dtype=F64)[:, None]
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
    x, after = randn(6, 2), clock(*times) - times[0]
    got = by_row(lambda t, state: (speed * state[0] @ turn.T,), x, clock(*times), 1e-7)
    angles = after[:, None, None, None] * speed[:, :, None] * turn
    expected = (torch.matrix_exp(angles) @ x[:, :, None]).squeeze(-1)
    assert float(((got - expected).abs().amax((0, 2)) / (1 + speed[:, 0])).max()) < 1e-6


@pytest.mark.parametrize("grading", [2.0, 0.5])
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0), (2.0, 1.5, 0.5), (-1.0, 0.5)])
def test_graded_steps_crowd_towards_one_end_and_hit_every_time(times, grading):
    seen = []

    def rhs(t, state):
        seen.append(float(t))
        return (torch.ones_like(state[0]),)

    FixedSolver("euler", 8, grading=grading).solve(rhs, (torch.ones(1, 1, dtype=F64),), clock(*times))
    grid = sorted({*seen, times[-1]})
    widths = np.diff(grid)
    assert set(times) <= set(grid)
    assert len(widths) in (8, 9)
    crowded, wide = (widths[-1], widths[0]) if grading > 1 else (widths[0], widths[-1])
    assert crowded < wide / 4


@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0)])
def test_graded_steps_keep_the_order_of_convergence_and_pay_where_the_end_is_stiff(times):
    def error(steps, grading):
        solver = FixedSolver("rk4", steps, grading=grading)
        states = solver.solve(
            lambda t, state: (3 * state[0] / (1.05 - t),), (torch.ones(1, 1, dtype=F64),), clock(*times)
        )
        expected = ((1.05 - times[0]) / (1.05 - times[1])) ** 3
        return abs(float(states.states[0][-1]) / expected - 1)

    assert 10 < error(32, 2.0) / error(64, 2.0) < 24
    assert error(32, 2.0) < error(32, 1.0) / 4


@pytest.mark.parametrize(
    ("method", "grading"),
    [("rk4", 0.0), ("explicit_adams", 2.0), ("rk4", float("inf"))],
)
def test_a_grading_that_cannot_be_is_refused(method, grading):
    with pytest.raises(ValueError, match=f"grading must be positive, and 1 unless .*; got {grading}"):
        FixedSolver(method, 4, grading=grading)


def test_rows_that_have_arrived_leave_the_batch_and_change_nothing():
    speed, x, evaluated = torch.logspace(-2, 2, 16, dtype=F64), randn(16, 2), []

    def for_rows(rows):
        own = speed if rows is None else speed[rows]

        def rhs(t, state):
            evaluated.append(len(state[0]))
            return (torch.sin(own[:, None] * (state[0] + t[:, None])),)

        return rhs

    solver, times = PerRowSolver(1e-7, 1e-7), clock(0, 0.4, 1)
    together = solver.solve(for_rows(None), (x,), times)
    all_rows, evaluated[:] = sum(evaluated), []
    leaving = solver.solve(for_rows(None), (x,), times, for_rows=for_rows)
    close(leaving.states[0], together.states[0], 1e-14)
    assert leaving.stats.nfe == together.stats.nfe
    assert sum(evaluated) < all_rows / 2


def test_a_row_that_turns_nan_after_others_left_is_named_by_its_own_number():
    def for_rows(rows):
        own = torch.arange(4) if rows is None else rows
        return lambda t, state: (torch.where((own == 3)[:, None] & (t[:, None] > 0.9), torch.nan, own[:, None] * 0.1),)

    with pytest.raises(SolveError, match=r"in 1 of \d rows \(first: \[3\]\)"):
        PerRowSolver().solve(for_rows(None), (torch.ones(4, 1, dtype=F64),), clock(0, 1), for_rows=for_rows)


def test_dopri5_by_row_differentiates_twice():
    x = torch.tensor([[0.2], [0.6]], dtype=F64, requires_grad=True)
    problem = Logistic()
    assert torch.autograd.gradgradcheck(lambda y: by_row(problem, y, clock(0, 1), 1e-9)[-1], x, atol=1e-4)


REFUSED = {
    "an unknown method": ({"method": "magic"}, "one of dopri5"),
    "a fixed method without steps": ({"method": "rk4"}, "steps >= 1; got None"),
    "no steps": ({"method": "euler", "steps": 0}, "steps >= 1; got 0"),
    "steps for an adaptive method": ({"steps": 5}, "adapts its steps: pass a tolerance, not steps=5"),
    "steps by row": ({"method": "dopri5_by_row", "steps": 5}, "adapts its steps: pass a tolerance, not steps=5"),
    "a tolerance of zero": ({"tolerance": 0.0}, "positive; got 0.0"),
    "a negative tolerance": ({"tolerance": -1e-3}, "positive; got -0.001 and -0.001"),
    "a tolerance that is no number": ({"tolerance": float("nan")}, "positive; got nan"),
    "a tolerance by rows that is no number": ({"method": "dopri5_by_row", "tolerance": float("nan")}, "got nan"),
    "no evaluations": ({"max_nfe": 0}, "at least 1; got 0"),
    "an unknown adjoint": ({"adjoint": "magic"}, "checkpointed, adjoint, seminorm, reversible; got 'magic'"),
    "a walk back of adaptive steps": ({"adjoint": "reversible"}, "'dopri5' is none: pass method='rk4' with steps=16"),
    "a walk back by rows": ({"method": "dopri5_by_row", "adjoint": "reversible"}, "pass method='rk4' with steps=16"),
    "a walk back of Adams": ({"method": "fixed_adams", "steps": 4, "adjoint": "reversible"}, "'fixed_adams' is none"),
    "a walk back of two steps": ({"method": "linear_multistep", "steps": 4, "adjoint": "reversible"}, "is none: pass"),
    "an adjoint of PolyNet": (
        {"method": "poly2", "steps": 4, "adjoint": "seminorm"},
        "'poly2' has no adjoint equation",
    ),
    "a seminorm by rows": ({"method": "dopri5_by_row", "adjoint": "seminorm"}, "has no adjoint"),
    "an adjoint by rows": ({"method": "dopri5_by_row", "adjoint": "adjoint"}, "has no adjoint"),
}


@pytest.mark.parametrize(("options", "text"), REFUSED.values(), ids=REFUSED)
def test_a_solver_that_cannot_be_is_refused(options, text):
    with pytest.raises(ValueError) as caught:
        make_solver(**options)
    assert text in str(caught.value)


def test_a_tolerance_finer_than_the_dtype_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="solve in float64"):
        AdaptiveSolver(rtol=1e-7).solve(lambda t, s: s, (torch.ones(2, 1),), clock(0, 1))


@pytest.mark.parametrize("times", [(0.0, 1.0, 0.5), (0.3, 0.3)], ids=str)
@pytest.mark.parametrize("method", ["dopri5", "rk4", "explicit_adams", "dopri5_by_row"])
def test_times_that_do_not_run_one_way_are_refused(method, times):
    with pytest.raises(ValueError, match="increasing or decreasing|monotonic"):
        Logistic().solve(a_solver(method), clock(*times))


@pytest.mark.parametrize("method", METHODS)
def test_too_many_evaluations_end_in_an_error_with_advice(method):
    with torch.no_grad(), pytest.raises(SolveError, match="max_nfe=12 .*loosen the tolerance"):
        Logistic().solve(a_solver(method, 1e-7, steps=100, max_nfe=12), clock(0, 1))


def test_too_many_evaluations_end_the_adjoints_way_back_too():
    problem, strict = Logistic(), AdaptiveSolver("dopri5", 1e-7, 1e-7, adjoint="adjoint")
    needed = problem.solve(strict, clock(0, 1)).stats.nfe
    states = problem.solve(replace(strict, max_nfe=needed), clock(0, 1)).states[0]
    with pytest.raises(SolveError, match=f"more than max_nfe={needed} evaluations"):
        (1e3 * states[-1]).sum().backward()  # the adjoint of a large loss needs more steps


@pytest.mark.parametrize("method", METHODS)
def test_a_field_that_is_no_number_ends_in_an_error_that_names_the_rows(method):
    def rhs(t, state):
        slopes = torch.zeros(5, 1, dtype=F64)
        slopes[[1, 3]] = torch.nan if float(t.max()) > 0.5 else 0.0
        return (slopes,)

    with torch.no_grad(), pytest.raises(SolveError, match=r"2 of 5 rows \(first: \[1, 3\]\)"):
        a_solver(method).solve(rhs, (torch.ones(5, 1, dtype=F64),), clock(0, 1))


def ends_in_an_error(method):
    """x' = x^2 with x(0) = 2 leaves the reals at t = 1/2."""
    start, solver = torch.full((2, 1), 2.0, dtype=F64), make_solver(method, max_nfe=500 if method in LOW else 2500)
    with pytest.raises(SolveError):
        solver.solve(lambda t, state: (state[0] ** 2,), (start,), clock(0, 1))
    return True


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_solution_that_ends_in_finite_time_ends_in_an_error(method):
    assert ends_in_an_error(method)


@pytest.mark.slow
def test_a_solution_that_ends_in_finite_time_ends_in_an_error_without_assertions():
    script = "import test_solver as t; print(*filter(t.ends_in_an_error, t.ADAPTIVE))"
    command, here = [sys.executable, "-O", "-c", script], Path(__file__).parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(ADAPTIVE)


def test_a_constant_field_has_an_adjoint():
    x = randn(3, 2).requires_grad_()
    solver = AdaptiveSolver(adjoint="adjoint")
    states = solver.solve(lambda t, s: (torch.ones_like(s[0]),), (x,), clock(0, 1)).states[0]
    close(torch.autograd.grad(states[-1].sum(), x)[0], torch.ones(3, 2, dtype=F64))


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.3, 0.0), (-0.5, 0.5)], ids=str)
@pytest.mark.parametrize("adjoint", ["backprop", "checkpointed"])
@pytest.mark.parametrize("method", RUNGE_KUTTA)
def test_explicit_steps_and_their_gradients_are_torchdiffeqs_to_the_bit(method, adjoint, times, dtype):
    field = SmoothMLP(3).to(dtype)

    def rhs(t, state):
        velocity = field(t, state[0])
        return velocity, (velocity * state[0]).sum(1)

    def ours(x):
        solver = FixedSolver(method, 7, adjoint=adjoint)
        return solver.solve(rhs, (x, x.new_zeros(4)), clock(*times)).states

    def theirs(x):
        low, high = min(times), max(times)
        options = {"grid_constructor": lambda f, y, t: graded_grid(t, low, high, 7, 1.0)}
        return torchdiffeq.odeint(rhs, (x, x.new_zeros(4)), clock(*times), method=method, options=options)

    results = []
    for solve in (ours, theirs):
        x = randn(4, 3).to(dtype).requires_grad_()
        states = solve(x)
        loss = sum((state * randn(*state.shape, seed=5).to(dtype)).sum() for state in states)
        results.append((*states, *torch.autograd.grad(loss, [x, *field.parameters()])))
    for mine, their in zip(*results, strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, their)


def test_no_times_or_one_time_is_refused():
    for times in ((), (0.5,)):
        with pytest.raises(ValueError, match="strictly monotonic, two or more"):
            Logistic().solve(FixedSolver("rk4", 4), clock(*times))


@pytest.mark.parametrize("method", METHODS)
def test_a_solve_of_parameters_that_need_no_gradient_has_none(method):
    x = randn(3, 2).float()
    solution = make_solver(method, tolerance=1e-4, steps=8 if method in ORDERS else None).solve(
        lambda t, s: (-s[0],), (x,), clock(0, 1)
    )
    assert not solution.states[0].requires_grad
    assert solution.states[0].dtype == torch.float32
    close(solution.states[0][-1], x * np.exp(-1), 0.2 if ORDERS.get(method) == 1 else 1e-2)


@pytest.mark.parametrize(("steps", "time"), [(100, 0.51), (1000, 0.506)])
def test_many_deferred_checks_name_the_time_of_the_first_failure(steps, time):
    def rhs(t, state):
        return (torch.where(t > 0.5051, torch.nan, 1.0) * torch.ones_like(state[0]),)

    with torch.no_grad(), pytest.raises(NonFiniteError) as caught:
        FixedSolver("euler", steps).solve(rhs, (torch.ones(3, 1, dtype=F64),), clock(0, 1))
    assert caught.value.time == pytest.approx(time, abs=1e-9)


def test_deferred_checks_are_folded():
    checked = CheckedField(lambda t, s: s, clock(0, 1), max_nfe=10**6, deferred=True)
    for t in torch.linspace(0, 1, 3 * FOLD + 5, dtype=F64):
        checked(t, (torch.ones(2, 1),))
    checks = checked.deferred_checks
    assert (len(checks.folded), len(checks.pending)) == (3, 5)
    assert checked.finish().nfe == 3 * FOLD + 5
    assert checked.deferred_checks.folded == []
