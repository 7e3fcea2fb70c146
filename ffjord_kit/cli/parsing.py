"""The small languages of the command line: text of options to the values that Python takes."""

from __future__ import annotations

import math
from typing import Any


def parse_schedule(text: str) -> Any:
    """Read phases of training.

    Args:
        text: "auto", or phases such as "flow_matching:4000,mle:60s", in steps or seconds.

    Returns:
        "auto", or a list of pairs.

    Raises:
        ValueError: If a phase has no length.

    Example:
        >>> parse_schedule("flow_matching:4000,mle:60s")
        [('flow_matching', 4000), ('mle', '60s')]
    """
    if text.strip() == "auto":
        return "auto"
    form = "schedule must be 'auto', or read like 'flow_matching:4000,mle:60s', steps or seconds"
    return [(word, int(length) if length.isdigit() else length) for word, length in _pairs(text, form)]


def parse_transforms(text: str) -> list[tuple[str, int]]:
    """Read exact transforms.

    Args:
        text: Words and counts such as "maf:3" or "nsf:2,maf:2"; empty for none.

    Returns:
        A list of pairs.

    Raises:
        ValueError: If a count is no whole number.

    Example:
        >>> parse_transforms("nsf:2,maf:1")
        [('nsf', 2), ('maf', 1)]
    """
    form = "transforms must read like 'maf:3' or 'nsf:2,maf:2'"
    pairs = _pairs(text, form)
    if not all(count.isdigit() for _, count in pairs):
        raise ValueError(f"{form}; got {text!r}")
    return [(word, int(count)) for word, count in pairs]


def parse_regularizers(text: str) -> dict[str, float]:
    """Read weights of costs along the path.

    Args:
        text: Words and weights such as "kinetic:0.01,jacobian:0.01"; empty for none.

    Returns:
        Weights by word.

    Raises:
        ValueError: If a weight is no number.

    Example:
        >>> parse_regularizers("kinetic:0.01")
        {'kinetic': 0.01}
    """
    form = "regularizers must read like 'kinetic:0.01,jacobian:0.01'"
    return {word: _number(weight, form, text) for word, weight in _pairs(text, form)}


def parse_support(text: str) -> Any:
    """Read the support of the columns.

    Args:
        text: "real", "positive" or "bounded:LOW:HIGH", one for all columns or one each, separated by commas.

    Returns:
        A value for all columns, or a list with one each.

    Raises:
        ValueError: If a bound is no number.

    Example:
        >>> parse_support("real,bounded:0:1")
        ['real', ('bounded', 0.0, 1.0)]
    """
    values = [_support(part.strip(), text) for part in text.split(",")]
    return values[0] if len(values) == 1 else values


def parse_dequantize(text: str) -> Any:
    """Read the columns of equal steps.

    Args:
        text: "auto", or names and steps such as "age,score:0.5"; empty for none.

    Returns:
        None, "auto", or steps by name, None for a step to be found.

    Raises:
        ValueError: If a step is no positive number.

    Example:
        >>> parse_dequantize("age,score:0.5")
        {'age': None, 'score': 0.5}
    """
    if not text.strip():
        return None
    if text.strip() == "auto":
        return "auto"
    form = "dequantize must read like 'auto', 'age' or 'age,score:0.5', steps positive"
    steps: dict[str, float | None] = {}
    for part in text.split(","):
        name, colon, step = (word.strip() for word in part.partition(":"))
        steps[name] = _number(step, form, text) if colon else None
        if colon and not 0 < (steps[name] or 0.0) < math.inf:
            raise ValueError(f"{form}; got {text!r}")
    return steps


def _support(text: str, whole: str) -> Any:
    kind, *limits = text.split(":")
    form = "support must be 'real', 'positive' or 'bounded:LOW:HIGH'"
    if limits and kind != "bounded":
        raise ValueError(f"{form}; got {whole!r}")
    return (kind, *(_number(limit, form, whole) for limit in limits)) if limits else kind


def _pairs(text: str, form: str) -> list[tuple[str, str]]:
    """Split "a:1,b:2" into pairs of words."""
    pairs = []
    for part in text.split(",") if text.strip() else []:
        word, colon, value = (piece.strip() for piece in part.partition(":"))
        if not colon or not word or not value:
            raise ValueError(f"{form}; got {text!r}")
        pairs.append((word, value))
    return pairs


def _number(text: str, form: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"{form}; got {whole!r}")
    return value
