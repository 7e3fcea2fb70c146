r"""What one step of training does to the weights: the learning rate, the update, and their moving average.

    rate(s) = peak * risen(s) * (1 + cos(pi * share)) / 2,    share of the phase that is done

with a linear rise over the first `warmup` steps, or the first tenth of the phase where that is over sooner.

The average follows the weights with decay min(decay, (1 + s) / (10 + s)), so that it forgets the start quickly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WARMUP_SHARE = 0.1
CHECKED_EVERY = 50  # steps between two looks at the numbers on a GPU, which would wait at each


@dataclass(frozen=True)
class Optimization:
    """How weights are updated: AdamW, warm-up and cosine, gradient clipping, exponential moving average.

    `warmup` in steps (at most a tenth of a phase is used); `clip_norm` bounds the gradient's norm.
    """

    weight_decay: float = 0.0
    warmup: int = 200
    clip_norm: float = 1.0
    ema_decay: float = 0.999

    def rate(self, step: int, steps: float, peak: float, share: float | None = None) -> float:
        """The learning rate at `step` of a phase of `steps`, a `share` of which is done (None: step / steps)."""
        warmup = max(1, self.warmup if steps == math.inf else min(self.warmup, steps // 10))
        share = step / steps if share is None else share
        risen = min(1.0, max((step + 1) / warmup, share / WARMUP_SHARE))
        return peak * risen * 0.5 * (1 + math.cos(math.pi * share))


class Descent:
    """AdamW (Loshchilov & Hutter 2019) over the parameters; plain Adam where weight_decay is 0.

    A step whose loss or gradient is not finite leaves the weights as they are.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], how: Optimization, rate: float) -> None:
        self.parameters, self.how = list(parameters), how
        self.adam = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=how.weight_decay, fused=True)
        self.every = 1 if self.parameters[0].device.type == "cpu" else CHECKED_EVERY
        self.steps, self.bad = 0, torch.zeros((), device=self.parameters[0].device)

    def step(self, loss: Tensor, rate: float) -> Tensor:
        """Go back through the loss, and `update`."""
        self.adam.zero_grad()
        loss.backward()
        return self.update(loss.detach(), rate)

    def update(self, loss: Tensor, rate: float) -> Tensor:
        """Clip the gradient that is there, take one step, and return its norm from before the clipping, ().

        Raises ArithmeticError where a loss or a norm was not finite: at once on a CPU, within CHECKED_EVERY steps on a
        GPU.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.how.clip_norm)
        bad = (~(loss + norm).isfinite()).float()
        self.adam.found_inf = bad  # read by the fused update, which then does nothing
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.bad, self.steps = self.bad + bad, self.steps + 1
        if self.every == 1 and bool(bad):
            raise ArithmeticError(f"the loss is {float(loss):.4g} and its gradient's norm {float(norm):.4g}")
        if self.steps % self.every == 0:
            self.check()
        return norm

    def check(self) -> None:
        """Raise ArithmeticError where a step since the last look was not finite."""
        count, self.bad = int(self.bad), torch.zeros_like(self.bad)
        if count:
            raise ArithmeticError(f"in {count} of the last {CHECKED_EVERY} steps loss or gradient was not finite")


class Average:
    """An exponential moving average of weights."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.reset()

    def reset(self) -> None:
        """Start again from the present weights."""
        self.values = snapshot(self.parameters)
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
    kept = snapshot(parameters)
    assign(parameters, values)
    try:
        yield
    finally:
        assign(parameters, kept)


def snapshot(values: Sequence[Tensor]) -> list[Tensor]:
    """Copies that later steps leave alone."""
    return [value.detach().clone() for value in values]


@torch.no_grad()
def assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Copy values into parameters."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
