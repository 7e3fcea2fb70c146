"""Training: a schedule of objectives on one flow, validated by exact likelihoods, resumable bit for bit."""

from ffjord_kit.training.data import Rows, Streamed
from ffjord_kit.training.divergence import TrainingDiverged
from ffjord_kit.training.guard import Guard
from ffjord_kit.training.loop import fit
from ffjord_kit.training.optimization import Optimization
from ffjord_kit.training.pairs import fit_pairs
from ffjord_kit.training.phase import History, Phase
from ffjord_kit.training.workers import Workers, WorkersError

__all__ = [
    "Guard", "History", "Optimization", "Phase", "Rows", "Streamed", "TrainingDiverged", "Workers", "WorkersError",
    "fit", "fit_pairs",
]  # fmt: skip
