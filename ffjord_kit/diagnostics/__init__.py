"""Diagnostics of a flow: its integral, solves, fit and gradients, bits per dimension, and outlier scores."""

from ffjord_kit.diagnostics.bits_per_dim import BitsPerDim, bits_per_dim
from ffjord_kit.diagnostics.control import ControlPath, control_path
from ffjord_kit.diagnostics.diagnosis import Diagnosis, diagnose
from ffjord_kit.diagnostics.findings import VERDICTS, Finding
from ffjord_kit.diagnostics.gradients import GradientCheck, check_gradients, gradient_table
from ffjord_kit.diagnostics.hessian import (
    Eigenvalues,
    SpectralDensity,
    hessian_matrix,
    spectral_density,
    top_eigenvalues,
)  # fmt: skip
from ffjord_kit.diagnostics.landscape import (
    NORMALIZATIONS,
    Curvature,
    PrincipalPlane,
    WeightHistory,
    curvature_on_plane,
    loss_along,
    loss_on_plane,
    principal_plane,
    random_direction,
)  # fmt: skip
from ffjord_kit.diagnostics.misfit import check_training
from ffjord_kit.diagnostics.outliers import SCORES, outlier_scores
from ffjord_kit.diagnostics.receipt import Receipt, check_steps
from ffjord_kit.diagnostics.robustness import Attack, attack
from ffjord_kit.diagnostics.weight_loss import WeightLoss

__all__ = [
    "NORMALIZATIONS", "SCORES", "VERDICTS", "Attack", "BitsPerDim", "ControlPath", "Curvature", "Diagnosis",
    "Eigenvalues", "Finding", "GradientCheck", "PrincipalPlane", "Receipt", "SpectralDensity", "WeightHistory",
    "WeightLoss", "attack", "bits_per_dim", "check_gradients", "check_steps", "check_training", "control_path",
    "curvature_on_plane", "diagnose", "gradient_table", "hessian_matrix", "loss_along", "loss_on_plane",
    "outlier_scores", "principal_plane", "random_direction", "spectral_density", "top_eigenvalues",
]  # fmt: skip
