"""A data set: a table of numbers with names, and its true density where somebody knows it; or a set of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np


class DataWarning(UserWarning):
    """Data that can be read, but whose density is likely to be misjudged."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A table of n rows and d columns, float64, or a large one of float32 that stays in its file (`numpy.memmap`).

    `log_prob` maps (m, d) to the exact log-densities (m,) in nats, or is None where nobody knows them; `image_shape`
    is the shape of a row that is a flattened picture, or None.
    """

    name: str
    x: np.ndarray
    columns: tuple[str, ...]
    log_prob: Callable[[np.ndarray], np.ndarray] | None = None
    image_shape: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images (n, channels, height, width) of uint8, and their classes where they have any.

    `labels` (n,) of int64 count the names in `classes` from 0; without labels they are None and (). The levels fill
    the highest `bits` of a byte. The images may be a view whose memory lies in another order.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    bits: int = 8


class Columns(NamedTuple):
    """A table in two parts: x (n, d - k) with its columns, and the context (n, k) with its own."""

    x: np.ndarray
    context: np.ndarray
    columns: tuple[str, ...]
    context_columns: tuple[str, ...]


def split_columns(dataset: Dataset, names: Sequence[str]) -> Columns:
    """Separate the columns called `names`, the context, from the rest.

    A name is that of a column or, where no column is called so, an index written as text ("0" is the first column,
    "-1" the last). The context keeps the order of `names`, the rest the order of the table. Raises ValueError for an
    unknown name, a column named twice, or nothing left over.
    """
    chosen = [_position(name, dataset.columns) for name in names]
    _refuse_repeats(chosen, dataset.columns)
    rest = [i for i in range(len(dataset.columns)) if i not in chosen]
    if not rest:
        raise ValueError(f"all {len(chosen)} columns are context; leave at least one to be modelled")
    columns, context_columns = _pick(dataset.columns, rest), _pick(dataset.columns, chosen)
    return Columns(dataset.x[:, rest], dataset.x[:, chosen], columns, context_columns)


def default_columns(count: int) -> tuple[str, ...]:
    """Names x0, x1, ... of columns that have none."""
    return tuple(f"x{i}" for i in range(count))


def pixel_columns(shape: Sequence[int]) -> tuple[str, ...]:
    """Names pixel_0_0, pixel_0_1, ... of the columns of a flattened picture of this shape, row by row."""
    return tuple("_".join(["pixel", *map(str, index)]) for index in np.ndindex(*shape))


def listing(words: Sequence[str], *, limit: int = 8) -> str:
    """Words in one line, the first `limit` of them."""
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more


def suggestion(word: str, known: Sequence[str]) -> str:
    """Ask " (did you mean 'moons'?)" for the closest known word, or say nothing when none is close."""
    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _position(name: str, columns: tuple[str, ...]) -> int:
    if name in columns:
        return columns.index(name)
    count = len(columns)
    if _is_index(name) and -count <= int(name) < count:
        return int(name) % count
    raise ValueError(f"no column {name!r}{suggestion(name, columns)}; the columns are {listing(columns)}")


def _is_index(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _refuse_repeats(chosen: list[int], columns: tuple[str, ...]) -> None:
    for i in chosen:
        if chosen.count(i) > 1:
            raise ValueError(f"column {columns[i]!r} is named twice as context; name it once")


def _pick(columns: tuple[str, ...], positions: list[int]) -> tuple[str, ...]:
    return tuple(columns[i] for i in positions)
