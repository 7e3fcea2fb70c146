"""Irregular series: values of channels at times of their own, checked once, and padded to a batch.

A missing value is NaN. A row without any value says that the series was watched then, and nothing was seen: it may
stand first or last, to open or to close the window in which events are counted.

In a batch of n series, `x` holds the values, shape (n, T, channels), NaN after the end of a series, and `context` the
times since each first time, shape (n, T), which stand still after the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.data import Batch


@dataclass(frozen=True)
class Series:
    """One series.

    Args:
        times: Times, shape (T,), strictly rising, T >= 2.
        values: Values, shape (T, channels), NaN or masked (`numpy.ma`) where they are missing, or (T,) for one channel.
        name: Name for messages and files.

    Raises:
        ValueError: If the times do not rise, the shapes differ, a value is infinite, or all are missing.

    Example:
        >>> Series([0.0, 0.4, 1.0], [[1.0, np.nan], [np.nan, 2.0], [0.5, 2.5]]).values.shape
        (3, 2)
    """

    times: np.ndarray
    values: np.ndarray
    name: str = ""

    def __post_init__(self) -> None:
        times = np.asarray(self.times, float)
        values: np.ndarray = np.ma.filled(np.ma.asarray(self.values, float), np.nan)
        values = values[:, None] if values.ndim == 1 else values
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "values", values)
        if times.ndim != 1 or values.ndim != 2 or len(times) != len(values):
            raise ValueError(
                f"{self.label}: expected times (T,) and values (T, channels); got {times.shape} and {values.shape}"
            )
        if len(times) < 2:
            raise ValueError(f"{self.label}: expected two times or more; got {len(times)}: leave the series out")
        self._check_rising()
        if np.isinf(values).any():
            raise ValueError(f"{self.label}: values must be finite, or NaN where missing; got an infinite one: mend it")
        if np.isnan(values).all():
            raise ValueError(f"{self.label}: expected some values; got none, all are missing: leave the series out")

    def _check_rising(self) -> None:
        if not np.isfinite(self.times).all():
            raise ValueError(f"{self.label}: times must be finite; got NaN or an infinite one: mend or drop its row")
        bad = np.flatnonzero(np.diff(self.times) <= 0)
        if len(bad):
            first, second = self.times[bad[0] : bad[0] + 2].tolist()
            raise ValueError(
                f"{self.label}: times must rise; got {second:g} after {first:g}: sort the rows, merge repeated times"
            )

    @property
    def label(self) -> str:
        """The series in messages."""
        return f"series {self.name!r}"

    @property
    def clock(self) -> np.ndarray:
        """Times since the first one, shape (T,)."""
        return self.times - self.times[0]

    @property
    def duration(self) -> float:
        """Time from the first to the last row."""
        return float(self.times[-1] - self.times[0])


def check_series(series: Sequence[Any], channels: int | None = None) -> list[Series]:
    """Return series, each checked, with the same number of channels.

    Args:
        series: Series, or pairs of times and values.
        channels: Number of channels that they must have; None for that of the first.

    Returns:
        The series; those without a name are named by their number.

    Raises:
        ValueError: If there are none, or one of them cannot be used.
    """
    if isinstance(series, (Series, np.ndarray)) or not len(series):
        raise ValueError("expected a list of series, each a pair (times, values); got none: pass [(times, values)]")
    checked = [_as_series(item, number) for number, item in enumerate(series)]
    channels = checked[0].values.shape[1] if channels is None else channels
    for item in checked:
        if item.values.shape[1] != channels:
            raise ValueError(
                f"{item.label}: expected {channels} channel{'s' * (channels > 1)}; got {item.values.shape[1]}: give "
                "all series the same channels, NaN where one is missing"
            )
    return checked


def check_times(times: Any, series: Series) -> np.ndarray:
    """Return times at which a series can be predicted, since its first time.

    Args:
        times: Times in the units of the series, shape (T,).
        series: The series.

    Returns:
        The times since its first one.

    Raises:
        ValueError: If there are none, or some are not finite, or before the first time.
    """
    asked = np.asarray(times, float)
    if asked.ndim != 1 or not len(asked) or not np.isfinite(asked).all():
        raise ValueError(f"times must be finite numbers, shape (T,), one or more; got shape {asked.shape}: mend them")
    if asked.min() < series.times[0]:
        raise ValueError(
            f"{series.label} begins at {series.times[0]:g}; got time {asked.min():g}: ask for times from there on"
        )
    return asked - series.times[0]


def padded(values: Sequence[np.ndarray], clocks: Sequence[np.ndarray]) -> Batch:
    """Return series of different lengths as a batch in float64.

    Args:
        values: Values of each, shape (T_i, channels).
        clocks: Times since the first one of each, shape (T_i,).

    Returns:
        Values, NaN after the end, and times, which stand still after the end.
    """
    longest = max(map(len, clocks))
    x = np.stack([np.pad(v, ((0, longest - len(v)), (0, 0)), constant_values=np.nan) for v in values])
    times = np.stack([np.pad(t, (0, longest - len(t)), mode="edge") for t in clocks])
    return Batch(torch.from_numpy(x), torch.from_numpy(times))


def trimmed(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the values and times of a batch without the padding that all its series share.

    Args:
        batch: Padded series.

    Returns:
        Values, shape (n, T, channels), and times, shape (n, T).
    """
    times = batch.context if batch.context is not None else batch.x.new_zeros(batch.x.shape[:2])
    longest = int(lengths(times).max())
    return batch.x[:, :longest], times[:, :longest]


