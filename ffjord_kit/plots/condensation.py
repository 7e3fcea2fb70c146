"""Pictures of condensation: directions and amplitudes of neurons over training, their likeness, their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ffjord_kit.plots.figure import DATA, FRAME, SAMPLES, new_figure, single_panel, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOWEST = 1e-4  # amplitude that is drawn, relative to the largest of its panel


@styled
def directions_over_training(rows: Mapping[str, Mapping[int, tuple[ArrayLike, ArrayLike]]]) -> Figure:
    """Draw the neurons of a layer by direction and amplitude: a row for each network, a panel for each step.

    Args:
        rows: By network and step the angles, radians, shape (m,), and amplitudes, shape (m,).

    Returns:
        The figure; amplitudes are relative to the largest of each panel.

    Raises:
        ValueError: If there is no panel, or the networks have other numbers of steps.

    Example:
        >>> figure = directions_over_training({"small": {0: ([0.0, 1.0], [1.0, 2.0])}})
        >>> figure.axes[0].get_title()
        'step 0'
    """
    counts = {len(panels) for panels in rows.values()}
    if not rows or len(counts) != 1 or counts == {0}:
        raise ValueError(f"rows must have the same number of steps, one or more; got {sorted(counts)}")
    columns = counts.pop()
    figure = new_figure(1.9 * columns + 0.4, 1.5 * len(rows) + 0.4)
    axes = figure.subplots(len(rows), columns, sharex=True, sharey=True, squeeze=False)
    for line, (name, panels) in zip(axes, rows.items(), strict=True):
        for panel, (step, (angles, amplitudes)) in zip(line, panels.items(), strict=True):
            sizes = np.asarray(amplitudes, float)
            relative = np.maximum(sizes / max(float(sizes.max()), np.finfo(float).tiny), LOWEST)
            panel.plot(np.asarray(angles, float), relative, "o", color=DATA, markersize=2.5, alpha=0.5)
            panel.set(yscale="log", ylim=(LOWEST * 0.7, 1.6), xlim=(-np.pi, np.pi))
            panel.set_xticks([-np.pi, 0, np.pi], ["-π", "0", "π"])
            panel.set_title(f"step {step:,}")
        line[0].set_ylabel(name)
    figure.supxlabel("direction of a neuron", fontsize=9)
    figure.supylabel("amplitude", fontsize=9)
    return figure


@styled
def similarity_matrices(matrices: Mapping[str, ArrayLike]) -> Figure:
    """Draw cosines between the directions of neurons, in an order that puts like ones side by side.

    Args:
        matrices: Ordered cosines by title, each (m, m).

    Returns:
        The figure.

    Raises:
        ValueError: If there is no matrix.

    Example:
        >>> similarity_matrices({"layer": np.eye(3)}).axes[0].get_title()
        'layer'
    """
    if not matrices:
        raise ValueError("matrices must have one entry or more; got none")
    figure = new_figure(2.2 * len(matrices) + 0.8, 2.4)
    panels = figure.subplots(1, len(matrices), squeeze=False)[0].tolist()
    for panel, (title, cosines) in zip(panels, matrices.items(), strict=True):
        drawn = panel.imshow(np.asarray(cosines, float), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        panel.set(title=title, xticks=[], yticks=[])
    figure.colorbar(drawn, ax=panels, label="cosine").outline.set_visible(False)
    return figure


@styled
def effective_neurons(records: Sequence[Mapping[str, Any]], *, ax: Axes | None = None) -> Figure:
    """Draw the effective number of neurons of each hidden layer over training, from a run's log.

    Args:
        records: Records, of which those with a key "condensation" count.
        ax: Axes to draw on; those of a new figure if None.

    Returns:
        The figure.

    Raises:
        ValueError: If no record has the key.

    Example:
        >>> records = [{"step": step, "condensation": {"layer": [8, 8 - step]}} for step in (1, 2)]
        >>> len(effective_neurons(records).axes[0].lines)
        2
    """
    seen = [record for record in records if record.get("condensation")]
    if not seen:
        raise ValueError("no record holds the effective neurons: fit with watch='condensation'")
    figure, axes = single_panel(ax, 4.0, 2.6)
    steps = [record["step"] for record in seen]
    for number, name in enumerate(seen[0]["condensation"]):
        widths, effective = zip(*(record["condensation"][name] for record in seen), strict=True)
        axes.plot(steps, effective, "o-", color=(DATA, SAMPLES)[number % 2], markersize=3, linewidth=1.3, label=name)
        axes.axhline(widths[0], color=FRAME, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set(xlabel="step", title="groups of like neurons", ylim=(0, None))
    axes.legend(loc="lower left")
    return figure
