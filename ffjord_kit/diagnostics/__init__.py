"""What tells how far a flow, and what it is made of, can be trusted."""

from ffjord_kit.diagnostics.gradients import GradientCheck, check_gradients, gradient_table

__all__ = ["GradientCheck", "check_gradients", "gradient_table"]
