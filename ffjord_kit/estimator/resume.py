"""What a run must be to be gone on with: the same fields, the same data, and a fit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ffjord_kit.estimator.arrays import seed_from
from ffjord_kit.estimator.defaults import OPEN, defaults
from ffjord_kit.estimator.fields import Fields
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
    name, mine, its = next(_differences(config, params), ("", None, None))
    if name:
        raise RunError(f"{run.path} has {name}={its!r}; got {mine!r}: resume it with its own")


def same_fields(run: Run, params: Mapping[str, Any]) -> bool:
    """Whether a run has these fields, and their seed where one is given."""
    config, seed = run.config, params["random_state"]
    return not any(_differences(config, params)) and seed in (None, config["seed"])


def _differences(config: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The fields that a run has otherwise: their names, what is asked for, and what it has.

    A field that is left open now may be what it would have become.
    """
    older = {field.name: field.default for field in fields(Fields)}  # for runs from before a field was there
    mine, its = json.loads(to_json(params)), {**older, **config["estimator"]}
    images = config.get("images")
    event = images["shape"] if images else (len(config["columns"]),)
    usual = json.loads(to_json(defaults(event, params["base"])))
    for name, word in mine.items():
        as_usual = word in OPEN and its.get(name) == usual.get(name)
        if name not in FREE_ON_RESUME and word != its.get(name) and not as_usual:
            yield name, word, its.get(name)
