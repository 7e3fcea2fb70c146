"""The field compiled while it is trained: torch.compile of the velocity and of the tangents that it carries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ffjord_kit.cnf import CNF
from ffjord_kit.flow import Flow
from ffjord_kit.trace import ways_in

# Words of torch.compile's modes; reduce-overhead records CUDA graphs, which need the fixed shapes that batches have.
MODES = ("default", "reduce-overhead", "max-autotune")


def check_mode(mode: str | None) -> None:
    """Raise ValueError for an unknown mode."""
    if mode is not None and mode not in MODES:
        raise ValueError(f"compile must be one of {', '.join(MODES)}, or None; got {mode!r}")


@contextmanager
def compiled(flow: Flow, mode: str | None) -> Iterator[None]:
    """Compile the dynamics of all continuous layers for a while (None: do not); names of weights stay as they are.

    Raises ValueError for an unknown mode.
    """
    check_mode(mode)
    fields = [] if mode is None else [layer.dynamics for layer in flow.layers if isinstance(layer, CNF)]
    options = {} if mode is None else {"mode": mode}
    try:
        for field in fields:
            for name in ways_in(field):
                setattr(field, name, torch.compile(getattr(field, name), **options))
        yield
    finally:
        for field in fields:
            for name in ways_in(field):
                vars(field).pop(name, None)  # what is left is the class's own
