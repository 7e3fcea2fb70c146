"""Diagnostics of a flow: its integral, solves, fit and gradients, bits per dimension, and outlier scores."""

from ffjord_kit.diagnostics.bits_per_dim import BitsPerDim, bits_per_dim
from ffjord_kit.diagnostics.condensation import (
    Condensation,
    initial_scale_phase,
    layer_condensation,
    network_condensation,
)
from ffjord_kit.diagnostics.control import ControlPath, control_path
from ffjord_kit.diagnostics.diagnosis import Diagnosis, diagnose
from ffjord_kit.diagnostics.findings import VERDICTS, Finding
from ffjord_kit.diagnostics.gradients import GradientCheck, check_gradients, gradient_table
from ffjord_kit.diagnostics.misfit import check_training
from ffjord_kit.diagnostics.outliers import SCORES, outlier_scores
from ffjord_kit.diagnostics.receipt import Receipt, check_steps
from ffjord_kit.diagnostics.spectrum import (
    DensitySpectrum,
    check_spectrum,
    density_spectrum,
    plane_spectrum,
    sample_spectrum,
)

__all__ = [
    "SCORES", "VERDICTS", "BitsPerDim", "Condensation", "ControlPath", "DensitySpectrum", "Diagnosis", "Finding",
    "GradientCheck", "Receipt", "bits_per_dim", "check_gradients", "check_spectrum", "check_steps", "check_training",
    "control_path", "density_spectrum", "diagnose", "gradient_table", "initial_scale_phase",
    "layer_condensation", "network_condensation", "outlier_scores", "plane_spectrum", "sample_spectrum",
]  # fmt: skip
