"""Two baselines that say what is possible without a flow, each with its settings chosen on validation rows.

They work on standardised columns, z = (x - m) / s, and answer in the units of the data,

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
RIDGE = 1e-4  # added to the variances of standardised columns, so that no component falls onto a single row
BANDWIDTHS = np.geomspace(1 / 16, 2, 16)  # in units of Scott's rule, n^(-1 / (d + 4))
KDE_PRECISION = 1e-4  # relative, of a density


def best_gaussian_mixture(
    train: np.ndarray, validation: np.ndarray, *, seed: int, components: Sequence[int] = COMPONENTS
) -> GaussianMixture:
    """The Gaussian mixture, fitted to `train` (n, d), under which `validation` (m, d) is likeliest.

    The choice is among numbers of `components` and COVARIANCES, without those that have fewer rows than components or,
    for full covariances, than dimensions times components. It answers in the units of the data: `score_samples` gives
    nats.
    """
    _check_tables(train, validation)
    scaler = StandardScaler().fit(train)
    z, z_validation = scaler.transform(train), scaler.transform(validation)
    mixtures = [_fit_mixture(z, count, kind, seed) for count, kind in _choices(*train.shape, components)]
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


def _choices(rows: int, dimensions: int, components: Sequence[int]) -> list[tuple[int, str]]:
    needed = {"full": dimensions, "diag": 1}
    return [(count, kind) for kind in COVARIANCES for count in components if rows >= count * needed[kind]]


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
