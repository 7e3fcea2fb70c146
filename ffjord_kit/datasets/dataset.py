"""Tables, sets of images and densities in the plane: the types that the other modules read, draw and return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np

from ffjord_kit.columns.base import ColumnType

CHUNK = 1024  # points evaluated at a time, so that memory does not grow with the number of points
HORIZON = 1e100  # beyond it squared distances overflow, and log p is -inf in floating point


class DataWarning(UserWarning):
    """Data that can be read, but whose density is likely to be misjudged.

    Example:
        >>> import tempfile, warnings
        >>> from ffjord_kit.datasets import load
        >>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     np.savetxt(f"{folder}/pairs.csv", np.eye(2), delimiter=",", header="a,7", comments="")
        ...     _ = load(f"{folder}/pairs.csv")
        >>> print(str(caught[0].message).split(": ")[1].partition(";")[0])
        line 1 is read as the header, yet it holds '7'
    """


class Density(ABC):
    """A probability density on the plane that draws points and evaluates its exact log-density.

    x ~ p, and log p(x) is a closed form, or a quadrature that is converged to 1e-6 at any distance.

    Example:
        >>> from ffjord_kit.datasets.toys import checkerboard
        >>> density = checkerboard()
        >>> density.sample(3, np.random.default_rng(0)).shape
        (3, 2)
        >>> bool(np.isclose(density.log_prob(np.array([[-3.0, -3.0]]))[0], -np.log(32)))
        True
    """

    @abstractmethod
    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw independent points.

        Args:
            n: Number of points.
            rng: Source of all random numbers.

        Returns:
            Points, shape (n, 2).
        """

    @abstractmethod
    def _log_prob(self, x: np.ndarray) -> np.ndarray:
        """Evaluate the log-density of finite points: (n, 2) -> (n,)."""

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Evaluate the exact log-density.

        Args:
            x: Points, shape (n, 2).

        Returns:
            Log-densities in nats, shape (n,): -inf outside the support, nan where `x` is nan.

        Raises:
            ValueError: If `x` does not have shape (n, 2).
        """
        points = _as_points(x)
        result = np.where(np.isnan(points).any(axis=1), np.nan, -np.inf)
        inside = np.flatnonzero(np.all(np.abs(points) < HORIZON, axis=1))
        for start in range(0, len(inside), CHUNK):
            rows = inside[start : start + CHUNK]
            result[rows] = self._log_prob(points[rows])
        return result


@dataclass(frozen=True, eq=False)
class Dataset:
    """A table of n rows and d columns, with its exact density where that is known.

    Args:
        name: Name of the data set, or path of its file.
        x: Values, shape (n, d): float64, or float32 where a large file is mapped into memory (`numpy.memmap`).
        columns: Names of the d columns.
        log_prob: Exact log-density in nats, (m, d) -> (m,); None where it is unknown.
        image_shape: Shape of the picture that each row is flattened from; None for other tables.
        found: What was found in its file: rows, columns, and how it was read; empty for data of another origin.
        types: Types of the columns of texts, truth values and dates, by name; `x` holds numbers in their place.
        dropped: Names of columns that were left out.

    Example:
        >>> Dataset("pairs", np.zeros((5, 2)), ("a", "b")).x.shape
        (5, 2)
    """

    name: str
    x: np.ndarray
    columns: tuple[str, ...]
    log_prob: Callable[[np.ndarray], np.ndarray] | None = None
    image_shape: tuple[int, ...] | None = None
    found: str = ""
    types: Mapping[str, ColumnType] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def without(self, names: Sequence[str], *, missing_ok: bool = False) -> Dataset:
        """Return the table without some columns.

        Args:
            names: Columns to leave out, each by its name or, where no column has that name, by its index.
            missing_ok: Whether they are names alone, and may be missing.

        Returns:
            The table; its density is not known any more.

        Raises:
            ValueError: If a name is unknown, or no column is left.
        """
        if not names:
            return self
        kept = columns_without(self.columns, names, missing_ok=missing_ok)
        columns = _pick(self.columns, kept)
        dropped = tuple(name for name in self.columns if name not in columns)
        types = {name: kind for name, kind in self.types.items() if name in columns}
        return replace(
            self, x=self.x[:, kept], columns=columns, types=types, log_prob=None, image_shape=None, dropped=dropped
        )


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one shape, with their classes where they have labels.

    Args:
        name: Name of the set, or its path.
        images: Grey levels, uint8, shape (n, channels, height, width); possibly a view with another memory order.
        labels: Class of each image, int64, shape (n,), counted from 0; None without labels.
        classes: Names of the classes; empty without labels.
        bits: Number of bits in use: the levels fill the highest `bits` of a byte.

    Example:
        >>> ImageSet("black", np.zeros((2, 1, 4, 4), dtype=np.uint8), None, ()).images.shape
        (2, 1, 4, 4)
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    bits: int = 8


class Columns(NamedTuple):
    """A table divided into data `x` (n, d - k) and context (n, k), each with the names of its columns.

    Example:
        >>> parts = split_columns(Dataset("people", np.eye(3), ("age", "sex", "size")), ["sex"])
        >>> parts.columns, parts.x.tolist()
        (('age', 'size'), [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    """

    x: np.ndarray
    context: np.ndarray
    columns: tuple[str, ...]
    context_columns: tuple[str, ...]


def split_columns(dataset: Dataset, names: Sequence[str]) -> Columns:
    """Separate the context columns of a table from the rest.

    Args:
        dataset: Table with d columns.
        names: Context columns, each by its name or, where no column has that name, by its index written as text
            ("0" is the first column, "-1" the last).

    Returns:
        The two parts: the context in the order of `names`, the rest in the order of the table.

    Raises:
        ValueError: If a name is unknown, a column is named twice, or no column is left.

    Example:
        >>> parts = split_columns(Dataset("people", np.zeros((5, 3)), ("age", "sex", "size")), ["sex"])
        >>> parts.x.shape, parts.context.shape, parts.context_columns
        ((5, 2), (5, 1), ('sex',))
    """
    columns = dataset.columns
    positions = {name: i for i, name in reversed(list(enumerate(columns)))}
    chosen = [_position(name, columns, positions) for name in names]
    _check_named_once(chosen, columns)
    context = set(chosen)
    rest = [i for i in range(len(columns)) if i not in context]
    if not rest:
        raise ValueError(f"all {len(chosen)} columns are context; leave at least one to be modelled")
    return Columns(dataset.x[:, rest], dataset.x[:, chosen], _pick(columns, rest), _pick(columns, chosen))


def columns_without(columns: tuple[str, ...], names: Sequence[str], *, missing_ok: bool = False) -> list[int]:
    """Return the positions of the columns that are left after some are dropped.

    Args:
        columns: Names of the columns.
        names: Columns to leave out, by name or index.
        missing_ok: Whether they are names alone, and may be missing.

    Returns:
        The positions.

    Raises:
        ValueError: If a name is unknown, or no column is left.

    Example:
        >>> columns_without(("id", "age", "size"), ["id", "-1"])
        [1]
    """
    positions = {name: i for i, name in reversed(list(enumerate(columns)))}
    there = [name for name in names if name in positions or not missing_ok]
    left_out = {_position(name, columns, positions) for name in there}
    kept = [i for i in range(len(columns)) if i not in left_out]
    if not kept:
        raise ValueError(f"all {len(columns)} columns are dropped; leave at least one")
    return kept


def default_columns(count: int) -> tuple[str, ...]:
    """Return names for columns that have none.

    Args:
        count: Number of columns.

    Returns:
        The names x0, x1, ...

    Example:
        >>> default_columns(3)
        ('x0', 'x1', 'x2')
    """
    return tuple(f"x{i}" for i in range(count))


def pixel_columns(shape: Sequence[int]) -> tuple[str, ...]:
    """Return names for the columns of a flattened picture.

    Args:
        shape: Shape of the picture.

    Returns:
        The names pixel_0_0, pixel_0_1, ..., row by row.
    """
    return tuple("_".join(["pixel", *map(str, index)]) for index in np.ndindex(*shape))


def listing(words: Sequence[str], *, limit: int = 8) -> str:
    """Join words into one line for a message.

    Args:
        words: Words to list.
        limit: Number of words to show; the others are counted.

    Returns:
        For example "a, b and 3 more".
    """
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more


def suggestion(word: str, known: Sequence[str]) -> str:
    """Return a hint at the known word that is closest to a mistyped one.

    Args:
        word: Word that was not recognised.
        known: Words to compare with.

    Returns:
        For example " (did you mean 'moons'?)", or "" when no known word is close.
    """
    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _as_points(x: np.ndarray) -> np.ndarray:
    points = np.asarray(x, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"x must have shape (n, 2); got {points.shape}")
    return points


def _position(name: str, columns: tuple[str, ...], positions: dict[str, int]) -> int:
    if name in positions:
        return positions[name]
    count = len(columns)
    if _is_index(name) and -count <= int(name) < count:
        return int(name) % count
    raise ValueError(f"no column {name!r}{suggestion(name, columns)}; the columns are {listing(columns)}")


def _is_index(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _check_named_once(chosen: list[int], columns: tuple[str, ...]) -> None:
    seen: set[int] = set()
    for i in chosen:
        if i in seen:
            raise ValueError(f"column {columns[i]!r} is named twice as context; name it once")
        seen.add(i)


def _pick(columns: tuple[str, ...], positions: list[int]) -> tuple[str, ...]:
    return tuple(columns[i] for i in positions)
