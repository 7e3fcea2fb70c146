"""Every method on every set for every budget: the loop that toys.py and tables.py share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import sets
from command import environment
from peers import METHODS, Fitted, Method
from results import Row, Store

# What is measured of a density that a method fitted: the mean over the test rows, its standard error, and more.
Judge = Callable[[Fitted, sets.Split, str], dict[str, Any]]


def race(
    benchmark: str,
    given: argparse.Namespace,
    budgets: Mapping[str, Sequence[float]],
    judge: Judge,
    methods: Mapping[str, Method] = METHODS,
) -> list[Row]:
    """Run what the options ask for, print and merge each row as it comes, and give all the rows of the file.

    `budgets` are those of a method where the options name none.
    """
    store = Store(given.json)
    for name in given.sets:
        split = sets.load(name)
        for word in given.only:
            key = {"benchmark": benchmark, "set": name, "method": word, "seed": given.seed, "device": given.device}
            asked = given.budgets if given.asked else budgets.get(word, given.budgets)
            method = methods[word]
            for row in _rows(method, split, _missing(method, asked, key, store, given.again), judge, key):
                store.add({**key, **row, **environment()})
                print(line({**key, **row}), flush=True)
    return store.rows()


def line(row: Row) -> str:
    """A row in one line."""
    budget = "-" if row["budget"] is None else f"{row['budget']:g}"
    score = "none" if row["mean"] is None else f"{row['mean']:.4f} ± {row['standard_error'] or math.nan:.4f}"
    spent = f"{row.get('seconds', math.nan):.1f} s, {row.get('steps', '-')} steps"
    return f"{row['set']:<14}{row['method']:<14}{budget:>6}  {score:<22}{spent:<24}{row.get('note', '')}"


def numbers(mean: float, error: float, **more: Any) -> dict[str, Any]:
    """The result of a judge: JSON knows no nan or infinity, so these become none and a word."""
    if not math.isfinite(mean):
        return {"mean": None, "standard_error": None, "note": f"the score is {mean}"}
    return {"mean": mean, "standard_error": error if math.isfinite(error) else None, **more}


def _missing(
    method: Method, budgets: Sequence[float], key: dict[str, Any], store: Store, again: bool
) -> Sequence[float | None]:
    wanted = budgets if method.budgeted else (None,)
    return [budget for budget in wanted if again or not store.has(**key, budget=budget)]


def _rows(
    method: Method, split: sets.Split, budgets: Sequence[float | None], judge: Judge, key: dict[str, Any]
) -> Iterator[Row]:
    """A row for each budget; a method that fails has one that says so."""
    left = list(budgets)
    try:
        for fitted in method.fits(split, budgets, seed=key["seed"], device=key["device"]) if budgets else ():
            result = judge(fitted, split, key["method"])
            note = "; ".join(filter(None, (fitted.facts.get("note"), result.get("note"))))
            left.remove(fitted.budget)
            yield {"budget": fitted.budget, **fitted.facts, **result, "note": note}
    except (RuntimeError, ArithmeticError) as error:
        for budget in left:
            yield {"budget": budget, "mean": None, "standard_error": None, "note": f"failed: {error}"}
