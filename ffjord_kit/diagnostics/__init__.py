"""What tells how far a flow, and what it is made of, can be trusted."""

from ffjord_kit.diagnostics.diagnosis import Diagnosis, diagnose
from ffjord_kit.diagnostics.findings import VERDICTS, Finding
from ffjord_kit.diagnostics.gradients import GradientCheck, check_gradients, gradient_table

__all__ = ["VERDICTS", "Diagnosis", "Finding", "GradientCheck", "check_gradients", "diagnose", "gradient_table"]
