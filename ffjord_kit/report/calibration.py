"""Calibration and the verdicts of a diagnosis: does the model say what the held-out rows say?"""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np

from ffjord_kit.diagnostics import Diagnosis
from ffjord_kit.progress import OnProgress
from ffjord_kit.report.rounding import rounded
from ffjord_kit.report.subject import Rows, Subject

ROWS, LEAST = 500, 10
PARTS = 10  # of a diagnosis, which names each as it begins
PROBABILITIES = np.linspace(0.01, 0.99, 99)
COORDINATES = 16
BAND = 2.58  # standard errors: 99 % of a normal distribution
IMAGES = "The checks are for tables. Of images, compare the samples, and look at the errors of the bits per dimension."


def examine(subject: Subject, on_progress: OnProgress) -> dict[str, Any]:
    """Examine a model of a table on its held-out rows.

    Args:
        subject: Subject of the report.
        on_progress: Called with the number of parts done and of all parts.

    Returns:
        The verdict, the findings, and the curves of the calibration; or, under "missing", why there are none.
    """
    if subject.model.is_image:
        return {"missing": IMAGES}
    if not subject.model.domain.size:
        return {"missing": "All columns are categories, whose probabilities are exact: there is nothing to check."}
    if len(subject.log_prob) < LEAST:
        return {"missing": f"The checks need {LEAST} held-out rows; there are {len(subject.log_prob)}."}
    fitted, done = subject.fitted or Rows(None), count()
    found = subject.model.diagnose(
        subject.unseen.x, context=subject.unseen.context, X_train=fitted.x, context_train=fitted.context, rows=ROWS,
        seed=subject.seed, on_progress=lambda name: on_progress(min(next(done), PARTS), PARTS),
    )  # fmt: skip
    findings = [
        {"name": each.name, "verdict": each.verdict, "measured": each.measured, "remedy": each.remedy}
        for each in found.findings
    ]
    return {"verdict": found.verdict, "findings": findings, **_curves(found)}


def _curves(found: Diagnosis) -> dict[str, Any]:
    """Return how far shares of rows are from their probabilities, and the band that chance explains."""
    held_out, drawn = (each.numpy(force=True) for each in (found.log_densities, found.drawn_log_densities))
    rows, base = (each.flatten(1).numpy(force=True) for each in (found.at_base, found.base_draws))
    within = (held_out[:, None] >= np.quantile(drawn, 1 - PROBABILITIES)).mean(0)
    below = [
        np.searchsorted(np.sort(column), np.quantile(draw, PROBABILITIES)) / len(column)
        for column, draw in zip(rows.T[:COORDINATES], base.T, strict=False)
    ]
    band = BAND * np.sqrt(PROBABILITIES * (1 - PROBABILITIES) * (1 / len(held_out) + 1 / len(drawn)))
    return {
        "rows": len(held_out),
        "probability": rounded(PROBABILITIES),
        "band": rounded(band),
        "regions": rounded(within - PROBABILITIES),
        "base": [rounded(share - PROBABILITIES) for share in below],
    }
