"""The text forms of structured fields: schedule, transforms, regularizers, support, columns, dequantize and missing.

A text such as 'flow_matching:4000,mle:60s' becomes the value that the estimators take in Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ffjord_kit.columns.types import read_types, types_as_text
from ffjord_kit.words import OBJECTIVES, REGULARIZERS, ZUKO_TRANSFORMS


def parse_schedule(text: str) -> str | list[tuple[str, int | str]]:
    """Read the phases of training.

    Args:
        text: "auto", or phases in steps or seconds, e.g. "flow_matching:4000,mle:60s".

    Returns:
        The field `schedule`.

    Raises:
        ValueError: If the text cannot be read.

    Example:
        >>> parse_schedule("flow_matching:4000, mle:60s")
        [('flow_matching', 4000), ('mle', '60s')]
    """
    if text.strip() == "auto":
        return "auto"
    phases = [(word, _length(length)) for word, length in _pairs(text)]
    if not phases or any(word not in OBJECTIVES or length is None for word, length in phases):
        raise ValueError(
            f"schedule must be 'auto', or read like 'flow_matching:4000,mle:60s', steps or seconds "
            f"({', '.join(OBJECTIVES)}); got {text!r}"
        )
    return [(word, length) for word, length in phases if length is not None]


def parse_transforms(text: str) -> list[tuple[str, int]] | None:
    """Read a list of exact transforms.

    Args:
        text: Words and counts, e.g. "maf:3" or "nsf:2,maf:2"; empty for none.

    Returns:
        The field `transforms`.

    Raises:
        ValueError: If the text cannot be read.

    Example:
        >>> parse_transforms("nsf:2,maf:2")
        [('nsf', 2), ('maf', 2)]
    """
    pairs = _pairs(text)
    if any(word not in ZUKO_TRANSFORMS or not count.isdecimal() or int(count) == 0 for word, count in pairs):
        words = ", ".join(ZUKO_TRANSFORMS)
        raise ValueError(f"transforms must read like 'maf:3' or 'nsf:2,maf:2' ({words}); got {text!r}")
    return [(word, int(count)) for word, count in pairs] or None


def parse_regularizers(text: str) -> dict[str, float] | None:
    """Read the weights of costs along the path.

    Args:
        text: Words and weights, e.g. "kinetic:0.01,jacobian:0.01"; empty for none.

    Returns:
        The field `regularizers`.

    Raises:
        ValueError: If the text cannot be read.

    Example:
        >>> parse_regularizers("kinetic:0.01")
        {'kinetic': 0.01}
    """
    weights = {word: _number(weight) for word, weight in _pairs(text)}
    if any(word not in REGULARIZERS or not weight >= 0 for word, weight in weights.items()):
        words = ", ".join(REGULARIZERS)
        raise ValueError(f"regularizers must read like 'kinetic:0.01,jacobian:0.01' ({words}); got {text!r}")
    return weights or None


def parse_support(text: str) -> Any:
    """Read where the data live.

    Args:
        text: "real", "positive" or "bounded:LOW:HIGH", for all columns or one each, or by name, "income=positive".

    Returns:
        The field `support`.

    Raises:
        ValueError: If the text cannot be read.

    Example:
        >>> parse_support("real,bounded:0:1")
        ['real', ('bounded', 0.0, 1.0)]
        >>> parse_support("income=positive")
        {'income': 'positive'}
    """
    if "=" in text:
        return {name: _support(word) for name, word in _named(text, "support", "income=positive").items()}
    entries = [_support(word.strip()) for word in text.split(",")]
    return entries[0] if len(entries) == 1 else entries


def parse_columns(text: str) -> dict[str, str] | None:
    """Read the types of columns.

    Args:
        text: Names and types, e.g. "kids=integer,ra+dec=sphere:deg"; empty for none.

    Returns:
        The field `columns`.

    Raises:
        ValueError: If the text cannot be read.

    Example:
        >>> parse_columns("z=bounded:0:1, ra+dec=sphere:deg")
        {'z': 'bounded:0:1', 'ra+dec': 'sphere:deg'}
    """
    named = _named(text, "columns", "z=bounded:0:1,kids=integer,ra+dec=sphere:deg")
    read_types(named)
    return types_as_text(named) or None


def parse_dequantize(text: str) -> str | dict[str, float | None] | None:
    """Read the columns of equal steps that get noise.

    Args:
        text: "auto", or names with or without their steps, e.g. "age,score:0.5"; empty for none.

    Returns:
        The field `dequantize`.

    Raises:
        ValueError: If the text cannot be read.

    Example:
        >>> parse_dequantize("age,score:0.5")
        {'age': None, 'score': 0.5}
    """
    if text.strip() == "auto":
        return "auto"
    return dict(_step(part.strip()) for part in text.split(",") if part.strip()) or None


def parse_missing(text: str) -> list[float | str] | None:
    """Read the marks of missing cells.

    Args:
        text: Numbers and words, e.g. "-999,unknown"; empty for none.

    Returns:
        The field `missing`.

    Example:
        >>> parse_missing("-999,unknown")
        [-999.0, 'unknown']
    """
    marks = [part.strip() for part in text.split(",") if part.strip()]
    return [mark if math.isnan(_number(mark)) else _number(mark) for mark in marks] or None


def parse_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Read the fields that are written in a form of their own.

    Args:
        options: Options by name, as the command line gave them.

    Returns:
        Those of them that have a parser and are given, as the estimators take them.

    Raises:
        ValueError: If a text cannot be read.

    Example:
        >>> parse_fields({"schedule": "mle:5", "support": None, "hidden": (8,)})
        {'schedule': [('mle', 5)]}
    """
    return {name: parse(options[name]) for name, parse in PARSERS.items() if options.get(name) is not None}


