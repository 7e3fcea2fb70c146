"""The small languages of the fields: schedule, regularizers and support, each parsed with an error that teaches it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ffjord_kit.discrete import DISCRETE
from ffjord_kit.objectives import OBJECTIVES
from ffjord_kit.regularizers import REGULARIZERS


def choice(name: str, word: str, menu: Mapping[str, Any]) -> Any:
    """The entry of a menu. Raises ValueError that lists the words."""
    if word not in menu:
        raise ValueError(f"{name} must be one of {', '.join(menu)}; got {word!r}")
    return menu[word]


def schedule_of(text: str) -> list[tuple[str, int]]:
    """'flow_matching:4000,mle:200' as [(word, steps)]."""
    phases = [part.strip().partition(":") for part in text.split(",")]
    return [(word, _steps(text, word, steps)) for word, _, steps in phases]


def layers_of(text: str) -> list[tuple[str, int]]:
    """'maf:3,nsf:2' as [(word, count)]; the empty text as []."""
    parts = [part.strip().partition(":") for part in text.split(",")] if text.strip() else []
    for word, _, count in parts:
        if word not in DISCRETE or not count.isdigit() or int(count) == 0:
            raise ValueError(f"layers must read like 'maf:3' or 'nsf:2,maf:2' ({', '.join(DISCRETE)}); got {text!r}")
    return [(word, int(count)) for word, _, count in parts]


def regularizers_of(text: str) -> dict[str, float]:
    """'kinetic:0.01,jacobian:0.01' as {word: weight}; the empty text as {}."""
    if not text.strip():
        return {}
    pairs = [part.strip().partition(":") for part in text.split(",")]
    return {word: _weight(text, word, weight) for word, _, weight in pairs}


def support_of(text: str, dimensions: int) -> list[tuple[float, float]]:
    """'real', 'positive' or 'bounded:LOW:HIGH', for all columns or one each, as [(lower, upper)], infinite if open."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, dimensions):
        raise ValueError(f"support must have one word for all {dimensions} columns, or one each; got {len(parts)}")
    bounds = [_bounds(part) for part in parts]
    return bounds * dimensions if len(bounds) == 1 else bounds


def _steps(text: str, word: str, steps: str) -> int:
    if word not in OBJECTIVES or not steps.isdigit() or int(steps) == 0:
        raise ValueError(
            f"schedule must read like 'flow_matching:4000,mle:200' ({', '.join(OBJECTIVES)}); got {text!r}"
        )
    return int(steps)


def _weight(text: str, word: str, weight: str) -> float:
    value = _number(weight)
    if word not in REGULARIZERS or not value >= 0:
        raise ValueError(
            f"regularizers must read like 'kinetic:0.01,jacobian:0.01' ({', '.join(REGULARIZERS)}); got {text!r}"
        )
    return value


def _bounds(word: str) -> tuple[float, float]:
    kind, *limits = word.split(":")
    values = [_number(limit) for limit in limits]
    if kind == "real" and not limits:
        return -math.inf, math.inf
    if kind == "positive" and not limits:
        return 0.0, math.inf
    if kind == "bounded" and len(limits) == 2 and values[0] < values[1] and all(map(math.isfinite, values)):
        return values[0], values[1]
    raise ValueError(f"support must be 'real', 'positive' or 'bounded:LOW:HIGH'; got {word!r}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
