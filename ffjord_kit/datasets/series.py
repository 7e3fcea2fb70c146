r"""Irregular series: files in long form, and the bi-directional spirals of Chen et al. (2018), section 5.1.

A file in long form has a header and one row for each series and time: the name of the series, the time, and a column
for each channel, empty where it was not seen. The rows of a series stand in the order of their times.

The spirals are two curves for 0 <= s <= 6 pi, one run through clockwise and one counter-clockwise:

    x(s) = (r cos a - 5, r sin a),    a = 1 + 6 pi - s,    r = 15 / a        clockwise
    x(s) = (r cos s + 5, r sin s),    r = 0.3 s                              counter-clockwise

A series is a piece of one of them at 100 of 1,000 equal steps of s, some of whose points are seen, with normal noise.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ffjord_kit.atomic import replacing
from ffjord_kit.datasets.cells import MISSING_WORDS
from ffjord_kit.datasets.files import check_readable, in_data_folder
from ffjord_kit.datasets.splits import random_stream
from ffjord_kit.datasets.validation import check_distinct_names

if TYPE_CHECKING:
    import pandas as pd

SPIRAL_STEPS, PIECE = 1000, 100  # of the whole curve, and of a series
TEXT_SUFFIXES = (".csv", ".tsv")


class SeriesTable(NamedTuple):
    """Series of the same channels.

    Attributes:
        channels: Names of the channels.
        names: Names of the series.
        series: Times (T,) and values (T, channels) of each, NaN where a value is missing.
    """

    channels: tuple[str, ...]
    names: tuple[str, ...]
    series: list[tuple[np.ndarray, np.ndarray]]


def read_series(source: str) -> SeriesTable:
    """Read series from a file in long form, or make the spirals.

    Args:
        source: Path of a .csv or .tsv file, or "spirals".

    Returns:
        The series, in the order in which they begin in the file.

    Raises:
        ValueError: If there is no such file, or a cell is not a number.
    """
    check_series_source(source)
    if source == "spirals":
        return spirals()
    path = in_data_folder(source)
    cells = _read_cells(path)
    names = cells.iloc[:, 0].str.strip()
    if (names == "").any():
        raise ValueError(f"{source}: line {2 + int((names == '').argmax())} has no name of a series: give it one")
    numbers = np.stack([_numbers(source, cells.iloc[:, j]) for j in range(1, cells.shape[1])], axis=1)
    if np.isnan(numbers[:, 0]).any():
        raise ValueError(
            f"{source}: line {2 + int(np.isnan(numbers[:, 0]).argmax())} has no time: drop or mend the line"
        )
    groups = {name: np.flatnonzero(names == name) for name in dict.fromkeys(names)}
    series = [(numbers[rows, 0], numbers[rows, 1:]) for rows in groups.values()]
    return SeriesTable(tuple(cells.columns[2:]), tuple(groups), series)


def check_series_source(source: str) -> None:
    """Check that a file of series is there, without reading it.

    Args:
        source: Path of a .csv or .tsv file, or "spirals".

    Raises:
        ValueError: If there is none.
    """
    if source == "spirals":
        return
    if Path(source).suffix.lower() not in TEXT_SUFFIXES:
        raise ValueError(
            f"series come from a .csv or .tsv file (series, time, channels), or are 'spirals'; got {source!r}"
        )
    check_readable(source)


def select_channels(table: SeriesTable, channels: Sequence[str]) -> SeriesTable:
    """Return series with their channels in a given order, missing ones as NaN.

    Args:
        table: Series.
        channels: Names of the channels wanted.

    Returns:
        The series with these channels.

    Raises:
        ValueError: If the series have other channels too.
    """
    unknown = [name for name in table.channels if name not in channels]
    if unknown:
        raise ValueError(f"expected the channels {', '.join(channels)}; got {unknown[0]!r}: rename or drop it")
    series = []
    for times, values in table.series:
        columns = [values[:, table.channels.index(c)] if c in table.channels else np.nan * times for c in channels]
        series.append((times, np.stack(columns, axis=1)))
    return SeriesTable(tuple(channels), table.names, series)


def write_series(path: str | os.PathLike[str], table: SeriesTable) -> None:
    """Write series to a file in long form, whole or not at all.

    Args:
        path: Path of a .csv or .tsv file.
        table: Series.
    """
    import pandas as pd

    rows = [
        [name, *row] for name, (t, x) in zip(table.names, table.series, strict=True) for row in np.c_[t, x].tolist()
    ]
    frame = pd.DataFrame(rows, columns=["series", "time", *table.channels])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(path)) as temporary:
        frame.to_csv(temporary, index=False, sep="\t" if Path(path).suffix.lower() == ".tsv" else ",")


def spirals(count: int = 1000, *, points: int = 50, noise: float = 0.3, ahead: int = 0, seed: int = 0) -> SeriesTable:
    """Make bi-directional spirals, each seen at random points of its piece.

    Args:
        count: Number of series.
        points: Points seen of each, at most 100; the first is always among them.
        noise: Standard deviation of the noise.
        ahead: Steps for which each curve goes on after its piece; see `spiral_curves`.
        seed: Seed of everything random.

    Returns:
        The series, with channels x and y; a time of 1 is one step.

    Raises:
        ValueError: If `points` is not between 2 and 100.

    Example:
        >>> spirals(3, points=30).series[0][1].shape
        (30, 2)
    """
    if not 2 <= points <= PIECE:
        raise ValueError(f"points must be 2 to {PIECE}, those of a piece; got {points}")
    rng, series = random_stream(seed, "noise"), []
    for curve in spiral_curves(count, ahead=ahead, seed=seed):
        seen = np.sort(np.r_[0, 1 + rng.choice(PIECE - 1, points - 1, replace=False)])
        series.append((seen.astype(float), curve[seen] + noise * rng.standard_normal((points, 2))))
    return SeriesTable(("x", "y"), tuple(map(str, range(count))), series)


def spiral_curves(count: int, *, ahead: int = 0, seed: int = 0) -> np.ndarray:
    """Return the curves of `spirals` without noise, at the times 0, 1, 2, ...

    Args:
        count: Number of curves.
        ahead: Steps beyond the pieces that the series are taken from.
        seed: Seed, as for `spirals`.

    Returns:
        Points, shape (count, 100 + ahead, 2).

    Example:
        >>> spiral_curves(3, ahead=100).shape
        (3, 200, 2)
    """
    rng, length = random_stream(seed, "train"), PIECE + ahead
    s = np.linspace(0, 6 * np.pi, SPIRAL_STEPS)
    angle = 1 + 6 * np.pi - s
    clockwise = 15 / angle * np.array([np.cos(angle), np.sin(angle)]) - [[5.0], [0.0]]
    counter = 0.3 * s * np.array([np.cos(s), np.sin(s)]) + [[5.0], [0.0]]
    curves = np.stack([clockwise.T, counter.T])
    first = rng.integers(PIECE, SPIRAL_STEPS - length, count)
    turn = rng.integers(0, 2, count)
    return curves[turn[:, None], first[:, None] + np.arange(length)]


def _read_cells(path: str) -> pd.DataFrame:
    """Read the cells of a text file as text, with the header's names."""
    import pandas as pd

    separator = "\t" if Path(path).suffix.lower() == ".tsv" else ","
    try:
        cells = pd.read_csv(path, sep=separator, header=None, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:  # among them pandas' own errors, and text that is not UTF-8
        raise ValueError(f"{path} cannot be read as a table of text: {' '.join(str(error).split())}") from error
    if cells.shape[1] < 3 or len(cells) < 2:
        raise ValueError(
            f"{path}: expected a header and rows of series, time and one channel or more; got {len(cells)} lines of "
            f"{cells.shape[1]} columns: add what is missing"
        )
    names = [str(name).strip() for name in cells.iloc[0]]
    check_distinct_names(str(path), names)
    return cells.iloc[1:].set_axis(names, axis=1)


def _numbers(source: str, cells: pd.Series) -> np.ndarray:
    """Return the cells of a column as numbers, NaN where they are empty."""
    import pandas as pd

    text = cells.str.strip().str.lower()
    numbers = pd.to_numeric(text.where(~text.isin(MISSING_WORDS), "nan"), errors="coerce").to_numpy(float)
    bad = np.flatnonzero(np.isnan(numbers) & ~text.isin(MISSING_WORDS).to_numpy())
    if len(bad):
        raise ValueError(
            f"{source}: column {cells.name!r}, line {2 + bad[0]}: expected a number, or nothing where the value is "
            f"missing; got {str(cells.iloc[bad[0]])[:20]!r}: mend it"
        )
    return numbers
