"""The type of a column: what all types have, and how they are written."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np

Bounds = tuple[float, float]


class ColumnTypeWarning(UserWarning):
    """Warn of values that suit a column's type badly.

    Example:
        >>> from ffjord_kit.columns import Bounded
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     _ = Bounded(0, 1).settled(np.array([0.0, 0.5]), "share")
        >>> str(caught[0].message).partition(":")[0]
        "column 'share' has 1 of 2 rows at 0 or 1 itself"
    """


@dataclass(frozen=True)
class ColumnType(ABC):
    """A type of one column, or of a pair.

    Attributes:
        word: Word of the command line.
        width: Number of columns that it is a type of.
    """

    word: ClassVar[str]
    width: ClassVar[int] = 1

    @property
    def bounds(self) -> Bounds:
        """Bounds (lower, upper) of the values, infinite where they are open."""
        return -math.inf, math.inf

    @property
    @abstractmethod
    def unit(self) -> str:
        """Unit of the density, behind the word 'per'."""

    def settled(self, values: np.ndarray, name: str) -> ColumnType:
        """Check the values of a fit, and settle by them what is open.

        Args:
            values: Values, shape (n,), or (n, 2) of a pair.
            name: Name of the column, or names of the pair, for messages.

        Returns:
            The type, with nothing left open.

        Raises:
            ValueError: If the values are not of the type.
        """
        return self

    def __str__(self) -> str:
        """Return the type as the command line writes it, e.g. 'bounded:0:1'."""
        return ":".join([self.word, *(written(value) for value in astuple(self) if value is not None)])


def written(value: Any) -> str:
    """Write a number so that it is read back the same; whole ones without a point.

    Args:
        value: Number, or a text.

    Returns:
        The text.

    Example:
        >>> written(3.0), written(0.25)
        ('3', '0.25')
    """
    if isinstance(value, str):
        return value
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def warn(message: str) -> None:
    """Warn of values that suit a column's type badly.

    Args:
        message: One line, which names the column.
    """
    warnings.warn(message, ColumnTypeWarning, stacklevel=4)


def all_finite(*values: Any) -> bool:
    """Return whether values are finite numbers.

    Args:
        *values: Values; a truth value is no number.

    Returns:
        True if all are.

    Example:
        >>> all_finite(1, 2.5), all_finite("1"), all_finite(math.inf)
        (True, False, False)
    """
    numbers = all(isinstance(value, Real) and not isinstance(value, bool) for value in values)
    return numbers and all(math.isfinite(float(value)) for value in values)
