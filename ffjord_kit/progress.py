"""Progress bars on stderr, with the time left: of training, and of any loop; in a terminal and in Jupyter."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

NOTEBOOK_WIDTH = 110  # columns of characters

OnStep = Callable[[dict[str, Any]], None]
OnProgress = Callable[[int, int], None]


class Named(Protocol):
    """Anything with a name, e.g. an objective."""

    @property
    def name(self) -> str:
        """The name."""


class ScheduledPhase(Protocol):
    """A phase of training, as `ffjord_kit.training.Phase`."""

    @property
    def objective(self) -> Named:
        """Objective of the phase."""

    @property
    def steps(self) -> float:
        """Largest number of steps."""


class TrainingBars(NamedTuple):
    """Bars of the phases of a training.

    Attributes:
        on_step: Listener for records of steps, or None.
        finish: Function to call when training has ended, with whether it was interrupted; if not, all bars are full.
    """

    on_step: OnStep | None
    finish: Callable[[bool], None]


@contextmanager
def training_progress(
    schedule: Sequence[ScheduledPhase],
    *,
    shown: bool = True,
    on_step: OnStep | None = None,
    titles: Sequence[str] | None = None,
) -> Iterator[TrainingBars]:
    """Show a bar for each phase of training: steps, loss, validation NLL, evaluations forward and backward.

    Args:
        schedule: Phases.
        shown: Whether to show anything.
        on_step: Listener that gets each record too.
        titles: Titles of the bars; the names of the objectives if None.

    Yields:
        The bars; where nothing is shown, their listener is `on_step` itself.
    """
    if not shown:
        yield TrainingBars(on_step, lambda interrupted: None)
        return
    bar = _bar(TextColumn("{task.fields[done]}"), TextColumn("{task.fields[numbers]}"))
    names = [phase.objective.name for phase in schedule] if titles is None else titles
    tasks = [bar.add_task(name, total=1.0, start=False, numbers="", done="") for name in names]

    def listener(record: dict[str, Any]) -> None:
        bar.start()  # at the first step, so that an error before it stands alone
        number = record["phase_index"]
        for task in tasks[:number]:
            bar.update(task, completed=1.0)  # an earlier phase has ended, be it before its last step
        bar.start_task(tasks[number])
        texts: dict[str, Any] = _numbers(record, schedule[number].steps)
        bar.update(tasks[number], completed=record["phase_share"], **texts)
        if on_step is not None:
            on_step(record)

    def finish(interrupted: bool) -> None:
        if bar.live.is_started and not interrupted:
            _complete(bar)

    try:
        yield TrainingBars(listener, finish)
    finally:
        _stop(bar)


@contextmanager
def progress(label: str, *, shown: bool | None = None) -> Iterator[OnProgress]:
    """Show a bar for a loop.

    Args:
        label: Title of the bar.
        shown: Whether to show it; None for on a terminal or in Jupyter alone.

    Yields:
        A function to call with the part done and the whole.
    """
    bar = _bar(TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    if shown is False or (shown is None and not (sys.stderr.isatty() or _in_notebook())):
        yield lambda done, total: None
        return
    task = bar.add_task(label, total=1, start=False)

    def on_progress(done: int, total: int) -> None:
        bar.start()
        bar.start_task(task)
        bar.update(task, completed=done, total=total)

    try:
        yield on_progress
        if bar.live.is_started:
            _complete(bar)
    finally:
        _stop(bar)


def note(text: str) -> None:
    """Print a line where the bars are shown.

    Args:
        text: The line.
    """
    Console(stderr=True, markup=False, highlight=False).print(text, soft_wrap=True)


class NotebookLive(Live):
    """A display in a cell of a notebook, by IPython alone, where rich's own needs ipywidgets.

    Args:
        bar: Bars to show.

    Attributes:
        cell: IPython's handle of the display; None before it is first shown.
    """

    def __init__(self, bar: Progress) -> None:
        super().__init__(console=_page(), get_renderable=bar.get_renderable)
        self.cell: Any = None

    def refresh(self) -> None:
        from IPython.display import display  # here, as only a notebook has it

        page = _page()
        page.print(self.get_renderable())
        html = page.export_html(inline_styles=True, code_format="<pre>{code}</pre>", clear=False)
        forms = {"text/plain": page.export_text(), "text/html": html}
        if self.cell is None:
            self.cell = display(forms, raw=True, display_id=True)
        else:
            self.cell.update(forms, raw=True)


def _page() -> Console:
    """Return a console that keeps what is printed."""
    return Console(file=io.StringIO(), record=True, width=NOTEBOOK_WIDTH, force_jupyter=False)


def _in_notebook() -> bool:
    return Console().is_jupyter


def _bar(*columns: ProgressColumn) -> Progress:
    blocks = BarColumn(bar_width=8, finished_style="green")  # rich's own looks empty where there are 16 colours
    bar = Progress(
        TextColumn("{task.description:>13}"), blocks, *columns, TimeRemainingColumn(compact=True), TextColumn("left"),
        console=Console(stderr=True), refresh_per_second=4,
    )  # fmt: skip
    if _in_notebook():
        bar.live = NotebookLive(bar)
    return bar


def _complete(bar: Progress) -> None:
    """Fill all bars: a phase that ends by time or early has ended, be it before its first step."""
    for task in bar.tasks:
        bar.start_task(task.id)
        bar.update(task.id, completed=task.total)


def _stop(bar: Progress) -> None:
    if bar.live.is_started:
        bar.stop()


def _numbers(record: dict[str, Any], steps: float) -> dict[str, str]:
    """Return the texts beside a bar."""
    best = "" if record["best_nll"] is None else f"  NLL {record['best_nll']:.3f}"
    nfe = f"  NFE {record['nfe_forward']}+{record['nfe_backward']}" if record["nfe_forward"] else ""
    whole = "" if steps == math.inf else f"/{steps}"
    return {"numbers": f"loss {record['loss']:.3f}{best}{nfe}", "done": f"{record['phase_step']}{whole}"}
