"""The time that training takes: on the wall, and what it works; both go on where a resumed run left them."""

from __future__ import annotations

import time

import torch


class Watch:
    """Seconds on the wall, and seconds worked: by the training thread, on a GPU those on the wall."""

    def __init__(self, device: torch.device, seconds: float = 0.0, spent: float = 0.0) -> None:
        self.now = time.thread_time if device.type == "cpu" else time.perf_counter
        self.begun, self.worked = time.monotonic() - seconds, self.now() - spent

    def read(self) -> tuple[float, float]:
        """Seconds on the wall and seconds worked, with those of before."""
        return time.monotonic() - self.begun, self.now() - self.worked
