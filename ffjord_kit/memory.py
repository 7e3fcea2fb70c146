"""The memory of this machine, and the refusal of what it cannot hold, before any of it is made."""

from __future__ import annotations

import os

SHARE = 0.5  # of the memory that one array or network may take
UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def total_memory() -> float:
    """Return this machine's memory.

    Returns:
        Bytes; infinite where the system does not say.
    """
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def check_fits(what: str, size: int, advice: str) -> None:
    """Refuse what would take more than a share of the memory.

    Args:
        what: Its name and a verb, e.g. "x would unpack to".
        size: Its size, bytes.
        advice: Advice.

    Raises:
        ValueError: If it does not fit.
    """
    if size > SHARE * total_memory():
        raise ValueError(f"{what} {readable(size)}, more than {SHARE:.0%} of this machine's memory: {advice}")


def readable(size: int) -> str:
    """Return a number of bytes in the unit that suits it.

    Args:
        size: Bytes.

    Returns:
        The text.

    Example:
        >>> readable(3_900_000_000), readable(10**30)
        ('3.9 GB', '1e+15 PB')
    """
    number = float(min(size, 10**300))
    for unit in UNITS[:-1]:
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} {UNITS[-1]}"
