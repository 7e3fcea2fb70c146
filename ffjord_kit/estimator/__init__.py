"""The scikit-learn face: FFJORD, whose fields are the configuration, and what else a fitted one can be asked."""

from ffjord_kit.estimator.bits import class_probabilities, image_bits
from ffjord_kit.estimator.drawing import interpolate
from ffjord_kit.estimator.examine import examine
from ffjord_kit.estimator.ffjord import FFJORD
from ffjord_kit.estimator.outliers import outlier_scores

__all__ = ["FFJORD", "class_probabilities", "examine", "image_bits", "interpolate", "outlier_scores"]
