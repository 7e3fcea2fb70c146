"""Are the solves right, and what do they cost? Round trip, error by setting, error by probes, steps of the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ffjord_kit.cnf import Integration
from ffjord_kit.diagnostics.case import DRAWS, Case, flat, moving
from ffjord_kit.diagnostics.findings import BAD, GOOD, Finding, judged
from ffjord_kit.failures import SolveError
from ffjord_kit.solver import Solver

RETURNED, PROBED = 256, 32  # rows
KEPT = 0.01  # nats, the mean error of a row that a setting may have
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
STEP_COUNTS = (1, 2, 4, 8, 16, 32, 64)
GRADING = 2.0
MOST_PROBES = 16
FEW_STEPS, MANY_STEPS = 100, 1000


@dataclass(frozen=True)
class Setting:
    """A solver, the mean error in nats of log-densities that it gives (NaN where it fails), and its evaluations."""

    solver: Solver
    error: float
    nfe: float

    def __str__(self) -> str:
        return name_of(self.solver)


def name_of(solver: Solver) -> str:
    """A solver in a few words."""
    if solver.steps is None:
        return f"{solver.method} at {solver.rtol:g}"
    graded = " (graded)" if solver.grading != 1 else ""
    return f"{solver.steps} {solver.method} step{'s' * (solver.steps > 1)}{graded}"


def check_round_trip(case: Case) -> Finding:
    """Do rows come back from the base to where they were? In standard deviations of a column."""
    (x, context), how = case.few(RETURNED), moving(DRAWS)
    back = case.flow.to_data(case.flow.to_base(x, context, integration=how)[0], context, integration=how)[0]
    apart = (flat(back - x).abs() / case.scale).amax(1)
    measured = f"rows come back to {float(apart.max()):.1e} deviations, at most"
    advice = f"row {int(apart.argmax())} is lost on the way: a layer is not invertible there, or too steep for floats"
    verdict = judged(float(apart.max()), 1e-3, 1e-2)
    return Finding("round trip", verdict, measured, advice)


def check_solvers(case: Case, solvers: Mapping[str, Solver]) -> list[Finding]:
    """The error that each solver leaves in log-densities, against a converged solve."""
    truth, found = case.truth, []
    for name, solver in solvers.items():
        setting = measure(case, solver, truth)
        measured = f"{name_of(solver)}: {setting.error:.1e} nats a row, {setting.nfe:.0f} evaluations"
        verdict = BAD if math.isnan(setting.error) else judged(setting.error, KEPT, 10 * KEPT)
        advice = "its likelihoods are not the model's: a finer tolerance, more steps, or training with the guard"
        found.append(Finding(f"solver, {name}", verdict, measured, advice))
    return found


def sweep(case: Case) -> list[Setting]:
    """The error by tolerance of adaptive steps, and by number of fixed ones that are graded towards the data."""
    adaptive = [Solver("dopri5_by_row", tolerance, tolerance) for tolerance in TOLERANCES]
    fixed = [Solver("rk4", steps=steps, grading=GRADING) for steps in STEP_COUNTS]
    return [measure(case, solver, case.truth) for solver in (*adaptive, *fixed)]


def cheapest(settings: list[Setting]) -> Finding:
    """The cheapest of the settings that keep 0.01 nats."""
    keeping = [setting for setting in settings if setting.error <= KEPT]
    if not keeping:
        best = min(settings, key=lambda setting: setting.error if setting.error == setting.error else math.inf)
        return Finding("cheapest solve", BAD, f"none keeps {KEPT} nats: {best} leaves {best.error:.1e}", "regularize")
    least = min(keeping, key=lambda setting: setting.nfe)
    measured = f"{KEPT} nats are kept by {least}: {least.error:.1e} nats a row, {least.nfe:.0f} evaluations"
    return Finding("cheapest solve", GOOD, measured)


def measure(case: Case, solver: Solver, truth: Tensor) -> Setting:
    """The mean error of a solver in the log-densities of the first rows."""
    x, context = case.few(len(truth))
    try:
        value, moved = case.flow.evaluate_log_prob(x, context, integration=Integration(solver=solver))
    except SolveError:
        return Setting(solver, math.nan, math.nan)
    return Setting(solver, float((value - truth).abs().mean()), moved.nfe)


def probe_sweep(case: Case) -> dict[int, float]:
    """The standard error of a row's log-density, root mean square, by the number of Hutchinson's probes."""
    counts = [count for count in (2, 4, 8, MOST_PROBES) if count < case.size]
    found = {count: case.evaluate(PROBED, tolerance=1e-4, probes=count).trace_error for count in counts}
    return {count: float(error.square().mean().sqrt()) for count, error in found.items()}


def check_probes(case: Case, errors: Mapping[int, float]) -> Finding:
    """What an estimated trace would leave, where it is any cheaper than the exact one."""
    if not errors:
        return Finding("probes", GOOD, f"the exact trace is as cheap, with {case.size} column{'s' * (case.size > 1)}")
    told = ", ".join(f"{count}: {error:.2g}" for count, error in errors.items())
    return Finding("probes", GOOD, f"standard error of a row, nats, by probes {told}; the exact trace has none")


def steps_of(case: Case) -> tuple[Tensor, Tensor]:
    """Steps taken and refused by each row, (n,), over all continuous layers."""
    evaluations = case.carried[1].evaluations
    return sum(e.taken for e in evaluations), sum(e.refused for e in evaluations)


def check_steps(case: Case) -> Finding:
    """How many steps rows take at the reporting tolerance, and which takes most."""
    taken, refused = steps_of(case)
    median, most, extra = int(taken.median()), int(taken.max()), float(refused.double().mean())
    measured = f"median {median}, largest {most} (row {int(taken.argmax())}); refused besides: {extra:.1f}"
    advice = "a regularizer (kinetic, jacobian) makes the paths easier"
    return Finding("steps of a row", judged(median, FEW_STEPS, MANY_STEPS), measured, advice)
