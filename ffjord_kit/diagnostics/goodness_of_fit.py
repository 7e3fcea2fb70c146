"""Goodness of fit: rows at the base against the base, samples against rows, and the regions of highest density.

Every test takes held-out rows and as many samples, or more. Rows that trained the flow would flatter it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from scipy.stats import ks_2samp
from torch import Tensor

from ffjord_kit import metrics
from ffjord_kit.diagnostics.examination import Examination, flat
from ffjord_kit.diagnostics.findings import UNSURE, Finding, grade_test
from ffjord_kit.metrics import TwoSampleTest

if TYPE_CHECKING:
    import numpy as np

BASE_DRAWS = 10_000
LEVELS = (0.5, 0.9, 0.99)  # probabilities of the regions of highest density
FAIR_DISTANCE = 0.1  # of two distribution functions
FAIR_ENERGY, FAIR_MMD, FAIR_ACCURACY = 0.05, 0.1, 0.6
MIN_ROWS = 40
ADVICE = "the lines from location on say how; if none does, train longer or take another network"


def check_base(exam: Examination) -> list[Finding]:
    """Test whether the rows at the base are distributed as the base.

    Args:
        exam: Examination.

    Returns:
        Findings for each coordinate (Kolmogorov-Smirnov) and for all jointly (energy distance).
    """
    if len(exam) < MIN_ROWS:
        return [_too_few("base", exam)]
    z = flat(exam.at_base)
    draws = flat(exam.flow.base.sample(BASE_DRAWS, exam.generator())).to(z)
    tests = [ks_2samp(z[:, i].numpy(force=True), draws[:, i].numpy(force=True)) for i in range(exam.size)]
    worst = max(range(exam.size), key=lambda i: tests[i].statistic)
    distance, p_value = float(tests[worst].statistic), min(1.0, exam.size * min(float(test.pvalue) for test in tests))
    measured = f"largest distance {distance:.3f}, coordinate {worst}; p = {p_value:.2g} for all {exam.size}"
    joint = metrics.energy_test(draws[: len(z)].numpy(force=True), z.numpy(force=True), seed=exam.seed)
    return [
        _finding("base, each coordinate", p_value, distance, FAIR_DISTANCE, measured),
        _finding("base, jointly", joint.p_value, joint.statistic, FAIR_ENERGY, f"energy distance {_format(joint)}"),
    ]


def check_samples(exam: Examination) -> list[Finding]:
    """Test whether samples are distributed as the rows, by energy distance, MMD and a classifier.

    For comparison one half of the rows is tested against the other.

    Args:
        exam: Examination.

    Returns:
        A finding for each test.
    """
    if len(exam) < MIN_ROWS:
        return [_too_few("samples", exam)]
    order = torch.randperm(len(exam), generator=exam.generator()).to(exam.batch.x.device)
    rows, samples, half = _joint(exam, exam.batch.x, order), _joint(exam, exam.samples, order), len(order) // 2
    data = rows
    if exam.batch.context is not None:  # a sample depends on the row that has the same context
        data, samples = rows[:half], samples[half:]
    findings = []
    for name, test, fair in (
        ("energy distance", metrics.energy_test, FAIR_ENERGY), ("MMD", metrics.mmd_test, FAIR_MMD),
        ("classifier", metrics.classifier_test, FAIR_ACCURACY),
    ):  # fmt: skip
        result, among_data = test(data, samples, seed=exam.seed), test(rows[:half], rows[half:], seed=exam.seed)
        measured = f"{_format(result)}; data against data {among_data.statistic:.3f}"
        findings.append(_finding(f"samples, {name}", result.p_value, result.statistic, fair, measured))
    return findings


def check_coverage(exam: Examination) -> Finding:
    """Test whether the regions of highest density hold the share of rows that they should.

    Args:
        exam: Examination.

    Returns:
        The finding, by the Kolmogorov-Smirnov test of log-densities of rows and samples.
    """
    if len(exam) < MIN_ROWS:
        return _too_few("coverage", exam)
    of_rows, of_samples = exam.row_log_probs.tolist(), exam.sample_log_probs.tolist()
    test = ks_2samp(of_rows, of_samples)
    shares = [sum(value >= _quantile(of_samples, 1 - level) for value in of_rows) / len(of_rows) for level in LEVELS]
    listed = ", ".join(f"{level:.0%}: {share:.1%}" for level, share in zip(LEVELS, shares, strict=True))
    measured = f"rows within the regions of {listed}; p = {test.pvalue:.2g}"
    return _finding("coverage", float(test.pvalue), float(test.statistic), FAIR_DISTANCE, measured)


def _joint(exam: Examination, x: Tensor, order: Tensor) -> np.ndarray:
    """Return events in an order, (n, d), joined with their contexts: a test then sees how the two depend."""
    context = exam.batch.context
    joined = flat(x) if context is None else torch.cat([flat(x), context], dim=1)
    return joined[order].numpy(force=True)


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(math.floor(share * len(values)), len(values) - 1)]


def _format(test: TwoSampleTest) -> str:
    return f"{test.statistic:.3f}, p = {test.p_value:.2g}"


def _finding(name: str, p_value: float, size: float, fair: float, measured: str) -> Finding:
    return Finding(name, grade_test(p_value, size, fair=fair), measured, ADVICE)


def _too_few(name: str, exam: Examination) -> Finding:
    return Finding(name, UNSURE, f"{len(exam)} rows are too few to decide: at least {MIN_ROWS} are needed")
