"""The part of a flow that learns: discrete and continuous layers, their weights drawn by a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Integral
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ffjord_kit.activations import ACTIVATIONS
from ffjord_kit.base import Base
from ffjord_kit.cnf import CNF
from ffjord_kit.discrete import discrete_layer
from ffjord_kit.dynamics import DYNAMICS
from ffjord_kit.estimator.build import training_solver
from ffjord_kit.estimator.defaults import is_image
from ffjord_kit.estimator.fields import Fields
from ffjord_kit.estimator.words import choice, layers_of, whole
from ffjord_kit.flow import Flow
from ffjord_kit.images import IMAGE_DYNAMICS, multi_scale
from ffjord_kit.layers import Layer
from ffjord_kit.objectives import split

SLOW = 2.0  # angular frequency of time

Special = Mapping[str, Any]


def build_flow(
    fields: Fields, exact: list[Layer], base: Base, context_layer: Layer | None, event: Sequence[int], seed: int
) -> Flow:
    """An untrained flow over events of a shape: exact layers, discrete and continuous ones, and the base.

    The seed draws the weights; the global state of torch is left as it was.
    """
    context_dim = 0 if context_layer is None else context_layer.event_shape[0]
    with _drawn_by(seed):
        words = layers_of(fields.layers)
        if words and is_image(event):
            raise ValueError(f"layers are of tables; images take none: leave layers={fields.layers!r} out")
        discrete = [discrete_layer(word, count, event[0], context_dim) for word, count in words]
        blocks = _blocks(fields, event, context_dim)
    return Flow([*exact, *discrete, *blocks], base=base, context_dim=context_dim, context_layer=context_layer)


def slow_layers(fields: Fields, event: Sequence[int], context_dim: int, seed: int) -> list[CNF]:
    """The continuous layers alone, untrained, for fields that hardly change in time.

    The global state of torch is left as it was.
    """
    timed = fields.dynamics in ("residual", "unet")
    with _drawn_by(seed):
        return _blocks(fields, event, context_dim, {"highest": SLOW} if timed else {})


def with_middle(flow: Flow, middle: Sequence[Layer]) -> Flow:
    """The flow with other layers in the place of its continuous ones."""
    above, _, below = split(flow)
    kept = {"base": flow.base, "context_dim": flow.context_dim, "context_layer": flow.context_layer}
    return Flow([*above, *middle, *below], **kept)


@contextmanager
def _drawn_by(seed: int) -> Iterator[None]:
    """Weights made here are drawn by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _blocks(
    fields: Fields, event: Sequence[int], context_dim: int, special: Special = MappingProxyType({})
) -> list[CNF]:
    """The continuous layers, their networks made with `special` options too."""
    make, blocks = partial(_network, fields, context_dim, special), whole("blocks", fields.blocks)
    options = {
        "solver": training_solver(fields), "end_time": fields.end_time, "learn_end_time": fields.learn_end_time
    }  # fmt: skip
    if whole("scales", fields.scales) == 1:
        return [CNF(make(event), event, **options) for _ in range(blocks)]
    if not is_image(event):
        raise ValueError(f"scales are of images; got scales={fields.scales} for a table of {event[0]} columns")
    return multi_scale(event, make, scales=fields.scales, blocks=blocks, **options)


def _network(fields: Fields, context_dim: int, special: Special, event: Sequence[int]) -> nn.Module:
    hidden = tuple(fields.hidden) if isinstance(fields.hidden, Sequence) else ()
    if not hidden or any(not isinstance(width, Integral) or width < 1 for width in hidden):
        raise ValueError(f"hidden must be one or more positive widths; got {fields.hidden}")
    menu, options = (IMAGE_DYNAMICS if is_image(event) else DYNAMICS), {**special}
    network = choice("dynamics", fields.dynamics, menu)
    if fields.activation is not None:
        if fields.dynamics == "unet":
            raise ValueError(f"dynamics='unet' has its own activation: leave activation={fields.activation!r} out")
        options["activation"] = fields.activation
        choice("activation", fields.activation, ACTIVATIONS)
    if fields.octaves:
        if fields.dynamics != "residual":
            raise ValueError(f"octaves are inputs of dynamics='residual'; got dynamics={fields.dynamics!r}")
        options["octaves"] = whole("octaves", fields.octaves)
    return network(tuple(event), context_dim=context_dim, hidden=hidden, **options)
