"""The hyper-parameters of a latent ODE: each once, with its default and help; light, for the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from ffjord_kit.words import PRIORS, RECOGNITIONS


def option(default: Any, text: str, least: float | None = None) -> Any:
    """Return a field with the help that the command line shows.

    Args:
        default: Default value.
        text: Help.
        least: Least value of a number.

    Returns:
        The field of a dataclass.
    """
    return field(default=default, metadata={"help": text, "least": least})


@dataclass(eq=False)
class LatentODEFields:
    """Fields of `LatentODE`; `check_fields` checks them."""

    latent_dim: int = option(8, "dimension of the latent state", 1)
    hidden: int = option(32, "width of all networks", 1)
    recognition: str = option("gru", "network that reads a series backwards: gru, or ode_rnn, which is slower")
    prior: str = option("normal", "prior of the first state: normal, or flow, which also carries the posterior")
    events: bool = option(False, "model the times at which channels are seen too, by a Poisson process")
    residual: bool = option(
        True, "add what the dynamics leave over, as a Gaussian process of each channel (not with events)"
    )
    max_seconds: float = option(60.0, "CPU seconds of training, the last validation included", 0.0)
    max_steps: int | None = option(None, "largest number of training steps of each fit", 1)
    n_init: int | None = option(
        None,
        "fits from weights of their own, of which the best by series held out is kept (default: one for every 300 "
        "seconds, up to three)",
        1,
    )
    steps: int | None = option(
        None, "Runge-Kutta steps over the longest series (default: by its rows and turns, from 16 to 64)", 1
    )
    batch_size: int = option(64, "series of a training step", 1)
    learning_rate: float = option(1e-2, "peak learning rate", 0.0)
    validation_fraction: float = option(0.1, "share of the series held out to choose the weights; 0 for none", 0.0)
    random_state: int | None = option(None, "seed of everything random", 0)
    verbose: bool = option(False, "show a progress bar")


KINDS: dict[str, tuple[Any, str]] = {
    "int": (Integral, "a whole number"), "float": (Real, "a number"), "bool": (bool, "True or False"),
    "str": (str, "text"),
}  # fmt: skip


def check_fields(given: LatentODEFields) -> None:
    """Check the fields.

    Args:
        given: The fields.

    Raises:
        ValueError: If one has a wrong type or value; it is named.
    """
    for each in fields(LatentODEFields):
        _check(each.name, str(each.type), getattr(given, each.name), each.metadata["least"])
    if given.recognition not in RECOGNITIONS:
        raise ValueError(f"recognition must be one of {', '.join(RECOGNITIONS)}; got {given.recognition!r}")
    if given.prior not in PRIORS:
        raise ValueError(f"prior must be one of {', '.join(PRIORS)}; got {given.prior!r}")
    if not given.validation_fraction < 1:
        raise ValueError(f"validation_fraction must be below 1; got {given.validation_fraction}")
    if min(given.max_seconds, given.learning_rate) <= 0:
        raise ValueError(
            f"max_seconds and learning_rate must be above 0; got {given.max_seconds} and {given.learning_rate}"
        )
    if given.max_seconds == math.inf and given.max_steps is None:
        raise ValueError("training needs an end: pass max_steps, or a finite max_seconds")


def _check(name: str, annotation: str, value: Any, least: float | None) -> None:
    if value is None and annotation.endswith("None"):
        return
    kind, words = KINDS[annotation.removesuffix(" | None")]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} must be {words}; got {value!r}")
    if least is not None and not value >= least:
        raise ValueError(f"{name} must be at least {least:g}; got {value!r}")
