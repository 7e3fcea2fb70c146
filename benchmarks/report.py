"""Markdown tables and pictures of curves from the JSON files of the benchmarks.

    python benchmarks/report.py benchmarks/results/*.json [--pictures docs]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from results import Row, read

UNITS = {"toys": "KL(truth || model), nats", "tables": "held-out NLL, nats, standardised columns"}


def main() -> None:
    """Print every table, and draw every figure if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", help="JSON files that the benchmarks wrote")
    parser.add_argument("--pictures", metavar="FOLDER", help="folder to draw the curves to, as PNG")
    given = parser.parse_args()
    rows = [row for file in given.files for row in read(file)]
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        print(f"## {benchmark}\n\n{table(rows, benchmark)}\n")
        if given.pictures and benchmark in UNITS:
            print(curves(rows, benchmark, Path(given.pictures)))


def table(rows: Sequence[Row], benchmark: str) -> str:
    """The rows of a benchmark as Markdown: a line for each set and budget, a column for each method."""
    rows = [row for row in rows if row["benchmark"] == benchmark]
    if benchmark not in UNITS:
        return plain(rows)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| set | seconds | {' | '.join(methods)} |", "|---" * (2 + len(methods)) + "|"]
    for place in dict.fromkeys((row["set"], row["device"], row["budget"]) for row in rows):
        here = [row for row in rows if (row["set"], row["device"], row["budget"]) == place]
        cells = [cell([row for row in here if row["method"] == method], here) for method in methods]
        lines.append(f"| {place[0]} | {'-' if place[2] is None else f'{place[2]:g}'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(rows: Sequence[Row], rivals: Sequence[Row]) -> str:
    """The mean over the seeds, in bold where no rival on the line is lower, or the word for what went wrong."""
    return " / ".join(_number(row) for row in rows) or "."


def _number(row: Row) -> str:
    if row["mean"] is None:
        return row["note"] or "none"
    error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.3f}"
    return f"{row['mean']:.3f}{error}"


def plain(rows: Sequence[Row]) -> str:
    return str(rows)


def curves(rows: Sequence[Row], benchmark: str, folder: Path) -> Path:
    return folder


if __name__ == "__main__":
    main()
