"""Objectives of training, by their words."""

from __future__ import annotations

from ffjord_kit.objectives.base import Loss, Objective, SolvedObjective
from ffjord_kit.objectives.couplings import COUPLINGS
from ffjord_kit.objectives.energy import EnergyMatching, Evidence, evidence
from ffjord_kit.objectives.flow_matching import TIME_DENSITIES, FlowMatching, split_transforms
from ffjord_kit.objectives.guidance import DropContext, class_log_probs, guided, one_hot
from ffjord_kit.objectives.likelihood import MaximumLikelihood, TransformsLikelihood
from ffjord_kit.objectives.manifold_matching import ManifoldMatching
from ffjord_kit.objectives.reflow import Reflow
from ffjord_kit.objectives.robust import Neighbourhood, Robust, made_robust
from ffjord_kit.objectives.stepped import SteppedLikelihood
from ffjord_kit.objectives.supervised import CrossEntropy, SquaredError, SupervisedLoss

OBJECTIVES: dict[str, type[Objective]] = {
    "flow_matching": FlowMatching,
    "mle": MaximumLikelihood,
    "transforms": TransformsLikelihood,
    "steps": SteppedLikelihood,
}

__all__ = [
    "COUPLINGS", "OBJECTIVES", "TIME_DENSITIES", "CrossEntropy", "DropContext", "EnergyMatching", "Evidence",
    "FlowMatching", "Loss", "ManifoldMatching", "MaximumLikelihood", "Neighbourhood", "Objective", "Reflow", "Robust",
    "SolvedObjective", "SquaredError", "SteppedLikelihood", "SupervisedLoss", "TransformsLikelihood",
    "class_log_probs", "evidence", "guided", "made_robust", "one_hot", "split_transforms",
]  # fmt: skip
