"""What a field that is left open becomes: the choice for rows of so many columns, or for images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ffjord_kit.estimator.fields import Fields

OPEN = ("auto", None)
FEW_COLUMNS = 3
NARROW, WIDE = (64, 64, 64), (128, 128, 128)
LEVELS = ((8, (32, 48)), (32, (32, 64, 64)), (math.inf, (32, 64, 128, 128)))  # widths of a U-Net by an image's side


def is_image(event: Sequence[int]) -> bool:
    """Whether events of this shape are images (c, h, w), not rows (d,)."""
    return len(event) == 3


def defaults(event: Sequence[int], base: str = "normal") -> dict[str, Any]:
    """What a field that is left open is where nothing is tried out, for events of this shape."""
    return _of_images(event) if is_image(event) else _of_rows(event[0], base)


def settled(fields: Fields, chosen: Mapping[str, Any], event: Sequence[int]) -> Fields:
    """The fields with those that were left open as `chosen`, or as the defaults for events of this shape."""
    words = {f.name: getattr(fields, f.name) for f in dataclasses.fields(Fields)}
    ours = {**defaults(event, fields.base), **chosen}
    if fields.scales > 1 and "schedule" not in chosen:
        ours["schedule"] = "mle:2000"
    if fields.solver is not None:
        ours.pop("steps", None)  # they go with the solver
    left_open = {name: word for name, word in ours.items() if words[name] in OPEN}
    return Fields(**{**words, **left_open})


def check_open(fields: Fields) -> None:
    """Raise ValueError for a limit in time that is not positive, or that no schedule keeps."""
    if fields.max_seconds is None:
        return
    if fields.schedule != "auto":
        raise ValueError(
            f"max_seconds is for schedule='auto': give the seconds in the schedule, e.g. 'mle:{fields.max_seconds:g}s'"
        )
    if not 0 < fields.max_seconds < math.inf:
        raise ValueError(f"max_seconds must be positive and finite; got {fields.max_seconds}")


def _of_rows(dimensions: int, base: str) -> dict[str, Any]:
    hidden = NARROW if dimensions <= FEW_COLUMNS else WIDE
    scaling = "robust" if base == "student" else "standardize"
    words = {"schedule": "flow_matching:4000", "time_density": "uniform", "scaling": scaling, "dynamics": "residual"}
    trained = {"solver": "dopri5", "gradient": "backprop", "learning_rate": 8e-3, "batch_size": 512}
    return {**words, **trained, "octaves": 0, "hidden": hidden}


def _of_images(event: Sequence[int]) -> dict[str, Any]:
    hidden = next(widths for side, widths in LEVELS if max(event[1:]) <= side)
    words = {"schedule": "flow_matching:4000", "time_density": "likelihood", "scaling": "logit", "dynamics": "unet"}
    trained = {"solver": "rk4", "gradient": "checkpointed", "learning_rate": 2e-3, "batch_size": 64}
    return {**words, **trained, "steps": 4, "octaves": 0, "hidden": hidden}
