"""Densities of two columns: beside the data and the truth, as contours, and along the flow as panels or as a GIF."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.atomic import replacing
from ffjord_kit.plots import arrays
from ffjord_kit.plots.arrays import Bounds, LogDensity
from ffjord_kit.plots.charts import Chart, read_plane
from ffjord_kit.plots.figure import (
    COLOUR_MAP,
    DATA,
    MUTED,
    add_colour_bar,
    file_format,
    image_extent,
    panel_grid,
    shorten,
    single_panel,
    styled,
)
from ffjord_kit.plots.regions import LEGEND

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

GIF_WIDTH, FOOTER_HEIGHT, FOOTER_MARGIN = 256, 30, 12  # pixels
LAST_FRAME_PAUSE = 1.5  # seconds
SHADES = (128, 64, 32)  # colours of a GIF: the first number that keeps the file below MAX_BYTES
MAX_BYTES = 1_900_000
MAX_POINTS = 2000  # beneath contours


@styled
def density(
    x: Any,
    log_prob: LogDensity,
    *,
    truth: LogDensity | None = None,
    bounds: Bounds | None = None,
    size: int = 200,
    title: str | None = None,
    columns: Sequence[str] | None = None,
    types: Mapping[Any, Any] | None = None,
) -> Figure:
    """Draw the data, the learned density and, if known, the true density on one colour scale.

    The plane ends where the support does; angles span one period, and a sphere is a map of all of it. With `truth`, of
    which `x` must be a sample, the title states the Kullback-Leibler divergence
    KL(truth || model) = E[truth(x) - log_prob(x)] in nats with its standard error, over x. If the model was fitted to
    x, that flatters it: pass a `title` then, with the divergence over other points.

    Args:
        x: Data, shape (n, 2), or a frame of two columns.
        log_prob: Learned log-density in nats, maps (m, 2) to (m,).
        truth: True log-density in nats, maps (m, 2) to (m,).
        bounds: Limits ((x0, x1), (y0, y1)) of a plane; by default those that hold nearly all points, in the support.
        size: Number of grid cells along each axis; of a sphere, from pole to pole.
        title: Title; the divergence over x if None, and none without `truth`.
        columns: Names of the two columns; None for those of the frame.
        types: Types of columns by names, as `FFJORD(columns=...)` takes them.

    Returns:
        The figure: panels of the data, the learned density and the true density.

    Raises:
        ValueError: If an array has another shape, a value is not finite, a column is a category, or `size` is below 2.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(100, 2))
        >>> figure = density(x, lambda x: -0.5 * (x**2).sum(-1) - np.log(2 * np.pi), size=20)
        >>> figure.axes[1].get_title()
        'learned density'
    """
    chart, x, _ = read_plane(x, columns=columns, types=types, bounds=bounds)
    densities = {"learned density": _on_chart("log_prob", log_prob, chart, size)}
    if truth is not None:
        densities["true density"] = _on_chart("truth", truth, chart, size)
    limit = arrays.colour_limit(*densities.values())
    densities = {f"data ({len(x):,} points, smoothed)": chart.smoothed(x, size), **densities}
    figure, axes = chart.panels(len(densities))
    for panel, (name, values) in zip(axes, densities.items(), strict=True):
        drawn = chart.draw_field(panel, values, cmap=COLOUR_MAP, vmin=0.0, vmax=limit)
        panel.set_title(name)
    add_colour_bar(figure, drawn, axes, f"density {chart.per}".strip(), np.stack([*densities.values()]))
    if title is None and truth is not None:
        title = _divergence_title(x, log_prob, truth)
    if title is not None:
        figure.suptitle(title)
    return figure


@styled
def density_contours(
    x: Any,
    log_prob: LogDensity,
    *,
    bounds: Bounds | None = None,
    size: int = 200,
    columns: Sequence[str] | None = None,
    types: Mapping[Any, Any] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw the regions of highest density that hold 30, 60 and 90 % of a learned density, over the data.

    Args:
        x: Data, shape (n, 2), or a frame of two columns.
        log_prob: Learned log-density in nats, maps (m, 2) to (m,).
        bounds: Limits ((x0, x1), (y0, y1)) of a plane; by default those that hold nearly all points, in the support.
        size: Number of grid cells along each axis; of a sphere, from pole to pole.
        columns: Names of the two columns; None for those of the frame.
        types: Types of columns by names, as `FFJORD(columns=...)` takes them.
        ax: Axes to draw on, those of a sphere with projection="mollweide"; those of a new figure if None.

    Returns:
        The figure: one panel.

    Raises:
        ValueError: If an array has another shape, a value is not finite, a column is a category, or `ax` has another
            projection.

    Example:
        >>> x = np.random.default_rng(0).exponential(size=(100, 2))
        >>> figure = density_contours(x, lambda x: -x.sum(1), columns=["a", "b"], types={"a": "positive"}, size=20)
        >>> figure.axes[0].get_xlabel(), float(figure.axes[0].get_xlim()[0])
        ('a', 0.0)
    """
    chart, x, _ = read_plane(x, columns=columns, types=types, bounds=bounds)
    values = _on_chart("log_prob", log_prob, chart, size)
    figure, panel = single_panel(ax, *((4.4, 2.6) if chart.projection else (3.4, 3.2)), projection=chart.projection)
    shown = x[arrays.subset_indices(len(x), MAX_POINTS)]
    chart.scatter(panel, shown, s=2, color=MUTED, alpha=0.4, linewidths=0, rasterized=True)
    chart.draw_regions(panel, values, colour=DATA, filled=False)
    panel.set_title(LEGEND, fontsize=8)
    return figure


