"""Continuous normalizing flows with true likelihoods: fit a density, sample it, score it, watch it flow.

The names below are loaded when they are first used; everything else is reached by its module, e.g.
`ffjord_kit.transforms.Whiten`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ffjord_kit.version import __version__

if TYPE_CHECKING:
    from ffjord_kit import datasets
    from ffjord_kit.columns import Bounded, Category, Circle, Date, Integer, Positive, Real, Season, Sphere
    from ffjord_kit.estimator import FFJORD, DensityModel, ImageFFJORD
    from ffjord_kit.flow import Flow
    from ffjord_kit.nn import ConcatDynamics, ResidualDynamics, VectorField
    from ffjord_kit.objectives import FlowMatching, MaximumLikelihood
    from ffjord_kit.ode import AdaptiveSolver, FixedSolver, PerRowSolver
    from ffjord_kit.training import Phase, fit_flow
    from ffjord_kit.transforms import CNF, Standardize, Transform

_HOMES = {
    "Bounded": "columns", "Category": "columns", "Circle": "columns", "Date": "columns",
    "Integer": "columns", "Positive": "columns", "Real": "columns", "Season": "columns",
    "Sphere": "columns",
    "DensityModel": "estimator", "FFJORD": "estimator", "ImageFFJORD": "estimator",
    "Flow": "flow",
    "ConcatDynamics": "nn", "ResidualDynamics": "nn", "VectorField": "nn",
    "FlowMatching": "objectives", "MaximumLikelihood": "objectives",
    "AdaptiveSolver": "ode", "FixedSolver": "ode", "PerRowSolver": "ode",
    "Phase": "training", "fit_flow": "training",
    "CNF": "transforms", "Standardize": "transforms", "Transform": "transforms",
}  # fmt: skip

__all__ = [
    "CNF", "FFJORD", "AdaptiveSolver", "Bounded", "Category", "Circle", "ConcatDynamics", "Date", "DensityModel",
    "FixedSolver", "Flow",
    "FlowMatching", "ImageFFJORD", "Integer", "MaximumLikelihood", "PerRowSolver", "Phase", "Positive", "Real",
    "ResidualDynamics", "Season", "Sphere", "Standardize", "Transform", "VectorField", "__version__", "datasets",
    "fit_flow",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a name from its module when it is first used."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"ffjord_kit.{_HOMES[name]}"), name)
    if name == "datasets":
        return importlib.import_module("ffjord_kit.datasets")
    raise AttributeError(f"module 'ffjord_kit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
