"""Figures in one style: panels with common axes, colour bars, and files written atomically.

The colours suit colour-blind readers: Okabe and Ito's blue for data and vermilion for samples, perceptually uniform
maps for densities. Functions import matplotlib when they draw, and never pyplot.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial, wraps
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike

from ffjord_kit.atomic import replacing
from ffjord_kit.plots.arrays import Bounds, aspect_ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

DATA, SAMPLES, ACCENT = "#0072B2", "#D55E00", "#009E73"
INK, MUTED, FRAME = "#262626", "#6b6b6b", "#c4c4c4"
COLOUR_MAP, COLOUR_MAP_ON_WHITE = "magma", "viridis_r"

STYLE: dict[Any, Any] = {
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

# Options of `Axes.hist` for data and for samples.
HISTOGRAM_STYLES: tuple[dict[str, Any], dict[str, Any]] = (
    {"histtype": "stepfilled", "color": (DATA, 0.4)},
    {"histtype": "step", "color": SAMPLES},
)

# Dots per inch, and the metadata to leave out because it differs between two files of one figure (the date).
FORMATS: dict[str, tuple[int, dict[str, None]]] = {
    "png": (160, {}),
    "jpg": (160, {}),
    "pdf": (300, {"CreationDate": None}),
    "svg": (300, {"Date": None}),
}


def style_context() -> AbstractContextManager[None]:
    """Return a context in which matplotlib uses the style of the package.

    Returns:
        A context manager that restores the caller's rcParams on exit.
    """
    from matplotlib import rc_context, rcParamsDefault

    defaults = {key: value for key, value in rcParamsDefault.items() if not key.startswith(("backend", "interactive"))}
    return rc_context({**defaults, **STYLE})


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorate a drawing function so that it runs in the style of the package.

    Args:
        draw: Function to decorate.

    Returns:
        A function with the same signature and result.
    """

    @wraps(draw)
    def draw_in_style(*args: P.args, **kwargs: P.kwargs) -> R:
        with style_context():
            return draw(*args, **kwargs)

    return draw_in_style


