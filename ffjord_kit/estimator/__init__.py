"""Fitted flows on arrays: FFJORD for tables, ImageFFJORD for images, and the DensityModel behind both.

The names below are loaded when they are first used, as in `ffjord_kit` itself: `fields` alone is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ffjord_kit.diagnostics.columns import DegenerateDataWarning
    from ffjord_kit.estimator.ffjord import FFJORD, ImageFFJORD, from_run, load
    from ffjord_kit.estimator.model import DensityModel

_HOMES = {
    "DegenerateDataWarning": "diagnostics.columns", "DensityModel": "estimator.model", "FFJORD": "estimator.ffjord",
    "ImageFFJORD": "estimator.ffjord", "from_run": "estimator.ffjord", "load": "estimator.ffjord",
}  # fmt: skip

__all__ = ["FFJORD", "DegenerateDataWarning", "DensityModel", "ImageFFJORD", "from_run", "load"]


def __getattr__(name: str) -> Any:
    """Load a name from its module when it is first used."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"ffjord_kit.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ffjord_kit.estimator' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
