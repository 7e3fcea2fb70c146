"""Array functions behind the plots: input checks, bounds, grids and smoothed histograms; numpy only.

A grid of `size` x `size` cells over bounds ((x0, x1), (y0, y1)) is an array whose rows ascend along y and whose columns
ascend along x; its values belong to the centres of the cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Bounds = tuple[tuple[float, float], tuple[float, float]]
Edge = Literal["constant", "symmetric", "wrap"]  # beyond an end lies: nothing, the mirror image, or the other end
Edges = tuple[tuple[Edge, Edge], tuple[Edge, Edge]]
LogDensity = Callable[[NDArray], ArrayLike]

OPEN: Edges = (("constant", "constant"), ("constant", "constant"))
LARGEST_EXPONENT = 700.0  # exp of it is still a finite float64


def checked_array(
    name: str, value: ArrayLike, shape: tuple[str | int, ...], *, minus_infinity: bool = False
) -> NDArray:
    """Convert `value` to an array of floats and check its shape and that it is finite.

    Args:
        name: Name of the argument for the error message.
        value: Values to convert.
        shape: Expected shape; a string stands for any size from 1 upwards.
        minus_infinity: Whether minus infinity is allowed, as in a log-density.

    Returns:
        The values as an array of floats.

    Raises:
        ValueError: If the shape differs or a value is not finite.

    Example:
        >>> checked_array("times", [0, 1], ("T",))
        array([0., 1.])
    """
    values = np.asarray(value, dtype=float)
    fits = len(values.shape) == len(shape) and all(
        actual >= 1 if isinstance(expected, str) else actual == expected
        for actual, expected in zip(values.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have shape {_format_shape(shape)}; got {values.shape}")
    bad = int(np.count_nonzero(~np.isfinite(values) & ~(minus_infinity & (values == -np.inf))))
    if bad:
        raise ValueError(f"{name} must be finite; got {bad} of {values.size} values that are nan or infinite")
    return values


def check_bounds(bounds: Bounds) -> Bounds:
    """Check the limits of a rectangle.

    Args:
        bounds: Limits ((x0, x1), (y0, y1)).

    Returns:
        The limits as floats.

    Raises:
        ValueError: If a limit is not finite or a lower limit is not below its upper limit.
    """
    (x0, x1), (y0, y1) = checked_array("bounds", bounds, (2, 2)).tolist()
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"bounds must be ((x0, x1), (y0, y1)) with x0 < x1 and y0 < y1; got {bounds}")
    return (x0, x1), (y0, y1)


def check_size(size: int, *, name: str = "size", minimum: int = 2) -> int:
    """Check a number of cells, columns or points.

    Args:
        size: Number to check.
        name: Name of the argument for the error message.
        minimum: Smallest allowed number.

    Returns:
        The number, unchanged.

    Raises:
        ValueError: If `size` is below `minimum`.
    """
    if size < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {size}")
    return size


def aspect_ratio(bounds: Bounds) -> float:
    """Return the height of a panel divided by its width.

    Both axes have the same scale, unless one side of the bounds is more than three times the other: then the panel is
    a square.

    Args:
        bounds: Limits ((x0, x1), (y0, y1)).

    Returns:
        Height over width, between 1/3 and 3.

    Example:
        >>> aspect_ratio(((0, 4), (0, 2))), aspect_ratio(((0, 4), (0, 100)))
        (0.5, 1.0)
    """
    (x0, x1), (y0, y1) = bounds
    ratio = (y1 - y0) / (x1 - x0)
    return ratio if 1 / 3 <= ratio <= 3 else 1.0


def robust_bounds(x: ArrayLike, margin: float = 0.1) -> Bounds:
    """Return bounds that contain nearly all points and that a few outliers do not change.

    Each side spans the 0.5 % to 99.5 % quantiles and is widened at both ends.

    Args:
        x: Points, shape (n, 2).
        margin: Width added at each end, as a fraction of the span of the quantiles.

    Returns:
        Limits ((x0, x1), (y0, y1)).

    Raises:
        ValueError: If `x` has another shape or a value is not finite.

    Example:
        >>> robust_bounds([[0, 1], [0, 1]], margin=0.5)
        ((-0.5, 0.5), (0.5, 1.5))
    """
    low, high = np.quantile(checked_array("x", x, ("n", 2)), [0.005, 0.995], axis=0)
    span = np.where(high > low, high - low, 1.0)
    (x0, y0), (x1, y1) = (low - margin * span).tolist(), (high + margin * span).tolist()
    return check_bounds(((x0, x1), (y0, y1)))


def grid_points(bounds: Bounds, size: int = 200) -> NDArray:
    """Return the centres of the cells of a grid over a rectangle.

    `density_strip` and `density_gif` draw `log_prob(grid_points(bounds, size)).reshape(size, size)`.

    Args:
        bounds: Limits ((x0, x1), (y0, y1)).
        size: Number of cells along each axis.

    Returns:
        Points, shape (size * size, 2), the first coordinate varying fastest.

    Raises:
        ValueError: If `size` is below 2 or the bounds do not ascend.

    Example:
        >>> grid_points(((0, 4), (-1, 1)), size=2)
        array([[ 1. , -0.5],
               [ 3. , -0.5],
               [ 1. ,  0.5],
               [ 3. ,  0.5]])
    """
    centres = (np.arange(check_size(size)) + 0.5) / size
    (x0, x1), (y0, y1) = check_bounds(bounds)
    x, y = np.meshgrid(x0 + centres * (x1 - x0), y0 + centres * (y1 - y0))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def checked_log_density(name: str, function: LogDensity, x: NDArray) -> NDArray:
    """Evaluate a log-density and check its result.

    Args:
        name: Name of the function for the error message.
        function: Log-density in nats, maps (n, 2) to (n,).
        x: Points, shape (n, 2).

    Returns:
        Log-densities in nats, shape (n,); minus infinity is allowed.

    Raises:
        ValueError: If the result has another shape, or is nan or plus infinity at a point.
    """
    return checked_array(f"the result of {name}", function(x), (len(x),), minus_infinity=True)


def clipped_exp(values: NDArray) -> NDArray:
    """Return the exponential of values, without overflow.

    Args:
        values: Exponents, of any shape.

    Returns:
        Finite exponentials, of the same shape.
    """
    return np.exp(np.minimum(values, LARGEST_EXPONENT))


def colour_limit(*densities: NDArray) -> float:
    """Return the upper end of a common colour scale.

    Args:
        *densities: Arrays of values >= 0, of any shape.

    Returns:
        The largest 99.8 % quantile of the arrays, or their maximum where that is 0; 1 if all values are 0.
    """
    limit = max(float(np.quantile(values, 0.998)) for values in densities)
    return limit if limit > 0 else max(float(values.max()) for values in densities) or 1.0


def subset_indices(count: int, most: int) -> NDArray:
    """Return a random subset of the indices 0 to count - 1; it is the same at each call.

    Args:
        count: Number of indices.
        most: Largest size of the subset.

    Returns:
        min(count, most) indices in ascending order.
    """
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def smooth_histogram(
    x: NDArray, bounds: Bounds, bins: int, *, smooth: tuple[float, float], edges: Edges = OPEN
) -> NDArray:
    """Estimate the density of points on a grid by a histogram, blurred by a Gaussian.

    Points outside the bounds count in the total, so that the values are those of a density over the whole plane.

    Args:
        x: Points, shape (n, 2).
        bounds: Limits ((x0, x1), (y0, y1)).
        bins: Number of cells along each axis.
        smooth: Standard deviations of the Gaussian, as fractions of the width and the height of the bounds.
        edges: What lies beyond both ends of each axis; mass stays inside where it is the mirror image or the other end.

    Returns:
        Densities, shape (bins, bins).
    """
    (x0, x1), (y0, y1) = bounds
    counts, _, _ = np.histogram2d(x[:, 1], x[:, 0], bins=bins, range=((y0, y1), (x0, x1)))
    cell_area = (x1 - x0) * (y1 - y0) / bins**2
    along_y = _blur_columns(counts, smooth[1] * bins, edges[1])
    return _blur_columns(along_y.T, smooth[0] * bins, edges[0]).T / (len(x) * cell_area)


def mass_levels(density: NDArray, masses: tuple[float, ...]) -> list[float]:
    """Return the density levels whose superlevel sets hold given fractions of the mass on a grid.

    Args:
        density: Densities on the grid, of any shape.
        masses: Fractions of the mass, between 0 and 1.

    Returns:
        Distinct positive levels in ascending order; empty if all densities are 0.

    Example:
        >>> mass_levels(np.array([0.1, 0.2, 0.7]), (0.6, 0.85))
        [0.2, 0.7]
    """
    heights = np.sort(density.ravel())[::-1]
    cumulative = np.cumsum(heights) / (heights.sum() or 1.0)
    places = [min(int(np.searchsorted(cumulative, mass)), heights.size - 1) for mass in masses]
    return sorted({float(heights[place]) for place in places if heights[place] > 0})


def _blur_columns(values: NDArray, width: float, edge: tuple[Edge, Edge]) -> NDArray:
    """Blur an array along its first axis by a Gaussian whose standard deviation is `width` cells."""
    reach = int(4 * width + 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    below = np.pad(values, ((reach, 0), (0, 0)), mode=edge[0])[:reach]
    above = np.pad(values, ((0, reach), (0, 0)), mode=edge[1])[len(values) :]
    padded = np.concatenate([below, values, above])
    return np.apply_along_axis(lambda column: np.convolve(column, kernel / kernel.sum(), "valid"), 0, padded)


def _format_shape(shape: tuple[str | int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
