"""The scikit-learn face: FFJORD, whose fields are the configuration, and the examination of a fitted one."""

from ffjord_kit.estimator.examine import examine
from ffjord_kit.estimator.ffjord import FFJORD

__all__ = ["FFJORD", "examine"]
