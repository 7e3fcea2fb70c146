"""Fitted flows on arrays: FFJORD for tables, ImageFFJORD for images, and the DensityModel behind both."""

from ffjord_kit.diagnostics.columns import DegenerateDataWarning
from ffjord_kit.estimator.ffjord import FFJORD, ImageFFJORD, from_run, load
from ffjord_kit.estimator.model import DensityModel

__all__ = ["FFJORD", "DegenerateDataWarning", "DensityModel", "ImageFFJORD", "from_run", "load"]
