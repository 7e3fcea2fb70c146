"""What the benchmarks' commands share: their options, and what a row says about how it was made."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

SEEDS = {"type": int, "default": 1, "help": "number of seeds, from --seed on (default: %(default)s)"}


def options(
    text: str,
    *,
    sets: Sequence[str],
    methods: Sequence[str],
    budgets: Sequence[float],
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> argparse.Namespace:
    """The options of a command, checked: the sets, methods and budgets are lists; one thread is used from here on.

    `extra` maps further options to what `add_argument` takes.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(sets), help="data sets (default: %(default)s)")
    parser.add_argument("--only", default=",".join(methods), metavar="METHODS", help="methods (default: %(default)s)")
    shown = ",".join(f"{budget:g}" for budget in budgets) or "none"
    parser.add_argument("--budgets", help=f"seconds of training, e.g. 15,60 (default: {shown})")
    parser.add_argument("--seed", type=int, default=0, help="of the methods; the data do not change")
    parser.add_argument("--json", metavar="FILE", help="merge the rows into this file; rows that it holds are skipped")
    parser.add_argument("--again", action="store_true", help="make those rows anew")
    parser.add_argument("--device", default="cpu", help="cpu: CPU seconds; cuda: seconds on the wall")
    for name, what in (extra or {}).items():
        parser.add_argument(name, **what)
    given = parser.parse_args()
    given.sets = _chosen(parser, "--sets", given.sets, sets)
    given.only = _chosen(parser, "--only", given.only, methods)
    given.asked = given.budgets is not None
    given.budgets = _numbers(parser, given.budgets) if given.asked else tuple(budgets)
    if given.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {given.device}: torch finds no GPU on this machine; leave the option out for the CPU")
    torch.set_num_threads(1)
    return given


def run(main: Callable[[], None]) -> None:
    """Run a command; what is wrong with its data or options is one line, not a trace."""
    try:
        main()
    except ValueError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def environment() -> dict[str, Any]:
    """The versions, threads and command behind a row."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "command": command}


def _chosen(parser: argparse.ArgumentParser, name: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    for word in words:
        if word not in known:
            parser.error(f"{name}: expected some of {', '.join(known)}; got {word!r}")
    return words


def _numbers(parser: argparse.ArgumentParser, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) <= 0:
        parser.error(f"--budgets: expected seconds such as 15,60; got {text!r}")
    return numbers
