"""Damaged files, told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 200  # characters of a reason


def reason(error: Exception) -> str:
    """Return the first line of what an error says, or its type if it says nothing.

    Args:
        error: The error.

    Returns:
        One line.
    """
    lines = str(error).strip().splitlines()
    return lines[0][:LONGEST] if lines else type(error).__name__


@contextmanager
def explained_by(path: str, kind: str) -> Iterator[None]:
    """Turn whatever a library raises about a damaged file into a ValueError of one line.

    Args:
        path: Path of the file, for the message.
        kind: What the file should be, e.g. "an Excel file".

    Yields:
        None, around the statements in which the library reads.

    Raises:
        ValueError: If they raise.
    """
    try:
        yield
    except Exception as error:  # of many types, as a crafted file may bring a library anywhere
        raise ValueError(f"{path}: damaged, or not {kind} ({reason(error)})") from error
