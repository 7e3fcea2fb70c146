"""What a fit is made of, all of it built before any training: rows, flow, schedule and the loop's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ffjord_kit.estimator import build
from ffjord_kit.estimator.arrays import Rows, fitting_rows, held_out_rows, tensor
from ffjord_kit.estimator.checks import check_columns, check_support
from ffjord_kit.estimator.defaults import check_open, settled
from ffjord_kit.estimator.edges import fitted_base, fitted_layers
from ffjord_kit.estimator.fields import Fields
from ffjord_kit.estimator.given import Given
from ffjord_kit.estimator.images import fitting_part, split_of
from ffjord_kit.estimator.networks import build_flow
from ffjord_kit.estimator.words import support_of
from ffjord_kit.flow import Flow
from ffjord_kit.images import Chosen
from ffjord_kit.layers import Standardize
from ffjord_kit.training import Phase
from ffjord_kit.training.compiled import check_mode
from ffjord_kit.training.parts import check_parts
from ffjord_kit.training.workers import found


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

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of a row or an image."""
        return self.flow.event_shape


def plan(fields: Fields, given: Given, seed: int, chosen: Mapping[str, Any]) -> Plan:
    """Everything that a fit is made of; every field is used once, those that are left open as `chosen`.

    Raises ValueError for fields or rows that cannot be used.
    """
    if given.images is None:
        check_columns(given.x, given.names, heavy_tails=fields.base == "student")
        check_support(given.x, support_of(fields.support, given.x.shape[1]), given.names)
    check_open(fields)
    check_mode(fields.compile)
    now = settled(fields, chosen, given.event)
    build.reporting(now, given.event)
    schedule, options = build.build_schedule(now, given.event), build.training_options(now, given.event)
    if fields.schedule == "auto":
        schedule = [replace(phase, trial=phase.objective.name == "mle") for phase in schedule]
    rows, fitting, held_out = _table(now, given, seed) if given.images is None else _pixels(now, given, seed)
    workers = found()
    check_parts(options["micro_batches"] or workers.size, min(options["batch_size"], len(rows[0])), workers)
    return Plan(untrained(now, *fitting, seed), rows, fitting, held_out, schedule, options)


def untrained(fields: Fields, x: Tensor, context: Tensor | None, seed: int) -> Flow:
    """The flow that settled fields name, its fitted layers fitted to x (n, *event), where training shall be."""
    scaling = None if context is None else Standardize.of(context)
    exact = fitted_layers(fields, x)
    flow = build_flow(fields, exact, fitted_base(fields, exact, x), scaling, x.shape[1:], seed)
    laid_out = flow.to(memory_format=torch.channels_last) if fields.channels_last else flow
    return build.on_device(laid_out, build.build_device(fields.device))


def _table(fields: Fields, given: Given, seed: int) -> tuple[Rows, tuple[Tensor, Tensor | None], Rows | None]:
    rows, held_out = held_out_rows(
        given.x, given.context, fields.validation_fraction, seed, stream=given.stream
    )  # fmt: skip
    return rows, fitting_rows(rows), held_out


def _pixels(fields: Fields, given: Given, seed: int) -> tuple[Rows, tuple[Tensor, Tensor | None], Rows | None]:
    """Images to train on, some with noise to fit layers to, and those held out with noise that stays."""
    pixels, generator = given.images.pixels(given.images.framed(given.x)), torch.Generator().manual_seed(seed)
    train, held_out = split_of(len(pixels), given.x[0].size, fields.validation_fraction, seed)
    context = None if given.context is None else tensor(given.context)

    def told(which: Tensor) -> Tensor | None:
        return None if context is None else context[which]

    some = train[fitting_part(len(train), pixels.shape[1:])]
    judges = (pixels.fetch(held_out, generator), told(held_out)) if len(held_out) else None
    fitting = pixels.fetch(some, generator), told(some)
    return (Chosen(pixels, train, fields.flip), told(train)), fitting, judges
