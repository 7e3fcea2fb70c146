"""Training: phases of objectives on one model, validated, guarded, and resumable bit for bit."""

from ffjord_kit.training.config import Phase, TrainConfig
from ffjord_kit.training.data import StreamedData, TensorData
from ffjord_kit.training.dequantizer import fit_dequantizer
from ffjord_kit.training.distributed import Workers, WorkersError
from ffjord_kit.training.energy import BaseDraws, fit_energy
from ffjord_kit.training.guard import Guard
from ffjord_kit.training.history import History
from ffjord_kit.training.loop import fit, fit_flow
from ffjord_kit.training.scalars import ScalarListener
from ffjord_kit.training.state import TrainingDiverged

__all__ = [
    "BaseDraws", "Guard", "History", "Phase", "ScalarListener", "StreamedData", "TensorData", "TrainConfig",
    "TrainingDiverged", "Workers", "WorkersError", "fit", "fit_dequantizer", "fit_energy", "fit_flow",
]  # fmt: skip
