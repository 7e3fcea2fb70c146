"""What a run must be to be gone on with: the same fields, the same data, and a fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ffjord_kit.estimator.arrays import seed_from
from ffjord_kit.estimator.loading import configured
from ffjord_kit.runs import Run, RunError, to_json

if TYPE_CHECKING:
    from ffjord_kit.estimator.ffjord import FFJORD

FREE_ON_RESUME = ("verbose", "device", "random_state")


def configuration(model: FFJORD, path: str | Path | None, about: dict[str, Any], resume: bool) -> dict[str, Any]:
    """What is asked for, the seed settled; of a run to resume, what was."""
    if resume:
        if path is None:
            raise ValueError("resume needs the run to go on with: pass run=")
        run = Run.open(path)
        with run.explained("config.json"):
            configured(type(model), run)
            check_resumable(run, model.get_params(), about)
        return run.config
    seed = seed_from(model.random_state)
    return {"estimator": {**model.get_params(), "random_state": seed}, "seed": seed, **about}


def check_resumable(run: Run, params: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Refuse a run with other data, or other fields than those that say where and how loudly to work.

    Raises RunError that names the first difference.
    """
    config = run.config
    if "straightened" in config:
        raise RunError(f"{run.path} was straightened, not fitted: it has no steps left to make; straighten anew")
    if config["sha256"] != about["sha256"]:
        raise RunError(f"{run.path} was fitted to other data: resume it with the same rows and columns")
    mine, its = json.loads(to_json(params)), config["estimator"]
    odd = [name for name in mine if mine[name] != its.get(name) and name not in FREE_ON_RESUME]
    if odd:
        raise RunError(f"{run.path} has {odd[0]}={its.get(odd[0])!r}; got {mine[odd[0]]!r}: resume it with its own")
