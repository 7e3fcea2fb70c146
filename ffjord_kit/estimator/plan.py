"""What a fit is made of, all of it built before any training: rows, flow, schedule and the loop's options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ffjord_kit.estimator import build
from ffjord_kit.estimator.arrays import Rows, fitting_rows, held_out_rows
from ffjord_kit.estimator.checks import check_columns, check_support
from ffjord_kit.estimator.fields import Fields
from ffjord_kit.estimator.words import support_of
from ffjord_kit.flow import Flow
from ffjord_kit.layers import Standardize
from ffjord_kit.training import Phase
from ffjord_kit.training.compiled import check_mode


class Plan(NamedTuple):
    """The untrained flow, the rows to train on and to hold out, the schedule, and the options of `training.fit`.

    `fitting` are the rows that layers are fitted to: those to train on, or some of them where they are streamed.
    """

    flow: Flow
    rows: Rows
    fitting: tuple[Tensor, Tensor | None]
    held_out: Rows | None
    schedule: list[Phase]
    options: dict[str, Any]


def plan(
    fields: Fields,
    x: np.ndarray,
    context: np.ndarray | None,
    names: Sequence[str],
    seed: int,
    chosen: Mapping[str, Any],
    *,
    stream: bool = False,
) -> Plan:
    """Everything that a fit of x (n, d), context (n, c), is made of; every field is used once.

    Fields that are left open are as `chosen`; with `stream` the rows to train on stay where they are.
    Raises ValueError for fields or rows that cannot be used.
    """
    check_columns(x, names, heavy_tails=fields.base == "student")
    check_support(x, support_of(fields.support, x.shape[1]), names)
    build.reporting(fields)
    build.check_open(fields)
    check_mode(fields.compile)
    now = build.settled(fields, chosen, x.shape[1])
    schedule, options = build.build_schedule(now, x.shape[1]), build.training_options(now, x.shape[1])
    if fields.schedule == "auto":
        schedule = [replace(phase, trial=phase.objective.name == "mle") for phase in schedule]
    rows, held_out = held_out_rows(x, context, now.validation_fraction, seed, stream=stream)
    fitting = fitting_rows(rows)
    return Plan(untrained(now, *fitting, seed), rows, fitting, held_out, schedule, options)


def untrained(fields: Fields, x: Tensor, context: Tensor | None, seed: int) -> Flow:
    """The flow that settled fields name, its fitted layers fitted to x (n, d), where training shall be."""
    scaling = None if context is None else Standardize.of(context)
    exact = build.fitted_layers(fields, x)
    flow = build.build_flow(fields, exact, build.fitted_base(fields, exact, x), scaling, x.shape[1], seed)
    return build.on_device(flow, build.build_device(fields.device))
