"""The run folder of a latent ODE: opened, made, and gone on with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ffjord_kit.run import Run, RunError, claimed

KIND = "latent_ode"  # of a run, in its config
FREE_ON_RESUME = ("verbose", "random_state")


def open_run(path: str | Path) -> Run:
    """Open the run of a latent ODE.

    Args:
        path: Run folder.

    Returns:
        The run.

    Raises:
        RunError: If there is none, or it is another model's.
    """
    run = Run.open(path)
    if run.config.get("model") != KIND:
        raise RunError(f"{path} is no run of series: use it by ffjord-kit sample, score or plot")
    return run


def record_to_resume(path: str | Path | None, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the run to resume, whose data and fields must be the same.

    Args:
        path: Run folder.
        record: The config that a new run would have.

    Returns:
        The config of the run.

    Raises:
        ValueError: If no folder is named.
        RunError: If there is no run of a latent ODE, or it is of other series or fields.
    """
    if path is None:
        raise ValueError("resume needs the run to go on with: pass run=")
    run = open_run(path)
    its = run.config
    if its["sha256"] != record["sha256"]:
        raise RunError(f"{path} was fitted to other series: resume it with the same ones")
    mine = json.loads(json.dumps(record["fields"]))
    for name, value in its["fields"].items():
        if name not in FREE_ON_RESUME and mine[name] != value:
            raise RunError(f"{path} has {name}={value!r}; got {mine[name]!r}: resume it with its own")
    return its


@contextmanager
def opened_run(
    path: str | Path | None, record: Mapping[str, Any], *, force: bool, resume: bool
) -> Iterator[Run | None]:
    """Make or open the run folder of a fit, and keep other processes out of it meanwhile.

    Args:
        path: Run folder; None for no run.
        record: Config of a new run.
        force: Whether to replace a run that is there.
        resume: Whether to open the run that is there.

    Yields:
        The run, or None.

    Raises:
        RunError: If the folder cannot be used.
    """
    if path is None:
        yield None
        return
    with claimed(path):
        run = Run.open(path) if resume else Run.create(path, record, force=force)
        with nullcontext() if resume else closing(run):
            if resume:
                run.tidy()
            yield run
