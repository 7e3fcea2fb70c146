"""Fits to rows with measurement errors of known size: which fits can take them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ffjord_kit.diagnostics.measurement import check_noise_std
from ffjord_kit.estimator.data import Arrays
from ffjord_kit.estimator.domain import Domain
from ffjord_kit.estimator.fields import CommonFields, TableFields, phase_specs
from ffjord_kit.estimator.tables.subsets import SubsetDomain
from ffjord_kit.estimator.tables.table import COLUMNWISE, MOST_STEPPED_COLUMNS, TableDomain
from ffjord_kit.training.distributed import Workers

NEEDS_STEPS = (
    f"pass up to {MOST_STEPPED_COLUMNS} columns and schedule='auto', or [('flow_matching', 2000), ('steps', 200)]"
)


def with_noise(arrays: Arrays, domain: Domain, fields: CommonFields, noise_std: Any, *, resume: bool = False) -> Arrays:
    """Return data of a fit with the deviations of their measurement errors.

    Args:
        arrays: Data.
        domain: Their domain.
        fields: Fields of the fit.
        noise_std: Deviations, as `check_noise_std` takes them.
        resume: Whether the fit goes on.

    Returns:
        The data.

    Raises:
        ValueError: If the deviations make no sense, or the fit cannot take them.
    """
    if noise_std is None:
        return arrays
    if not isinstance(domain, TableDomain) or not isinstance(fields, TableFields):
        raise ValueError("noise_std is for tables (FFJORD); images have the noise of their grey levels")
    if domain.all_types or isinstance(domain, SubsetDomain):
        raise ValueError("noise_std is for real columns: leave out their types (columns), and subsets")
    noise = check_noise_std(noise_std, (len(arrays.x), domain.size), domain.columns)
    if arrays.streamed or Workers.here().size > 1 or resume:
        raise ValueError("noise_std takes rows in memory, one process, and a fit in one go: it cannot be resumed")
    if np.isfinite(domain.bounds).any() or fields.dequantize is not None or fields.base == "student":
        raise ValueError("noise_std is for columns on the whole line, without support, dequantize and base='student'")
    if fields.scaling not in ("auto", *COLUMNWISE):
        raise ValueError(f"noise_std takes scaling {' or '.join(COLUMNWISE)}, or auto; got {fields.scaling!r}")
    auto = fields.schedule == "auto" and not fields.transforms and fields.validation_fraction
    if domain.size > MOST_STEPPED_COLUMNS or not (auto or _ends_in_steps(fields.schedule)):
        raise ValueError(f"noise_std needs few explicit steps: {NEEDS_STEPS}")
    return replace(arrays, noise=noise)


def _ends_in_steps(schedule: Any) -> bool:
    """Say whether the phases of a schedule end in explicit steps."""
    return schedule != "auto" and phase_specs(schedule)[-1].objective == "steps"
