"""Files and functions of the package that a fit, a score and a sample pass through.

    python benchmarks/footprint.py

Each verb runs once on two moons, and is profiled: distinct files, distinct functions (comprehensions and lambdas not
counted), and the deepest chain of calls within the package.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ffjord_kit
from ffjord_kit import FFJORD, datasets

ROOT = str(Path(ffjord_kit.__file__).parent)


class Footprint:
    """Collects the code that runs between `start` and `stop`."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str]] = set()
        self.depth = self.deepest = 0

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(ROOT) or code.co_name.startswith("<"):
            return
        if event == "call":
            self.functions.add((code.co_filename, code.co_qualname))
            self.depth += 1
            self.deepest = max(self.deepest, self.depth)
        elif event == "return":
            self.depth -= 1

    @property
    def files(self) -> int:
        return len({name for name, _ in self.functions})


def footprint(call: Callable[[], Any]) -> Footprint:
    """Profile one call."""
    found = Footprint()
    threading.setprofile(found)
    sys.setprofile(found)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def main() -> None:
    x = datasets.load("moons", rows=400).x
    schedule = sys.argv[1] if len(sys.argv) > 1 else [("flow_matching", 20), ("mle", 3)]
    models = {
        "auto fit": FFJORD(random_state=0, max_seconds=4),
        "explicit fit": FFJORD(random_state=0, schedule=schedule),
    }
    print(f"{'verb':<16}{'files':>6}{'functions':>11}{'depth':>7}")
    calls = {name: lambda model=model: model.fit(x) for name, model in models.items()}
    fitted = models["explicit fit"]
    calls |= {
        "score_samples": lambda: fitted.score_samples(x[:50]),
        "sample": lambda: fitted.sample(50, random_state=0),
    }
    for name, call in calls.items():
        found = footprint(call)
        print(f"{name:<16}{found.files:>6}{len(found.functions):>11}{found.deepest:>7}")
        if "--list" in sys.argv:
            for file, function in sorted(found.functions):
                print("   ", file[len(ROOT) + 1 :], function)


if __name__ == "__main__":
    main()
