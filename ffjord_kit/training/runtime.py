"""The clock of a running fit, and how it hears of a request to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Timer:
    """Measure seconds on the wall, and seconds of work: of the training thread, on a GPU those on the wall.

    Args:
        device: Device that trains.
        seconds: Seconds on the wall of a run that goes on.
        work: Seconds of work of a run that goes on.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0, work: float = 0.0) -> None:
        self.now = time.thread_time if device.type == "cpu" else time.perf_counter
        self.start, self.start_of_work = time.monotonic() - seconds, self.now() - work

    def read(self) -> tuple[float, float]:
        """Read both clocks.

        Returns:
            Seconds on the wall, and seconds of work, earlier ones included.
        """
        return time.monotonic() - self.start, self.now() - self.start_of_work


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request that a loop sees between two steps; a second one acts at once.

    A scheduler that takes a machine back, and torchrun after a Ctrl-C, send SIGTERM.

    Yields:
        A function that says whether a stop is requested.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: Any) -> None:
        requested.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, request)
    try:
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
