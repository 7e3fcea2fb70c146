"""Is it the data's density? Rows at the base against the base, draws against rows, and the regions of highest density.

Every test is of held-out rows against as many draws, or more; what trained the flow would flatter it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.stats import ks_2samp
from torch import Tensor

from ffjord_kit import metrics
from ffjord_kit.diagnostics.case import Case, flat
from ffjord_kit.diagnostics.findings import UNSURE, Finding, tested
from ffjord_kit.metrics import TwoSampleTest

MARGINAL_DRAWS = 10_000
LEVELS = (0.5, 0.9, 0.99)
NEAR = 0.1  # the largest distance of two distribution functions that is fair
NEAR_ENERGY, NEAR_MMD, NEAR_CHANCE = 0.05, 0.1, 0.6
FEWEST = 40  # rows
ADVICE = "train longer, with other fields, or on data in the same units"


def check_base(case: Case) -> list[Finding]:
    """Are the rows, at the base, as draws of it? Each coordinate, and all jointly."""
    if len(case.x) < FEWEST:
        return [_too_few("base", case)]
    z, draws = flat(case.carried[1].x), flat(case.flow.base.sample(MARGINAL_DRAWS, case.generator())).to(case.x)
    tests = [ks_2samp(z[:, i].numpy(force=True), draws[:, i].numpy(force=True)) for i in range(case.size)]
    least, most = min(test.pvalue for test in tests), max(test.statistic for test in tests)
    worst, p_value = max(range(case.size), key=lambda i: tests[i].statistic), min(1.0, case.size * float(least))
    measured = f"largest distance {most:.3f}, coordinate {worst}; p = {p_value:.2g} for all {case.size}"
    joint = metrics.energy_test(draws[: len(z)].numpy(force=True), z.numpy(force=True), seed=case.seed)
    return [
        _finding("base, each coordinate", p_value, float(most), NEAR, measured),
        _finding("base, jointly", joint.p_value, joint.statistic, NEAR_ENERGY, _told("energy distance", joint)),
    ]


def check_samples(case: Case) -> list[Finding]:
    """Are draws as the rows? Against as many draws, and, for comparison, half of the rows against the other half."""
    if len(case.x) < FEWEST:
        return [_too_few("samples", case)]
    order = torch.randperm(len(case.x), generator=case.generator()).to(case.x.device)
    rows, drawn, half = _beside(case, case.x, order), _beside(case, case.samples[0], order), len(order) // 2
    if case.context is not None:  # a draw is no more independent of the row that it shares a context with
        drawn = drawn[half:]
    found = []
    for name, test, near in (
        ("energy distance", metrics.energy_test, NEAR_ENERGY), ("MMD", metrics.mmd_test, NEAR_MMD),
        ("classifier", metrics.classifier_test, NEAR_CHANCE),
    ):  # fmt: skip
        kept = rows if case.context is None else rows[:half]
        result, among = test(kept, drawn, seed=case.seed), test(rows[:half], rows[half:], seed=case.seed)
        measured = f"{_told('', result)}; data against data {among.statistic:.3f}"
        found.append(_finding(f"samples, {name}", result.p_value, result.statistic, near, measured))
    return found


def _beside(case: Case, x: Tensor, order: Tensor) -> Any:
    """Rows in an order, with their contexts where they have any: how they hang together is looked at too."""
    joint = flat(x) if case.context is None else torch.cat([flat(x), case.context], dim=1)
    return joint[order].numpy(force=True)


def check_coverage(case: Case) -> Finding:
    """Do the regions of highest density hold as many rows as they say?"""
    if len(case.x) < FEWEST:
        return _too_few("coverage", case)
    of_rows, of_draws = case.carried[0].tolist(), case.samples[1].tolist()
    test = ks_2samp(of_rows, of_draws)
    shares = [sum(value >= _quantile(of_draws, 1 - level) for value in of_rows) / len(of_rows) for level in LEVELS]
    told = ", ".join(f"{level:.0%}: {share:.1%}" for level, share in zip(LEVELS, shares, strict=True))
    measured = f"rows within the regions of {told}; p = {test.pvalue:.2g}"
    return _finding("coverage", float(test.pvalue), float(test.statistic), NEAR, measured)


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(math.floor(share * len(values)), len(values) - 1)]


def _told(what: str, test: TwoSampleTest) -> str:
    return f"{what} {test.statistic:.3f}, p = {test.p_value:.2g}".strip()


def _finding(name: str, p_value: float, size: float, near: float, measured: str) -> Finding:
    verdict = tested(p_value, size, near)
    return Finding(name, verdict, measured, ADVICE)


def _too_few(name: str, case: Case) -> Finding:
    return Finding(name, UNSURE, f"{len(case.x)} rows are too few to tell: at least {FEWEST} are needed")
