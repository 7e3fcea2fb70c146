"""A fit by several workers: what they compare, what the first of them does alone, and tells the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ffjord_kit.estimator.auto import choose
from ffjord_kit.estimator.fields import Fields
from ffjord_kit.estimator.given import Given
from ffjord_kit.estimator.plan import Plan, plan
from ffjord_kit.estimator.resume import FREE_ON_RESUME
from ffjord_kit.runs import Run, claimed
from ffjord_kit.training import History, Workers


def compare(workers: Workers, params: Mapping[str, Any], about: Mapping[str, Any], *, resume: bool) -> None:
    """Raise WorkersError, on all of them, where workers have other fields or data."""
    free = {name for name in FREE_ON_RESUME if name != "random_state"}
    fields = {name: value for name, value in params.items() if name not in free}
    data = {"number of rows": about["rows"], "columns": about["columns"], "data (SHA-256)": about["sha256"]}
    workers.agree({**fields, **data, "resume": resume})


@contextmanager
def folder(
    workers: Workers, path: str | Path | None, config: Mapping[str, Any], *, force: bool, resume: bool
) -> Iterator[Run | None]:
    """The run of a folder, made or opened, and claimed, for the first worker; None for the others, or for no path."""
    with ExitStack() as stack:

        def opened() -> Run | None:
            stack.enter_context(claimed(path))
            if path is None:
                return None
            return Run.open(path) if resume else Run.create(path, config, force=force)

        yield workers.only_first(opened)


def chosen_together(
    workers: Workers,
    fields: Fields,
    made: Plan,
    read: Given,
    config: dict[str, Any],
    kept: Run | None,
) -> tuple[Plan, dict[str, Any], History]:
    """The plan that trials settle, made by the first worker alone, the config that says so, and the trials' history.

    The flow that won a trial is the first worker's, which `training.fit` gives to the others.
    """
    alone = {"workers": Workers(), "micro_batches": made.options["micro_batches"] or workers.size}
    trials = made._replace(options={**made.options, **alone})
    chosen = workers.only_first(lambda: choose(fields, trials, config["seed"]))
    words, before = workers.told(lambda: (chosen.words, vars(chosen.before)))
    config = {**config, "chosen": words} if kept is None else kept.amend(chosen=words)
    settled = plan(fields, read, config["seed"], words)
    return settled if chosen is None else settled._replace(flow=chosen.flow), config, History(**before)
