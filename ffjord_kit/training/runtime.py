"""The clocks of a running fit, and requests to stop it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

CLOCKS = ("cpu", "wall")


class Timer:
    """Measure wall time, and the time that limits count.

    That is the CPU time of the training thread, or of the whole process where torch uses several threads; on a GPU,
    and where it is asked for, wall time.

    Args:
        device: Device of the training.
        seconds: Wall time of an earlier part of the run, seconds.
        work: Counted time of an earlier part of the run, seconds.
        clock: Word of CLOCKS.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0, work: float = 0.0, clock: str = "cpu") -> None:
        cpu = time.thread_time if torch.get_num_threads() == 1 else time.process_time
        self.now = cpu if device.type == "cpu" and clock == "cpu" else time.perf_counter
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
