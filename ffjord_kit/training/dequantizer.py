"""Training of a dequantizer q by the bound that it gives for a flow p, and of both together.

The gradient runs through the noise u, and so through the flow's solve: a few graded steps, whose evaluations are made
again on the way back, so that the memory is that of one evaluation. The guard keeps the steps fine enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ffjord_kit.data import Batch, Pixels
from ffjord_kit.flow import Flow
from ffjord_kit.objectives.dequantization import DequantizationBound, DequantizedFlow, VariationalDequantizer
from ffjord_kit.objectives.likelihood import MaximumLikelihood
from ffjord_kit.ode import FixedSolver, Solver
from ffjord_kit.trace import ExactTrace, HutchinsonTrace
from ffjord_kit.training.config import Phase, TrainConfig
from ffjord_kit.training.data import TrainingRows, sample_rows
from ffjord_kit.training.history import History, OnStep
from ffjord_kit.training.loop import fit

SOLVER = FixedSolver("rk4", steps=4, grading=2.0, adjoint="checkpointed")
BATCH_SIZE = 32


def fit_dequantizer(
    dequantizer: VariationalDequantizer,
    flow: Flow,
    pixels: Pixels,
    context: Tensor | None = None,
    *,
    steps: float = 1000,
    seconds: float = math.inf,
    learning_rate: float = 2e-3,
    solver: Solver | None = None,
    probes: int | None = 1,
    joint: bool = False,
    config: TrainConfig | None = None,
    on_step: OnStep | None = None,
) -> History:
    """Train a dequantizer in place for a flow; its weights end as their moving average.

    Args:
        dequantizer: Dequantizer to train.
        flow: Flow in the units of grey levels.
        pixels: Images.
        context: Contexts, shape (n, context_dim), or None.
        steps: Largest number of steps.
        seconds: Largest number of seconds of work.
        learning_rate: Peak learning rate.
        solver: Solver of log p; four graded steps of rk4 if None.
        probes: Number of Hutchinson probes; None for the exact trace.
        joint: Whether the flow is trained too, by the same loss, its maximum likelihood.
        config: How weights are updated and guarded; batches of 32 images if None.
        on_step: Callback, called with the record of each step: `loss` in nats per image, `bits` in bits per dimension.

    Returns:
        The history.

    Raises:
        ValueError: If the pixels do not fit the flow.
        TrainingDiverged: If numbers are not finite, and lower learning rates do not help.

    Example:
        >>> from ffjord_kit.transforms.bounded import pixel_scaling
        >>> images = Pixels(torch.full((4, 1, 2, 2), 127, dtype=torch.uint8))
        >>> noise = VariationalDequantizer((1, 2, 2), hidden=2)
        >>> fit_dequantizer(noise, Flow([pixel_scaling((1, 2, 2))]), images, steps=1).step
        1
    """
    first = sample_rows(pixels, context)
    flow.check(first.x, first.context)
    trace = ExactTrace() if probes is None else HutchinsonTrace(probes)
    objective = DequantizationBound(MaximumLikelihood(trace, solver=solver or SOLVER))
    phase = Phase(objective, steps, learning_rate, seconds)
    with _requires_grad(list(flow.parameters()), joint):
        return fit(
            DequantizedFlow(flow, dequantizer), _GreyLevels(pixels, context), [phase],
            config=config or TrainConfig(batch_size=BATCH_SIZE), on_step=on_step,
        )  # fmt: skip


@dataclass(frozen=True)
class _GreyLevels(TrainingRows):
    """Whole grey levels and their contexts."""

    pixels: Pixels
    context: Tensor | None

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def device(self) -> torch.device:
        return self.pixels.images.device

    def take(self, rows: Tensor, generator: torch.Generator) -> Batch:
        return Batch(self.pixels.level(rows), None if self.context is None else self.context[rows])


@contextmanager
def _requires_grad(parameters: Sequence[nn.Parameter], required: bool) -> Iterator[None]:
    """Let parameters require a gradient, or not, within a `with` block."""
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(required)
    try:
        yield
    finally:
        for parameter, required_before in zip(parameters, before, strict=True):
            parameter.requires_grad_(required_before)
