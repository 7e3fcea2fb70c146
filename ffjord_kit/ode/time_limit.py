"""A limit in time that ends a solve between two evaluations of the field."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Clock = Callable[[], bool]  # says whether the time is up

_is_up: ContextVar[Clock | None] = ContextVar("_is_up", default=None)


class OutOfTime(Exception):
    """Signal that the time allowed to a computation is up; no fault of the field.

    Example:
        >>> with time_limit(lambda: True):  # the time is up
        ...     check_time()
        Traceback (most recent call last):
        ffjord_kit.ode.time_limit.OutOfTime
    """


@contextmanager
def time_limit(is_up: Clock) -> Iterator[None]:
    """End every solve in a context when the time is up.

    Args:
        is_up: Says whether the time is up.

    Yields:
        Nothing.
    """
    token = _is_up.set(is_up)
    try:
        yield
    finally:
        _is_up.reset(token)


def check_time() -> None:
    """End the present computation if its time is up.

    Raises:
        OutOfTime: If it is.
    """
    is_up = _is_up.get()
    if is_up is not None and is_up():
        raise OutOfTime
