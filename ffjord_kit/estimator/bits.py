"""Bits per dimension of a fitted model of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ffjord_kit.estimator.arrays import tensor
from ffjord_kit.estimator.build import IMAGE_PROBES
from ffjord_kit.estimator.reports import chunk_rows, contexts
from ffjord_kit.images import BitsPerDim, bits_per_dim

if TYPE_CHECKING:
    from ffjord_kit.estimator.ffjord import FFJORD


def image_bits(
    model: FFJORD,
    X: Any,
    *,
    context: Any = None,
    draws: int = 1,
    probes: int = IMAGE_PROBES,
    tell: Callable[[int, int], None] | None = None,
) -> BitsPerDim:
    """Bits per dimension of images X, (n, h, w) or (n, c, h, w) of uint8, with every error that the figure has.

    `draws` of the noise and `probes` of the trace; of one draw, what `score_samples` says in nats. `tell` is told of
    the solves done and of all. Raises ValueError for a model of a table.
    """
    if model.images is None:
        raise ValueError("image_bits is for images, and this model is of a table: take score_samples")
    given = contexts(model, context, len(X))
    told = None if given is None else tensor(given)
    how = {"draws": draws, "probes": probes, "solver": model.integration.solver, "tell": tell}
    return bits_per_dim(model.flow_, model.images.pixels(X), told, batch_size=chunk_rows(model), **how)