def _pairs(text: str) -> list[tuple[str, str]]:
    """Split 'a:1,b:2' into pairs of texts."""
    parts = [part.strip().partition(":") for part in text.split(",")] if text.strip() else []
    return [(word.strip(), value.strip()) for word, _, value in parts]


def _named(text: str, field: str, example: str) -> dict[str, str]:
    """Split 'a=x,b=y' into texts by name; the last = of a part counts, as a name may hold one."""
    parts = [part.strip().rpartition("=") for part in text.split(",") if part.strip()]
    named = {name.strip(): value.strip() for name, _, value in parts}
    if any(not name.strip() or not value.strip() for name, _, value in parts) or len(named) < len(parts):
        raise ValueError(f"{field} must read like {example!r}, each column once; got {text!r}")
    return named


def _length(text: str) -> int | str | None:
    """Read '4000' as steps and '60s' as seconds; None if it is neither."""
    if text.endswith("s"):
        return text if 0 < _number(text[:-1]) < math.inf else None
    return int(text) if text.isdecimal() and int(text) > 0 else None


def _support(word: str) -> str | tuple[str, float, float]:
    """Read the support of one column."""
    kind, *limits = word.split(":")
    values = [_number(limit) for limit in limits]
    if kind in ("real", "positive") and not limits:
        return kind
    if kind == "bounded" and len(values) == 2 and values[0] < values[1] and all(map(math.isfinite, values)):
        return kind, values[0], values[1]
    raise ValueError(f"support must be 'real', 'positive' or 'bounded:LOW:HIGH'; got {word!r}")


def _step(part: str) -> tuple[str, float | None]:
    """Read a column's name and its step, None where it is to be found."""
    name, colon, step = (word.strip() for word in part.partition(":"))
    if colon and not 0 < _number(step) < math.inf:
        raise ValueError(f"dequantize must read like 'auto', 'age' or 'age,score:0.5', steps positive; got {part!r}")
    return name, float(step) if colon else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


PARSERS: dict[str, Callable[[str], Any]] = {
    "schedule": parse_schedule,
    "transforms": parse_transforms,
    "regularizers": parse_regularizers,
    "support": parse_support,
    "columns": parse_columns,
    "dequantize": parse_dequantize,
    "missing": parse_missing,
}
