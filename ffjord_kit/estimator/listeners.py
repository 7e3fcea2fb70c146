"""Listeners to the validations of a fit: what is watched, and draws on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.watch import QUICK_SOLVER, Watch, watch_words
from ffjord_kit.estimator.data import TrainingData, tensor, to_numpy
from ffjord_kit.estimator.domain import Domain
from ffjord_kit.estimator.fields import CommonFields, TableFields
from ffjord_kit.estimator.scoring import to_data
from ffjord_kit.flow import Flow
from ffjord_kit.training.history import OnValidation

LEAST_COMPARED = 100  # held-out rows with which a flow in training is compared
SHOWN_SAMPLES = 64  # draws of a flow in training

OnSamples = Callable[[dict[str, Any], np.ndarray], None]


def watches(fields: CommonFields, flow: Flow, rows: TrainingData) -> list[OnValidation]:
    """Return listeners that look at what the fields ask for, beside the rows that were held out.

    Args:
        fields: Fields of the estimator.
        flow: Flow in training.
        rows: Training data.

    Returns:
        One listener, or none.
    """
    words = watch_words(fields.watch if isinstance(fields, TableFields) else None)
    compared = rows.fitting if rows.held_out is None or len(rows.held_out) < LEAST_COMPARED else rows.held_out
    return [Watch(flow, compared, words)] if words else []


def all_of(listeners: Sequence[OnValidation]) -> OnValidation | None:
    """Return one listener in the place of several.

    Args:
        listeners: The listeners.

    Returns:
        The listener; None for none.
    """

    def on_validation(record: dict[str, Any]) -> dict[str, Any]:
        return {name: value for listen in listeners for name, value in (listen(record) or {}).items()}

    return on_validation if listeners else None


def sampler(flow: Flow, domain: Domain, context: Tensor | None, seed: int, on_samples: OnSamples) -> OnValidation:
    """Return a listener to validations that draws, always from the same noise, given the first contexts.

    Args:
        flow: Flow in training.
        domain: Domain of the data.
        context: Contexts of the rows, or None.
        seed: Seed of the noise.
        on_samples: Called with the record of each validation, and some draws by few steps.

    Returns:
        The listener.
    """
    if context is None:
        implied = domain.contexts(None, SHOWN_SAMPLES, flow.context_dim)
        context = None if implied is None else tensor(implied)
    contexts = None if context is None else context[torch.arange(SHOWN_SAMPLES) % len(context)]

    def on_validation(record: dict[str, Any]) -> None:
        z = flow.base.sample(SHOWN_SAMPLES, torch.Generator().manual_seed(seed))
        on_samples(record, domain.drawn(to_numpy(to_data(flow, Batch(z, contexts), QUICK_SOLVER)), contexts))

    return on_validation
