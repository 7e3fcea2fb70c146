"""The commands that fit, sample and describe."""

from __future__ import annotations

import json
import math
import secrets
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ffjord_kit import datasets, metrics
from ffjord_kit.cli.image_files import write_images, write_sheet, written_images
from ffjord_kit.cli.options import PLAIN, check_free, chosen_fields, field_options, was_given
from ffjord_kit.cli.sources import Source, bits_of, context_rows, open_source, source_of
from ffjord_kit.estimator import FFJORD
from ffjord_kit.estimator.resume import same_fields
from ffjord_kit.runs import Run
from ffjord_kit.training.workers import Workers, started_again

INTERRUPTED = 130
DRAWN = {False: 1000, True: 64}  # samples, of a table and of images
CHECKPOINT = "checkpoint/state.safetensors"


@click.command()
@click.argument("source", metavar="[DATA]", required=False)
@click.option("--out", type=click.Path(), help="Folder to keep the run in.")
@click.option("--resume", type=click.Path(), help="Go on with an interrupted run, with its own data and options.")
@click.option("--rows", type=int, help="Rows to draw of a toy, or a random subset of a table.")
@click.option(
    "--context", "context_columns", default="", help="Columns to condition on, by name or number: a,b; images: label."
)
@click.option("--size", type=click.IntRange(min=2), help="Side of the images, which are cropped and averaged to it.")
@click.option("--grey", is_flag=True, help="Images in grey.")
@click.option("--force", is_flag=True, help="Replace a run that is in the folder.")
@click.option("--dry-run", is_flag=True, help="Print the whole configuration as JSON, and stop.")
@field_options
@click.pass_context
def fit(
    ctx: click.Context,
    source: str | None,
    out: str | None,
    resume: str | None,
    rows: int | None,
    context_columns: str,
    size: int | None,
    grey: bool,
    force: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Fit a flow to DATA: a named set (`ffjord-kit data`), a file (CSV, TSV, NPY, NPZ, Parquet), a folder of pictures.

    Images may be conditioned on their classes by --context label.

    By several processes: torchrun --standalone --nproc-per-node 2 -m ffjord_kit fit DATA --out RUN.
    """
    fields = chosen_fields(options)
    if resume is not None:
        _resume(resume, was_given(ctx), fields["verbose"])
        return
    if source is None or (out is None and not dry_run):
        raise click.UsageError("fit needs DATA and --out RUN (or --resume RUN)")
    if "bits" not in was_given(ctx):
        fields["bits"] = bits_of(source)
    again = False if out is None else Workers.here().told(lambda: _left_by_an_earlier_start(Path(out), fields))
    fields["random_state"] = Workers.here().told(lambda: _seed(Path(out) if again else None, fields["random_state"]))
    names = [name.strip() for name in context_columns.split(",") if name.strip()]
    read = open_source(
        source, rows=rows, seed=fields["random_state"], context_columns=names, size=size, grey=grey
    )  # fmt: skip
    model = FFJORD(**fields)
    if dry_run:
        model.check(read.x, context=read.context, columns=read.columns)
        shape = {"rows": len(read.x), "columns": list(read.columns), "event_shape": list(read.x.shape[1:])}
        click.echo(json.dumps({"estimator": model.get_params(), "data": {**read.note, **shape}}, indent=2))
        return
    _train(model, read, Path(out), **({"resume": True} if again else {"force": force}))


def _left_by_an_earlier_start(path: Path, fields: dict[str, Any]) -> bool:
    """Whether the run is that of these very workers, whom torchrun has started again, to be gone on with."""
    return started_again() and (path / "config.json").exists() and same_fields(Run.open(path), fields)


def _seed(path: Path | None, given: int | None) -> int:
    """The seed that is given, or that of the run to go on with, or a new one."""
    if given is None:
        return secrets.randbits(31) if path is None else Run.open(path).config["seed"]
    return given


def _resume(path: str, given: list[str], verbose: bool) -> None:
    odd = [name for name in given if name not in ("resume", "verbose")]
    if odd:
        raise click.UsageError(f"--resume takes its data and options from the run: leave out {', '.join(odd)}")
    run = Run.open(path)
    model = FFJORD.configured(run).set_params(verbose=verbose)
    found = run.load_checkpoint()
    with run.explained(CHECKPOINT):
        finished = found is not None and found[1]["phase"] >= found[1]["phases"]
    _train(model, source_of(run), run.path, resume=True)
    if finished and Workers.here().first:
        click.echo("it had made all its steps before: nothing was left to do")


def _train(model: FFJORD, read: Source, path: Path, **how: Any) -> None:
    try:
        if read.is_images:
            how = {**how, "on_samples": partial(write_sheet, path / "samples", read.image_shape)}
        model.fit(read.x, context=read.context, columns=read.columns, run=path, data=read.note, **how)
    except KeyboardInterrupt:
        if Workers.here().first and (path / "config.json").exists():
            click.echo(f"go on with: ffjord-kit fit --resume {path}", err=True)
        raise
    history = model.history_
    if Workers.here().first:
        _report(model, path)
    if history.interrupted:
        raise click.exceptions.Exit(INTERRUPTED)


def _report(model: FFJORD, path: Path) -> None:
    history = model.history_
    done = "interrupted" if history.interrupted else "done"
    click.echo(f"{done} after {history.step} steps, {history.seconds:.1f} s ({history.spent:.1f} s of work)")
    click.echo(f"validation NLL: {_best(history.records, model.images and model.n_features_in_)}")
    if "chosen" in model.config_:
        words = ", ".join(f"{name}={word}" for name, word in model.config_["chosen"].items())
        click.echo(f"chosen: {words}")
    click.echo(f"run: {path}   seed: {history.seed}")
    if history.interrupted:
        click.echo(f"go on with: ffjord-kit fit --resume {path}", err=True)


@click.command()
@click.argument("run", type=click.Path())
@click.option("-n", "--number", type=click.IntRange(min=1), help="Samples to draw (default: 1000; 64 images).")
@click.option("--out", type=click.Path(), required=True, help="File: .csv, .tsv, .npy, .npz, .parquet; images: .npz.")
@click.option(
    "--context",
    help="For a conditional run: values 1.0,2.5 for all samples, or a file of rows; of images their classes.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Seed of the noise.")
@click.option("--steps", type=click.IntRange(min=1), help="Fixed midpoint steps, e.g. 4 (default: a converged solve).")
@click.option("--guidance", type=float, default=1.0, help="Above 1: further into the context than the data are.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def sample(
    run: str,
    number: int | None,
    out: str,
    context: str | None,
    seed: int | None,
    steps: int | None,
    guidance: float,
    force: bool,
) -> None:
    """Draw new rows from a RUN into a file; images into an NPZ and a sheet of them, a PNG beside it."""
    opened = Run.open(run)
    images, number = opened.config.get("images") is not None, number or DRAWN[opened.config.get("images") is not None]
    written = written_images(out) if images else [out]
    for path in written:
        check_free(path, force)
    if not images:
        datasets.check_writable(out)
    model, given = FFJORD.load(run), context_rows(opened, context, number)
    rows = model.sample(number, context=given, random_state=seed, steps=steps, guidance=guidance)
    if images:
        write_images(written, rows.reshape(-1, *model.event_shape_), given)
    else:
        datasets.write(out, rows, opened.config["columns"])
    click.echo(f"{number} samples in {' and '.join(written)}")


@click.command()
@click.argument("run", type=click.Path())
def info(run: str) -> None:
    """Say what a RUN is: its data, its options, how far it came, and how well it did."""
    opened = Run.open(run)
    config, records = opened.config, opened.records()
    table = Table(show_header=False, box=None, pad_edge=False)
    columns = config["columns"]
    table.add_row("data", f"{config['data'].get('source', 'from Python')}, {config['rows']} rows")
    if config.get("images") is None:
        table.add_row("columns", ", ".join(columns[:8]) + (f", ... {len(columns)} in all" if len(columns) > 8 else ""))
    else:
        table.add_row("images", " x ".join(map(str, config["images"]["shape"])) + f", {config['images']['bits']} bits")
    table.add_row("context", _context_of(config))
    for note in config.get("straightened", []):
        table.add_row("straightened from", f"{note['source'] or 'a model in Python'}, weights {note['weights'][:12]}")
    table.add_row("written by", f"ffjord_kit {config['version']}, seed {config['seed']}")
    for name, text in _outcome(opened, records):
        table.add_row(name, text)
    chosen = config.get("chosen", {})
    for name, value in config["estimator"].items():
        settled = f", chosen: {chosen[name]}" if name in chosen else ""
        table.add_row(f"  {name}", ("" if value is None else str(value)) + settled)
    PLAIN.print(table, soft_wrap=True)


def _context_of(config: dict[str, Any]) -> str:
    """What a run is conditioned on."""
    classes = (config.get("images") or {}).get("classes", 0)
    if classes:
        return f"{classes} classes: {', '.join(config['data'].get('classes', [])) or 'numbers from 0'}"
    return ", ".join(config["data"].get("context_columns", [])) or ("unnamed" if config["context_dim"] else "none")


def _outcome(run: Run, records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    state = run.load_checkpoint()
    last = state[1] if state else records[-1] if records else {"step": 0, "seconds": 0.0}
    with run.explained(CHECKPOINT if state else "metrics.jsonl"):
        steps = f"{last['step']} in {last['seconds']:.1f} s"
        images = run.config.get("images")
        best = _best(records, images and math.prod(images["shape"]))
    weights = "model.safetensors" if (run.path / "model.safetensors").exists() else "none yet"
    return [("steps", steps), ("best validation NLL", best), ("weights", weights)]


def _best(records: list[dict[str, Any]], pixels: int | None) -> str:
    """The best validation of a log, with its standard error and the solver's; in bits where there are pixels."""
    validations = [r for r in records if "validation_nll" in r]
    if not validations:
        return "none"
    best = min(validations, key=lambda r: r["validation_nll"])
    solver = f", solver's error {best['validation_solver_error']:.1e}" if "validation_solver_error" in best else ""
    nll, error = best["validation_nll"], best["validation_standard_error"]
    nats = f"{nll:.4f} ± {error:.4f} nats at step {best['step']}{solver}"
    if pixels is None:
        return nats
    return f"{metrics.bits_per_dim(nll, pixels):.4f} ± {metrics.bits_per_dim(error, pixels):.4f} bits/dim, {nats}"


@click.command()
def data() -> None:
    """List the data sets that have a name."""
    table = Table(box=None, pad_edge=False)
    for title in ("name", "what", "columns", "rows", "exact density"):
        table.add_column(title, overflow="fold")
    for row in datasets.describe():
        known = "yes" if row.truth_known else ""
        table.add_row(row.name, row.summary, str(row.dimensions), str(row.rows or "any"), known)
    PLAIN.print(table)
    PLAIN.print(_image_sets())
    click.echo(
        "A name takes a split, as in moons:test. Any other DATA is a file: CSV, TSV, NPY, NPZ[:KEY], Parquet,\n"
        "or a folder of pictures, whose sub-folders are classes; without a split a set of images is its train images.\n"
        "Sources and licences: data/README.md"
    )


def _image_sets() -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("images", "what", "shape", "train", "test"):
        table.add_column(title, overflow="fold")
    for row in datasets.describe_images():
        table.add_row(row.name, row.summary, row.shape, str(row.train), str(row.test))
    return table
