"""The clocks of a running fit, and requests to stop it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


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


class StopRequest:
    """A request to stop, by a signal.

    Attributes:
        signal: Number of the signal; 0 for no request.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> bool:
        """Say whether a stop is requested.

        Returns:
            Whether it is.
        """
        return self.signal > 0


@contextmanager
def interruptible() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request that a loop sees between two steps; a second one acts at once.

    SIGTERM comes from a scheduler that takes a machine back, and from torchrun after a Ctrl-C. Outside the main thread,
    which alone receives signals, nothing is changed.

    Yields:
        The request.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        request.signal = number
        signal.signal(number, before[number])

    for number in list(before):
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def pass_on(number: int) -> None:
    """Do what a signal does, after the work that it interrupted is saved.

    Args:
        number: Number of the signal; 0 for a request by another worker.

    Raises:
        KeyboardInterrupt: After Ctrl-C.
        SystemExit: After SIGTERM, so that the script can tidy up, unless it has a handler of its own.
    """
    if number == 0:
        raise KeyboardInterrupt
    if signal.getsignal(number) is signal.SIG_DFL:
        raise SystemExit(128 + number)
    signal.raise_signal(signal.Signals(number))
