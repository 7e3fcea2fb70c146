"""Markdown tables and pictures of curves from the JSON files of the benchmarks.

python benchmarks/report.py benchmarks/results/*.json [--pictures docs]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from results import Row, read

UNITS = {
    "toys": "KL(truth || model), nats",
    "tables": "held-out NLL, nats",
    "conditional": "held-out conditional NLL, nats",
}
TICKS = (5, 15, 60, 300, 1000)  # seconds, in the pictures
DIVERGENCES = (1e-3, 2.0)  # nats, in the pictures
ERRORS = (1e-1, 1e-2, 1e-3)  # at which solves are compared
ORDER = ("auto", "mle", "zuko CNF", "zuko NSF", "zuko MAF", "paper FFJORD", "mixture", "KDE")
UNTOLD = ("benchmark", "seed", "device", "torch", "threads", "command", "note", "standard_error", "budget", "log")


def main() -> None:
    """Print every table, and draw every figure if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="JSON files that the benchmarks wrote")
    parser.add_argument("--pictures", metavar="FOLDER", help="folder to draw the curves to, as PNG")
    given = parser.parse_args()
    rows = [placed(row) for file in given.files for row in read(file)]
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        print(f"## {benchmark}\n\n{table(rows, benchmark)}\n")
        if given.pictures and benchmark in UNITS:
            print(f"![{UNITS[benchmark]}]({curves(rows, benchmark, Path(given.pictures))})\n")
    if any(row["benchmark"] == "solves" for row in rows):
        print(f"## Seconds at equal error\n\n{ratios(rows)}\n")
    if reached := sooner(rows):
        print(f"## What the paper's FFJORD reaches, and when `auto` has reached it\n\n{reached}\n")


def placed(row: Row) -> Row:
    """The row with a device other than the CPU in the name of its set: their seconds do not compare."""
    return row if row["device"] == "cpu" else {**row, "set": f"{row['set']}, {row['device']}"}


def table(rows: Sequence[Row], benchmark: str) -> str:
    """The rows of a benchmark as Markdown: a line for each set and budget, a column for each method."""
    rows = [row for row in rows if row["benchmark"] == benchmark]
    if benchmark not in UNITS:
        return listing(rows)
    methods = ordered(row["method"] for row in rows)
    lines = [_line(["set", "seconds", *methods]), "|---" * (2 + len(methods)) + "|"]
    for name, device, budget in _places(rows):
        here = [row for row in rows if (row["set"], row["device"]) == (name, device)]
        here = [row for row in here if row["budget"] in (budget, None)]
        lowest = min((row["mean"] for row in here if row["mean"] is not None), default=math.nan)
        cells = [" / ".join(_cell(row, lowest) for row in here if row["method"] == method) for method in methods]
        lines.append(_line([name, f"{budget or 0:g}", *(cell or "." for cell in cells)]))
    return "\n".join(lines)


def ordered(methods: Iterable[str]) -> list[str]:
    """Each method once: those of ORDER in that order, then the others as they come."""
    found = dict.fromkeys(methods)
    return [word for word in ORDER if word in found] + [word for word in found if word not in ORDER]


def listing(rows: Sequence[Row]) -> str:
    """The rows as they are, without what says how they were made."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in UNTOLD]
    lines = [_line([_shown(row.get(name, ".")) for name in names]) for row in rows]
    return "\n".join([_line(names), "|---" * len(names) + "|", *lines])


def sooner(rows: Sequence[Row]) -> str:
    """For each toy: the last divergence of the paper's FFJORD, and the first budget at which `auto` is as low."""
    rows = [row for row in rows if row["benchmark"] == "toys" and row["mean"] is not None and row["device"] == "cpu"]
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        slow = [row for row in rows if (row["set"], row["method"]) == (name, "paper FFJORD")]
        fast = [row for row in rows if (row["set"], row["method"]) == (name, "auto")]
        if slow and fast:
            last = max(slow, key=lambda row: row["budget"])
            reached = [row["seconds"] for row in fast if row["mean"] <= last["mean"]]
            times = f"{min(reached):.1f} | {last['seconds'] / min(reached):.0f}" if reached else "not reached | ."
            lines.append(f"| {name} | {last['mean']:.3f} at {last['seconds']:.0f} s | {times} |")
    head = "| toy | paper FFJORD, KL | `auto` is as low by, s | times sooner |\n|---|---|---|---|"
    return "\n".join([head, *lines]) if lines else ""


