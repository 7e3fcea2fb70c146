"""Training curves from the records of a run: loss, validation, cost of the solver and learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ffjord_kit.plots.figure import ACCENT, DATA, FRAME, SAMPLES, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]

PHASE_TITLES = {"flow_matching": "flow matching", "mle": "maximum likelihood", "steps": "few exact steps"}
PANELS_PER_ROW = {1: [1], 2: [2], 3: [3], 4: [2, 2], 5: [2, 3]}  # by the number of panels
MAX_PLAIN = 60  # a noisy curve with more values is drawn pale beneath its running median
MEDIANS = 60  # points of a running median


@dataclass(frozen=True)
class CurvePanel:
    """One panel of training curves.

    Args:
        title: Title of the panel.
        curves: For each label a colour and the values at all records, shape (n,), with nan for gaps.
        noisy: Whether long curves are drawn pale beneath their running medians.
        mark_best: Whether the lowest value is marked.
        from_zero: Whether the vertical axis starts at 0.
        whole_run: Whether the panel spans the whole run, with lines at the changes of phase, or only its values.

    Example:
        >>> panel = CurvePanel("loss", {"": ("blue", np.array([2.0, np.nan])), "empty": ("red", np.full(2, np.nan))})
        >>> list(panel.non_empty)
        ['']
    """

    title: str
    curves: dict[str, tuple[str, NDArray]]
    noisy: bool = False
    mark_best: bool = False
    from_zero: bool = False
    whole_run: bool = True

    @property
    def non_empty(self) -> dict[str, tuple[str, NDArray]]:
        """Curves with at least one value."""
        return {label: curve for label, curve in self.curves.items() if np.any(np.isfinite(curve[1]))}


@styled
def training_curves(records: Records) -> Figure:
    """Draw the loss of each phase, the validation NLL, the evaluations of the dynamics (NFE) and the learning rate.

    A missing key or None is a gap in a curve, and a panel without values is left out. The horizontal axis counts
    records where their steps are missing or do not ascend.

    Args:
        records: One dict per logged step with any of the keys step, phase, loss, validation_nll (nats), nfe_forward,
            nfe_backward and learning_rate.

    Returns:
        The figure: one panel per quantity; the lowest validation NLL is marked.

    Raises:
        ValueError: If a record is not a dict or no known key has a value.

    Example:
        >>> figure = training_curves([{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.0, "validation_nll": 1.5}])
        >>> [panel.get_title(loc="left") for panel in figure.axes]
        ['loss', 'validation NLL']
    """
    panels = [panel for panel in _curve_panels(records) if panel.non_empty]
    if not panels:
        raise ValueError(f"records must hold numbers under 'loss' or another known key; got {len(records)} without any")
    steps, label = _steps(records)
    rows = PANELS_PER_ROW.get(len(panels)) or [min(3, len(panels) - start) for start in range(0, len(panels), 3)]
    figure = new_figure(3.2 * max(rows) + 0.3, 2.2 * len(rows) + 0.3)
    grid = figure.add_gridspec(len(rows), 6)
    cells = [(row, 6 // count * place, 6 // count) for row, count in enumerate(rows) for place in range(count)]
    for panel, (row, start, width) in zip(panels, cells, strict=True):
        axes = figure.add_subplot(grid[row, start : start + width])
        _draw_panel(axes, panel, steps)
        if panel.whole_run:
            _show_whole_run(axes, steps, _phases(records))
        axes.set_xlabel(label if row == len(rows) - 1 else "")
    return figure


def _curve_panels(records: Records) -> list[CurvePanel]:
    for record in records:
        if not isinstance(record, Mapping):
            raise ValueError(f"records must be a list of dicts, one per logged step; got a {type(record).__name__}")
    evaluations = {
        "forward": (DATA, _counts(records, "nfe_forward")),
        "backward": (SAMPLES, _counts(records, "nfe_backward")),
    }
    return [
        *_loss_panels(records),
        CurvePanel("validation NLL", {"": (DATA, _series(records, "validation_nll"))}, mark_best=True),
        CurvePanel("NFE", evaluations, noisy=True, from_zero=True),
        CurvePanel("learning rate", {"": (DATA, _series(records, "learning_rate"))}, from_zero=True),
    ]


def _loss_panels(records: Records) -> list[CurvePanel]:
    loss, phases = _series(records, "loss"), np.array(_phases(records))
    titles = {phase: f"loss, {PHASE_TITLES.get(phase, phase)}" if phase else "loss" for phase in phases.tolist()}
    return [
        CurvePanel(title, {"": (DATA, np.where(phases == phase, loss, np.nan))}, noisy=True, whole_run=False)
        for phase, title in titles.items()
    ]


def _series(records: Records, key: str) -> NDArray:
    """Return the values under a key, shape (n,), with nan for a gap."""
    values = np.array([np.nan if record.get(key) is None else float(record[key]) for record in records])
    return np.where(np.isfinite(values), values, np.nan)


def _counts(records: Records, key: str) -> NDArray:
    """Return the counts under a key, with nan for 0: flow matching solves no differential equation."""
    counts = _series(records, key)
    return np.where(counts > 0, counts, np.nan)


def _phases(records: Records) -> list[str]:
    """Return the phase of each record; one without a phase belongs to the phase before it, or else to the first."""
    named = [str(record.get("phase") or "") for record in records]
    current, phases = next(filter(None, named), ""), []
    for name in named:
        current = name or current
        phases.append(current)
    return phases


def _steps(records: Records) -> tuple[NDArray, str]:
    """Return the horizontal coordinates, shape (n,), and their label."""
    steps = _series(records, "step")
    if np.any(np.isnan(steps)) or np.any(np.diff(steps) < 0):
        return np.arange(1, len(records) + 1), "record"
    return steps, "step"


def _show_whole_run(axes: Axes, steps: NDArray, phases: list[str]) -> None:
    """Span the whole run, with a dashed line at each change of phase."""
    margin = 0.03 * float(np.ptp(steps)) or 0.5
    axes.set_xlim(steps[0] - margin, steps[-1] + margin)
    for place in range(1, len(phases)):
        if phases[place] != phases[place - 1]:
            middle = (steps[place - 1] + steps[place]) / 2
            axes.axvline(middle, color=FRAME, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)


def _draw_panel(axes: Axes, panel: CurvePanel, steps: NDArray) -> None:
    axes.grid(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(panel.title, loc="left")
    spans = []
    for label, (colour, values) in panel.non_empty.items():
        present = np.isfinite(values)
        draw = _draw_noisy_line if panel.noisy and np.count_nonzero(present) > MAX_PLAIN else _draw_line
        spans.append(draw(axes, steps[present], values[present], colour, label))
    _set_limits(axes, np.array(spans), from_zero=panel.from_zero)
    if panel.mark_best:
        _mark_best(axes, steps, panel.curves[""][1])
    if len(panel.non_empty) > 1:
        place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.985), "borderaxespad": 0.0}
        axes.legend(**place, ncols=2, handlelength=1.2, columnspacing=1.2)
    _format_ticks(axes)


def _draw_line(axes: Axes, steps: NDArray, values: NDArray, colour: str, label: str) -> tuple[float, float]:
    """Draw the values themselves; return the range to show."""
    marker = "o" if len(values) <= 30 else ""
    axes.plot(steps, values, color=colour, linewidth=1.4, marker=marker, markersize=3, label=label)
    return values.min(), values.max()


def _draw_noisy_line(axes: Axes, steps: NDArray, values: NDArray, colour: str, label: str) -> tuple[float, float]:
    """Draw the values pale beneath their running median; return a range that a single outlier does not stretch."""
    centres = np.linspace(0, len(values) - 1, MEDIANS).astype(int)
    reach = max(5, len(values) // 40)
    medians = [float(np.median(values[max(0, centre - reach) : centre + reach + 1])) for centre in centres]
    axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3, rasterized=True)
    axes.plot(steps[centres], medians, color=colour, linewidth=1.5, label=label)
    low, high = np.quantile(values, [0.005, 0.99]).tolist()
    return min(low, *medians), max(high, *medians)


def _set_limits(axes: Axes, spans: NDArray, *, from_zero: bool) -> None:
    """Set the vertical limits to hold the range of each curve, (curves, 2), on a log scale where it is wide."""
    low, high = spans[:, 0].min(), spans[:, 1].max()
    if from_zero and high > 0:
        axes.set_ylim(0, 1.08 * high)
    elif low > 0 and high > 50 * low:
        axes.set_yscale("log")
    elif high > low:
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def _mark_best(axes: Axes, steps: NDArray, values: NDArray) -> None:
    best = int(np.nanargmin(values))
    axes.plot(steps[best], values[best], "o", color="white", markeredgecolor=ACCENT, markeredgewidth=1.8, markersize=7)
    axes.set_title(f"best {values[best]:.4g} at {steps[best]:,.0f}", loc="right", color=ACCENT, fontsize=8)


def _format_ticks(axes: Axes) -> None:
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if axes.get_yscale() == "linear":
        axes.locator_params(axis="y", nbins=5)
        axes.yaxis.set_major_formatter("{x:g}")
