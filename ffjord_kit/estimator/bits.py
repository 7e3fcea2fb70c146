"""Bits per dimension of a fitted model of images, and the classifier that a conditional one is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ffjord_kit.estimator.arrays import tensor
from ffjord_kit.estimator.build import IMAGE_PROBES
from ffjord_kit.estimator.reports import checked, chunk_rows, contexts, evaluate_rows
from ffjord_kit.images import BitsPerDim, bits_per_dim, class_log_probs

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
    check_is_fitted(model, "flow_")
    if model.images is None:
        raise ValueError("image_bits is for images, and this model is of a table: take score_samples")
    given = contexts(model, context, len(X))
    told = None if given is None else tensor(given)
    how = {"draws": draws, "probes": probes, "solver": model.integration.solver, "tell": tell}
    return bits_per_dim(model.flow_, model.images.pixels(X), told, batch_size=chunk_rows(model), **how)


def class_probabilities(model: FFJORD, X: Any) -> np.ndarray:
    """P(c | x) of images X by Bayes' rule, all classes being as likely before, (n, classes).

    Raises ValueError for a model that was not told classes.
    """
    check_is_fitted(model, "flow_")
    if model.images is None or not model.images.classes:
        raise ValueError("class_probabilities needs a model of images that was fitted with context=labels")
    x, _, _ = checked(model, X, 0)  # of any class: the images alone are wanted

    def log_prob(x: Tensor, told: Tensor) -> Tensor:
        return torch.from_numpy(evaluate_rows(model, x, told).log_prob)

    return class_log_probs(log_prob, x, model.images.classes).exp().numpy()
