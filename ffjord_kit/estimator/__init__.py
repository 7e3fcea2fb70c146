"""The scikit-learn face: FFJORD, whose fields are the configuration."""

from ffjord_kit.estimator.ffjord import FFJORD

__all__ = ["FFJORD"]
