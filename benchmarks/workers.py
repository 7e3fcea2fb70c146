"""Rows a second in training by one process and by two, at the same batch: what a second core, or a second GPU, buys.

    python benchmarks/workers.py [--sets table,images] [--only 1,2] [--json FILE]

Flow matching, one thread for each process, workers started by torchrun; seconds on the wall, after a few steps that do
not count. `table` is the residual network of three layers of 128 on 9 columns, `images` the U-Net of 32, 64, 64
channels on 28 by 28 grey levels; the data are random, as only time is measured. With --device cuda each worker has a
GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from command import environment, options, run
from results import Store
from torch import Tensor

from ffjord_kit import CNF, Flow, FlowMatching, Phase, ResidualDynamics, Standardize, fit_flow
from ffjord_kit.data import Pixels, Rows
from ffjord_kit.nn import UNetDynamics
from ffjord_kit.training import TrainConfig, Workers
from ffjord_kit.transforms.bounded import pixel_logit

BENCHMARK = "workers"
BATCHES = {"table": 512, "images": 64}
STEPS = {"table": 300, "images": 12}
UNCOUNTED = 1 / 4  # of the steps
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def subject(name: str) -> tuple[Flow, Tensor | Rows]:
    """An untrained flow, and rows to train it on."""
    generator = torch.Generator().manual_seed(0)
    if name == "table":
        x = torch.randn(20_000, 9, generator=generator, dtype=torch.float64)
        return Flow([CNF(ResidualDynamics((9,), hidden=(128, 128, 128)), (9,))], preprocess=[Standardize.of(x)]), x
    shape = (1, 28, 28)
    levels = torch.randint(0, 256, (2_000, *shape), generator=generator, dtype=torch.uint8)
    return Flow([CNF(UNetDynamics(shape), shape)], preprocess=[pixel_logit(shape)]), Pixels(levels)


def rows_a_second(name: str, device: str) -> float:
    """Of a fit by the workers that are here."""
    workers, steps, batch = Workers.here(), STEPS[name], BATCHES[name]
    flow, rows = subject(name)
    flow.to(workers.device(torch.device(device)))
    fit_flow(flow, rows, schedule=[Phase(FlowMatching(), int(UNCOUNTED * steps))], config=TrainConfig(batch_size=batch))
    begun = time.perf_counter()
    fit_flow(flow, rows, schedule=[Phase(FlowMatching(), steps)], config=TrainConfig(batch_size=batch))
    return steps * batch / (time.perf_counter() - begun)


def measured(name: str, count: int, device: str) -> float:
    """Rows a second by so many processes. Raises ValueError where they fail."""
    asked = [sys.argv[0], "--worker", name, "--device", device]
    ended = subprocess.run([*TORCHRUN, f"--nproc-per-node={count}", *asked], capture_output=True, text=True)
    if ended.returncode:
        raise ValueError(f"{count} processes on {name} failed: {' '.join(ended.stderr.split())[-300:]}")
    return json.loads(ended.stdout)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as lines of a table."""
    lines = ["| network | device | processes | rows a second | of one process |", "|---|---|---|---|---|"]
    alone = {(row["set"], row["device"]): row["rows_a_second"] for row in rows if row["method"] == "1"}
    for row in rows:
        one = alone.get((row["set"], row["device"]))
        ratio = "" if one is None else f"{row['rows_a_second'] / one:.2f}"
        lines.append(f"| {row['set']} | {row['device']} | {row['method']} | {row['rows_a_second']:.0f} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    """Run what the options ask for, and print the table; as a worker, print its one number."""
    extra = {"--worker": {"metavar": "SET", "choices": tuple(BATCHES), "help": "be one of the processes"}}
    given = options(__doc__, sets=tuple(BATCHES), methods=("1", "2"), budgets=(), extra=extra)
    if given.worker is not None:
        found = rows_a_second(given.worker, given.device)
        if Workers.here().is_first:
            print(json.dumps(found))
        return
    store = Store(given.json)
    for name in given.sets:
        for count in given.only:
            key = {"benchmark": BENCHMARK, "set": name, "method": count, "device": given.device}
            if given.again or not store.has(**key):
                found = measured(name, int(count), given.device)
                store.add({**key, "rows_a_second": round(found, 1), "batch": BATCHES[name], **environment()})
    print(table([row for row in store.rows() if row["benchmark"] == BENCHMARK]))


if __name__ == "__main__":
    run(main)
