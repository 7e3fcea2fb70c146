"""Baseline densities without a flow: a Gaussian mixture and a kernel density estimate, selected by validation.

Both work on standardised columns z = (x - m) / s and return log-densities in the units of the data:

    log p(x) = log p(z) - sum log s.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler

COMPONENTS = (1, 2, 4, 8, 16, 32, 64)
COVARIANCES = ("full", "diag")
RIDGE = 1e-4  # added to the variances of standardised columns, so that no component collapses onto a single row
BANDWIDTHS = np.geomspace(1 / 16, 2, 16)  # in units of Scott's rule, n^(-1 / (d + 4))
KDE_PRECISION = 1e-4  # relative precision of a density


def best_gaussian_mixture(
    train: np.ndarray, validation: np.ndarray, *, seed: int, components: Sequence[int] = COMPONENTS
) -> GaussianMixture:
    """Fit Gaussian mixtures and return the one with the highest likelihood of the validation data.

    Candidates are all pairs of a number of components k and a covariance type in COVARIANCES, except those with
    n < k d for full and n < k for diagonal covariances.

    Args:
        train: Training data, shape (n, d), n at least 2.
        validation: Validation data, shape (m, d), m at least 1.
        seed: Seed of the initial components.
        components: Numbers of components to try.

    Returns:
        The mixture in the units of the data; `score_samples` returns log-densities in nats.

    Raises:
        ValueError: If the shapes do not match or there are too few rows.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 1)) + np.array([[-5.0], [5.0]] * 100)
        >>> best_gaussian_mixture(x[:100], x[100:], seed=0, components=[1, 2]).n_components
        2
    """
    _check_tables(train, validation)
    scaler = StandardScaler().fit(train)
    z, z_validation = scaler.transform(train), scaler.transform(validation)
    candidates = _candidates(len(train), train.shape[1], components)
    mixtures = [_fit_mixture(z, count, covariance, seed) for count, covariance in candidates]
    return _in_data_units(max(mixtures, key=lambda mixture: mixture.score(z_validation)), scaler)


def best_kde(train: np.ndarray, validation: np.ndarray) -> StandardizedKDE:
    """Fit Gaussian kernel density estimates and return the one with the highest likelihood of the validation data.

    The candidates differ in their bandwidth, which is the same for all standardised columns. Densities have a relative
    precision of 1e-4.

    Args:
        train: Training data, shape (n, d), n at least 2.
        validation: Validation data, shape (m, d), m at least 1.

    Returns:
        The estimate in the units of the data.

    Raises:
        ValueError: If the shapes do not match or there are too few rows.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(100, 2))
        >>> best_kde(x[:50], x[50:]).score_samples(x).shape
        (100,)
    """
    _check_tables(train, validation)
    scaler = StandardScaler().fit(train)
    rows, dimensions = train.shape
    z, z_validation = scaler.transform(train), scaler.transform(validation)
    candidates = [_fit_kernels(z, float(width)) for width in BANDWIDTHS * rows ** (-1 / (dimensions + 4))]
    return StandardizedKDE(scaler, max(candidates, key=lambda kernels: kernels.score(z_validation)))


@dataclass(frozen=True, eq=False)
class StandardizedKDE:
    """Kernel density estimate on standardised columns z = (x - m) / s, log p(x) = log p(z) - sum log s.

    Args:
        scaler: Fitted scaler of the columns.
        kernels: Kernel density estimate, fitted to the scaled data.

    Example:
        >>> x = np.array([[0.0], [10.0]])
        >>> scaler = StandardScaler().fit(x)
        >>> kde = StandardizedKDE(scaler, KernelDensity(bandwidth=0.5).fit(scaler.transform(x)))
        >>> print(kde.bandwidth, kde.score_samples(x).round(3))
        0.5 [-2.528 -2.528]
    """

    scaler: StandardScaler
    kernels: KernelDensity

    @property
    def bandwidth(self) -> float:
        """Standard deviation of the kernel, in standard deviations of a column."""
        return self.kernels.bandwidth

    def score_samples(self, x: np.ndarray) -> np.ndarray:
        """Compute the log-density in the units of the data.

        Args:
            x: Points, shape (n, d).

        Returns:
            Log-densities in nats, shape (n,).
        """
        return self.kernels.score_samples(self.scaler.transform(x)) - np.log(self.scaler.scale_).sum()


def _check_tables(train: np.ndarray, validation: np.ndarray) -> None:
    if train.ndim != 2 or validation.ndim != 2 or train.shape[1] != validation.shape[1]:
        shapes = f"{train.shape} and {validation.shape}"
        raise ValueError(f"train and validation must have shapes (n, d) and (m, d); got {shapes}")
    if len(train) < 2 or len(validation) < 1:
        raise ValueError(f"need two rows to train and one to validate; got {len(train)} and {len(validation)}")


def _candidates(rows: int, dimensions: int, components: Sequence[int]) -> list[tuple[int, str]]:
    """Return the pairs of a number of components and a covariance type that the number of rows allows."""
    needed = {"full": dimensions, "diag": 1}
    return [(count, kind) for kind in COVARIANCES for count in components if rows >= count * needed[kind]]


def _fit_mixture(z: np.ndarray, components: int, covariance: str, seed: int) -> GaussianMixture:
    mixture = GaussianMixture(components, covariance_type=covariance, random_state=seed, reg_covar=RIDGE, tol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an unconverged mixture is still a valid density
        return mixture.fit(z)


def _fit_kernels(z: np.ndarray, bandwidth: float) -> KernelDensity:
    return KernelDensity(bandwidth=bandwidth, rtol=KDE_PRECISION).fit(z)


def _in_data_units(mixture: GaussianMixture, scaler: StandardScaler) -> GaussianMixture:
    """Transform a mixture from z = (x - m) / s to x: covariances times s s^T, Cholesky factors of inverses over s."""
    scale, full = scaler.scale_, mixture.covariance_type == "full"
    products = np.outer(scale, scale) if full else scale**2
    mixture.means_ = mixture.means_ * scale + scaler.mean_
    mixture.covariances_ = mixture.covariances_ * products
    mixture.precisions_ = mixture.precisions_ / products
    mixture.precisions_cholesky_ = mixture.precisions_cholesky_ / (scale[:, None] if full else scale)
    return mixture
