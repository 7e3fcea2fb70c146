"""Contexts that an option gives in words: values of columns, by their order or by name, and classes of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ffjord_kit.cli.checks import parse_values
from ffjord_kit.columns.base import ColumnType
from ffjord_kit.columns.categories import Category
from ffjord_kit.datasets.dataset import listing
from ffjord_kit.estimator.tables.names import check_same_names
from ffjord_kit.run import Run

TRUTHS = {"false": "0", "true": "1"}  # truth values among contexts are numbers


def read_values(text: str, names: Sequence[str], types: Mapping[str, ColumnType]) -> np.ndarray:
    """Read the values of one context.

    Args:
        text: Values, as 40,Oslo or age=40,city=Oslo.
        names: Names of the fit's contexts, in their order.
        types: Types of those that are categories, by name.

    Returns:
        Numbers, shape (1, c); a level by its place.

    Raises:
        ValueError: If a name is missing, a level unknown, or a value no number.
    """
    parts = _in_order(text, names)
    kinds = [types.get(name) for name in names] if len(names) == len(parts) else [None] * len(parts)
    return np.array([[_number(part, kind) for part, kind in zip(parts, kinds, strict=True)]])


def is_named(text: str) -> bool:
    """Return whether a text gives values by name.

    Args:
        text: Text of the option.

    Returns:
        True for one like age=40, unless a file has that name.
    """
    return "=" in text and not Path(text).exists()


def read_labels(run: Run, text: str | None, count: int) -> np.ndarray:
    """Read labels of images from classes.

    Args:
        run: Run of images.
        text: Classes, by name or number.
        count: Number of images.

    Returns:
        Labels, shape (count,): the classes, repeated in turn.

    Raises:
        ValueError: If there are none, or one is unknown.
    """
    number = run.config["images"]["classes"]
    classes = [*map(str, run.config["data"].get("classes", []))] or [str(i) for i in range(number)]
    if text is None:
        raise ValueError(f"this run is conditional: pass --context with classes, e.g. {listing(classes)}")
    words = [word.strip() for word in text.split(",")]
    unknown = [word for word in words if word not in classes and not (word.isdecimal() and int(word) < number)]
    if unknown:
        raise ValueError(f"no class {unknown[0]!r}; the classes are {listing(classes, limit=20)}")
    labels = [classes.index(word) if word in classes else int(word) for word in words]
    return np.resize(np.array(labels, np.int64), count)


def _in_order(text: str, names: Sequence[str]) -> list[str]:
    """Return the values of one context in the order of the fit, as texts."""
    if not is_named(text):
        return [part.strip() for part in text.split(",")]
    values = parse_values(text, "--context")
    check_same_names(values, names)
    return [values[name] for name in names]


def _number(text: str, kind: ColumnType | None) -> float:
    """Return a number, or the place of a level."""
    if not isinstance(kind, Category):
        try:
            return float(TRUTHS.get(text.lower(), text))
        except ValueError:
            raise ValueError(f"--context must give numbers, such as age=40; got {text!r}") from None
    place = float(kind.codes(np.array([text], dtype=object))[0])
    if place < 0:
        levels = listing([str(level) for level in kind.levels or ()])
        raise ValueError(f"--context gives {text!r}, and the levels of the fit are {levels}")
    return place
