"""Judges of densities and of samples; they know nothing of training.

Means come with a standard error, s / sqrt(n) for the deviation s of n independent values. With x ~ p,

    KL(p | q) = E[log p(x) - log q(x)],       bits per dimension = -log p(x) / (d log 2),

and a density on the plane integrates over midpoints of cells of area h_1 h_2, which converges faster than any power
of h for a smooth density that vanishes at the bounds. The two baselines say what is possible without a flow: each
chooses its one or two settings by the log-likelihood of validation rows. They work on standardised columns,
z = (x - m) / s, and answer in the units of the data, log p(x) = log p(z) - sum log s.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler

COMPONENTS = (1, 2, 4, 8, 16, 32, 64)
COVARIANCES = ("full", "diag")
RIDGE = 1e-4  # added to the variances of standardised columns, so that no component falls onto a single row
BANDWIDTHS = np.geomspace(1 / 16, 2, 16)  # in units of Scott's rule, n^(-1 / (d + 4))
KDE_PRECISION = 1e-4  # relative, of a density

Bounds = tuple[tuple[float, float], tuple[float, float]]


def mean_and_standard_error(values: np.ndarray | Sequence[float]) -> tuple[float, float]:
    """Mean of independent values (n,) and its standard error, nan for a single value.

    Raises ValueError when there are none.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    if len(values) == 0:
        raise ValueError("values must hold at least one number; got none")
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def bits_per_dim(nll_nats: float | np.ndarray, dimensions: int) -> float | np.ndarray:
    """Negative log-likelihoods in nats as bits per dimension, of the same shape.

    For a picture the data are to stand in units of one grey level, where a level has the volume 1.
    """
    return nll_nats / (dimensions * np.log(2))


def kl_divergence(log_p: np.ndarray, log_q: np.ndarray) -> tuple[float, float]:
    """KL(p | q) in nats and its standard error, from both log-densities (n,) at points drawn from p.

    Infinite, with the error nan, when q is zero at one of the points. Raises ValueError for unequal shapes.
    """
    log_p, log_q = np.asarray(log_p, dtype=np.float64), np.asarray(log_q, dtype=np.float64)
    if log_p.shape != log_q.shape:
        raise ValueError(f"log_p and log_q must have the same shape; got {log_p.shape} and {log_q.shape}")
    with np.errstate(invalid="ignore"):  # the deviation of infinite values is nan, as said
        return mean_and_standard_error(log_p - log_q)


def grid(bounds: Bounds, size: int) -> tuple[np.ndarray, float]:
    """Midpoints of `size` by `size` cells, (size * size, 2), and the area of a cell.

    `bounds` are ((x0, x1), (y0, y1)). The first coordinate runs fastest, so that values reshaped to
    (size, size) have a row for each height, from the bottom.
    """
    (left, right), (bottom, top) = bounds
    if not (left < right and bottom < top and size >= 1):
        raise ValueError(
            f"bounds must be ((x0, x1), (y0, y1)) with x0 < x1, y0 < y1 and size >= 1; got {bounds} and {size}"
        )
    middle = (np.arange(size) + 0.5) / size
    first, second = np.meshgrid(left + (right - left) * middle, bottom + (top - bottom) * middle)
    return np.stack([first.ravel(), second.ravel()], axis=1), (right - left) * (top - bottom) / size**2


def integral_on_grid(log_prob: Callable[[np.ndarray], np.ndarray], bounds: Bounds, size: int) -> float:
    """Integral of exp(log_prob) by midpoints; `log_prob` maps (n, 2) to (n,). One, for a density within the bounds."""
    points, area = grid(bounds, size)
    return float(np.exp(logsumexp(log_prob(points)) + np.log(area)))


