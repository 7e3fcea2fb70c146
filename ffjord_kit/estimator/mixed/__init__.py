"""Tables with columns of categories: their domain, and the probability of the categories."""

from ffjord_kit.estimator.mixed.domain import MixedDomain
from ffjord_kit.estimator.mixed.probability import fit_categories

__all__ = ["MixedDomain", "fit_categories"]
