"""Training without data: a flow is matched to an unnormalised density by draws of its base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.distributions import Base
from ffjord_kit.flow import Flow
from ffjord_kit.objectives.energy import check_flow
from ffjord_kit.training.config import Phase, TrainConfig
from ffjord_kit.training.data import TrainingRows
from ffjord_kit.training.history import History
from ffjord_kit.training.loop import fit


@dataclass(frozen=True)
class BaseDraws(TrainingRows):
    """Draws of a base distribution, new ones for each batch.

    Args:
        base: Base distribution.
        size: Number of rows of a batch.

    Example:
        >>> from ffjord_kit.distributions import StandardNormal
        >>> draws = BaseDraws(StandardNormal((2,)), size=512)
        >>> len(draws), draws.take(torch.arange(3), torch.Generator()).x.shape
        (512, torch.Size([3, 2]))
    """

    base: Base
    size: int

    def __len__(self) -> int:
        return self.size

    @property
    def device(self) -> torch.device:
        """Device of the indices, which count draws alone."""
        return torch.device("cpu")

    def take(self, rows: Tensor, generator: torch.Generator) -> Batch:
        return Batch(self.base.sample(len(rows), generator))


def fit_energy(flow: Flow, schedule: Sequence[Phase], *, config: TrainConfig | None = None, **options: Any) -> History:
    """Train a flow in place on an energy, by draws of its base; no data are needed.

    Args:
        flow: Flow without preprocessing and contexts. Exact transforms must be cheap from the base.
        schedule: Phases of `EnergyMatching`, in order.
        config: How weights are updated; its batch size is the number of draws of a step.
        **options: Further options of `fit`, e.g. `run` or `on_step`.

    Returns:
        The history, whose records have the evidence lower bound and the effective share of the draws.

    Raises:
        ValueError: If the flow or the energy cannot be used.
        TrainingDiverged: If numbers are not finite, and lower learning rates do not help.

    Example:
        >>> from ffjord_kit import CNF
        >>> from ffjord_kit.nn.planar import PlanarDynamics
        >>> from ffjord_kit.objectives import EnergyMatching
        >>> flow = Flow([CNF(PlanarDynamics((2,), width=4), (2,))])
        >>> history = fit_energy(flow, [Phase(EnergyMatching(lambda x: 0.5 * (x - 1).square().sum(1)), steps=3)])
        >>> history.step
        3
    """
    check_flow(flow)
    config = config or TrainConfig()
    return fit(flow, BaseDraws(flow.base, config.batch_size), schedule, config=config, **options)
