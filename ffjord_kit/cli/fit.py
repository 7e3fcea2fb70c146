"""The command `fit`: read data, fit the estimator that suits them, and report."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ffjord_kit import datasets
from ffjord_kit.cli.info import CHECKPOINT, DENSITY, best_validation, option_text, weights_text
from ffjord_kit.cli.options import field_values
from ffjord_kit.cli.output import write_training_sheet
from ffjord_kit.cli.parsing import parse_fields, parse_missing
from ffjord_kit.cli.sources import LoadedData, load, load_fitted, open_run
from ffjord_kit.columns.types import read_types
from ffjord_kit.diagnostics.measurement import NOISE, noise_text
from ffjord_kit.diagnostics.sample_weight import EFFECTIVE
from ffjord_kit.estimator import FFJORD, ImageFFJORD, from_run
from ffjord_kit.estimator.fields import ImageFields, TableFields
from ffjord_kit.estimator.persistence import same_fields
from ffjord_kit.estimator.search import untrained_remark
from ffjord_kit.run import NEW, Run
from ffjord_kit.training.distributed import Workers, current_workers, restarted
from ffjord_kit.training.history import of_density

INTERRUPTED = 130
RESUME_ELSEWHERE = "put the data back there, or resume it in Python on the same rows by fit(X, run=..., resume=True)"

Estimator = FFJORD | ImageFFJORD


def fit(options: Mapping[str, Any], explicit: Sequence[str]) -> None:
    """Fit an estimator to a data set or a file, and keep it in a run folder.

    Args:
        options: Parameters of the command.
        explicit: Those that the command line names.

    Raises:
        ValueError: If the data or an option cannot be used.
        Exit: If Ctrl-C has ended the training, with exit code 130.
    """
    source, out = options["source"], None if options["out"] is None else Path(options["out"])
    workers = Workers.here()
    model = _make_estimator(source, options, explicit)
    resume = out is not None and workers.broadcast(lambda: _is_restarted_run(out, model))
    seed = workers.broadcast(lambda: _seed(out if resume else None, model.random_state))
    model.set_params(random_state=seed)
    with Console(stderr=True).status(f"reading {source}"):
        known = {own[0]: kind for own, kind in read_types(model.get_params().get("columns")).items()}
        data = load(source, seed=seed, types=known, **_load_options(options))
    if options["dry_run"]:
        _print_configuration(model, data)
    elif out is not None:
        _train(model, data, out, resume=resume, force=options["force"] and not resume)


def resume(path: str, verbose: bool) -> None:
    """Continue an interrupted run with its own data and options.

    Args:
        path: Run folder.
        verbose: Whether to show a progress bar.

    Raises:
        RunError: If the run cannot be read.
        ValueError: If its data cannot be read, or have changed.
        Exit: If Ctrl-C has ended the training, with exit code 130.
    """
    run = open_run(path)
    model = from_run(run).set_params(verbose=verbose)
    checkpoint = run.load_checkpoint()
    with run.explained(CHECKPOINT):
        finished = checkpoint is not None and checkpoint[1]["phase"] >= checkpoint[1]["phases"]
    fitted = load_fitted(run, RESUME_ELSEWHERE)
    _train(model, fitted, run.path, resume=True)
    if finished and current_workers().is_first:
        click.echo("the run was complete already: no steps were left")


def _make_estimator(source: str, options: Mapping[str, Any], explicit: Sequence[str]) -> Estimator:
    """Return the estimator for tables or for images, with the options as its fields."""
    is_images = datasets.is_image_source(source)
    values = field_values(ImageFields if is_images else TableFields, options)
    values |= parse_fields(values)
    if is_images and "bits" not in explicit:
        values["bits"] = _bits(source)
    return ImageFFJORD(**values) if is_images else FFJORD(**values)


def _bits(source: str) -> int:
    """Return the bits of the grey levels of a named set of images; 8 for all others."""
    named = datasets.IMAGE_SETS.get(source.partition(":")[0])
    return 8 if named is None else named.bits


def _load_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that say which data to read."""
    columns, drop, noise = (
        [name.strip() for name in options[each].split(",") if name.strip()]
        for each in ("context_columns", "drop", "noise_columns")
    )
    missing = None if options["subsets"] is False else parse_missing(options["missing"] or "") or ()
    named = {name: options[name] for name in ("rows", "weight", "size", "grey")}
    return {"context_columns": columns, "drop": drop, "noise_columns": noise, "missing": missing, **named}


