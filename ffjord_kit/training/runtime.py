"""The clocks of a running fit, and requests to stop it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Timer:
    """Measure wall time, and work time: CPU time of the training thread, or wall time on a GPU.

    Args:
        device: Device of the training.
        seconds: Wall time of an earlier part of the run, seconds.
        work: Work time of an earlier part of the run, seconds.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0, work: float = 0.0) -> None:
        self.now = time.thread_time if device.type == "cpu" else time.perf_counter
        self.start, self.start_of_work = time.monotonic() - seconds, self.now() - work

    def read(self) -> tuple[float, float]:
        """Read both clocks.

        Returns:
            Wall time and work time, seconds, with those of earlier parts of the run.
        """
        return time.monotonic() - self.start, self.now() - self.start_of_work


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request that a loop sees between two steps; a second one acts at once.

    SIGTERM comes from a scheduler that takes a machine back, and from torchrun after a Ctrl-C. Outside the main thread,
    which alone receives signals, nothing is changed.

    Yields:
        A function that returns whether a stop is requested.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: Any) -> None:
        requested.set()
        signal.signal(number, before[number])

    for number in list(before):
        signal.signal(number, request)
    try:
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
