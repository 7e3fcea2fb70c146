r"""One update of the weights, and their moving average.

The average follows the weights with decay min(decay, (1 + s) / (10 + s)) at its step s, so that it forgets the start
quickly. (torch.optim.swa_utils averages whole modules; here the values alone are kept, exchanged and saved.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ffjord_kit.training.config import TrainConfig

CHECK_EVERY = 50  # steps between two looks at the numbers on a GPU, which would wait at each


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019) with clipping; a step that is not finite leaves the weights as they are.

    Args:
        parameters: Parameters to train.
        config: Weight decay and clipping.
        rate: Learning rate of the first step.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: TrainConfig, rate: float) -> None:
        self.parameters, self.config = list(parameters), config
        self.adam = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=config.weight_decay, fused=True)
        self.every = 1 if self.parameters[0].device.type == "cpu" else CHECK_EVERY
        self.steps, self.bad = 0, torch.zeros((), device=self.parameters[0].device)

    def step(self, loss: Tensor, rate: float) -> Tensor:
        """Clip the gradient and update the parameters.

        Args:
            loss: Loss whose gradient the parameters hold, ().
            rate: Learning rate.

        Returns:
            Norm of the gradient before clipping, ().

        Raises:
            ArithmeticError: If a loss or a norm was not finite: at once on a CPU, within CHECK_EVERY steps on a GPU.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
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
        """Check the steps since the last look.

        Raises:
            ArithmeticError: If one was not finite.
        """
        count, self.bad = int(self.bad), torch.zeros_like(self.bad)
        if count:
            raise ArithmeticError(f"in {count} of the last {CHECK_EVERY} steps loss or gradient was not finite")


class MovingAverage:
    """An exponential moving average of weights.

    Args:
        parameters: Parameters to follow.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.reset()

    def reset(self) -> None:
        """Start again from the present weights."""
        self.values = snapshot(self.parameters)
        self.steps = 0

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move towards the present weights.

        Args:
            decay: Largest decay.
        """
        decay = min(decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)
        self.steps += 1


@contextmanager
def exchanged(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """Put values in the place of parameters for a while.

    Args:
        parameters: Parameters.
        values: Values, one for each.

    Yields:
        Nothing.
    """
    kept = snapshot(parameters)
    assign(parameters, values)
    try:
        yield
    finally:
        assign(parameters, kept)


def snapshot(values: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors, so that later steps leave the copies alone.

    Args:
        values: Tensors.

    Returns:
        Detached copies.
    """
    return [value.detach().clone() for value in values]


@torch.no_grad()
def assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Copy values into parameters.

    Args:
        parameters: Parameters.
        values: Values, one for each.
    """
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
