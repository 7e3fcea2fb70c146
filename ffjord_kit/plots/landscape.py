"""Losses on lines and planes through the weights of models, with the path of training; curvature over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.plots.arrays import checked_array
from ffjord_kit.plots.cost import COLOURS
from ffjord_kit.plots.figure import COLOUR_MAP_ON_WHITE, INK, SAMPLES, new_figure, single_panel, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = 12  # contours
Plane = tuple[ArrayLike, ArrayLike, ArrayLike]


@styled
def loss_lines(
    steps: ArrayLike,
    losses: Mapping[str, ArrayLike],
    *,
    along: str = "step along the direction",
    label: str = "loss",
    ax: Axes | None = None,
) -> Figure:
    """Draw losses along a line.

    Args:
        steps: Steps, shape (A,).
        losses: Losses by name, each (A,); where one is NaN or infinite its curve has a gap.
        along: Label of the steps.
        label: Label of the losses.
        ax: Axes to draw on; those of a new figure if None.

    Returns:
        The figure, one panel.

    Raises:
        ValueError: If there is no curve, or an array has another shape.

    Example:
        >>> figure = loss_lines([-1, 0, 1], {"training": [1, 0, 1], "test": [1.2, 0.1, np.inf]})
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['training', 'test']
    """
    if not losses:
        raise ValueError("losses must have one curve or more; got none")
    x = checked_array("steps", steps, ("A",))
    figure, panel = single_panel(ax, 4.6, 3.2)
    for i, (name, values) in enumerate(losses.items()):
        panel.plot(x, _with_gaps(name, values, x.shape), color=COLOURS[i % len(COLOURS)], label=name)
    panel.set(xlabel=along, ylabel=label)
    panel.legend()
    return figure


@styled
def loss_planes(
    planes: Mapping[str, Plane],
    *,
    path: ArrayLike | None = None,
    axes: Sequence[str] = ("first direction", "second direction"),
    largest: float | None = None,
    label: str = "loss",
) -> Figure:
    """Draw losses on planes as contours, with common levels that are closer together near the lowest loss.

    Args:
        planes: By name the steps along the first direction (A,), along the second one (B,), and the losses (A, B);
            losses that are NaN or infinite stay white.
        path: Coordinates of the weights in training, shape (T, 2), drawn in each panel.
        axes: Labels of the directions.
        largest: Largest loss that is drawn; that of all planes if None.
        label: Label of the losses.

    Returns:
        The figure, four panels in a row at most.

    Raises:
        ValueError: If there is no plane, an array has another shape, or no loss is finite.

    Example:
        >>> steps = np.linspace(-1, 1, 5)
        >>> figure = loss_planes({"bowl": (steps, steps, steps[:, None] ** 2 + steps**2)})
        >>> figure.axes[0].get_title()
        'bowl'
    """
    if not planes:
        raise ValueError("planes must have one plane or more; got none")
    read = {name: _plane(name, plane) for name, plane in planes.items()}
    levels = _levels(np.concatenate([values.ravel() for _, _, values in read.values()]), largest)
    columns = min(len(read), 4)
    rows = -(-len(read) // columns)
    figure = new_figure(2.3 * columns + 0.9, 2.3 * rows + 0.4)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for panel, (name, (x, y, values)) in zip(panels, read.items(), strict=False):
        drawn = panel.contourf(x, y, values.T, levels, cmap=COLOUR_MAP_ON_WHITE, extend="max")
        panel.contour(x, y, values.T, levels, colors=[INK], linewidths=0.3)
        if path is not None:
            panel.plot(*checked_array("path", path, ("T", 2)).T, ".-", color=SAMPLES, linewidth=1.0, markersize=3)
        panel.set(title=name, xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    for panel in panels[len(read) :]:
        panel.set_axis_off()
    figure.colorbar(drawn, ax=panels, label=label, format="%.2g")
    figure.supxlabel(axes[0], fontsize=9)
    figure.supylabel(axes[1], fontsize=9)
    return figure


@styled
def loss_surface(
    steps: Sequence[ArrayLike], losses: ArrayLike, *, label: str = "loss", ax: Axes | None = None
) -> Figure:
    """Draw the loss on a plane as a surface.

    Args:
        steps: Steps along the first direction, (A,), and along the second one, (B,).
        losses: Losses, shape (A, B).
        label: Label of the losses.
        ax: Axes to draw on, with projection="3d"; those of a new figure if None.

    Returns:
        The figure.

    Raises:
        ValueError: If an array has another shape, or a loss is not finite.

    Example:
        >>> steps = np.linspace(-1, 1, 5)
        >>> loss_surface((steps, steps), steps[:, None] ** 2 + steps**2).axes[0].name
        '3d'
    """
    x, y = checked_array("first steps", steps[0], ("A",)), checked_array("second steps", steps[1], ("B",))
    values = checked_array("losses", losses, (len(x), len(y)))
    figure, panel = single_panel(ax, 4.2, 3.6, projection="3d")
    if ax is None:  # the constrained layout leaves no room for the label of the height
        figure.set_layout_engine("none")
        panel.set_position((0.0, 0.05, 0.9, 0.92))
    panel.plot_surface(x[:, None], y[None], values, cmap=COLOUR_MAP_ON_WHITE, linewidth=0.15, edgecolor=INK)
    panel.set(xlabel="first direction", ylabel="second direction", zlabel=label)
    return figure


@styled
def watched_curvature(records: Sequence[Mapping[str, Any]], *, ax: Axes | None = None) -> Figure:
    """Draw the largest eigenvalue of the Hessian over training, one curve for each loss, from a run's log.

    Args:
        records: Records, of which those with a key "hessian" count.
        ax: Axes to draw on; those of a new figure if None.

    Returns:
        The figure.

    Raises:
        ValueError: If no record has the key.

    Example:
        >>> records = [{"step": step, "hessian": {"loss": "mle", "top": 9.0, "error": 0.1}} for step in (1, 2)]
        >>> len(watched_curvature(records).axes[0].containers)
        1
    """
    seen = [(record["step"], record["hessian"]) for record in records if record.get("hessian")]
    if not seen:
        raise ValueError("no record holds the curvature of the loss: fit with watch='hessian'")
    figure, panel = single_panel(ax, 4.0, 2.6)
    for i, loss in enumerate(dict.fromkeys(look["loss"] for _, look in seen)):
        points = [(step, look["top"], look["error"]) for step, look in seen if look["loss"] == loss]
        steps, tops, errors = zip(*points, strict=True)
        panel.errorbar(steps, tops, errors, fmt="o-", color=COLOURS[i % len(COLOURS)], markersize=3, label=loss)
    panel.set(xlabel="step", title="largest eigenvalue of the Hessian", yscale="log")
    panel.legend()
    return figure


def _with_gaps(name: str, values: ArrayLike, shape: tuple[int, ...]) -> NDArray:
    """Return values of a shape; NaN where they are not finite."""
    numbers = np.asarray(values, dtype=float)
    return np.where(np.isfinite(numbers), numbers, np.nan) + 0 * checked_array(name, np.nan_to_num(numbers), shape)


def _plane(name: str, plane: Plane) -> tuple[NDArray, NDArray, NDArray]:
    x, y = checked_array("first steps", plane[0], ("A",)), checked_array("second steps", plane[1], ("B",))
    return x, y, np.ma.masked_invalid(_with_gaps(name, plane[2], (len(x), len(y))))


def _levels(values: NDArray, largest: float | None) -> NDArray:
    """Return contours from the least value to the largest, their distances growing with the square."""
    known = np.asarray(values, dtype=float)[np.isfinite(np.ma.filled(values, np.nan))]
    if not len(known):
        raise ValueError("planes must have a finite loss; got none")
    low, high = known.min(), known.max() if largest is None else largest
    return low + max(high - low, 1e-12) * np.linspace(0, 1, LEVELS) ** 2
