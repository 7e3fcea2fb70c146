"""The commands `info` and `data`: describe a run, and list the named data sets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from ffjord_kit import datasets, metrics
from ffjord_kit.cli.output import CONSOLE, OVER_ROWS, plain_table, print_rows
from ffjord_kit.cli.sources import open_run
from ffjord_kit.columns.types import read_types, units_of
from ffjord_kit.diagnostics.measurement import NOISE, noise_text
from ffjord_kit.diagnostics.sample_weight import EFFECTIVE, effective_text
from ffjord_kit.estimator.discretize import SteppedNote
from ffjord_kit.estimator.persistence import last_part
from ffjord_kit.run import Run
from ffjord_kit.training.history import of_density

CHECKPOINT = "checkpoint/state.safetensors"
COLUMNS_SHOWN = 8
DENSITY = {"steps": "the steps", "continuous": "the continuous flow"}


def describe_run(run: str) -> None:
    """Print the data, options, progress and result of a run.

    Args:
        run: Run folder.

    Raises:
        RunError: If the folder holds no run, or a file of it is damaged.
    """
    print_rows(facts(open_run(run)))


def facts(run: Run) -> list[tuple[str, str]]:
    """Return the data, options, progress and result of a run.

    Args:
        run: The run.

    Returns:
        Names and values.

    Raises:
        RunError: If a file of the run is damaged.
    """
    return [*_data(run.config), *_origin(run.config), *_outcome(run), *_fields(run.config)]


def list_data() -> None:
    """Print the named data sets, and the other forms of data."""
    tables = plain_table("name", "what", "columns", "rows", "exact density")
    for row in datasets.describe():
        known = "yes" if row.truth_known else ""
        tables.add_row(row.name, row.summary, str(row.dimensions), str(row.rows or "any"), known)
    images = plain_table("images", "what", "shape", "train", "test")
    for each in datasets.describe_images():
        images.add_row(each.name, each.summary, each.shape, str(each.train), str(each.test))
    CONSOLE.print(tables)
    CONSOLE.print(images)
    click.echo(
        "A name takes a split, as in moons:test. Any other DATA is a file (text, NumPy, Parquet, Feather, Excel,\n"
        "HDF5, FITS, JSON; FILE:KEY for one table of several), or a folder of pictures with sub-folders for classes.\n"
        "Images without a split are the train images.\n"
        "Sources and licences: data/README.md"
    )


def best_validation(records: Sequence[Mapping[str, Any]], pixels: int | None) -> str:
    """Return the best validation of a log with its standard error and the solver's error.

    Args:
        records: Records of the log.
        pixels: Number of pixels of an image, for bits per dimension; None for tables.

    Returns:
        The text; "none" if nothing was validated.

    Example:
        >>> best_validation([{"step": 8, "validation_nll": 1.5, "validation_standard_error": 0.25}], None)
        '1.5000 ± 0.2500 nats at step 8 (± is over rows, not over fits)'
        >>> best_validation([{"step": 8, "event": "kept step 0: 1.5000 nats", "best_nll": 1.5}], None)
        '1.5000 nats, of the best trial: there was no time for another'
    """
    validations = [record for record in records if "validation_nll" in record]
    if not validations:
        kept = [record["best_nll"] for record in records if "best_nll" in record]
        return f"{kept[-1]:.4f} nats, of the best trial: there was no time for another" if kept else "none"
    best = min(validations, key=lambda record: record["validation_nll"])
    solver = f", solver's error {best['validation_solver_error']:.1e}" if "validation_solver_error" in best else ""
    nll, error = best["validation_nll"], best["validation_standard_error"]
    nats = f"{nll:.4f} ± {error:.4f} nats at step {best['step']}{solver} ({OVER_ROWS})"
    if pixels is None:
        return nats
    return f"{metrics.bits_per_dim(nll, pixels):.4f} ± {metrics.bits_per_dim(error, pixels):.4f} bits/dim, {nats}"


def option_text(value: Any) -> str:
    """Return the value of a field as the command line writes it.

    Args:
        value: Value of a field, as a run records it.

    Returns:
        The text; "not set" for None, "none" for what is empty.

    Example:
        >>> option_text([["flow_matching", 4000], ["mle", "60s"]]), option_text({"kinetic": 0.01})
        ('flow_matching:4000,mle:60s', 'kinetic:0.01')
        >>> option_text({"kids": "integer", "z": ["bounded", 0.0, 1.0]})
        'kids=integer,z=bounded:0.0:1.0'
        >>> option_text([]), option_text(None)
        ('none', 'not set')
    """
    if value is None:
        return "not set"
    if isinstance(value, Mapping) and any(isinstance(entry, (str, list, tuple)) for entry in value.values()):
        return ",".join(f"{name}={_typed(entry)}" for name, entry in value.items())
    entries = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(entries, (list, tuple)):
        return str(value)
    texts = (":".join(map(str, entry)) if isinstance(entry, (list, tuple)) else str(entry) for entry in entries)
    return ",".join(texts) or "none"


def _typed(entry: Any) -> str:
    """Return the type or the support of a column."""
    return entry if isinstance(entry, str) else ":".join(map(str, entry))


def _data(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the data of a run."""
    note = config["data"]
    yield "data", f"{note.get('source', note.get('about', 'from Python'))}, {config['rows']} rows"
    columns, images = config["columns"], config.get("images")
    if images is None:
        more = f", ... {len(columns)} in all" if len(columns) > COLUMNS_SHOWN else ""
        yield "columns", ", ".join(columns[:COLUMNS_SHOWN]) + more
        if config.get("types"):
            yield "types", option_text(config["types"]).replace(",", ", ")
            yield "nats", units_of(read_types(config["types"]), columns)
    else:
        yield "images", " x ".join(map(str, images["shape"])) + f", {images['bits']} bits"
    yield "context", _context(config)
    if EFFECTIVE in config:
        yield "sample weights", weights_text(config)
    if NOISE in config:
        yield "measurement errors", noise_text(config)


