"""How a training went, from the records of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ffjord_kit.plots.canvas import ACCENT, DATA, FRAME, SAMPLES, sheet, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]

PHASES = {"flow_matching": "flow matching", "mle": "maximum likelihood"}
ROWS = {1: [1], 2: [2], 3: [3], 4: [2, 2], 5: [2, 3]}  # panels in each row, by the number of panels
NOISY = 60  # a curve with more values than this is drawn pale under running medians at MEDIANS places
MEDIANS = 60


@dataclass(frozen=True)
class Board:
    """One panel: a title and its curves, label -> (colour, values with nan for gaps).

    A panel is over the whole run, with its changes of phase, or over as much of it as has values.
    """

    title: str
    curves: dict[str, tuple[str, NDArray]]
    noisy: bool = False
    best: bool = False
    from_zero: bool = False
    whole: bool = True

    @property
    def present(self) -> dict[str, tuple[str, NDArray]]:
        """The curves that have a value."""
        return {name: curve for name, curve in self.curves.items() if np.any(np.isfinite(curve[1]))}


@styled
def training_curves(records: Records) -> Figure:
    """Draw loss by phase, validation NLL with the best marked, evaluations of the dynamics, and learning rate.

    records are dicts with any of step, phase, loss, validation_nll (nats), nfe_forward, nfe_backward, learning_rate;
    a key that is absent or None is a gap, and a panel without values is left out. Where steps are absent or go back,
    the place in the list stands for them. Raises ValueError if there is nothing to draw.
    """
    boards = [board for board in _boards(records) if board.present]
    if not boards:
        raise ValueError(f"records must hold numbers under 'loss' or another known key; got {len(records)} without any")
    steps, label = _steps(records)
    rows = ROWS.get(len(boards)) or [min(3, len(boards) - start) for start in range(0, len(boards), 3)]
    figure = sheet(3.2 * max(rows) + 0.3, 2.2 * len(rows) + 0.3)
    grid = figure.add_gridspec(len(rows), 6)
    cells = [(row, 6 // count * place, 6 // count) for row, count in enumerate(rows) for place in range(count)]
    for board, (row, start, width) in zip(boards, cells, strict=True):
        panel = figure.add_subplot(grid[row, start : start + width])
        _draw(panel, board, steps)
        if board.whole:
            _show_run(panel, steps, _phases(records))
        panel.set_xlabel(label if row == len(rows) - 1 else "")
    return figure


def _boards(records: Records) -> list[Board]:
    if not all(isinstance(record, Mapping) for record in records):
        raise ValueError("records must be a list of dicts, one per logged step; got other things in it")
    passes = {
        "forward": (DATA, _counts(records, "nfe_forward")),
        "backward": (SAMPLES, _counts(records, "nfe_backward")),
    }
    return [
        *_loss_boards(records),
        Board("validation NLL", {"": (DATA, _series(records, "validation_nll"))}, best=True),
        Board("NFE", passes, noisy=True, from_zero=True),
        Board("learning rate", {"": (DATA, _series(records, "learning_rate"))}, from_zero=True),
    ]


def _loss_boards(records: Records) -> list[Board]:
    loss, phases = _series(records, "loss"), np.array(_phases(records))
    names = {phase: f"loss, {PHASES.get(phase, phase)}" if phase else "loss" for phase in phases.tolist()}
    curves = {phase: {"": (DATA, np.where(phases == phase, loss, np.nan))} for phase in names}
    return [Board(names[phase], curve, noisy=True, whole=False) for phase, curve in curves.items()]


def _series(records: Records, key: str) -> NDArray:
    values = np.array([np.nan if record.get(key) is None else float(record[key]) for record in records])
    return np.where(np.isfinite(values), values, np.nan)


def _counts(records: Records, key: str) -> NDArray:
    """Return the counts under a key, with a gap where nothing was counted: flow matching solves no equation."""
    counts = _series(records, key)
    return np.where(counts > 0, counts, np.nan)


def _phases(records: Records) -> list[str]:
    """Return the phase of each record; one that names none belongs to the phase before it, or to the first."""
    named = [str(record.get("phase") or "") for record in records]
    current, phases = next(filter(None, named), ""), []
    for name in named:
        current = name or current
        phases.append(current)
    return phases


def _steps(records: Records) -> tuple[NDArray, str]:
    steps = _series(records, "step")
    if np.any(np.isnan(steps)) or np.any(np.diff(steps) < 0):
        return np.arange(1, len(records) + 1), "record"
    return steps, "step"


def _show_run(panel: Axes, steps: NDArray, phases: list[str]) -> None:
    """Span the whole run, with a dashed line wherever the phase changes."""
    margin = 0.03 * float(np.ptp(steps)) or 0.5
    panel.set_xlim(steps[0] - margin, steps[-1] + margin)
    for place in range(1, len(phases)):
        if phases[place] != phases[place - 1]:
            middle = (steps[place - 1] + steps[place]) / 2
            panel.axvline(middle, color=FRAME, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)


def _draw(panel: Axes, board: Board, steps: NDArray) -> None:
    panel.grid(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title(board.title, loc="left")
    spans = []
    for name, (colour, values) in board.present.items():
        there = np.isfinite(values)
        draw = _noisy_line if board.noisy and np.count_nonzero(there) > NOISY else _line
        spans.append(draw(panel, steps[there], values[there], colour, name))
    _fit_limits(panel, np.array(spans), from_zero=board.from_zero)
    if board.best:
        _mark_best(panel, steps, board.curves[""][1])
    if len(board.present) > 1:
        place = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.985), "borderaxespad": 0.0}
        panel.legend(**place, ncols=2, handlelength=1.2, columnspacing=1.2)
    _ticks(panel)


def _line(panel: Axes, steps: NDArray, values: NDArray, colour: str, name: str) -> tuple[float, float]:
    """Draw the values as they are; return the span to show."""
    mark = "o" if len(values) <= 30 else ""
    panel.plot(steps, values, color=colour, linewidth=1.4, marker=mark, markersize=3, label=name)
    return values.min(), values.max()


def _noisy_line(panel: Axes, steps: NDArray, values: NDArray, colour: str, name: str) -> tuple[float, float]:
    """Draw the values pale under their running medians; return a span that a lone outlier does not stretch."""
    middles = np.linspace(0, len(values) - 1, MEDIANS).astype(int)
    reach = max(5, len(values) // 40)
    trend = [float(np.median(values[max(0, middle - reach) : middle + reach + 1])) for middle in middles]
    panel.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3, rasterized=True)
    panel.plot(steps[middles], trend, color=colour, linewidth=1.5, label=name)
    return min(np.quantile(values, 0.005), *trend), max(np.quantile(values, 0.99), *trend)


def _fit_limits(panel: Axes, spans: NDArray, *, from_zero: bool) -> None:
    low, high = spans[:, 0].min(), spans[:, 1].max()
    if from_zero and high > 0:
        panel.set_ylim(0, 1.08 * high)
    elif low > 0 and high > 50 * low:
        panel.set_yscale("log")
    elif high > low:
        panel.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def _mark_best(panel: Axes, steps: NDArray, values: NDArray) -> None:
    best = int(np.nanargmin(values))
    panel.plot(steps[best], values[best], "o", color="white", markeredgecolor=ACCENT, markeredgewidth=1.8, markersize=7)
    panel.set_title(f"best {values[best]:.4g} at {steps[best]:,.0f}", loc="right", color=ACCENT, fontsize=8)


def _ticks(panel: Axes) -> None:
    panel.locator_params(axis="x", nbins=5, integer=True)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if panel.get_yscale() == "linear":
        panel.locator_params(axis="y", nbins=5)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
