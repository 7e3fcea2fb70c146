"""Few explicit steps with exact determinants: NLL, receipt and seconds, beside the continuous flow that they come from.

    FFJORD_KIT_DATA=FOLDER python benchmarks/few_steps.py [--sets checkerboard,protein] [--seconds 60] [--seed 0]

Half of the seconds go into `auto`, half into likelihood through the steps, the share being the same for all sets. One
thread; seconds are CPU seconds for 10,000 log-densities.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from sets import Split, load

from ffjord_kit import FFJORD
from ffjord_kit.data import Batch
from ffjord_kit.diagnostics import check_steps
from ffjord_kit.flow import Flow
from ffjord_kit.objectives import SteppedLikelihood
from ffjord_kit.precision import single_precision
from ffjord_kit.training import Phase
from ffjord_kit.training.discretize import LEARNING_RATE, choose_scheme, in_steps, train_steps

TEST_ROWS, SCHEME_ROWS, CHUNK = 2000, 500, 1000


def main() -> None:
    """Fit, take in steps, train on, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="checkerboard,moons", help="sets, comma-separated (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds in all (default: %(default)s)")
    parser.add_argument("--evaluations", type=int, default=16, help="of the field (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the fit (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| set | model | held-out NLL, nats | s for 10,000 rows | receipt |\n|---|---|---|---|---|")
    for name in options.sets.split(","):
        _compare(name, options.seconds, options.evaluations, options.seed)


def _compare(name: str, seconds: float, evaluations: int, seed: int) -> None:
    rows = load(name)
    rows = rows._replace(test=rows.test[:TEST_ROWS])
    model = FFJORD(max_seconds=seconds / 2, random_state=seed, verbose=False).fit(rows.train)
    _print(name, "continuous", model.score_samples, rows)
    flow, judges = single_precision(model.flow_), Batch(torch.as_tensor(rows.validation))
    scheme = choose_scheme(flow, judges[:SCHEME_ROWS], evaluations)[0]
    steps = in_steps(flow, *scheme[:3], learn_grid=True)
    label = f"{scheme.method} {scheme.steps}, g = {scheme.grading:g}"
    _print(name, label, _scorer(steps), rows, str(check_steps(steps, judges.x)))
    train_steps(
        steps, torch.as_tensor(rows.train), validation=judges,
        phase=Phase(SteppedLikelihood(), math.inf, LEARNING_RATE, seconds / 2, trial=True),
    )  # fmt: skip
    _print(name, f"{label}, trained", _scorer(steps), rows, str(check_steps(steps, judges.x)))


def _scorer(flow: Flow) -> Callable[[np.ndarray], np.ndarray]:
    def score(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return torch.cat([flow.log_prob(part) for part in torch.as_tensor(x).split(CHUNK)]).double().numpy()

    return score


def _print(name: str, label: str, score: Callable[[np.ndarray], np.ndarray], rows: Split, receipt: str = "-") -> None:
    begun = time.thread_time()
    log_prob = score(rows.test)
    seconds = (time.thread_time() - begun) * 10_000 / len(rows.test)
    nll = f"{-log_prob.mean():.3f} ± {log_prob.std() / len(log_prob) ** 0.5:.3f}"
    if rows.log_prob is not None:
        nll += f" (KL {(rows.log_prob(rows.test) - log_prob).mean():.3f})"
    print(f"| {name} | {label} | {nll} | {seconds:.2f} | {receipt} |", flush=True)


if __name__ == "__main__":
    main()
