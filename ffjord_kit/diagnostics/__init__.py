"""Diagnostics of a flow: integral, solves, fit, gradients, bits per dimension, outlier scores, and corrections."""

from ffjord_kit.diagnostics.bits_per_dim import BitsPerDim, bits_per_dim
from ffjord_kit.diagnostics.condensation import (
    Condensation,
    initial_scale_phase,
    layer_condensation,
    network_condensation,
)  # fmt: skip
from ffjord_kit.diagnostics.control import ControlPath, control_path
from ffjord_kit.diagnostics.corrections import Correction, Corrections, class_judge, correct, density_judge
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
from ffjord_kit.diagnostics.judgment import Allowed
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
from ffjord_kit.diagnostics.misfit import check_categories, check_training
from ffjord_kit.diagnostics.outliers import SCORES, outlier_scores
from ffjord_kit.diagnostics.receipt import Receipt, check_steps
from ffjord_kit.diagnostics.robustness import Attack, attack
from ffjord_kit.diagnostics.shape import Shape, loss_shape
from ffjord_kit.diagnostics.spectrum import (
    DensitySpectrum,
    check_spectrum,
    density_spectrum,
    plane_spectrum,
    sample_spectrum,
)  # fmt: skip
from ffjord_kit.diagnostics.weight_loss import WeightLoss

__all__ = [
    "NORMALIZATIONS", "SCORES", "VERDICTS", "Allowed", "Attack", "BitsPerDim", "Condensation", "ControlPath",
    "Correction", "Corrections", "Curvature", "DensitySpectrum", "Diagnosis", "Eigenvalues", "Finding", "GradientCheck",
    "PrincipalPlane", "Receipt", "Shape", "SpectralDensity", "WeightHistory", "WeightLoss", "attack", "bits_per_dim",
    "check_categories", "check_gradients", "check_spectrum", "check_steps", "check_training", "class_judge",
    "control_path", "correct",
    "curvature_on_plane", "density_judge", "density_spectrum", "diagnose", "gradient_table", "hessian_matrix",
    "initial_scale_phase", "layer_condensation", "loss_along", "loss_on_plane", "loss_shape", "network_condensation",
    "outlier_scores", "plane_spectrum", "principal_plane", "random_direction", "sample_spectrum", "spectral_density",
    "top_eigenvalues",
]  # fmt: skip
