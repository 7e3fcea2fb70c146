"""The flow of some draws, from noise to data."""

from __future__ import annotations

from typing import Any

import numpy as np

from ffjord_kit.report.rounding import rounded
from ffjord_kit.report.subject import Subject

TIMES = np.linspace(0.0, 1.0, 13)
NUMBERS, MOST = 100_000, 300  # numbers, paths


def flow(subject: Subject) -> dict[str, Any]:
    """Follow draws of a table from the base distribution to the data.

    Args:
        subject: Subject of the report.

    Returns:
        Times (T,) and by time and column the paths' states; or, under "missing", why there are none.
    """
    model, dimensions = subject.model, len(subject.columns)
    if model.domain.has_categories:
        return {"missing": "This table has columns of categories, which are drawn, and do not flow."}
    count = max(20, min(MOST, NUMBERS // (len(TIMES) * dimensions)))
    states = model.states(count, TIMES.tolist(), context=subject.contexts(count), random_state=subject.seed)
    columns = [rounded(states[:, :, place]) for place in range(dimensions)]
    return {"times": TIMES.tolist(), "x": [[column[time] for column in columns] for time in range(len(TIMES))]}
