"""Diagnosis of a flow: checks of integral, solves, fit, stiffness and gradients, each with numbers and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.diagnostics import control, goodness_of_fit, integral, misfit, solves, stiffness
from ffjord_kit.diagnostics.examination import REPORTING_TOLERANCE, Examination
from ffjord_kit.diagnostics.findings import BAD, Finding, worst_verdict
from ffjord_kit.diagnostics.solves import Setting
from ffjord_kit.diagnostics.stiffness import Spectrum
from ffjord_kit.flow import Flow
from ffjord_kit.ode import Solver

ROWS = 1000

OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class Diagnosis:
    """Findings about a flow, and the measurements behind them, which pictures are made of.

    Args:
        findings: Findings, in order.
        settings: Solver settings with their errors; empty for a flow without continuous transforms.
        at_base: Rows at the base, shape (n, *event).
        base_draws: Draws from the base itself, shape (n, *event).
        log_densities: Log-densities of the rows, nats, shape (n,).
        drawn_log_densities: Log-densities of samples of the flow, nats, shape (n,).
        steps: Accepted steps of each row, shape (n,).
        spectrum: Spectrum of the Jacobian along the paths; None where it was not computed.

    Example:
        >>> from ffjord_kit.transforms import Standardize
        >>> x = torch.randn(100, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = diagnose(Flow([Standardize.of(x)]), x)
        >>> found.verdict == worst_verdict(found.findings), found.at_base.shape
        (True, torch.Size([100, 1]))
    """

    findings: tuple[Finding, ...]
    settings: tuple[Setting, ...]
    at_base: Tensor
    base_draws: Tensor
    log_densities: Tensor
    drawn_log_densities: Tensor
    steps: Tensor
    spectrum: Spectrum | None

    @property
    def verdict(self) -> str:
        """Worst verdict of all findings; "unsure" ranks between good and fair."""
        return worst_verdict(self.findings)

    def with_finding(self, finding: Finding | None) -> Diagnosis:
        """Return the diagnosis with one more finding.

        Args:
            finding: The finding; None for the diagnosis as it is.

        Returns:
            The diagnosis.
        """
        return self if finding is None else replace(self, findings=(*self.findings, finding))

    def __str__(self) -> str:
        return "\n".join(line for finding in self.findings for line in finding.lines())

    def __getitem__(self, name: str) -> Finding:
        """Return the finding of a name.

        Args:
            name: Name of the finding.

        Returns:
            The finding.

        Raises:
            KeyError: If there is none.
        """
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"no finding {name!r}; there are {', '.join(finding.name for finding in self.findings)}")


def diagnose(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    trained_on: Batch | None = None,
    solvers: Mapping[str, Solver] | None = None,
    columns: Sequence[str] = (),
    rows: int = ROWS,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Diagnosis:
    """Examine a flow on held-out rows.

    The flow stays as it is: a copy in float64 does the work. All noise comes from the seed.

    Args:
        flow: Flow.
        x: Held-out rows, shape (n, *event).
        context: Contexts, shape (n, context_dim), or None.
        trained_on: Rows that trained the flow, with their contexts: then overfitting shows.
        solvers: Solvers to judge, by name; the solver of the flow's first continuous transform if None.
        columns: Names of the elements of a row, for the findings; none for their numbers.
        rows: Largest number of rows to use, chosen at random.
        seed: Seed of the choice and of all noise.
        on_progress: Called with the name of each part before it begins.

    Returns:
        Findings and measurements.

    Raises:
        ValueError: If rows or contexts do not fit the flow, or none of the rows can be solved.

    Example:
        >>> from ffjord_kit.transforms import Standardize
        >>> x = torch.randn(100, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> diagnosis = diagnose(Flow([Standardize.of(x)]), x)
        >>> diagnosis.verdict
        'good'
        >>> diagnosis["stiffness"].measured
        'no continuous transform'
    """
    report = on_progress or (lambda name: None)
    with torch.no_grad():
        report("rows")
        exam = Examination.begin(flow, Batch(x, context), rows=rows, seed=seed)
        own = {"of the flow": exam.continuous[0].solver} if exam.continuous else {}
        return _run_checks(exam, trained_on, own if solvers is None else solvers, columns, report)


def _run_checks(
    exam: Examination,
    trained_on: Batch | None,
    solvers: Mapping[str, Solver],
    columns: Sequence[str],
    report: OnProgress,
) -> Diagnosis:
    """Run all checks on the rows that can be solved."""
    findings = [*_check_failures("rows", exam.row_log_probs), *_check_failures("draws", exam.sample_log_probs)]
    exam = _solvable(exam)
    report("integral")
    findings.append(integral.check_integral(exam))
    report("determinant")
    findings.append(integral.check_determinant(exam))
    report("round trip")
    findings.append(solves.check_round_trip(exam))
    report("solves")
    settings = solves.sweep(exam)
    findings += solves.check_solves(exam, solvers, settings)
    report("base")
    findings += goodness_of_fit.check_base(exam)
    report("samples")
    findings += [*goodness_of_fit.check_samples(exam), goodness_of_fit.check_coverage(exam)]
    report("misfit")
    findings += misfit.check_misfit(exam, columns)
    if trained_on is not None:
        findings.append(misfit.check_generalization(exam, trained_on.to(exam.batch.x), REPORTING_TOLERANCE))
    report("stiffness")
    spectrum = stiffness.spectrum(exam)
    findings.append(stiffness.check_stiffness(exam, spectrum))
    report("gradient along the path")
    findings.append(control.check_control(exam))
    draws = exam.flow.base.sample(len(exam), exam.generator())
    return Diagnosis(
        tuple(findings), tuple(settings), exam.at_base, draws, exam.row_log_probs, exam.sample_log_probs,
        exam.accepted, spectrum,
    )  # fmt: skip


def _solvable(exam: Examination) -> Examination:
    """Keep the rows that can be solved, with samples that can be solved."""
    solvable = exam.row_log_probs.isfinite() & exam.sample_log_probs.isfinite()
    if not bool(solvable.any()):
        raise ValueError(f"none of {len(exam)} rows, or of as many draws, can be solved: score one to see why")
    return exam.subset(solvable)


def _check_failures(name: str, log_probs: Tensor) -> list[Finding]:
    """Report rows or draws that cannot be solved; no finding where all can."""
    failed = (~log_probs.isfinite()).nonzero().flatten()
    if not len(failed):
        return []
    measured = (
        f"{len(failed)} of {len(log_probs)} {name} cannot be solved (first: {failed[:5].tolist()}); the checks below "
        "leave them out"
    )
    return [Finding(name, BAD, measured, "the field is not smooth there, or blows up; score such rows to see why")]
