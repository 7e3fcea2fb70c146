"""Judges of densities and of samples; they know nothing of training."""

from ffjord_kit.metrics.baselines import StandardizedKDE, best_gaussian_mixture, best_kde
from ffjord_kit.metrics.densities import (
    bits_per_dim,
    grid,
    integral_on_grid,
    kl_divergence,
    mean_and_standard_error,
)
from ffjord_kit.metrics.neighbours import nearest
from ffjord_kit.metrics.ranking import auroc
from ffjord_kit.metrics.two_samples import TwoSampleTest, classifier_test, energy_test, mmd_test

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