def tails(values: Tensor, times: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Return each padded series from one of its rows on, as a series of its own that begins there.

    Args:
        values: Values, NaN where missing and after the end, shape (n, T, channels).
        times: Times, which stand still after the end, shape (n, T).
        first: The row of each with which it begins, shape (n,).

    Returns:
        Values, shape (n, T, channels), and times since the first, shape (n, T), padded again.
    """
    rows = first[:, None] + torch.arange(times.shape[1], device=times.device)
    last = lengths(times)[:, None] - 1
    kept = rows.clamp(max=last)
    later = values.gather(1, kept[..., None].expand_as(values))
    moved = times.gather(1, kept) - times.gather(1, first[:, None])
    return torch.where((rows > last)[..., None], torch.nan, later), moved


def lengths(times: Tensor) -> Tensor:
    """Return the number of rows of each padded series.

    Args:
        times: Times, which stand still after the end, shape (n, T).

    Returns:
        Numbers of rows, shape (n,).
    """
    return 1 + (times.diff(dim=1) > 0).sum(1)


def _as_series(item: Any, number: int) -> Series:
    if isinstance(item, Series):
        return item if item.name else Series(item.times, item.values, str(number))
    try:
        times, values = item
    except (TypeError, ValueError):
        raise ValueError(f"series {number}: expected a pair (times, values); got {type(item).__name__}") from None
    return Series(times, values, str(number))


def channel_names(channels: Sequence[str] | None, series: Sequence[Series]) -> list[str]:
    """Return the names of the channels of series.

    Args:
        channels: Names, or None for x0, x1, ...
        series: Series.

    Returns:
        Names, one for each channel.

    Raises:
        ValueError: If they are not as many as the channels, or not different.
    """
    count = series[0].values.shape[1]
    names = [f"x{i}" for i in range(count)] if channels is None else [str(name) for name in channels]
    if len(names) != count or len(set(names)) < count:
        raise ValueError(f"channels must be {count} different names, one for each channel; got {names}")
    return names


def digest(series: Sequence[Series]) -> str:
    """Return a SHA-256 sum of the times and values of series.

    Args:
        series: Series.

    Returns:
        The sum in hexadecimal digits.
    """
    found = hashlib.sha256()
    for item in series:
        found.update(np.ascontiguousarray(item.times).tobytes() + np.ascontiguousarray(item.values).tobytes())
    return found.hexdigest()