def new_figure(
    width: float, height: float, *, layout: Literal["constrained", "compressed"] | None = "constrained"
) -> Figure:
    """Return an empty figure that a notebook displays without pyplot.

    Args:
        width: Width in inches.
        height: Height in inches.
        layout: Layout engine of matplotlib, or None for axes placed by hand.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    # IPython calls this method; a subclass that defines it would import matplotlib together with this module.
    figure._repr_png_ = partial(_png_bytes, figure)  # type: ignore[attr-defined]
    return figure


def single_panel(ax: Axes | None, width: float, height: float, *, projection: str | None = None) -> tuple[Figure, Any]:
    """Return the panel of a picture that has one: the caller's, or that of a new figure.

    Args:
        ax: Axes to draw on, or None.
        width: Width of a new figure in inches.
        height: Height of a new figure in inches.
        projection: Projection that the picture needs, as matplotlib calls it; None for plain axes.

    Returns:
        The figure and the panel.

    Raises:
        ValueError: If the axes have another projection.
    """
    if ax is None:
        figure = new_figure(width, height)
        return figure, figure.add_subplot(projection=projection)
    if ax.name != (projection or "rectilinear"):
        raise ValueError(
            f"this picture needs ax with projection {projection or 'rectilinear'!r}; got {ax.name!r}: make it by "
            f"figure.add_subplot(projection={projection!r})"
        )
    return cast("Figure", ax.figure), ax


def panel_grid(
    count: int, bounds: Bounds, *, per_row: int, side: float, colour_bar: bool = True, ticks: bool = True
) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels over the same bounds; only the outer panels carry tick labels.

    Args:
        count: Number of panels.
        bounds: Limits ((x0, x1), (y0, y1)) of each panel.
        per_row: Largest number of panels in a row.
        side: Width of a panel in inches.
        colour_bar: Whether to leave room for a colour bar.
        ticks: Whether panels have ticks and tick labels.

    Returns:
        The figure and its `count` panels.
    """
    columns, ratio = min(count, per_row), aspect_ratio(bounds)
    rows = -(-count // columns)
    width, height = columns * (side + 0.12) + 0.4 * ticks + 0.9 * colour_bar, rows * (side * ratio + 0.4) + 0.3 * ticks
    figure = new_figure(width, height, layout="compressed")
    axes: list[Axes] = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    axes[0].set(xlim=bounds[0], ylim=bounds[1])
    for panel in axes:
        panel.set_box_aspect(ratio)
        panel.locator_params(nbins=5)
        if not ticks:
            panel.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    for panel in axes[count:]:
        panel.set_axis_off()
    return figure, axes[:count]


def add_colour_bar(
    figure: Figure, mappable: ScalarMappable, axes: Sequence[Axes], label: str, values: ArrayLike
) -> None:
    """Add a slim colour bar to the right of all panels, with an arrow at an end that some values exceed.

    Args:
        figure: Figure of the panels.
        mappable: Drawn object whose colour map and limits the bar shows.
        axes: Panels that share the bar.
        label: Text beside the bar.
        values: All values drawn, of any shape.
    """
    low, high = mappable.get_clim()
    slack = 0.02 * (high - low)
    exceeds = bool(np.min(values) < low - slack), bool(np.max(values) > high + slack)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(exceeds, "neither")
    bar = figure.colorbar(mappable, ax=list(axes), label=label, extend=extend, aspect=28, pad=0.02, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.locator_params(axis="y", nbins=5)


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure to a file atomically; figures drawn from equal data give files that are equal byte for byte.

    The suffix selects the format: png and jpg are written at 160 dots per inch, pdf and svg are vector graphics whose
    dense parts are rasterized at 300 dots per inch. Missing folders are created.

    Args:
        figure: Figure to write.
        path: File to write or replace.

    Returns:
        The path of the file.

    Raises:
        ValueError: If the suffix is not .png, .jpg, .pdf or .svg.

    Example:
        >>> import tempfile
        >>> figure = new_figure(1, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(save(figure, f"{folder}/pictures/empty.png").read_bytes()[1:4])
        b'PNG'
    """
    path = Path(path)
    kind = file_format(path, tuple(FORMATS))
    dpi, metadata = FORMATS[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, style_context():
        figure.savefig(temporary, format=kind, dpi=dpi, metadata=metadata or None)
    return path


def file_format(path: Path, known: tuple[str, ...]) -> str:
    """Return the format that the suffix of a path selects.

    Args:
        path: Path of a file.
        known: Allowed formats.

    Returns:
        The suffix in lower case without its dot.

    Raises:
        ValueError: If the format is not a known one.

    Example:
        >>> file_format(Path("flow.JPEG"), ("png", "jpg"))
        'jpg'
    """
    kind = path.suffix.lower().removeprefix(".").replace("jpeg", "jpg")
    if kind not in known:
        raise ValueError(f"path must end in {' or '.join('.' + suffix for suffix in known)}; got {path.name!r}")
    return kind


def shorten(text: str, most: int = 16) -> str:
    """Return a text, cut off with an ellipsis where it is too long.

    Args:
        text: Text to shorten.
        most: Largest number of characters.

    Returns:
        At most `most` characters.

    Example:
        >>> shorten("temperature", most=6)
        'tempe…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def image_extent(bounds: Bounds) -> tuple[float, float, float, float]:
    """Return bounds in the order of matplotlib's `extent`.

    Args:
        bounds: Limits ((x0, x1), (y0, y1)).

    Returns:
        Limits (x0, x1, y0, y1).
    """
    (x0, x1), (y0, y1) = bounds
    return x0, x1, y0, y1


def _png_bytes(figure: Figure) -> bytes:
    buffer = BytesIO()
    with style_context():
        figure.savefig(buffer, format="png", dpi=figure.dpi)
    return buffer.getvalue()
