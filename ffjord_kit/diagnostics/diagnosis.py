"""A flow's health in one page: each check a line with a plain verdict, and what the pictures are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from textwrap import wrap

import torch
from torch import Tensor

from ffjord_kit.diagnostics import integral, likeness, solves, stiffness
from ffjord_kit.diagnostics.case import Case
from ffjord_kit.diagnostics.findings import BAD, FAIR, GOOD, UNSURE, Finding
from ffjord_kit.diagnostics.solves import Setting
from ffjord_kit.diagnostics.stiffness import Spectrum
from ffjord_kit.flow import Flow
from ffjord_kit.solver import Solver

ROWS = 1000
INDENT, WIDTH = 33, 84

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Diagnosis:
    """What was found, line by line, and what it was found from.

    `settings` are solves and their errors; `at_base` the rows at the base (n, *event), `base_draws` as many of the base
    itself; `log_densities` and `drawn_log_densities` those of the rows and of draws, (n,), nats; `steps` those of each
    row, (n,); `spectrum` is None where there is none to see.
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
        """The worst verdict of all; what could not be told is no worse than fair."""
        found = {finding.verdict for finding in self.findings}
        return next(word for word in (BAD, FAIR, UNSURE, GOOD) if word in found)

    def __str__(self) -> str:
        return "\n".join(line for finding in self.findings for line in _lines(finding))

    def __getitem__(self, name: str) -> Finding:
        """The finding of that name. Raises KeyError where there is none."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"no finding {name!r}; there are {', '.join(finding.name for finding in self.findings)}")


def diagnose(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    solvers: Mapping[str, Solver] | None = None,
    rows: int = ROWS,
    seed: int = 0,
    tell: Tell | None = None,
) -> Diagnosis:
    """Examine a flow on held-out rows x (n, *event) with contexts (n, context_dim), of which at most `rows` are drawn.

    `solvers` are judged by name (default: that of the flow's own continuous layers). `tell` hears what is looked at
    next. The flow stays as it is, and its work is done in float64; all noise comes from the seed.
    Raises ValueError for rows that are not the flow's own, or of which none can be solved.
    """
    with torch.no_grad():
        return _Examination(Case.of(flow, x, context, rows, seed), solvers, tell or (lambda name: None)).diagnosis()


class _Examination:
    """One flow, looked at from all sides."""

    def __init__(self, case: Case, solvers: Mapping[str, Solver] | None, tell: Tell) -> None:
        own = {"of the flow": case.continuous[0].solver} if case.continuous else {}
        self.solvers, self.tell = own if solvers is None else solvers, tell
        tell("rows")
        self.solved, self.drawn = case.carried[0].isfinite(), case.samples[1].isfinite()
        kept = self.solved & self.drawn
        if not bool(kept.any()):
            raise ValueError(f"none of {len(case.x)} rows, or of as many draws, can be solved: score one to see why")
        self.case = case.only(kept)
        self.settings: list[Setting] = []
        self.spectrum: Spectrum | None = None

    def diagnosis(self) -> Diagnosis:
        case, findings = self.case, list(self._findings())
        draws = case.flow.base.sample(len(case.x), case.generator())
        steps = solves.steps_of(case)[0] if case.continuous else torch.zeros(len(case.x))
        log_prob, moved = case.carried
        return Diagnosis(
            tuple(findings), tuple(self.settings), moved.x, draws, log_prob, case.samples[1], steps, self.spectrum
        )

    def _findings(self) -> Iterator[Finding]:
        case, tell = self.case, self.tell
        for name, solved in (("rows", self.solved), ("draws", self.drawn)):
            if not bool(solved.all()):
                yield _unsolved(name, solved)
        tell("integral")
        yield integral.check_integral(case)
        tell("determinant")
        yield integral.check_determinant(case)
        tell("round trip")
        yield solves.check_round_trip(case)
        tell("solves")
        yield from self._of_solves()
        tell("base")
        yield from likeness.check_base(case)
        tell("samples")
        yield from likeness.check_samples(case)
        yield likeness.check_coverage(case)
        tell("stiffness")
        self.spectrum = stiffness.spectrum(case)
        yield stiffness.check_stiffness(case, self.spectrum)

    def _of_solves(self) -> Iterator[Finding]:
        case = self.case
        if not case.continuous:
            return
        yield from solves.check_solvers(case, self.solvers)
        self.settings = solves.sweep(case)
        yield solves.cheapest(self.settings)
        yield solves.check_probes(case, solves.probe_sweep(case))
        yield solves.check_steps(case)


def _unsolved(name: str, solved: Tensor) -> Finding:
    rows = (~solved).nonzero().flatten()
    measured = f"{len(rows)} of {len(solved)} {name} cannot be solved (first: {rows[:5].tolist()}); the others follow"
    return Finding(name, BAD, measured, "the field is not smooth there, or blows up; score such rows to see why")


def _lines(finding: Finding) -> list[str]:
    first, *rest = wrap(finding.measured, WIDTH)
    lines = [f"{finding.verdict:<7}{finding.name:<26}{first}", *(" " * INDENT + line for line in rest)]
    return lines + [" " * INDENT + line for line in wrap("-> " + finding.remedy, WIDTH) if finding.remedy]
