"""ffjord_kit: continuous normalizing flows with true likelihoods. Fit a density, sample it, score it, watch it flow."""

from ffjord_kit.accuracy import LogDensity
from ffjord_kit.base import Base, StandardNormal
from ffjord_kit.cnf import CNF, Integration, Path
from ffjord_kit.couplings import COUPLINGS
from ffjord_kit.datasets import DATASETS
from ffjord_kit.discrete import DISCRETE, ZukoLayer
from ffjord_kit.dynamics import DYNAMICS, ConcatDynamics, ConcatSquashDynamics, ResidualDynamics
from ffjord_kit.estimator import FFJORD
from ffjord_kit.failures import BlownUp, NotFinite, SolveError, StepVanished, TooManyEvaluations
from ffjord_kit.flow import Flow, Trajectory
from ffjord_kit.heavy_tails import BASES, StudentT
from ffjord_kit.layers import Affine, Layer, Logit, Softplus, Standardize, Whiten
from ffjord_kit.objectives import OBJECTIVES, FlowMatching, LayersLikelihood, MaximumLikelihood, Objective
from ffjord_kit.potential import PotentialDynamics
from ffjord_kit.regularizers import REGULARIZERS
from ffjord_kit.runs import Run, RunError
from ffjord_kit.solver import GRADIENTS, METHODS, Solver
from ffjord_kit.trace import TRACE_ESTIMATORS, ExactTrace, HutchinsonTrace, OrthogonalTrace, TraceEstimator, evaluate
from ffjord_kit.training import History, Optimization, Phase, TrainingDiverged, fit
from ffjord_kit.version import __version__

__all__ = [
    "BASES", "CNF", "COUPLINGS", "DATASETS", "DISCRETE", "DYNAMICS", "FFJORD", "GRADIENTS", "METHODS", "OBJECTIVES",
    "REGULARIZERS", "TRACE_ESTIMATORS", "Affine", "Base", "BlownUp", "ConcatDynamics", "ConcatSquashDynamics",
    "ExactTrace", "Flow", "FlowMatching", "History", "HutchinsonTrace", "Integration", "Layer", "LayersLikelihood",
    "LogDensity", "Logit", "MaximumLikelihood", "NotFinite", "Objective", "Optimization", "OrthogonalTrace", "Path",
    "Phase", "PotentialDynamics", "ResidualDynamics", "Run", "RunError", "Softplus", "SolveError", "Solver",
    "StandardNormal", "Standardize", "StepVanished", "StudentT", "TooManyEvaluations", "TraceEstimator",
    "TrainingDiverged", "Trajectory", "Whiten", "ZukoLayer", "__version__", "evaluate", "fit",
]  # fmt: skip