def weights_text(config: Mapping[str, Any]) -> str:
    """Return the column of the weights of a run, and the effective number of its rows.

    Args:
        config: Content of config.json.

    Returns:
        The text.
    """
    column = config["data"].get("weight")
    return ("from Python" if column is None else f"column {column}") + f"; {effective_text(config)}"


def _context(config: Mapping[str, Any]) -> str:
    """Return the names of the context of a run."""
    classes = (config.get("images") or {}).get("classes", 0)
    if classes:
        return f"{classes} classes: {', '.join(config['data'].get('classes', [])) or 'numbers from 0'}"
    return ", ".join(config["data"].get("context_columns", [])) or ("unnamed" if config["context_dim"] else "none")


def _origin(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the runs that a run was made from, and the version that wrote it."""
    for note in config.get("reflow", []):
        yield "reflow of", f"{note['source'] or 'a model in Python'}, weights {note['weights'][:12]}"
    yield "written by", f"ffjord_kit {config['version']}, seed {config['seed']}"


def _outcome(run: Run) -> Iterator[tuple[str, str]]:
    """Yield how far a run came, and how well it did."""
    last_trained = last_part(run)
    checkpoint, records = last_trained.load_checkpoint(), last_trained.records()
    last = checkpoint[1] if checkpoint else records[-1] if records else {"step": 0, "seconds": 0.0}
    with run.explained(CHECKPOINT if checkpoint else "metrics.jsonl"):
        steps = f"{last['step']} in {last['seconds']:.1f} s"
        images = run.config.get("images")
        density = run.config.get("steps", {}).get("density", "continuous")
        best = best_validation(of_density(records, density), math.prod(images["shape"]) if images else None)
    yield "steps", steps
    yield "best validation NLL", best
    if "receipt" in run.config.get("steps", {}):
        with run.explained("config.json"):
            note = SteppedNote.of_record(run.config["steps"])
        yield "in few steps", f"{note}; reports by default: the density of {DENSITY[note.density]}"
        yield "receipt", str(note.receipt)
    yield "weights", "model.safetensors" if run.file("model.safetensors").exists() else "none yet"


def _fields(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the estimator's fields, and the values chosen for open ones."""
    chosen = config.get("chosen", {})
    for name, value in config["estimator"].items():
        settled = f", chosen: {option_text(chosen[name])}" if name in chosen else ""
        yield f"  {name}", option_text(value) + settled
