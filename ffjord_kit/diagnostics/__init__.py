"""Diagnostics of a flow: integral, solves, fit, gradients, bits per dimension, outlier scores, and corrections."""

from ffjord_kit.diagnostics.bits_per_dim import BitsPerDim, bits_per_dim
from ffjord_kit.diagnostics.control import ControlPath, control_path
from ffjord_kit.diagnostics.corrections import Correction, Corrections, class_judge, correct, density_judge
from ffjord_kit.diagnostics.diagnosis import Diagnosis, diagnose
from ffjord_kit.diagnostics.findings import VERDICTS, Finding
from ffjord_kit.diagnostics.gradients import GradientCheck, check_gradients, gradient_table
from ffjord_kit.diagnostics.judgment import Allowed
from ffjord_kit.diagnostics.misfit import check_training
from ffjord_kit.diagnostics.outliers import SCORES, outlier_scores
from ffjord_kit.diagnostics.receipt import Receipt, check_steps

__all__ = [
    "SCORES", "VERDICTS", "Allowed", "BitsPerDim", "ControlPath", "Correction", "Corrections", "Diagnosis", "Finding",
    "GradientCheck", "Receipt", "bits_per_dim", "check_gradients", "check_steps", "check_training", "class_judge",
    "control_path", "correct", "density_judge", "diagnose", "gradient_table", "outlier_scores",
]  # fmt: skip
