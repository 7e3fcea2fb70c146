"""The ends of a flow, which are fitted before any training: the layers next to the data, and the base.

Rows (d,) are opened from their support and scaled; images (c, h, w) are brought from grey levels to the whole line, and
each channel to mean 0 and variance 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ffjord_kit.base import Base
from ffjord_kit.estimator.defaults import is_image
from ffjord_kit.estimator.fields import Fields
from ffjord_kit.estimator.words import choice, support_of
from ffjord_kit.heavy_tails import BASES
from ffjord_kit.images import IMAGE_SCALINGS
from ffjord_kit.layers import Affine, Layer, Logit, Softplus, Standardize
from ffjord_kit.scalings import SCALINGS


def fitted_layers(fields: Fields, x: Tensor) -> list[Layer]:
    """The exact layers for data x (n, *event) in float64: support first, then scaling; images by their channels."""
    if is_image(x.shape[1:]):
        opened = _opening(fields, x.shape[1:])
        z, _ = opened.to_base(x)
        sizes = z.transpose(0, 1).flatten(1)
        mean, scale = (part[:, None, None].expand(x.shape[1:]).clone() for part in (sizes.mean(1), sizes.std(1)))
        return [opened, Standardize(mean, torch.where(scale > 0, scale, 1.0))]
    layers = _support_layers(fields, x.shape[1])
    for layer in layers:
        x, _ = layer.to_base(x)
    return [*layers, *[make(x) for make in _scaling(fields)[:1]]]


def blank_layers(fields: Fields, event: Sequence[int]) -> list[Layer]:
    """The same layers before any data, to load weights into."""
    zeros = torch.zeros(*event, dtype=torch.float64)
    if is_image(event):
        return [_opening(fields, event), Standardize(zeros, torch.ones_like(zeros))]
    return [*_support_layers(fields, event[0]), *[make(zeros) for make in _scaling(fields)[1:]]]


def blank_aligning(config: Mapping[str, Any], event: Sequence[int]) -> list[Layer]:
    """The affine layers of a run's straightenings, to load weights into."""
    aligned = sum("aligned" in note for note in config.get("straightened", []))
    size = math.prod(event)
    return [
        Affine(*(torch.zeros(shape, dtype=torch.float64) for shape in (event, (size, size)))) for _ in range(aligned)
    ]


def fitted_base(fields: Fields, exact: list[Layer], x: Tensor) -> Base:
    """The base for data x (n, *event) in float64 that exact layers have brought near it."""
    for layer in exact:
        x, _ = layer.to_base(x)
    return choice("base", fields.base, BASES)[0](x)


def blank_base(fields: Fields, event: Sequence[int]) -> Base:
    """The same before any data, to load weights into."""
    return choice("base", fields.base, BASES)[1](tuple(event))


def _opening(fields: Fields, event: Sequence[int]) -> Layer:
    """From grey levels of so many bits to the whole line."""
    return choice("scaling", fields.scaling, IMAGE_SCALINGS)(tuple(event), bits=fields.bits, alpha=fields.alpha)


def _scaling(fields: Fields) -> tuple[Callable[[Tensor], Layer], ...]:
    """How to make the scaling layer: from data, and blank from zeros (d,); nothing for 'none'."""
    return choice("scaling", fields.scaling, SCALINGS)


def _support_layers(fields: Fields, dimensions: int) -> list[Layer]:
    bounds = torch.tensor(support_of(fields.support, dimensions), dtype=torch.float64)
    lower, upper = bounds.unbind(1)
    bounded, positive = upper.isfinite(), lower.isfinite() & ~upper.isfinite()
    layers: list[Layer] = []
    if bool(bounded.any()):
        layers.append(Logit(torch.where(bounded, lower, -math.inf), upper))
    if bool(positive.any()):
        layers.append(Softplus(torch.where(positive, lower, -math.inf)))
    return layers
