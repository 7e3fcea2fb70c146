r"""What one step of training does to the weights: the learning rate, the update, and their moving average.

    rate(s) = peak * min(1, (s + 1) / warmup) * (1 + cos(pi s / steps)) / 2

The average follows the weights with decay min(decay, (1 + s) / (10 + s)), so that it forgets the start quickly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Optimization:
    """How weights are updated: AdamW, warm-up and cosine, gradient clipping, exponential moving average.

    `warmup` in steps (at most a tenth of a phase is used); `clip_norm` bounds the gradient's norm.
    """

    weight_decay: float = 0.0
    warmup: int = 200
    clip_norm: float = 1.0
    ema_decay: float = 0.999

    def rate(self, step: int, steps: int, peak: float) -> float:
        """The learning rate at `step` of a phase of `steps`."""
        warmup = max(1, min(self.warmup, steps // 10))
        return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))

    def optimizer(self, parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.AdamW:
        """AdamW over the parameters (Loshchilov & Hutter 2019); plain Adam where weight_decay is 0."""
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=self.weight_decay)

    def update(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], rate: float, loss: Tensor
    ) -> Tensor:
        """Clip the gradients, take one step, and return the gradient's norm from before the clipping.

        Raises ArithmeticError, before any weight has changed, where the loss or the norm is not finite.
        """
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        if not bool((loss.detach() + norm).isfinite()):
            raise ArithmeticError(f"the loss is {float(loss.detach()):.4g} and its gradient's norm {float(norm):.4g}")
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        return norm


class Average:
    """An exponential moving average of weights."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.reset()

    def reset(self) -> None:
        """Start again from the present weights."""
        self.values = [p.detach().clone() for p in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move towards the present weights."""
        decay = min(decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)
        self.steps += 1


@contextmanager
def exchanged(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """Put values in the place of the weights for a while."""
    kept = [p.detach().clone() for p in parameters]
    assign(parameters, values)
    try:
        yield
    finally:
        assign(parameters, kept)


@torch.no_grad()
def assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Copy values into parameters."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
