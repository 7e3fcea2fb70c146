"""The sheet that every picture is drawn on: one style, panels of one scale, files written whole or not at all.

The colours are safe for colour-blind readers: Okabe and Ito's blue and vermilion for data and samples, perceptually
uniform maps for densities. matplotlib is imported inside the functions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ffjord_kit.atomic import replacing
from ffjord_kit.plots.arrays import Bounds, box_ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

DATA, SAMPLES, ACCENT = "#0072B2", "#D55E00", "#009E73"
INK, MUTED, FRAME = "#262626", "#6b6b6b", "#c4c4c4"
COLOUR_MAP, COLOUR_MAP_ON_WHITE = "magma", "viridis_r"

STYLE: dict[str, object] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.titlesize": 10.0,
    "axes.titlepad": 6.0,
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": FRAME,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.facecolor": "white",
    "axes.grid": False,
    "grid.color": "#ececec",
    "grid.linewidth": 0.7,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.color": FRAME,
    "ytick.color": FRAME,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "figure.facecolor": "white",
    "figure.titlesize": 10.5,
    "figure.dpi": 100.0,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.constrained_layout.h_pad": 0.06,
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,
    "svg.hashsalt": "ffjord_kit",
}

# Dots per inch, and the fields that would make two files of one picture differ (the date).
FORMATS: dict[str, tuple[int, dict[str, None]]] = {
    "png": (160, {}),
    "jpg": (160, {}),
    "pdf": (300, {"CreationDate": None}),
    "svg": (300, {"Date": None}),
}


def style() -> AbstractContextManager[None]:
    """Return a context in which matplotlib follows the package's style; leaving it restores the caller's."""
    from matplotlib import rc_context, rcParamsDefault

    kept = {key: value for key, value in rcParamsDefault.items() if not key.startswith(("backend", "interactive"))}
    return rc_context({**kept, **STYLE})


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Return `draw` run in the package's style."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with style():
            return draw(*args, **kwargs)

    return drawn


def sheet(width: float, height: float, *, layout: str = "constrained") -> Figure:
    """Return an empty figure of width x height inches that a notebook shows by itself."""
    from ffjord_kit.plots.picture import Picture

    return Picture(figsize=(width, height), layout=layout)


def panels(
    count: int, bounds: Bounds, *, per_row: int, side: float, bar: bool = True, ticks: bool = True
) -> tuple[Figure, list[Axes]]:
    """Return a figure and `count` panels over the same bounds, `per_row` in a row, each `side` inches wide.

    Inner panels carry no tick labels, without `ticks` none do; `bar` leaves room for a colour bar.
    """
    columns, ratio = min(count, per_row), box_ratio(bounds)
    rows = -(-count // columns)
    width, height = columns * (side + 0.12) + 0.4 * ticks + 0.9 * bar, rows * (side * ratio + 0.4) + 0.3 * ticks
    figure = sheet(width, height, layout="compressed")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    axes[0].set(xlim=bounds[0], ylim=bounds[1])
    for panel in axes:
        panel.set_box_aspect(ratio)
        panel.locator_params(nbins=5)
        if not ticks:
            panel.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    for panel in axes[count:]:
        panel.set_axis_off()
    return figure, list(axes[:count])


def colour_bar(figure: Figure, drawn: ScalarMappable, axes: Sequence[Axes], label: str, values: ArrayLike) -> None:
    """Draw one slim colour bar at the right of all the axes, pointed at an end that some of the values pass."""
    low, high = drawn.get_clim()
    slack = 0.02 * (high - low)
    past = bool(np.min(values) < low - slack), bool(np.max(values) > high + slack)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(past, "neither")
    bar = figure.colorbar(drawn, ax=list(axes), label=label, extend=extend, aspect=28, pad=0.02, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.locator_params(axis="y", nbins=5)


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write `figure` to `path` whole or not at all, and return the path; its folder is made where it lacks.

    The ending says the format: png and jpg at 160 dots per inch, pdf and svg with their dense parts at 300. Two
    writings of one picture are equal. Raises ValueError for another ending.
    """
    path = Path(path)
    kind = ending(path, tuple(FORMATS))
    dpi, metadata = FORMATS[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, style():
        figure.savefig(temporary, format=kind, dpi=dpi, metadata=metadata or None)
    return path


def ending(path: Path, known: tuple[str, ...]) -> str:
    """Return the ending of `path` in lower case without its dot; ValueError unless it is a known one."""
    kind = path.suffix.lower().removeprefix(".").replace("jpeg", "jpg")
    if kind not in known:
        raise ValueError(f"path must end in {' or '.join('.' + word for word in known)}; got {path.name!r}")
    return kind


def short(text: str, most: int = 16) -> str:
    """Return `text`, or its start and an ellipsis where it is longer than `most` letters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def panel_extent(bounds: Bounds) -> tuple[float, float, float, float]:
    """Return bounds as matplotlib's extent of an image."""
    return tuple(np.ravel(bounds).tolist())
