"""The arithmetic under the pictures: checked arrays, bounds, grids, a smooth histogram. Knows numpy alone.

A grid of `size` x `size` cells over bounds ((x0, x1), (y0, y1)) is always an array whose rows go up along y and whose
columns go right along x, with values at the centres of the cells.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Bounds = tuple[tuple[float, float], tuple[float, float]]
LogDensity = Callable[[NDArray], ArrayLike]


def array(name: str, value: ArrayLike, shape: tuple[str | int, ...], *, log: bool = False) -> NDArray:
    """Return `value` as an array of floats of the given shape, where a word stands for any size from 1 up.

    Raises ValueError where the shape differs or a value is not finite; with `log`, minus infinity is a value too.
    """
    found = np.asarray(value, dtype=float)
    fits = len(found.shape) == len(shape) and all(
        have >= 1 if isinstance(want, str) else have == want for have, want in zip(found.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have shape {_spell(shape)}; got {found.shape}")
    bad = int(np.count_nonzero(~np.isfinite(found) & ~(log & (found == -np.inf))))
    if bad:
        raise ValueError(f"{name} must be finite; got {bad} of {found.size} values that are nan or infinite")
    return found


def check_bounds(bounds: Bounds) -> Bounds:
    """Return `bounds` as ((x0, x1), (y0, y1)) in floats; ValueError unless both are finite and ascend."""
    (x0, x1), (y0, y1) = array("bounds", bounds, (2, 2)).tolist()
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"bounds must be ((x0, x1), (y0, y1)) with x0 < x1 and y0 < y1; got {bounds}")
    return (x0, x1), (y0, y1)


def check_size(size: int, *, name: str = "size", least: int = 2) -> int:
    """Return `size`; ValueError unless it is `least` or more."""
    if size < least:
        raise ValueError(f"{name} must be at least {least}; got {size}")
    return size


def box_ratio(bounds: Bounds) -> float:
    """Return the height of a panel over its width.

    A unit is as long across as up, unless the bounds are more than three times longer one way: then a square.
    """
    (x0, x1), (y0, y1) = bounds
    ratio = (y1 - y0) / (x1 - x0)
    return ratio if 1 / 3 <= ratio <= 3 else 1.0


def robust_bounds(x: ArrayLike, margin: float = 0.1) -> Bounds:
    """Return ((x0, x1), (y0, y1)) that hold nearly all of x, so that an outlier does not shrink the picture.

    x is (n, 2). Each side spans the 0.5 % to 99.5 % quantiles, widened at both ends by `margin` times that span.
    """
    low, high = np.quantile(array("x", x, ("n", 2)), [0.005, 0.995], axis=0)
    span = np.where(high > low, high - low, 1.0)
    (x0, y0), (x1, y1) = (low - margin * span).tolist(), (high + margin * span).tolist()
    return check_bounds(((x0, x1), (y0, y1)))


def grid_points(bounds: Bounds, size: int = 200) -> NDArray:
    """Return the centres of size x size cells over `bounds`, (size * size, 2).

    `log_prob(grid_points(bounds, size)).reshape(size, size)` is what `density_strip` and `density_gif` draw.
    """
    places = (np.arange(check_size(size)) + 0.5) / size
    (x0, x1), (y0, y1) = check_bounds(bounds)
    across, up = np.meshgrid(x0 + places * (x1 - x0), y0 + places * (y1 - y0))
    return np.stack([across.ravel(), up.ravel()], axis=1)


def log_density(name: str, function: LogDensity, x: NDArray) -> NDArray:
    """Return `function(x)`, (n,), checked; minus infinity is allowed."""
    return array(f"the result of {name}", function(x), (len(x),), log=True)


def on_grid(name: str, function: LogDensity, bounds: Bounds, size: int) -> NDArray:
    """Return the density exp(function) on a grid, (size, size)."""
    return exponential(log_density(name, function, grid_points(bounds, size))).reshape(size, size)


def exponential(values: NDArray) -> NDArray:
    """Return exp of the values, held to the largest of floats."""
    return np.exp(np.minimum(values, 700.0))


def ceiling(*densities: NDArray) -> float:
    """Return the top of a colour scale for all the densities, below which all but the rarest cells lie."""
    top = max(float(np.quantile(values, 0.998)) for values in densities)
    return top if top > 0 else max(float(values.max()) for values in densities) or 1.0


def thin(n: int, most: int) -> NDArray:
    """Return at most `most` of the indices below n, in order: the same ones at every call, in no rhythm."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def histogram(x: NDArray, bounds: Bounds, bins: int, *, smooth: tuple[float, float]) -> NDArray:
    """Return the density of the points x (n, 2) on a grid, (bins, bins), blurred by shares of its width and height.

    Points outside the bounds count in the total, so that the scale is that of a density over the whole plane.
    """
    (x0, x1), (y0, y1) = bounds
    counts, _, _ = np.histogram2d(x[:, 1], x[:, 0], bins=bins, range=((y0, y1), (x0, x1)))
    cell = (x1 - x0) * (y1 - y0) / bins**2
    return _blur(_blur(counts, smooth[1] * bins).T, smooth[0] * bins).T / (len(x) * cell)


def levels(density: NDArray, masses: tuple[float, ...]) -> list[float]:
    """Return ascending density levels whose regions hold the given shares of the mass on the grid.

    Fewer where two are the same, none where the grid is empty.
    """
    heights = np.sort(density.ravel())[::-1]
    share = np.cumsum(heights) / (heights.sum() or 1.0)
    places = [min(int(np.searchsorted(share, mass)), heights.size - 1) for mass in masses]
    return sorted({float(heights[place]) for place in places if heights[place] > 0})


def _blur(rows: NDArray, width: float) -> NDArray:
    """Return the array blurred along its first axis by a Gaussian of `width` cells."""
    reach = np.arange(-int(4 * width + 1), int(4 * width + 1) + 1)
    kernel = np.exp(-0.5 * (reach / width) ** 2)
    return np.apply_along_axis(lambda row: _convolve(row, kernel / kernel.sum()), 0, rows)


def _convolve(row: NDArray, kernel: NDArray) -> NDArray:
    start = len(kernel) // 2
    return np.convolve(row, kernel)[start : start + len(row)]


def _spell(shape: tuple[str | int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
