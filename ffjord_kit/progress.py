"""A progress bar for training: steps, loss, validation NLL, evaluations forward and backward, and the time left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ffjord_kit.training import Phase

OnStep = Callable[[dict[str, Any]], None]


@contextmanager
def progress_bar(
    schedule: Sequence[Phase], shown: bool, also: OnStep | None = None, *, titles: Sequence[str] | None = None
) -> Iterator[OnStep | None]:
    """A function for each step's record that moves a bar for each phase, and passes the record on to `also`.

    A bar has its objective's name, unless `titles` gives another.
    """
    if not shown:
        yield also
        return
    columns = (
        TextColumn("{task.description:>13}"),
        BarColumn(bar_width=8),
        TextColumn("{task.fields[done]}"),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    bar = Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
    try:
        names = [phase.objective.name for phase in schedule] if titles is None else titles
        tasks = [bar.add_task(name, total=1.0, start=False, numbers="", done="") for name in names]

        def tell(record: dict[str, Any]) -> None:
            bar.start()  # at the first step, so that an error before it stands alone
            task = tasks[record["phase_index"]]
            bar.start_task(task)
            bar.update(task, completed=record["phase_share"], **_told(record, schedule))
            if also is not None:
                also(record)

        yield tell
    finally:
        if bar.live.is_started:
            bar.stop()


def _told(record: dict[str, Any], schedule: Sequence[Phase]) -> dict[str, str]:
    best = "" if record["best_nll"] is None else f"  NLL {record['best_nll']:.3f}"
    nfe = f"  NFE {record['nfe_forward']}+{record['nfe_backward']}" if record["nfe_forward"] else ""
    steps = schedule[record["phase_index"]].steps
    whole = "" if steps == math.inf else f"/{steps}"
    return {"numbers": f"loss {record['loss']:.3f}{best}{nfe}", "done": f"{record['phase_step']}{whole}"}
