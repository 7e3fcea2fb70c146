"""What workers compare before they train, and what they then take from the first of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ffjord_kit.flow import Flow
from ffjord_kit.training.data import Rows, noise_generator
from ffjord_kit.training.phase import Phase
from ffjord_kit.training.workers import Workers, digest

COMPARED = 16  # rows, spread over the data

Given = tuple[Tensor | Rows, Tensor | None]


def agree(
    workers: Workers,
    flow: Flow,
    rows: Given,
    held_out: Given | None,
    schedule: Sequence[Phase],
    options: dict[str, object],
) -> None:
    """Compare data, schedule and options of all workers, and give all of them the first one's weights.

    Weights drawn by each for itself are so made one, as are layers fitted on machines that round differently.
    Raises WorkersError on all that names what differs.
    """
    if workers.size == 1:
        return
    shapes = {name: tuple(value.shape) for name, value in flow.state_dict().items()}
    workers.agree(
        {
            "schedule": ", ".join(map(_told, schedule)),
            **options,
            "number of rows": len(rows[0]),
            "number of held-out rows": 0 if held_out is None else len(held_out[0]),
            "rows": digest(_some(*rows)),
            "held-out rows": "" if held_out is None else digest(_some(*held_out)),
            "network": shapes,
        }
    )
    workers.copy_(flow.state_dict().values())


def _told(phase: Phase) -> str:
    return f"{phase.objective.name}:{phase.steps}:{phase.seconds:g}s at {phase.learning_rate:g}"


def _some(x: Tensor | Rows, context: Tensor | None) -> Iterator[Tensor]:
    """A few rows and their contexts."""
    some = torch.linspace(0, len(x) - 1, min(len(x), COMPARED), dtype=torch.float64).long()
    yield x.fetch(some, noise_generator(torch.device("cpu"), "agree")) if isinstance(x, Rows) else x[some]
    if context is not None:
        yield context[some]