@styled
def density_strip(times: ArrayLike, log_densities: ArrayLike, bounds: Bounds) -> Figure:
    """Draw the density at several times from base to data, one panel each, on one colour scale.

    Args:
        times: Times, shape (T,), in any order.
        log_densities: Log-densities in nats on `grid_points(bounds, size)`, shape (T, size, size).
        bounds: Limits ((x0, x1), (y0, y1)) of the grid.

    Returns:
        The figure: T panels in ascending time, eight in a row.

    Raises:
        ValueError: If an array has another shape, or a value is nan or plus infinity.

    Example:
        >>> figure = density_strip([0, 1], np.zeros((2, 8, 8)), ((0, 1), (0, 1)))
        >>> [panel.get_xlabel() for panel in figure.axes[:2]]
        ['t = 0', 't = 1']
    """
    times, densities = _in_order(times, log_densities)
    bounds = arrays.check_bounds(bounds)
    figure, axes = panel_grid(len(times), bounds, per_row=8, side=1.3, ticks=False)
    _draw_densities(figure, axes, list(densities), bounds, arrays.colour_limit(*densities))
    for panel, t in zip(axes, times, strict=True):
        panel.set_xlabel(f"t = {t:.3g}")
    return figure


@styled
def density_panels(
    densities: Sequence[tuple[str, ArrayLike]],
    bounds: Bounds,
    *,
    per_row: int,
    columns: Sequence[str] | None = None,
) -> Figure:
    """Draw densities of different flows and targets, each panel on a colour scale of its own.

    Args:
        densities: For each panel its title and its density on `grid_points(bounds, size)`, shape (size, size), >= 0.
        bounds: Limits ((x0, x1), (y0, y1)) of the grid.
        per_row: Number of panels in a row.
        columns: Names of the two axes, which then have ticks; None for none.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no panel, an array has another shape, or a value is not finite.

    Example:
        >>> figure = density_panels([("a", np.ones((8, 8))), ("b", np.eye(8))], ((0, 1), (0, 1)), per_row=2)
        >>> [panel.get_title() for panel in figure.axes]
        ['a', 'b']
    """
    if not densities:
        raise ValueError("densities must have one panel or more; got none")
    bounds = arrays.check_bounds(bounds)
    figure, axes = panel_grid(len(densities), bounds, per_row=per_row, side=1.3, colour_bar=False, ticks=bool(columns))
    for panel, (title, values) in zip(axes, densities, strict=True):
        drawn = arrays.checked_array(title, values, ("n", "m"))
        panel.imshow(drawn, origin="lower", extent=image_extent(bounds), cmap=COLOUR_MAP, vmin=0, aspect="auto")
        panel.set_title(title, fontsize=8, parse_math=False)
    if columns:
        figure.supxlabel(shorten(str(columns[0]), 40), fontsize=9, parse_math=False)
        figure.supylabel(shorten(str(columns[1]), 30), fontsize=9, parse_math=False)
    return figure


