"""A stopwatch: CPU seconds of this process, or seconds on the wall around work on a GPU, which it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Runs from the moment it is made; what is done while it is paused does not count."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.begun = self._now()

    def seconds(self) -> float:
        """Seconds since the start, without the pauses."""
        return self._now() - self.begun

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop for a while."""
        stopped = self._now()
        try:
            yield
        finally:
            self.begun += self._now() - stopped

    def _now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()


def least_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The least CPU seconds of some work, which is done once before."""
    work()
    found = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return min(found)
