"""A picture as a density in the plane: points are dense where it is bright.

Each pixel is a square of side h, and within it p(x) = b / (h^2 sum of all b) for a brightness b >= 0. The picture is
centred at the origin, upright, and its longer side spans WIDTH.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from ffjord_kit.datasets.density import Density

WIDTH = 8.0
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # modes of one channel that eight bits would cut off


@dataclass(frozen=True, eq=False)
class Picture(Density):
    """Constant within each pixel, in proportion to `brightness` (height, width), the first row at the top."""

    brightness: np.ndarray

    @property
    def pixel(self) -> float:
        """The side of a pixel, in units of x."""
        return WIDTH / max(self.brightness.shape)

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n independent points, (n, 2)."""
        total = np.cumsum(self.brightness)
        chosen = np.searchsorted(total, np.nextafter(total[-1], 0) * rng.random(n), side="right")
        row, column = np.divmod(chosen, self.brightness.shape[1])
        return self._points(np.stack([column, row], axis=1) + rng.random((n, 2)))

    def _log_prob(self, x: np.ndarray) -> np.ndarray:
        column, row = np.floor(self._pixels(x)).astype(np.int64).T
        height, width = self.brightness.shape
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        bright = self.brightness[np.where(inside, row, 0), np.where(inside, column, 0)]
        with np.errstate(divide="ignore"):  # log 0 = -inf is the density of black
            return np.log(np.where(inside, bright, 0.0)) - np.log(self.brightness.sum() * self.pixel**2)

    def _pixels(self, x: np.ndarray) -> np.ndarray:
        """(column, row) as fractions, from points; the vertical axis turns over."""
        height, width = self.brightness.shape
        return np.clip(x / self.pixel * [1, -1] + [width / 2, height / 2], -1, max(height, width))

    def _points(self, pixels: np.ndarray) -> np.ndarray:
        height, width = self.brightness.shape
        return (pixels - [width / 2, height / 2]) * self.pixel * [1, -1]


def sample_picture() -> Density:
    """The flower that scikit-learn carries."""
    return Picture(_grey(Image.fromarray(load_sample_image("flower.jpg"))))


def picture(path: str | os.PathLike[str]) -> Density:
    """The brightness of a picture file of any format that Pillow reads; transparent counts as black.

    Raises ValueError when the file is missing, is no picture, or is black all over.
    """
    brightness = read_picture(path, _grey)
    if not (np.all(np.isfinite(brightness)) and brightness.min() >= 0 and brightness.max() > 0):
        raise ValueError(f"{path}: the brightness must be finite, at least 0, and not 0 everywhere")
    return Picture(brightness)


def read_picture(path: str | os.PathLike[str], pixels: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """What `pixels` makes of the picture in a file, upright. Raises ValueError for a file that cannot be read."""
    try:
        with Image.open(path) as image:
            return pixels(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give the path of a picture, as in image:photo.png") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a picture that can be read ({reason})") from error


def _grey(image: Image.Image) -> np.ndarray:
    if image.mode in DEEP:
        return np.asarray(image, dtype=np.float64)
    light, alpha = image.convert("RGBA").convert("LA").split()
    return np.asarray(light, dtype=np.float64) * np.asarray(alpha, dtype=np.float64) / 255
