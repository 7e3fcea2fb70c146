"""How many rows are solved for at once: what the caches of a CPU hold, or what keeps an accelerator busy."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Elements of the rows. With the exact trace each row brings as many tangents as it has elements, and a network's width.
ELEMENTS = {"cpu": 8_192, "mps": 131_072, "cuda": 1_048_576}
IMAGE_ELEMENTS = {**ELEMENTS, "cpu": 32_768}  # few probes
DRAWN_ROWS = {"cpu": 4_096, "mps": 32_768, "cuda": 131_072}  # of a table, without tangents


def scored_at_once(event: Sequence[int], device: str) -> int:
    """Rows or images of this shape whose log-densities are solved for together on that kind of device."""
    elements = ELEMENTS if len(event) == 1 else IMAGE_ELEMENTS
    return max(1, elements.get(device, elements["cuda"]) // math.prod(event))


def drawn_at_once(event: Sequence[int], device: str) -> int:
    """Rows or images of this shape that are drawn together."""
    return DRAWN_ROWS.get(device, DRAWN_ROWS["cuda"]) if len(event) == 1 else scored_at_once(event, device)
