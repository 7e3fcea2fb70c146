"""Training: a schedule of objectives on one flow, validated by exact likelihoods, resumable bit for bit."""

from ffjord_kit.training.loop import History, Phase, TrainingDiverged, fit
from ffjord_kit.training.optimization import Optimization

__all__ = ["History", "Optimization", "Phase", "TrainingDiverged", "fit"]
