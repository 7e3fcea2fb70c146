r"""A Gaussian process r_c(t) of each channel for what the dynamics leave over, beside the noise.

    x_c(t) = g_c(z(t)) + r_c(t) + noise,    cov(r(s), r(t)) = v (1 + d) exp(-d),    d = sqrt(3) |s - t| / length

This is the Matern kernel 3/2. A path of z has as many free numbers as z has dimensions; r follows what is smooth from
row to row beyond them. With K the covariance of the values that were seen, w the variance of the noise and k the
covariance of r(t) with them (kriging),

    E r(t) = k^T (K + w I)^-1 (x - g),    var r(t) = v - k^T (K + w I)^-1 k.

Far from the data the mean is 0 and the variance v. Length, v and w maximise the likelihood of what is left over; a
channel in which v does not help enough has v = 0, and keeps its noise.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn.functional import pad

NEIGHBOURS = 64  # values around a time, from which r is kriged there
BLOCK, MOST_BLOCKS = 128, 32  # values and blocks of values of a channel, by which its kernel is fitted
TIMES_AT_ONCE = 256
FIRST_LENGTHS = (2.0, 10.0)  # of the search, in mean gaps
LEAST_WHITE = 1e-6  # of the variance of what is left over
LEAST_GAIN = 2.0  # nats for two more numbers (Akaike)


def matern(first: Tensor, second: Tensor, length: Tensor | float) -> Tensor:
    """Return the Matern correlation 3/2 of times.

    Args:
        first: Times, shape (..., n).
        second: Times, shape (..., m).
        length: Length in the same unit.

    Returns:
        Correlations, shape (..., n, m).

    Example:
        >>> matern(torch.zeros(1), torch.tensor([0.0, 1.0, 9.0]), 1.0).round(decimals=3)
        tensor([[1.0000, 0.4830, 0.0000]])
    """
    distance = math.sqrt(3) * (first[..., :, None] - second[..., None, :]).abs() / length
    return (1 + distance) * (-distance).exp()


class Residual(nn.Module):
    """A Gaussian process of each channel, in the unit of time of the series and the unit of values of its errors.

    Args:
        channels: Number of channels; each begins without a residual.

    Example:
        >>> residual = Residual(1)
        >>> residual.variance[:] = residual.white[:] = 1.0
        >>> times = torch.zeros(1, dtype=torch.float64)
        >>> mean, variance = residual.kriged(times, torch.ones(1, 1, 1).double(), times)
        >>> round(mean.item(), 6), round(variance.item(), 6)
        (0.5, 0.5)
    """

    length: Tensor
    variance: Tensor
    white: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("length", 1.0), ("variance", 0.0), ("white", 0.0)):
            self.register_buffer(name, torch.full((channels,), value, dtype=torch.float64))

    @property
    def found(self) -> Tensor:
        """Whether a channel has a residual, shape (channels,)."""
        return self.variance > 0

    def fit(self, times: Tensor, errors: Tensor) -> None:
        """Fit the kernel of each channel to what the dynamics leave over.

        Args:
            times: Times of padded series, shape (n, T).
            errors: What is left over, NaN where no value was seen, shape (draws, n, T, channels).
        """
        for channel in range(errors.shape[3]):
            blocks = _blocks(times, errors[..., channel])
            kernel = fitted_kernel(*blocks) if blocks else None
            self.length[channel], self.variance[channel], self.white[channel] = kernel or (1.0, 0.0, 0.0)

    def kriged(self, times: Tensor, errors: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the variance of r at some times of one series, from the nearest values.

        Args:
            times: Times that were seen, rising, shape (T,).
            errors: What is left over, NaN where no value was seen, shape (draws, T, channels).
            at: Times, shape (A,).

        Returns:
            Means, shape (draws, A, channels), and variances, shape (A, channels).
        """
        means = errors.new_zeros(len(errors), len(at), errors.shape[2])
        variances = self.variance.expand(len(at), -1).clone()
        for channel in self.found.nonzero().flatten().tolist():
            seen = ~errors[0, :, channel].isnan()
            if not seen.any():
                continue
            for first in range(0, len(at), TIMES_AT_ONCE):
                part = slice(first, first + TIMES_AT_ONCE)
                window, weights, variances[part, channel] = self._weights(channel, times[seen], at[part])
                means[:, part, channel] = (errors[:, seen, channel][:, window] * weights).sum(2)
        return means, variances

    def _weights(self, channel: int, times: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the nearest values of each time, their weights, shape (A, m) each, and the variance (A,)."""
        size = min(NEIGHBOURS, len(times))
        first = (torch.searchsorted(times, at) - size // 2).clamp(0, len(times) - size)
        window = first[:, None] + torch.arange(size)
        length, variance, white = self.length[channel], self.variance[channel], self.white[channel]
        cover = variance * matern(times[window], times[window], length) + white * torch.eye(size).to(times)
        with_them = variance * matern(times[window], at[:, None], length)
        weights = torch.cholesky_solve(with_them, torch.linalg.cholesky(cover))
        return window, weights[..., 0], (variance - (weights * with_them).sum((1, 2))).clamp(min=0)


def _blocks(times: Tensor, errors: Tensor) -> tuple[Tensor, Tensor] | None:
    """Cut what is left over in a channel (draws, n, T) into blocks of consecutive values.

    Returns:
        Times, shape (blocks, L), NaN after the end of a block, and values, shape (blocks, L, draws), 0 there.
    """
    seen = ~errors[0].isnan()
    rows = [part for i, mask in enumerate(seen) for part in _cut(times[i, mask], errors[:, i, mask].T)]
    if not rows:
        return None
    kept = [rows[i] for i in np.linspace(0, len(rows) - 1, min(len(rows), MOST_BLOCKS)).round().astype(int)]
    longest = max(len(t) for t, _ in kept)
    return (
        torch.stack([pad(t, (0, longest - len(t)), value=math.nan) for t, _ in kept]),
        torch.stack([pad(x, (0, 0, 0, longest - len(x))) for _, x in kept]),
    )


def _cut(times: Tensor, errors: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Cut one series into blocks of at most `BLOCK` rows."""
    return [pair for pair in zip(times.split(BLOCK), errors.split(BLOCK), strict=True) if len(pair[0])]


def fitted_kernel(times: Tensor, errors: Tensor) -> tuple[float, float, float] | None:
    """Return the length, the variance and the variance of the noise that maximise the likelihood.

    Args:
        times: Times of blocks, NaN after the end, shape (blocks, L).
        errors: Values, 0 after the end, shape (blocks, L, draws).

    Returns:
        The three, or None where noise alone is nearly as likely.
    """
    seen = ~times.isnan()
    gaps = times.diff(dim=1)
    square, gap = float(errors.square().sum() / errors.shape[2] / seen.sum()), float(gaps.nanmean())
    if not 0 < square < math.inf or not gap > 0:
        return None
    clock, scaled, there = times.nan_to_num() / gap, errors / math.sqrt(square), seen.double()

    def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
        with torch.enable_grad():
            x = torch.from_numpy(logs).requires_grad_()
            value = _surprise(clock, scaled, there, *x.exp())
            (slope,) = torch.autograd.grad(value, x)
        return float(value.detach()), slope.numpy()

    bounds = [(math.log(0.1), math.log(1000.0)), (-9.0, 5.0), (math.log(LEAST_WHITE), 1.0)]
    found = [
        minimize(loss, [math.log(length), -0.7, -2.0], jac=True, bounds=bounds, method="L-BFGS-B")
        for length in FIRST_LENGTHS
    ]
    best = min(found, key=lambda each: float(each.fun))
    if not best.fun < 0.5 * float(there.sum()) - LEAST_GAIN:  # of noise alone, whose variance is 1
        return None
    length, variance, white = np.exp(best.x).tolist()
    return length * gap, variance * square, white * square


def _surprise(times: Tensor, errors: Tensor, there: Tensor, length: Tensor, variance: Tensor, white: Tensor) -> Tensor:
    """Return minus the log-likelihood of blocks, the mean over draws, without its constant."""
    both = there[:, :, None] * there[:, None, :]
    cover = variance * matern(times, times, length) * both + torch.diag_embed(white * there + 1 - there)
    factor = torch.linalg.cholesky(cover)
    solved = torch.linalg.solve_triangular(factor, errors, upper=False)
    return 0.5 * solved.square().sum() / errors.shape[2] + factor.diagonal(dim1=1, dim2=2).log().sum()
