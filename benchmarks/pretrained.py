"""The models that come with the package: train them again, and print the table of docs/howto/pretrained.md.

    FFJORD_KIT_DATA=FOLDER python benchmarks/pretrained.py [--only moons,digits] [--table] [--out ffjord_kit/pretrained]

Each is a run of `ffjord-kit fit` by the options in RECIPES, on one thread, CPU seconds. What is kept of it is what is
needed to use it: config.json, the weights, and a short log. Held-out rows are a split that no fit has seen: fresh
draws of a toy, 64 test images of MNIST, a fifth of the rows of the others. FOLDER holds mnist.npz and
uci_regression.npz; a table in it is not kept, and a run says in words what it is. The galaxies are downloaded. --table
prints the table alone.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from command import run

from ffjord_kit import datasets
from ffjord_kit.datasets.splits import split_rows
from ffjord_kit.estimator.ffjord import load
from ffjord_kit.run import Run

PACKAGE = Path(__file__).parent.parent / "ffjord_kit" / "pretrained"
RECORDS = 100  # of a log that is kept
LIMIT = 300 * 1024  # bytes of a model
TEST_IMAGES = 64


class Recipe(NamedTuple):
    """What a model is fitted to, and how.

    `source` is a named set of data, or a table FILE.npz:KEY of the folder, whose `columns` get these names, and which
    is, in words, `about`.
    """

    source: str
    options: str
    columns: tuple[str, ...] = ()
    about: str = ""


RECIPES = {
    "moons": Recipe("moons", "--rows 10000 --max-seconds 60"),
    "digits": Recipe("digits", "--hidden 64,64 --max-seconds 120"),
    "galaxies": Recipe("galaxies", "--hidden 64,64,64 --max-seconds 240"),
    "mnist14": Recipe("mnist", "--size 14 --hidden 16,16,16 --max-seconds 120"),
    "power_plant": Recipe(
        "uci_regression.npz:power_plant", "--hidden 64,64,64 --max-seconds 60",
        ("temperature", "vacuum", "pressure", "humidity", "power"),
        "hourly means of a power plant (P. Tufekci and H. Kaya, UCI 294, CC BY 4.0)",
    ),
}  # fmt: skip


def train(name: str, source: str, folder: Path, work: Path) -> None:
    """Train a model, and keep it in a folder."""
    recipe = RECIPES[name]
    command = ["fit", source, "--out", str(work / name), "--seed", "0", *recipe.options.split()]
    subprocess.run([sys.executable, "-m", "ffjord_kit", *command], check=True, stdout=sys.stderr)
    keep(Run.open(work / name), folder / name, recipe.about)


def splits(recipe: Recipe, work: Path) -> list[str]:
    """Return the sources of the train and test rows; tables of the folder become CSV files with names."""
    if not recipe.columns:
        return [f"{recipe.source}:train", f"{recipe.source}:test"]
    file, _, key = recipe.source.partition(":")
    path = Path(os.environ.get("FFJORD_KIT_DATA", ".")) / file
    if not path.exists():
        raise ValueError(f"{path} is not there: set FFJORD_KIT_DATA to the folder that holds {file}")
    with np.load(path, allow_pickle=False) as content:
        rows = content[key]
    paths = []
    for split in ("train", "test"):
        paths.append(str(work / f"{key}_{split}.csv"))
        with open(paths[-1], "w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(recipe.columns)
            writer.writerows(rows[split_rows(len(rows), split)].tolist())
    return paths


def keep(run: Run, folder: Path, about: str) -> None:
    """Copy of a run what is needed to use it; `about` stands for a source that others do not have."""
    shutil.rmtree(folder, ignore_errors=True)
    config = run.config
    if about:
        config["data"] = {"about": about, "context_columns": []}
    kept = Run.create(folder, config)
    for part in ("", "steps"):
        source, target = run.within(part), kept.within(part)
        if source.has_model:
            for record in _short(source.records()):
                target.record(record)
            target.file("model.safetensors").parent.mkdir(exist_ok=True)
            shutil.copyfile(source.file("model.safetensors"), target.file("model.safetensors"))


def _short(records: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the records of validations and events, the last one, and some of the others."""
    stride = math.ceil(len(records) / RECORDS)
    for number, record in enumerate(records):
        if "validation_nll" in record or "event" in record or number % stride == 0 or number == len(records) - 1:
            yield record


def line(name: str, folder: Path, test: str) -> str:
    """Return a model's line of the table: its size, its held-out figure, its receipt and its options."""
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    if size > LIMIT:
        raise ValueError(f"{name} has {size} bytes of weights, more than {LIMIT}: give it a smaller --hidden")
    model = load(folder)
    receipt = "" if model.model_.note is None else str(model.model_.note.receipt).split(",")[0]
    return f"| `{name}` | {size / 1024:.0f} KiB | {figure(model, name, test)} | {receipt} | `{RECIPES[name].options}` |"


def figure(model: Any, name: str, test: str) -> str:
    """Return the held-out negative log-likelihood with its standard error."""
    if datasets.is_image_source(test):
        size = model.event_shape_[-1]
        bits = model.bits_per_dim(datasets.load_images(test, rows=TEST_IMAGES, size=size).images)
        return f"{bits.mean:.3f} ± {bits.standard_error:.3f} bits/dim"
    dataset = datasets.load(test, rows=10_000 if name == "moons" else None)
    nll = -model.score_samples(dataset.x[:, [dataset.columns.index(column) for column in model.config_["columns"]]])
    return f"{nll.mean():.3f} ± {nll.std(ddof=1) / math.sqrt(len(nll)):.3f} nats"


def main() -> None:
    """Train what the options ask for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(RECIPES), help="models (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=PACKAGE, help="folder of the models (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="print the table of models that are there")
    given = parser.parse_args()
    unknown = [name for name in given.only.split(",") if name not in RECIPES]
    if unknown:
        raise ValueError(f"no model {unknown[0]!r}: the models are {', '.join(RECIPES)}")
    torch.set_num_threads(1)
    print("| model | weights | held-out NLL | receipt | options |", "|---|---|---|---|---|", sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as work:
        for name in given.only.split(","):
            fitted, test = splits(RECIPES[name], Path(work))
            if not given.table:
                train(name, fitted, given.out, Path(work))
            print(line(name, given.out / name, test), flush=True)


if __name__ == "__main__":
    run(main)
