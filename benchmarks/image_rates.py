"""Images a second in training, and the memory that it takes, by precision, layout and compilation of the network.

    python benchmarks/image_rates.py [--device cuda] [--only float32,bf16,...] [--hidden 128,256,256] [--batch 256]
                                     [--size 28] [--best FILE] [--json FILE]

Flow matching of a U-Net on random grey levels; only time is measured, after the first few steps, which compile. The
words of a method are fields of ImageFFJORD: a precision, then `last` for channels last, then a mode of torch.compile.
--best writes the options of the fastest method to a file, as the command line takes them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import environment, options, run
from results import Store

from ffjord_kit import ImageFFJORD

BENCHMARK = "image_rates"
METHODS = (
    "float32", "tf32", "bf16", "tf32 last", "bf16 last", "bf16 default", "bf16 last default",
    "bf16 last reduce-overhead",
)  # fmt: skip
STEPS, UNCOUNTED = 60, 20


def fields(method: str) -> dict[str, Any]:
    """Return a method's words as fields of ImageFFJORD."""
    precision, *words = method.split()
    mode = [word for word in words if word != "last"]
    return {"precision": precision, "channels_last": "last" in words, "compile": mode[0] if mode else None}


def flags(method: str) -> str:
    """The same as options of the command line."""
    named = fields(method)
    mode = f" --compile {named['compile']}" if named["compile"] else ""
    return f"--precision {named['precision']}{' --channels-last' if named['channels_last'] else ''}{mode}"


def measured(method: str, size: int, hidden: tuple[int, ...], batch: int, device: str) -> dict[str, Any]:
    """One row."""
    images = np.random.default_rng(0).integers(0, 256, (4 * batch, size, size), dtype=np.uint8)
    begun: dict[int, float] = {}

    def waited(record: dict[str, Any]) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        begun.setdefault(record["step"], time.perf_counter())

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = ImageFFJORD(
        schedule=[("flow_matching", STEPS)], hidden=hidden, batch_size=batch, device=device, validation_fraction=0.0,
        random_state=0, **fields(method),
    )  # fmt: skip
    model.fit(images, on_step=waited)
    counted = sorted(step for step in begun if step >= UNCOUNTED)
    seconds = (begun[counted[-1]] - begun[counted[0]]) / (counted[-1] - counted[0])
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    return {"rows_a_second": batch / seconds, "gib": memory}


def main() -> None:
    """Measure what the options ask for, and print it."""
    extra = {
        "--hidden": {"default": "128,256,256", "help": "channels of the U-Net (default: %(default)s)"},
        "--batch": {"type": int, "default": 256, "help": "images in a step (default: %(default)s)"},
        "--size": {"type": int, "default": 28, "help": "side of the images (default: %(default)s)"},
        "--best": {"metavar": "FILE", "help": "for the options of the fastest"},
    }
    given = options(__doc__, sets=("random",), methods=METHODS, budgets=(), extra=extra)
    store, rates = Store(given.json), {}
    print("| method | images a second | GiB |\n|---|---|---|")
    for method in given.only:
        hidden = tuple(map(int, given.hidden.split(",")))
        row = measured(method, given.size, hidden, given.batch, given.device)
        rates[method] = row["rows_a_second"]
        shape = {"hidden": given.hidden, "batch": given.batch, "size": given.size}
        key = {"benchmark": BENCHMARK, "method": method, "device": given.device, "seed": given.seed}
        store.add({**key, **shape, **row, **environment()})
        print(f"| {method} | {row['rows_a_second']:.0f} | {row['gib']:.2f} |", flush=True)
    if given.best is not None:
        Path(given.best).write_text(flags(max(rates, key=rates.get)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
