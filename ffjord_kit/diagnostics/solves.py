"""Accuracy and cost of the solves: round trip, error by solver setting, error by probes, and steps of the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ffjord_kit.diagnostics.examination import SAMPLING_TOLERANCE, Examination, flat, states_only
from ffjord_kit.diagnostics.findings import BAD, GOOD, Finding, grade
from ffjord_kit.ode import FixedSolver, PerRowSolver, Solver
from ffjord_kit.ode.errors import SolveError
from ffjord_kit.transforms.cnf import SolveOptions

ROUND_TRIP_ROWS, PROBED_ROWS = 256, 32
MAX_ERROR = 0.01  # nats, mean over rows
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
STEP_COUNTS = (1, 2, 4, 8, 16, 32, 64)
GRADING = 2.0
PROBE_COUNTS, PROBE_TOLERANCE = (2, 4, 8, 16), 1e-4
FEW_STEPS, MANY_STEPS = 100, 1000
GOOD_RETURN, FAIR_RETURN = 1e-3, 1e-2  # standard deviations


@dataclass(frozen=True)
class Setting:
    """A solver setting, with its error and cost.

    Args:
        solver: The solver.
        error: Mean absolute error of a row's log-density, nats; NaN where the solve fails.
        nfe: Evaluations of the dynamics; NaN where the solve fails.
    """

    solver: Solver
    error: float
    nfe: float


def check_round_trip(exam: Examination) -> Finding:
    """Measure how far rows return from where they were, after a way to the base and back.

    Args:
        exam: Examination.

    Returns:
        The finding, with the largest distance in standard deviations of an element.
    """
    first, options = exam.batch[:ROUND_TRIP_ROWS], states_only(SAMPLING_TOLERANCE)
    z, _ = exam.flow.to_base(first.x, first.context, options=options)
    returned, _ = exam.flow.to_data(z, first.context, options=options)
    distance = (flat(returned - first.x).abs() / exam.scale).amax(1)
    largest = float(distance.max())
    advice = (
        f"row {int(distance.argmax())} does not return: a transform is not invertible there, or too steep for floats"
    )
    verdict = grade(largest, good=GOOD_RETURN, fair=FAIR_RETURN)
    return Finding("round trip", verdict, f"rows return to within {largest:.1e} standard deviations", advice)


def sweep(exam: Examination) -> list[Setting]:
    """Measure the error of adaptive steps by tolerance, and of fixed steps, graded towards the data, by number.

    Args:
        exam: Examination.

    Returns:
        Settings, adaptive ones first; none for a flow without continuous transforms.
    """
    if not exam.continuous:
        return []
    adaptive = [PerRowSolver(tolerance, tolerance) for tolerance in TOLERANCES]
    fixed = [FixedSolver("rk4", steps=steps, grading=GRADING) for steps in STEP_COUNTS]
    return [measure(exam, solver) for solver in (*adaptive, *fixed)]


def measure(exam: Examination, solver: Solver) -> Setting:
    """Measure the error that a solver leaves in log-densities of the first rows, against a converged solve.

    Args:
        exam: Examination.
        solver: Solver of all continuous transforms.

    Returns:
        The setting with its error and evaluations.
    """
    first = exam.batch[: len(exam.reference)]
    try:
        value, moved = exam.flow.evaluate_log_prob(first.x, first.context, options=SolveOptions(solver=solver))
    except SolveError:
        return Setting(solver, math.nan, math.nan)
    return Setting(solver, float((value - exam.reference).abs().mean()), moved.nfe)


def check_solves(exam: Examination, solvers: Mapping[str, Solver], settings: Sequence[Setting]) -> list[Finding]:
    """Judge solvers, and report the cheapest accurate setting, the error of probes, and the steps of the rows.

    Args:
        exam: Examination.
        solvers: Solvers to judge, by name.
        settings: Settings of `sweep`.

    Returns:
        The findings; none for a flow without continuous transforms.
    """
    if not exam.continuous:
        return []
    judged = [check_solver(exam, name, solver) for name, solver in solvers.items()]
    return [*judged, check_cheapest(settings), check_probes(exam, probe_errors(exam)), check_steps(exam)]


def check_solver(exam: Examination, name: str, solver: Solver) -> Finding:
    """Judge a solver by the error that it leaves in log-densities.

    Args:
        exam: Examination.
        name: Name of the solver.
        solver: The solver.

    Returns:
        The finding.
    """
    setting = measure(exam, solver)
    measured = f"{solver.label}: {setting.error:.1e} nats a row, {setting.nfe:.0f} evaluations"
    advice = "its likelihoods are not the model's: take a finer tolerance or more steps, or train with the guard"
    return Finding(f"solver, {name}", grade(setting.error, good=MAX_ERROR, fair=10 * MAX_ERROR), measured, advice)


def check_cheapest(settings: Sequence[Setting]) -> Finding:
    """Find the cheapest setting whose error is small enough.

    Args:
        settings: Settings, at least one.

    Returns:
        The finding.
    """
    accurate = [setting for setting in settings if setting.error <= MAX_ERROR]
    if not accurate:
        best = min(settings, key=lambda setting: math.inf if math.isnan(setting.error) else setting.error)
        measured = f"no setting is accurate to {MAX_ERROR} nats: {best.solver.label} leaves {best.error:.1e}"
        return Finding("cheapest solve", BAD, measured, "regularize (kinetic, jacobian)")
    least = min(accurate, key=lambda setting: setting.nfe)
    cost = f"{least.error:.1e} nats a row, {least.nfe:.0f} evaluations"
    return Finding("cheapest solve", GOOD, f"{least.solver.label}: {cost} (limit {MAX_ERROR} nats)")


def probe_errors(exam: Examination) -> dict[int, float]:
    """Measure the standard error of an estimated trace.

    Args:
        exam: Examination.

    Returns:
        Number of Hutchinson probes -> standard error of a row's log-density, nats, root mean square; only numbers below
        that of the elements of an event.
    """
    errors: dict[int, Tensor] = {
        count: exam.evaluate(PROBED_ROWS, tolerance=PROBE_TOLERANCE, probes=count).trace_error
        for count in PROBE_COUNTS
        if count < exam.size
    }
    return {count: float(error.square().mean().sqrt()) for count, error in errors.items()}


def check_probes(exam: Examination, errors: Mapping[int, float]) -> Finding:
    """Report the error of an estimated trace, where it is cheaper than the exact one.

    Args:
        exam: Examination.
        errors: Number of probes -> standard error, nats.

    Returns:
        The finding, which is good: the exact trace has no such error.
    """
    if not errors:
        return Finding("probes", GOOD, f"the exact trace is as cheap, with {exam.size} column{'s' * (exam.size > 1)}")
    values = ", ".join(f"{count}: {error:.2g}" for count, error in errors.items())
    return Finding("probes", GOOD, f"standard error of a row, nats, by probes {values}; the exact trace has none")


def check_steps(exam: Examination) -> Finding:
    """Report the accepted and rejected steps of the rows at the reporting tolerance.

    Args:
        exam: Examination.

    Returns:
        The finding.
    """
    steps, rejected = exam.accepted, float(exam.rejected.double().mean())
    median = int(steps.median())
    measured = f"median {median}, largest {int(steps.max())} (row {int(steps.argmax())}); rejected {rejected:.1f}"
    advice = "a regularizer (kinetic, jacobian) makes the paths easier"
    return Finding("steps of a row", grade(median, good=FEW_STEPS, fair=MANY_STEPS), measured, advice)
