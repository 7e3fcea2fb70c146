"""The density from base to data as a small GIF, written by Pillow alone."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffjord_kit.atomic import replacing
from ffjord_kit.plots import arrays
from ffjord_kit.plots.arrays import Bounds
from ffjord_kit.plots.canvas import COLOUR_MAP, ending
from ffjord_kit.plots.densities import ordered_densities

if TYPE_CHECKING:
    from PIL.Image import Image

WIDTH, BAND, EDGE = 256, 30, 12
PAUSE = 1.5  # seconds on the last frame
SHADES = (128, 64, 32)  # as many as keep the file below LIMIT; the eye sees no steps at the first
LIMIT = 1_900_000  # bytes


def density_gif(
    path: str | os.PathLike[str],
    times: ArrayLike,
    log_densities: ArrayLike,
    bounds: Bounds,
    *,
    seconds: float = 4,
) -> Path:
    """Write the density as it moves from base to data to a GIF 256 pixels wide, and return its path.

    times is (T,); log_densities is (T, size, size) in nats, its rows going up (see `grid_points`); `bounds` are those
    of the grid. One frame per time, all on one colour scale, `seconds` in all and a pause on the last. The file is
    written whole or not at all. Raises ValueError unless the path ends in .gif.
    """
    path = Path(path)
    ending(path, ("gif",))
    if not seconds > 0:
        raise ValueError(f"seconds must be positive; got {seconds}")
    times, densities = ordered_densities(times, log_densities)
    height = round(WIDTH * arrays.box_ratio(arrays.check_bounds(bounds)))
    shares = densities / arrays.ceiling(*densities)
    bands = [_band(t, times) for t in times]
    for shades in SHADES:
        page = _encode([_frame(*parts, height, shades) for parts in zip(shares, bands, strict=True)], seconds)
        if len(page) < LIMIT:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(page)
    return path


def _encode(frames: list[Image], seconds: float) -> bytes:
    ends = np.rint(np.linspace(0, 100 * seconds, len(frames) + 1))  # a GIF counts in hundredths of a second
    durations = (10 * np.maximum(np.diff(ends), 2)).astype(int).tolist()
    durations[-1] += round(1000 * PAUSE)
    page = BytesIO()
    frames[0].save(page, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return page.getvalue()


def _frame(shares: NDArray, band: NDArray, height: int, shades: int) -> Image:
    from PIL import Image

    field = Image.fromarray(np.flipud(shares).astype(np.float32)).resize((WIDTH, height), Image.Resampling.BICUBIC)
    steps = np.rint(np.clip(np.asarray(field), 0, 1) * (shades - 1)) * (255 / (shades - 1))
    frame = Image.fromarray(np.concatenate([steps.astype(np.uint8), band]))
    frame.putpalette(_palette())
    return frame


def _band(t: float, times: NDArray) -> NDArray:
    """Return the foot of a frame: the time in words, and how far it is on the way, as a line."""
    from PIL import Image, ImageDraw, ImageFont

    band = Image.new("L", (WIDTH, BAND), 0)
    pen = ImageDraw.Draw(band)
    pen.text((EDGE, BAND // 2), f"t = {t:.2f}", fill=255, font=ImageFont.load_default(13), anchor="lm")
    start, end, middle = 80, WIDTH - EDGE, BAND // 2
    done = (t - times[0]) / (times[-1] - times[0]) if times[-1] > times[0] else 1.0
    pen.line([(start, middle), (end, middle)], fill=60, width=2)
    pen.line([(start, middle), (start + done * (end - start), middle)], fill=200, width=2)
    return np.asarray(band)


def _palette() -> list[int]:
    from matplotlib import colormaps

    return np.rint(255 * colormaps[COLOUR_MAP](np.arange(256))[:, :3]).astype(int).ravel().tolist()