def ratios(rows: Sequence[Row]) -> str:
    """Seconds of each method where its solves have an equal error, and zuko's over the best of ours."""
    rows = [row for row in rows if row["benchmark"] == "solves"]
    methods = sorted(dict.fromkeys(row["method"] for row in rows), key=lambda method: method == "zuko CNF")
    head = _line(["set", "10,000 of", "error", *(f"{method}, s" for method in methods), "zuko CNF over ours"])
    lines = [head, "|---" * (4 + len(methods)) + "|"]
    for name, quantity in dict.fromkeys((row["set"], row["quantity"]) for row in rows):
        here = [row for row in rows if (row["set"], row["quantity"]) == (name, quantity)]
        for target in ERRORS:
            found = [seconds_at(target, [row for row in here if row["method"] == method]) for method in methods]
            mine = [s for s, method in zip(found, methods, strict=True) if s and method.startswith("ours")]
            peer = next((s for s, method in zip(found, methods, strict=True) if method == "zuko CNF"), None)
            ratio = f"{peer / min(mine):.1f}" if peer and mine else "."
            lines.append(_line([name, quantity, f"{target:g}", *(f"{s:.3g}" if s else "." for s in found), ratio]))
    return "\n".join(lines)


def seconds_at(target: float, rows: Sequence[Row]) -> float | None:
    """The least seconds for an error of at most `target`; None if never.

    Between tolerances along straight lines in the logarithms; there is nothing between two numbers of fixed steps.
    """
    goal, rows = math.log(target), [row for row in rows if row["error"] > 0]
    found = [math.log(row["seconds"]) for row in rows if row["error"] <= target]
    adaptive = [row for row in rows if isinstance(row["setting"], float)]
    points = sorted((math.log(row["error"]), math.log(row["seconds"])) for row in adaptive)
    for (x, y), (x_next, y_next) in zip(points[:-1], points[1:], strict=True):
        if x <= goal < x_next:
            found.append(y + (y_next - y) * (goal - x) / (x_next - x))
    return math.exp(min(found)) if found else None


def curves(rows: Sequence[Row], benchmark: str, folder: Path) -> Path:
    """Draw score against seconds, a panel for each set; methods without a budget are level lines."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["benchmark"] == benchmark and row["mean"] is not None]
    names, methods = list(dict.fromkeys(row["set"] for row in rows)), ordered(row["method"] for row in rows)
    height = math.ceil(len(names) / 3)
    figure = Figure(figsize=(12, 3.2 * height), layout="constrained")
    axes = list(figure.subplots(height, 3, squeeze=False).flat)
    for panel, name in zip(axes, names, strict=False):
        for i, method in enumerate(methods):
            points = [row for row in rows if (row["set"], row["method"]) == (name, method)]
            _draw(panel, points, method, f"C{i}")
        panel.set(title=name, xscale="log", xlim=(TICKS[0], TICKS[-1]), xlabel="seconds")
        if benchmark == "toys":
            panel.set(yscale="log", ylim=DIVERGENCES)
        else:
            panel.set(ylim=_span([row for row in rows if row["set"] == name]))
        panel.set_xticks(TICKS, map(str, TICKS))
        panel.minorticks_off()
    for panel in axes[len(names) :]:
        panel.axis("off")
    figure.legend(*_legend(figure), loc="outside lower center", ncols=len(methods))
    figure.suptitle(UNITS[benchmark])
    path = folder / f"{benchmark}.png"
    figure.savefig(path, dpi=110)
    return path


def _span(rows: Sequence[Row]) -> tuple[float, float]:
    """The limits of a panel: scores known ten times worse than the best known are left outside."""
    least = min(row["standard_error"] or math.inf for row in rows)
    means = [row["mean"] for row in rows if (row["standard_error"] or 0.0) <= 10 * least]
    margin = max(0.05 * (max(means) - min(means)), 2 * least if least < math.inf else 0.0)
    return min(means) - margin, max(means) + margin


def _draw(panel: object, points: Sequence[Row], label: str, color: str) -> None:
    points = sorted(points, key=lambda row: row["budget"] or 0)
    if points and points[0]["budget"] is None:
        panel.axhline(points[0]["mean"], label=label, color=color, linestyle="--")
    elif points:
        x, y = [row["seconds"] for row in points], [row["mean"] for row in points]
        panel.errorbar(x, y, [row["standard_error"] or 0 for row in points], label=label, color=color, marker="o")


def _legend(figure: object) -> tuple[list, list]:
    entries = {}
    for panel in figure.axes:
        handles, labels = panel.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    return list(entries.values()), list(entries)


def _places(rows: Sequence[Row]) -> list[tuple]:
    """(set, device, budget) of the lines; None is a budget of its own only where a set has no other."""
    places = list(dict.fromkeys((row["set"], row["device"], row["budget"]) for row in rows))
    timed = {place[:2] for place in places if place[2] is not None}
    places = [place for place in places if place[2] is not None or place[:2] not in timed]
    order = list(dict.fromkeys(row["set"] for row in rows))
    return sorted(places, key=lambda place: (order.index(place[0]), place[1], place[2] or 0))


def _cell(row: Row, lowest: float) -> str:
    if row["mean"] is None:
        return row["note"] or "none"
    error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.3f}"
    text = f"{row['mean']:.3f}{error}"
    return f"**{text}**" if row["mean"] == lowest else text


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