def _is_restarted_run(path: Path, model: Estimator) -> bool:
    """Say whether torchrun has restarted these workers, whose own run is in the folder and is to be continued."""
    own = (path / "config.json").exists() and not (path / NEW).exists()
    return restarted() and own and same_fields(Run.open(path), model.get_params())


def _seed(run: Path | None, requested: int | None) -> int:
    """Return the requested seed, or else that of a run to continue, or a new one."""
    if requested is not None:
        return requested
    return secrets.randbits(31) if run is None else Run.open(run).config["seed"]


def _print_configuration(model: Estimator, data: LoadedData) -> None:
    """Check the data and the fields, and print both as JSON."""
    model.check(data.table, sample_weight=data.weight, noise_std=data.noise, context=data.context_table, **_names(data))
    shape = {"rows": len(data.x), "columns": list(data.columns), "event_shape": list(data.x.shape[1:])}
    click.echo(json.dumps({"estimator": model.get_params(), "data": {**data.note, **shape}}, indent=2))


def _names(data: LoadedData) -> dict[str, Any]:
    """Return the names of the columns of a table and of its context, as `fit` takes them."""
    return {} if data.is_images else {"columns": data.columns, "context_columns": data.note["context_columns"] or None}


def _train(model: Estimator, data: LoadedData, path: Path, **options: Any) -> None:
    """Fit, and report; the first Ctrl-C ends training after a step, the second one at once."""
    if data.is_images:
        options["on_samples"] = partial(write_training_sheet, Run(path, replaces=True), data.x.shape[1:])
    options |= _names(data)
    before = _config(path)
    try:
        model.fit(
            data.table, sample_weight=data.weight, noise_std=data.noise, context=data.context_table, run=path,
            data=data.note, **options,
        )  # fmt: skip
    except (KeyboardInterrupt, SystemExit):
        if not _is_usable(model):
            if current_workers().is_first and (options["resume"] or _config(path) != before):
                _print_how_to_continue(path)
            raise
    if current_workers().is_first:
        _print_result(model, path)
    if model.history_.interrupted:
        raise click.exceptions.Exit(INTERRUPTED)


def _is_usable(model: Estimator) -> bool:
    """Say whether an interrupted fit has ended in order, after a step."""
    return "model_" in vars(model) and model.history_.interrupted


def _config(path: Path) -> bytes | None:
    """Return the content of config.json, by which a replaced run is told from the one before."""
    file = path / "config.json"
    return file.read_bytes() if file.is_file() else None


def _print_result(model: Estimator, path: Path) -> None:
    """Print how training went."""
    history = model.history_
    done = "interrupted" if history.interrupted else "done"
    click.echo(f"{done} after {history.step} steps, {history.seconds:.1f} s ({history.work_seconds:.1f} s of work)")
    pixels = model.n_features_in_ if isinstance(model, ImageFFJORD) else None
    density = model.model_.density
    if EFFECTIVE in model.config_:
        click.echo(f"weights: {weights_text(model.config_)}")
    if NOISE in model.config_:
        click.echo(f"measurement errors: {noise_text(model.config_)}")
    click.echo(f"validation NLL: {best_validation(of_density(history.records, density), pixels)}")
    if model.model_.note is not None:
        click.echo(f"few steps: {model.model_.note}")
        click.echo(f"receipt: {model.model_.note.receipt}")
        click.echo(f"reports by default: the density of {DENSITY[density]}")
    if "chosen" in model.config_:
        words = ", ".join(f"{name}={option_text(value)}" for name, value in model.config_["chosen"].items())
        click.echo(f"chosen: {words}{untrained_remark(model.model_.config.fields)}")
    click.echo(f"run: {path}   seed: {history.seed}")
    if history.interrupted:
        _print_how_to_continue(path)


def _print_how_to_continue(path: Path) -> None:
    click.echo(f"go on with: ffjord-kit fit --resume {path}", err=True)
