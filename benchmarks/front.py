"""Held-out NLL against the cost of a log-density: ours by the continuous flow and by few exact steps, and tuned peers.

    FFJORD_KIT_DATA=FOLDER python benchmarks/front.py [--sets protein] [--budgets 60,300] [--json FILE]

One thread. A budget is CPU seconds of training with all that belongs to it. `seconds_10k` are CPU seconds for 10,000
log-densities: ours as `score_samples` gives them, peers' in float32. A fit of `auto` holds two densities, "continuous"
and "steps"; a star marks the one that reports by default. "auto 64" has hidden=(64, 64, 64), by which a log-density of
more than three columns costs a third. Tuned peers have what schedule `auto` has: scaling (standardize, whiten,
gaussianize) and learning rate by short trials, a moving average, permuted columns, and the weights that are best on the
validation rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import sets
from command import environment, options, run
from peers import METHODS as PEERS
from peers import Fitted
from results import Row, Store

from ffjord_kit import metrics

BENCHMARK = "front"
OURS = ("auto", "auto 64")
METHODS = (*OURS, "tuned NSF", "tuned MAF", "mixture", "KDE")
BUDGETS = (60.0, 300.0)
SETS = (*sets.TABLES, *sets.TOYS)
MOST_CONTINUOUS_ROWS = 500  # test rows of the continuous flow, which takes long
TIMED_ROWS = 10_000  # test rows, repeated: of some hundreds the fixed cost of a call would count
MOST_ERROR = 100.0  # nats: a mean that is less sure hangs on one row, and is not drawn


def main() -> None:
    """Run what the options ask for, and print a table."""
    picture = {"--picture": {"metavar": "FILE", "help": "draw the front of every set in the JSON file"}}
    given = options(__doc__, sets=SETS, methods=METHODS, budgets=BUDGETS, extra=picture)
    store = Store(given.json)
    for name in given.sets:
        split = sets.load(name)
        for word in given.only:
            for row in _rows(given, store, split, name, word):
                store.add({**row, **environment()})
    print(table(store.rows()))
    if given.picture is not None:
        draw(store.rows(), given.picture)


def draw(rows: list[Row], path: str) -> None:
    """NLL against seconds for 10,000 log-densities, a panel for each set; lines join budgets of one density."""
    mine = [row for row in rows if row["benchmark"] == BENCHMARK and row["set"] in sets.TABLES and row["seed"] == 0]
    names = [name for name in sets.TABLES if any(row["set"] == name for row in mine)]
    columns = min(len(names), 3)
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.2 * columns, 2.8 * lines + 0.4), squeeze=False, layout="constrained"
    )
    quantities = list(dict.fromkeys(row["quantity"] for row in mine))
    for axis, name in zip(axes.ravel(), names, strict=False):
        for colour, quantity in enumerate(quantities):
            points = sorted(
                (row["budget"] or 0, row["seconds_10k"], row["mean"], row["standard_error"])
                for row in mine
                if (row["set"], row["quantity"]) == (name, quantity) and row["standard_error"] <= MOST_ERROR
            )  # fmt: skip
            if points:
                _, seconds, nll, errors = zip(*points, strict=True)
                axis.errorbar(seconds, nll, errors, fmt="o-", color=f"C{colour}", label=quantity, capsize=2)
        axis.set(xscale="log", title=name)
    for axis in axes.ravel()[len(names) :]:
        axis.set_axis_off()
    figure.supxlabel("s for 10,000 log-densities", fontsize=9)
    figure.supylabel("held-out NLL, nats", fontsize=9)
    labels = [axis.get_legend_handles_labels() for axis in axes.ravel()]
    labelled = {label: handle for found in labels for handle, label in zip(*found, strict=True)}
    figure.legend(labelled.values(), labelled.keys(), loc="outside upper center", ncols=len(labelled), fontsize=8)
    figure.savefig(path, dpi=110)


def table(rows: list[Row]) -> str:
    """The rows as a table in Markdown: NLL (or KL), and seconds for 10,000 log-densities."""
    lines = [
        "| set | seconds | density | NLL, nats | KL, nats | s for 10,000 | note |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted((row for row in rows if row["benchmark"] == BENCHMARK), key=_order):
        budget = "-" if row["budget"] is None else f"{row['budget']:g}"
        nll = f"{row['mean']:.3f} ± {row['standard_error']:.3f}"
        kl = "" if row.get("kl") is None else f"{row['kl']:.4f}"
        lines.append(
            f"| {row['set']} | {budget} | {row['quantity']}{row['star']} | {nll} | {kl} | {row['seconds_10k']:.2f} | "
            f"{row['note']} |"
        )
    return "\n".join(lines)


def _order(row: Row) -> tuple[Any, ...]:
    return row["set"], row["budget"] or 0, row["mean"], row["quantity"], row["seed"]


def _rows(given: argparse.Namespace, store: Store, split: sets.Split, name: str, word: str) -> Iterator[Row]:
    """The densities of one method on one set, for each budget that is not in the store."""
    method = PEERS[word]
    key = {"benchmark": BENCHMARK, "set": name, "method": word, "seed": given.seed, "device": given.device}
    for budget in given.budgets if method.budgeted else (None,):
        quantity = f"{word}, continuous" if word in OURS else word
        if not given.again and store.has(**key, budget=budget, quantity=quantity):
            continue
        for fitted in method.fit(split, [budget or 0.0], given.seed, given.device):
            for quantity, score, rows, facts in _densities(fitted, word, split):
                slow = quantity.endswith("continuous")
                timed = rows if slow else np.resize(rows, (TIMED_ROWS, rows.shape[1]))
                row = {**key, "budget": budget, "quantity": quantity, **_judged(score, rows, timed, split), **facts}
                row["training_seconds"] = fitted.facts["seconds"]
                shown = f"{name:<14}{quantity + row['star']:<20}{budget or 0:>6g}  {row['mean']:.4f}"
                print(f"{shown}  {row['seconds_10k']:.2f} s  {row['note']}", flush=True)
                yield row


def _densities(
    fitted: Fitted, word: str, split: sets.Split
) -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray], np.ndarray, dict[str, str]]]:
    """What to judge of a fit: name, scores, test rows, and a star and a note."""
    if word not in OURS:
        yield word, fitted.quick or fitted.score, split.test, {"star": "", "note": fitted.facts.get("note", "")}
        return
    model, note = fitted.model, fitted.model.model_.note
    reports = model.model_.density
    notes = {
        "steps": f"{note.scheme}: {note.receipt}" if note else "",
        "continuous": f"scaling {model.config_['chosen']['scaling']}",
    }
    few = split.test[:: max(1, len(split.test) // MOST_CONTINUOUS_ROWS)]
    for density, rows in (("steps", split.test), ("continuous", few)):
        if density == "steps" and note is None:
            continue
        scores = model.set_params(density=density).score_samples
        yield f"{word}, {density}", scores, rows, {
            "star": "*" if density == reports else "", "note": notes[density],
        }  # fmt: skip


def _judged(
    score: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, timed: np.ndarray, split: sets.Split
) -> dict[str, Any]:
    """The NLL of test rows, its standard error, the KL where the truth is known, and the cost."""
    log_prob = score(rows)
    begun = time.process_time()
    score(timed)
    seconds = (time.process_time() - begun) * TIMED_ROWS / len(timed)
    mean, error = metrics.mean_and_standard_error(-log_prob)
    kl = None if split.log_prob is None else float((split.log_prob(rows) - log_prob).mean())
    return {"mean": mean, "standard_error": error, "kl": kl, "seconds_10k": seconds, "test_rows": len(rows)}


if __name__ == "__main__":
    run(main)
