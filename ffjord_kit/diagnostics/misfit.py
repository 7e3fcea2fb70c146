"""Misfit: in what way a flow misses its rows, each way with its own remedy.

location        the rows' mean lies elsewhere than the samples'                  shifted rows
spread          samples are less probable to the flow than rows are              too wide a flow
tails           more rows than samples lie where the flow has almost no mass     modes missing, or outliers
generalization  rows that trained the flow are more probable than others         overfitted
training        the validation NLL still fell when training ended                too short
categories      rows have likelier or rarer categories than draws                shifted rows, or dependence missed
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import binomtest, ttest_ind
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.examination import Examination, flat
from ffjord_kit.diagnostics.findings import FAIR, GOOD, SIGNIFICANCE, Finding, grade_test
from ffjord_kit.metrics import energy_test

MIN_ROWS = 40
FAIR_SHIFT = 0.1  # standard deviations
FAIR_NATS = 0.1  # for each dimension
TAIL, FAIR_TAIL = 0.01, 0.03  # share of the samples that lie in the tail; of rows

SHIFTED = "the rows are shifted: check their units and where they come from; else train longer"
TOO_WIDE = "the flow is too wide: train longer, or take a larger network"
MODES = "the flow misses modes, or the rows hold outliers: look at those of lowest log-density; train longer"
LATE, STILL_FALLING = 0.5, 0.02  # share of the steps after which training is late; nats for each dimension
OTHER_DATA = "the rows are distributed otherwise than the training rows: fit again on both, or look for what changed"
TOO_SHORT = "training was too short: give it more steps or seconds"
CATEGORIES = "the rows have other categories than the fit saw, or these depend on each other otherwise: fit more rows"
OVERFITTED = "overfitted: hold out more rows for validation, take a smaller network, or get more rows"


def check_misfit(exam: Examination, columns: Sequence[str] = ()) -> list[Finding]:
    """Measure in what way a flow misses its rows.

    Args:
        exam: Examination.
        columns: Names of the columns; their numbers stand for them if there are none.

    Returns:
        Findings on location, spread and tails; none for fewer than 40 rows.
    """
    if len(exam) < MIN_ROWS:
        return []
    return [check_location(exam, columns), check_spread(exam), check_tails(exam)]


def check_location(exam: Examination, columns: Sequence[str] = ()) -> Finding:
    """Compare the means of rows and samples.

    Args:
        exam: Examination.
        columns: Names of the columns; their numbers stand for them if there are none.

    Returns:
        The finding on the column that differs most.
    """
    rows, samples = flat(exam.batch.x) / exam.scale, flat(exam.samples) / exam.scale
    shift = rows.mean(0) - samples.mean(0)
    p_values = ttest_ind(rows.numpy(force=True), samples.numpy(force=True), equal_var=False).pvalue
    worst = int(shift.abs().argmax())
    p_value = min(1.0, exam.size * float(p_values[worst]))
    name = columns[worst] if columns else worst
    measured = f"rows' mean less samples' {float(shift[worst]):+.2f} deviations, column {name}; p = {p_value:.2g}"
    return Finding("location", grade_test(p_value, abs(float(shift[worst])), fair=FAIR_SHIFT), measured, SHIFTED)


def check_spread(exam: Examination) -> Finding:
    """Compare the mean log-densities of rows and samples.

    Rows that are more probable than samples lie closer together than the flow believes.

    Args:
        exam: Examination.

    Returns:
        The finding.
    """
    difference, p_value = _compare(exam.row_log_probs, exam.sample_log_probs)
    verdict = grade_test(p_value, difference / exam.size, fair=FAIR_NATS) if difference > 0 else GOOD
    measured = f"rows' mean log-density less samples' {difference:+.2f} nats; p = {p_value:.2g}"
    return Finding("spread", verdict, measured, TOO_WIDE)


def check_tails(exam: Examination) -> Finding:
    """Count the rows that are less probable than nearly all samples.

    Args:
        exam: Examination.

    Returns:
        The finding.
    """
    least = exam.sample_log_probs.sort().values[math.floor(TAIL * len(exam))]
    count = int((exam.row_log_probs < least).sum())
    share, p_value = count / len(exam), binomtest(count, len(exam), 2 * TAIL, alternative="greater").pvalue
    measured = f"{share:.1%} of rows where {TAIL:.0%} of samples lie; p = {p_value:.2g}"
    return Finding("tails", grade_test(float(p_value), share, fair=FAIR_TAIL), measured, MODES)


def check_generalization(exam: Examination, trained_on: Batch, tolerance: float) -> Finding:
    """Compare the mean log-densities of rows that trained the flow and of rows that did not.

    Args:
        exam: Examination of held-out rows.
        trained_on: Rows that trained the flow, and their contexts; at most as many are used.
        tolerance: Relative and absolute tolerance of their solves.

    Returns:
        The finding.
    """
    order = torch.randperm(len(trained_on), generator=exam.generator())[: len(exam)]
    order = order.to(trained_on.x.device)
    log_probs = exam.log_prob(trained_on[order], tolerance)
    difference, p_value = _compare(log_probs[log_probs.isfinite()], exam.row_log_probs)
    verdict = grade_test(p_value, difference / exam.size, fair=FAIR_NATS) if difference > 0 else GOOD
    measured = f"training rows' mean log-density less held-out rows' {difference:+.2f} nats; p = {p_value:.2g}"
    alike = energy_test(*(flat(x).numpy(force=True) for x in (trained_on.x[order], exam.batch.x)), seed=exam.seed)
    advice = OTHER_DATA if alike.p_value < SIGNIFICANCE else OVERFITTED
    return Finding("generalization", verdict, measured, advice)


def check_training(validations: Sequence[tuple[int, float]], size: int) -> Finding | None:
    """Look at the validations of a fit: did it end while it still improved?

    Args:
        validations: Steps, in order, and the validation NLL at each, nats.
        size: Elements of an event.

    Returns:
        The finding; None for fewer than three validations.

    Example:
        >>> check_training([(100, 2.0), (200, 1.5), (1000, 1.0)], size=2).verdict  # it still falls
        'fair'
    """
    if len(validations) < 3:
        return None
    steps, nlls = zip(*validations, strict=True)
    early = [nll for step, nll in validations if step <= LATE * steps[-1]] or nlls[:1]
    gain = (min(early) - min(nlls)) / size
    measured = f"validation NLL fell by {gain * size:.3f} nats in the last {1 - LATE:.0%} of {steps[-1]} steps"
    return Finding("training", FAIR if gain > STILL_FALLING else GOOD, measured, TOO_SHORT)


def check_categories(rows: np.ndarray, draws: np.ndarray) -> Finding:
    """Compare the probabilities of rows' categories with those of drawn ones.

    Args:
        rows: Log-probability of the categories of each row, nats, shape (n,).
        draws: That of drawn categories, shape (m,).

    Returns:
        The finding.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=200)
        >>> check_categories(rows, rows).verdict, check_categories(rows - 9, rows).verdict
        ('good', 'bad')
    """
    difference, p_value = _compare(torch.from_numpy(rows), torch.from_numpy(draws))
    measured = (
        f"rows' mean log-probability {rows.mean():.3f} nats, less that of draws {difference:+.3f}; p = {p_value:.2g}"
    )
    return Finding("categories", grade_test(p_value, abs(difference), fair=FAIR_NATS), measured, CATEGORIES)


def _compare(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return the difference of two means, and the p-value of Welch's test."""
    test = ttest_ind(first.numpy(force=True), second.numpy(force=True), equal_var=False)
    return float(first.mean() - second.mean()), float(test.pvalue)
