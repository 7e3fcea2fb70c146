"""The small languages of the fields: schedule, regularizers, support and numbers, with errors that teach them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any, NamedTuple

from ffjord_kit.discrete import DISCRETE
from ffjord_kit.objectives import OBJECTIVES
from ffjord_kit.regularizers import REGULARIZERS


def choice(name: str, word: str, menu: Mapping[str, Any]) -> Any:
    """The entry of a menu. Raises ValueError that lists the words."""
    if word not in menu:
        raise ValueError(f"{name} must be one of {', '.join(menu)}; got {word!r}")
    return menu[word]


def positive(name: str, value: float) -> float:
    """The value. Raises ValueError where it is not positive."""
    if not value > 0:
        raise ValueError(f"{name} must be positive; got {value}")
    return value


def whole(name: str, value: int) -> int:
    """The value. Raises ValueError where it is no whole number from 1 on."""
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number, at least 1; got {value!r}")
    return int(value)


class Part(NamedTuple):
    """A phase as it is written: its objective's word, and its end by steps or by seconds, infinite where not told."""

    word: str
    steps: float = math.inf
    seconds: float = math.inf

    def __str__(self) -> str:
        return f"{self.word}:{self.seconds:g}s" if self.steps == math.inf else f"{self.word}:{self.steps}"


def schedule_of(text: str) -> list[Part]:
    """'flow_matching:4000,mle:60s' as its parts."""
    phases = [part.strip().partition(":") for part in text.split(",")]
    return [_part(text, word, length) for word, _, length in phases]


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


def _part(text: str, word: str, length: str) -> Part:
    seconds = _number(length[:-1]) if length.endswith("s") else math.nan
    if word in OBJECTIVES and 0 < seconds < math.inf:
        return Part(word, seconds=seconds)
    if word in OBJECTIVES and length.isdigit() and int(length) > 0:
        return Part(word, steps=int(length))
    raise ValueError(
        f"schedule must be 'auto', or read like 'flow_matching:4000,mle:60s', steps or seconds "
        f"({', '.join(OBJECTIVES)}); got {text!r}"
    )


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
