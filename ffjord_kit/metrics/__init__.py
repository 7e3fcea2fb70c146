"""Metrics of densities, samples and outlier scores on numpy arrays, and baselines to compare a flow with."""

from ffjord_kit.metrics.baselines import StandardizedKDE, best_gaussian_mixture, best_kde
from ffjord_kit.metrics.density import (
    bits_per_dim,
    grid,
    integral_on_grid,
    kl_divergence,
    mean_and_standard_error,
)
from ffjord_kit.metrics.outliers import auroc
from ffjord_kit.metrics.two_sample import TwoSampleTest, classifier_test, energy_test, mmd_test, nearest

__all__ = [
    "StandardizedKDE",
    "TwoSampleTest",
    "auroc",
    "best_gaussian_mixture",
    "best_kde",
    "bits_per_dim",
    "classifier_test",
    "energy_test",
    "grid",
    "integral_on_grid",
    "kl_divergence",
    "mean_and_standard_error",
    "mmd_test",
    "nearest",
]
