"""Other models of the family on the same solvers and training loop: ODE-Nets, and latent ODEs for irregular series.

The names below are loaded when they are first used, as in `ffjord_kit` itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ffjord_kit.models.latent_ode import Bands, LatentODE
    from ffjord_kit.models.odenet import ODENetClassifier, ODENetRegressor
    from ffjord_kit.models.series import Series

_HOMES = {
    "Bands": "latent_ode", "LatentODE": "latent_ode", "ODENetClassifier": "odenet", "ODENetRegressor": "odenet",
    "Series": "series",
}  # fmt: skip

__all__ = ["Bands", "LatentODE", "ODENetClassifier", "ODENetRegressor", "Series"]


def __getattr__(name: str) -> Any:
    """Load a name from its module when it is first used."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"ffjord_kit.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ffjord_kit.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
