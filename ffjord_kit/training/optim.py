r"""The optimizer, and the moving average of the weights.

The average a_s of the weights w_s starts at a_0 = w_0 and follows

    a_(s+1) = d_s a_s + (1 - d_s) w_(s+1),    d_s = min(decay, (1 + s) / (10 + s)),

so that it forgets the start quickly. (torch.optim.swa_utils averages whole modules; here the values alone are kept,
exchanged and saved.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ffjord_kit.training.config import TrainConfig

CHECK_EVERY = 50  # steps between two checks on a GPU, which has to wait at each
# Rows and columns of a matrix of Muon's; its rate, as a multiple of Adam's; and its momentum. After 60 s protein has an
# NLL of -3.67 and -3.77 by multiples of 1 and 3 (momentum 0.95), of -3.01 by 5, and of -4.04 and -4.20 by a momentum of
# 0.9 and 0.8 (multiple 3); by Adam -3.51.
LEAST_SIDE, MUON_FACTOR, MUON_MOMENTUM = 32, 3.0, 0.8


class _Adam(torch.optim.Adam):
    """Adam with the flag, read by its fused update, that makes a step do nothing."""

    found_inf: Tensor


class Optimizer:
    """AdamW or Muon with clipped gradients; a step that is not finite leaves the weights as they are.

    Matrices alone decay: a bias, or the exponent of a tail, is not the smaller the simpler. Muon updates matrices of 32
    rows and columns or more by momenta whose singular values are made equal, and leaves the rest to Adam.

    Args:
        parameters: Parameters to train.
        config: Optimizer and clipping.

    References:
        Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101; Jordan et al. 2024, Muon: an optimizer for hidden
        layers, https://kellerjordan.github.io/posts/muon.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: TrainConfig) -> None:
        self.parameters, self.config = list(parameters), config
        muon = config.optimizer == "muon"
        self.hidden = [p for p in self.parameters if muon and is_hidden(p)]
        rest = [p for p in self.parameters if not (muon and is_hidden(p))]
        # Each step sets its own learning rate.
        self.adam = _Adam(rest, lr=0.0, fused=True) if rest else None
        self.muon = _muon(self.hidden) if self.hidden else None
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
        if self.every == 1 and bool(bad):
            raise ArithmeticError(f"the loss is {float(loss):.4g} and its gradient's norm {float(norm):.4g}")
        decaying = [p for p in self.matrices if p.grad is not None] if decay else []
        if decaying:
            torch._foreach_mul_(decaying, 1 - rate * decay * (1 - bad))
        if self.adam is not None:
            self.adam.found_inf = bad
            _at(self.adam, rate).step()
        if self.muon is not None:
            self._step_hidden(_at(self.muon, MUON_FACTOR * rate), bad)
        self.bad, self.steps = self.bad + bad, self.steps + 1
        if self.steps % self.every == 0:
            self.check()
        return norm

    def _step_hidden(self, muon: torch.optim.Optimizer, bad: Tensor) -> None:
        """Update the matrices of hidden layers, which stay as they are after a bad step."""
        if self.every == 1:
            muon.step()
            return
        before = snapshot(self.hidden)
        for p in self.hidden:
            if p.grad is not None:
                p.grad.masked_fill_(bad > 0, 0.0)
        muon.step()
        for p, value in zip(self.hidden, before, strict=True):
            p.copy_(torch.where(bad > 0, value, p))

    def moments(self) -> dict[int, dict[str, Tensor]]:
        """Return what the optimizer remembers of each parameter.

        Returns:
            Tensors by name, by the number of the parameter.
        """
        places = {id(p): i for i, p in enumerate(self.parameters)}
        return {places[id(p)]: dict(state) for each in self._all() for p, state in each.state.items()}

    def load_moments(self, moments: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Go on with what an optimizer of the same kind remembered.

        Args:
            moments: Tensors as `moments` returned them.
        """
        places = {id(p): i for i, p in enumerate(self.parameters)}
        for each in self._all():
            known = each.state_dict()
            numbers = [places[id(p)] for group in each.param_groups for p in group["params"]]
            state = {i: dict(moments[number]) for i, number in enumerate(numbers) if number in moments}
            each.load_state_dict({**known, "state": state})

    def _all(self) -> list[torch.optim.Optimizer]:
        return [each for each in (self.adam, self.muon) if each is not None]

    def check(self) -> None:
        """Check the steps since the last check.

        Raises:
            ArithmeticError: If the loss or the gradient of one was not finite.
        """
        count, self.bad = int(self.bad), torch.zeros_like(self.bad)
        if count:
            raise ArithmeticError(f"in {count} of the last {CHECK_EVERY} steps loss or gradient was not finite")


def is_hidden(parameter: Tensor) -> bool:
    """Return whether a parameter is a matrix of a hidden layer, which Muon updates.

    Args:
        parameter: The parameter.

    Returns:
        Whether it is.
    """
    return parameter.dim() == 2 and min(parameter.shape) >= LEAST_SIDE


def _at(optimizer: torch.optim.Optimizer, rate: float) -> torch.optim.Optimizer:
    """Set the learning rate of an optimizer."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    return optimizer


def _muon(matrices: Sequence[nn.Parameter]) -> torch.optim.Muon:
    return torch.optim.Muon(matrices, lr=0.0, weight_decay=0.0, momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw")


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
