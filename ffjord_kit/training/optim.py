r"""The optimizer, and the moving average of the weights.

The average a_s of the weights w_s starts at a_0 = w_0 and follows

    a_(s+1) = d_s a_s + (1 - d_s) w_(s+1),    d_s = min(decay, (1 + s) / (10 + s)),

so that it forgets the start quickly. (torch.optim.swa_utils averages whole modules; here the values alone are kept,
exchanged and saved.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ffjord_kit.training.config import TrainConfig

CHECK_EVERY = 50  # steps between two checks on a GPU, which has to wait at each


class _Adam(torch.optim.Adam):
    """Adam with the flag, read by its fused update, that makes a step do nothing."""

    found_inf: Tensor


class Optimizer:
    """AdamW with clipped gradients; a step that is not finite leaves the weights as they are.

    Matrices alone decay: a bias, or the exponent of a tail, is not the smaller the simpler.

    Args:
        parameters: Parameters to train.
        config: Clipping.

    References:
        Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: TrainConfig) -> None:
        self.parameters, self.config = list(parameters), config
        # Each step sets its own learning rate.
        self.adam = _Adam(self.parameters, lr=0.0, fused=True)
        self.matrices: list[Tensor] = [p for p in self.parameters if p.dim() > 1]
        self.every = 1 if self.parameters[0].device.type == "cpu" else CHECK_EVERY
        self.steps, self.bad = 0, torch.zeros((), device=self.parameters[0].device)

    @torch.no_grad()
    def step(self, loss: Tensor, rate: float, decay: float = 0.0) -> Tensor:
        """Clip the gradient and update the parameters.

        Args:
            loss: Loss whose gradient the parameters hold, shape ().
            rate: Learning rate.
            decay: Weight decay of matrices.

        Returns:
            Norm of the gradient before clipping, shape ().

        Raises:
            ArithmeticError: If a loss or a norm was not finite: at once on a CPU, within CHECK_EVERY steps on a GPU.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        bad = (~(loss + norm).isfinite()).float()
        self.adam.found_inf = bad
        for group in self.adam.param_groups:
            group["lr"] = rate
        decaying = [p for p in self.matrices if p.grad is not None] if decay else []
        if decaying:
            torch._foreach_mul_(decaying, 1 - rate * decay * (1 - bad))
        self.adam.step()
        self.bad, self.steps = self.bad + bad, self.steps + 1
        if self.every == 1 and bool(bad):
            raise ArithmeticError(f"the loss is {float(loss):.4g} and its gradient's norm {float(norm):.4g}")
        if self.steps % self.every == 0:
            self.check()
        return norm

    def check(self) -> None:
        """Check the steps since the last check.

        Raises:
            ArithmeticError: If the loss or the gradient of one was not finite.
        """
        count, self.bad = int(self.bad), torch.zeros_like(self.bad)
        if count:
            raise ArithmeticError(f"in {count} of the last {CHECK_EVERY} steps loss or gradient was not finite")


class MovingAverage:
    """An exponential moving average of weights.

    Args:
        parameters: Parameters to average.

    Example:
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> average = MovingAverage([weight])
        >>> with torch.no_grad():
        ...     weight.fill_(1.0)
        Parameter containing:
        tensor([1.], requires_grad=True)
        >>> average.update(decay=0.999)  # the first decay is 1/10
        >>> average.values
        [tensor([0.9000])]
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.reset()

    def reset(self) -> None:
        """Restart the average at the present weights."""
        self.values = snapshot(self.parameters)
        self.steps = 0

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move the average towards the present weights.

        Args:
            decay: Largest decay.
        """
        decay = min(decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)
        self.steps += 1


@contextmanager
def exchanged(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """Put values in the place of parameters within a `with` block.

    Args:
        parameters: Parameters.
        values: Values, one for each parameter.

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
    """Return copies of tensors, which later steps do not change.

    Args:
        values: Tensors.

    Returns:
        Detached copies.
    """
    return [value.detach().clone() for value in values]


@torch.no_grad()
def assign(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into parameters, or other tensors, in place.

    Args:
        targets: Tensors to overwrite.
        values: Values, one for each target.
    """
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)