def best_gaussian_mixture(train: np.ndarray, validation: np.ndarray, *, seed: int) -> GaussianMixture:
    """The Gaussian mixture, fitted to `train` (n, d), under which `validation` (m, d) is likeliest.

    The choice is among COMPONENTS and COVARIANCES, without those that have fewer rows than components or, for full
    covariances, than dimensions times components. It answers in the units of the data: `score_samples` gives nats.
    """
    _check_tables(train, validation)
    scaler = StandardScaler().fit(train)
    z, z_validation = scaler.transform(train), scaler.transform(validation)
    mixtures = [_fit_mixture(z, count, kind, seed) for count, kind in _choices(*train.shape)]
    return _in_data_units(max(mixtures, key=lambda mixture: mixture.score(z_validation)), scaler)


def best_kde(train: np.ndarray, validation: np.ndarray) -> StandardizedKDE:
    """The Gaussian kernel density estimate on `train` (n, d) whose bandwidth makes `validation` (m, d) likeliest.

    One bandwidth for the standardised columns, among BANDWIDTHS; log-densities have a relative precision of
    KDE_PRECISION in the density.
    """
    _check_tables(train, validation)
    scaler = StandardScaler().fit(train)
    rows, dimensions = train.shape
    z, z_validation = scaler.transform(train), scaler.transform(validation)
    candidates = [_fit_kernels(z, float(width)) for width in BANDWIDTHS * rows ** (-1 / (dimensions + 4))]
    return StandardizedKDE(scaler, max(candidates, key=lambda kernels: kernels.score(z_validation)))


@dataclass(frozen=True, eq=False)
class StandardizedKDE:
    """A kernel density estimate on standardised columns that answers in the units of the data."""

    scaler: StandardScaler
    kernels: KernelDensity

    @property
    def bandwidth(self) -> float:
        """The deviation of the kernel, in deviations of a column."""
        return self.kernels.bandwidth

    def score_samples(self, x: np.ndarray) -> np.ndarray:
        """Log-density in nats: (n, d) -> (n,)."""
        return self.kernels.score_samples(self.scaler.transform(x)) - np.log(self.scaler.scale_).sum()


def _check_tables(train: np.ndarray, validation: np.ndarray) -> None:
    if train.ndim != 2 or validation.ndim != 2 or train.shape[1] != validation.shape[1]:
        shapes = f"{train.shape} and {validation.shape}"
        raise ValueError(f"train and validation must have shapes (n, d) and (m, d); got {shapes}")
    if len(train) < 2 or len(validation) < 1:
        raise ValueError(f"need two rows to train and one to validate; got {len(train)} and {len(validation)}")


def _choices(rows: int, dimensions: int) -> list[tuple[int, str]]:
    needed = {"full": dimensions, "diag": 1}
    return [(count, kind) for kind in COVARIANCES for count in COMPONENTS if rows >= count * needed[kind]]


def _fit_mixture(z: np.ndarray, components: int, covariance: str, seed: int) -> GaussianMixture:
    mixture = GaussianMixture(components, covariance_type=covariance, random_state=seed, reg_covar=RIDGE, tol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline that is still improving is a valid density
        return mixture.fit(z)


def _fit_kernels(z: np.ndarray, bandwidth: float) -> KernelDensity:
    return KernelDensity(bandwidth=bandwidth, rtol=KDE_PRECISION).fit(z)


def _in_data_units(mixture: GaussianMixture, scaler: StandardScaler) -> GaussianMixture:
    """Change z = (x - m) / s to x: covariances are multiplied by s s^T, and their inverses' factors divided by s."""
    scale = scaler.scale_
    both = np.outer(scale, scale) if mixture.covariance_type == "full" else scale**2
    one = scale[:, None] if mixture.covariance_type == "full" else scale
    mixture.means_ = mixture.means_ * scale + scaler.mean_
    mixture.covariances_ = mixture.covariances_ * both
    mixture.precisions_ = mixture.precisions_ / both
    mixture.precisions_cholesky_ = mixture.precisions_cholesky_ / one
    return mixture