def density_gif(
    path: str | os.PathLike[str],
    times: ArrayLike,
    log_densities: ArrayLike,
    bounds: Bounds,
    *,
    seconds: float = 4,
) -> Path:
    """Write the density on its way from base to data to an animated GIF, 256 pixels wide.

    There is one frame per time, all frames have one colour scale, and the animation pauses on the last frame. The
    file is written atomically; missing folders are created.

    Args:
        path: File to write or replace; its suffix is .gif.
        times: Times, shape (T,), in any order.
        log_densities: Log-densities in nats on `grid_points(bounds, size)`, shape (T, size, size).
        bounds: Limits ((x0, x1), (y0, y1)) of the grid.
        seconds: Duration in seconds, without the pause.

    Returns:
        The path of the file.

    Raises:
        ValueError: If the suffix is not .gif, the duration is not positive, an array has another shape, or a value is
            nan or plus infinity.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = density_gif(f"{folder}/flow.gif", [0, 1], np.zeros((2, 8, 8)), ((0, 1), (0, 1)))
        ...     print(path.name, path.read_bytes()[:6])
        flow.gif b'GIF89a'
    """
    path = Path(path)
    file_format(path, ("gif",))
    if not seconds > 0:
        raise ValueError(f"seconds must be positive; got {seconds}")
    times, densities = _in_order(times, log_densities)
    height = round(GIF_WIDTH * arrays.aspect_ratio(arrays.check_bounds(bounds)))
    fractions = densities / arrays.colour_limit(*densities)
    footers = [_footer(t, times) for t in times]
    for shades in SHADES:
        frames = [_frame(field, foot, height, shades) for field, foot in zip(fractions, footers, strict=True)]
        content = _encode_gif(frames, seconds)
        if len(content) < MAX_BYTES:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def _in_order(times: ArrayLike, log_densities: ArrayLike) -> tuple[NDArray, NDArray]:
    """Check times and log-densities and return the ascending times and the densities, (T,) and (T, size, size)."""
    times = arrays.checked_array("times", times, ("T",))
    side = np.shape(log_densities)[-1] if np.ndim(log_densities) else "size"
    values = arrays.checked_array("log_densities", log_densities, (len(times), side, side), minus_infinity=True)
    order = np.argsort(times)
    return times[order], arrays.clipped_exp(values[order])


def _draw_densities(
    figure: Figure, axes: Sequence[Axes], densities: Sequence[NDArray], bounds: Bounds, limit: float
) -> None:
    """Draw one density per panel on a colour scale from 0 to `limit`, and the colour bar."""
    options: dict[str, Any] = {"origin": "lower", "extent": image_extent(bounds), "aspect": "auto"}
    for panel, values in zip(axes, densities, strict=True):
        image = panel.imshow(values, cmap=COLOUR_MAP, vmin=0.0, vmax=limit, interpolation="bilinear", **options)
    add_colour_bar(figure, image, axes, "density", np.stack(densities))


def _on_chart(name: str, function: LogDensity, chart: Chart, size: int) -> NDArray:
    """Return the density exp(function) on the grid of a chart."""
    points = chart.points(arrays.check_size(size))
    return chart.on_grid(arrays.clipped_exp(arrays.checked_log_density(name, function, points)), size)


def _divergence_title(x: NDArray, log_prob: LogDensity, truth: LogDensity) -> str:
    gaps = arrays.checked_log_density("truth", truth, x) - arrays.checked_log_density("log_prob", log_prob, x)
    has_error = len(gaps) > 1 and bool(np.all(np.isfinite(gaps)))
    error = f" ± {gaps.std(ddof=1) / np.sqrt(len(gaps)):.3f}" if has_error else ""
    return f"KL(truth ‖ model) = {gaps.mean():.3f}{error} nats over {len(gaps):,} points"


def _encode_gif(frames: list[Image], seconds: float) -> bytes:
    ends = np.rint(np.linspace(0, 100 * seconds, len(frames) + 1))  # a GIF counts in hundredths of a second
    durations = (10 * np.maximum(np.diff(ends), 2)).astype(int).tolist()
    durations[-1] += round(1000 * LAST_FRAME_PAUSE)
    buffer = BytesIO()
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return buffer.getvalue()


def _frame(fractions: NDArray, footer: NDArray, height: int, shades: int) -> Image:
    """Return a frame: the density, given as fractions of the colour limit, over its footer."""
    from PIL import Image

    field = Image.fromarray(np.flipud(fractions).astype(np.float32))
    field = field.resize((GIF_WIDTH, height), Image.Resampling.BICUBIC)
    indices = np.rint(np.clip(np.asarray(field), 0, 1) * (shades - 1)) * (255 / (shades - 1))
    frame = Image.fromarray(np.concatenate([indices.astype(np.uint8), footer]))
    frame.putpalette(_palette())
    return frame


def _footer(t: float, times: NDArray) -> NDArray:
    """Return the footer of a frame: the time as text and as a progress bar."""
    from PIL import Image, ImageDraw, ImageFont

    footer = Image.new("L", (GIF_WIDTH, FOOTER_HEIGHT), 0)
    pen = ImageDraw.Draw(footer)
    start, end, middle = 80, GIF_WIDTH - FOOTER_MARGIN, FOOTER_HEIGHT // 2
    pen.text((FOOTER_MARGIN, middle), f"t = {t:.2f}", fill=255, font=ImageFont.load_default(13), anchor="lm")
    progress = (t - times[0]) / (times[-1] - times[0]) if times[-1] > times[0] else 1.0
    pen.line([(start, middle), (end, middle)], fill=60, width=2)
    pen.line([(start, middle), (start + progress * (end - start), middle)], fill=200, width=2)
    return np.asarray(footer)


def _palette() -> list[int]:
    """Return the colour map as 256 triples of bytes."""
    from matplotlib import colormaps

    return np.rint(255 * colormaps[COLOUR_MAP](np.arange(256))[:, :3]).astype(int).ravel().tolist()
