"""Pictures: read from a file by Pillow, reduced in size, or taken as a density in the plane.

Density of a picture. Points are dense where it is bright: each pixel is a square of side h, and within it
p(x) = b / (h^2 sum of all b) for a brightness b >= 0. The picture is centred at the origin, upright, and its longer
side spans WIDTH.

Size. A square of S by S pixels x becomes s by s by averages over areas. With the overlap A_kj of new pixel k, which
covers [k S / s, (k + 1) S / s], and pixel j, which covers [j, j + 1], the new levels are

    y = W x W^T / S^2,      W_kj = s A_kj.

W holds whole numbers, so that all sums are exact and only the last division rounds, half to even; grey is the luma
0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) in thousandths, before that division. Pillow has no such filter: its box
filter takes or leaves whole pixels where s does not divide S.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from ffjord_kit.datasets.damage import reason
from ffjord_kit.datasets.dataset import Density

WIDTH = 8.0
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # modes of one channel that eight bits would cut off
LUMA = (299, 587, 114)  # thousandths
CHUNK = 1 << 18  # pixels converted at once


# ---- a picture as a density


@dataclass(frozen=True, eq=False)
class PictureDensity(Density):
    """A density that is constant within each pixel of a picture, in proportion to its brightness.

    Args:
        brightness: Brightness, at least 0, shape (height, width), the first row at the top.

    Example:
        >>> PictureDensity(np.array([[1.0, 3.0]])).log_prob(np.array([[1.0, 0.0]])).round(3)
        array([-3.06])
    """

    brightness: np.ndarray

    @property
    def pixel(self) -> float:
        """Side of a pixel, in units of x."""
        return WIDTH / max(self.brightness.shape)

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw independent points, shape (n, 2)."""
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
        """Convert points to fractional (column, row); the vertical axis turns over."""
        height, width = self.brightness.shape
        return np.clip(x / self.pixel * [1, -1] + [width / 2, height / 2], -1, max(height, width))

    def _points(self, pixels: np.ndarray) -> np.ndarray:
        height, width = self.brightness.shape
        return (pixels - [width / 2, height / 2]) * self.pixel * [1, -1]


def sample_picture() -> Density:
    """Return the density of the photograph of a flower that scikit-learn carries.

    Returns:
        The density.
    """
    from sklearn.datasets import load_sample_image  # here, as scikit-learn takes seconds to load

    return PictureDensity(_brightness(Image.fromarray(load_sample_image("flower.jpg"))))


def picture(path: str | os.PathLike[str]) -> Density:
    """Return the density of a picture file; transparent pixels count as black.

    Args:
        path: Path of a file of any format that Pillow reads.

    Returns:
        The density.

    Raises:
        ValueError: If the file is missing, is no picture, or is black everywhere.
    """
    brightness = read_picture(path, _brightness)
    if not (np.all(np.isfinite(brightness)) and brightness.min() >= 0 and brightness.max() > 0):
        raise ValueError(f"{path}: the brightness must be finite, at least 0, and not 0 everywhere")
    return PictureDensity(brightness)


def _brightness(image: Image.Image) -> np.ndarray:
    if image.mode in DEEP_MODES:
        return np.asarray(image, dtype=np.float64)
    light, alpha = image.convert("RGBA").convert("LA").split()
    return np.asarray(light, dtype=np.float64) * np.asarray(alpha, dtype=np.float64) / 255


# ---- reading


def read_picture(path: str | os.PathLike[str], convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Read a picture file upright, and convert it to an array.

    Args:
        path: Path of the file.
        convert: Function of the picture that returns its array.

    Returns:
        The array.

    Raises:
        ValueError: If the file is missing or cannot be read, or `convert` raises ValueError.
    """
    try:
        with Image.open(path) as image:
            return convert(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give the path of a picture, as in image:photo.png") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a picture that can be read ({reason(error)})") from error


def rgb(image: Image.Image) -> np.ndarray:
    """Convert a picture to 8 bits of red, green and blue, laid over white where it is transparent.

    Args:
        image: Picture of any mode of at most 8 bits a colour.

    Returns:
        Levels, uint8, shape (3, height, width).

    Raises:
        ValueError: If the picture has more than 8 bits a colour.
    """
    if image.mode in DEEP_MODES:
        raise ValueError(f"mode {image.mode}, more than 8 bits a colour; save it with 8")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


# ---- size and colour


def resize(images: np.ndarray, *, size: int | None = None, grey: bool = False, bits: int = 8) -> np.ndarray:
    """Reduce images to squares of a size, and to grey.

    The square in the middle of each image is averaged, or drawn larger where `size` is larger.

    Args:
        images: Levels, uint8, shape (n, channels, height, width).
        size: Side of the new images in pixels; None keeps the shape.
        grey: Whether to replace three channels by their luma.
        bits: Number of bits in use: the levels fill the highest `bits` of a byte, before and after.

    Returns:
        Levels, uint8, shape (n, channels or 1, size, size); `images` itself where nothing changes.

    Example:
        >>> resize(np.array([[[[0, 2], [4, 8]]]], dtype=np.uint8), size=1)
        array([[[[4]]]], dtype=uint8)
    """
    count, channels, height, width = images.shape
    grey = grey and channels == 3
    if not grey and size in (None, height) and size in (None, width):
        return images
    shape = (height, width) if size is None else (size, size)
    result = np.empty((count, 1 if grey else channels, *shape), dtype=np.uint8)
    step, shift = max(1, CHUNK // (height * width)), 8 - bits
    for start in range(0, count, step):
        levels = images[start : start + step] >> shift
        result[start : start + step] = _means(levels, size, grey=grey) << shift
    return result


def _means(levels: np.ndarray, size: int | None, *, grey: bool) -> np.ndarray:
    """Average over areas and colours, and round once."""
    sums, weight = levels, 1
    if size is not None:
        square = _middle(levels)
        sums, weight = _area_sums(square, size), square.shape[2] ** 2
    if grey:
        sums, weight = np.tensordot(sums, np.array(LUMA, dtype=np.float64), axes=(1, 0))[:, None], weight * sum(LUMA)
    return np.rint(sums / weight).astype(np.uint8)


def _middle(images: np.ndarray) -> np.ndarray:
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, :, top : top + side, left : left + side]


def _area_sums(x: np.ndarray, size: int) -> np.ndarray:
    """Return W x W^T: (n, c, S, S) to (n, c, size, size)."""
    weights = _overlaps(x.shape[2], size)
    rows = weights.astype(np.float32) @ x.astype(np.float32)  # exact: at most 255 S, below 2^24
    return rows.astype(np.float64) @ weights.T


def _overlaps(side: int, size: int) -> np.ndarray:
    """Return W, shape (size, side)."""
    new, old = np.arange(size + 1)[:, None] * side, np.arange(side + 1) * size
    overlaps = np.minimum(new[1:], old[1:]) - np.maximum(new[:-1], old[:-1])
    return np.maximum(overlaps, 0).astype(np.float64)
