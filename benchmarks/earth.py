"""Test NLL of places on the Earth, nats per steradian: a flow on the sphere.

    FFJORD_KIT_DATA=FOLDER python benchmarks/earth.py [--sets flood,fire] [--seeds 5] [--base normal]

The places of volcanoes, earthquakes, floods and fires (Mathieu and Nickel 2020). Each seed takes a tenth at random for
testing; the estimator holds a ninth of the rest out for validation, so that the split is 80 / 10 / 10. The uniform
density has an NLL of 2.531. One thread, the defaults, CPU seconds. "kernels" is the base alone, which `auto` takes
where it is likelier than a short fit.
"""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from command import run

from ffjord_kit import FFJORD, Sphere

SETS = ("volcano", "earthquake", "flood", "fire")
FOLDER = "FFJORD_KIT_DATA"


def places(name: str) -> np.ndarray:
    """Return longitudes and latitudes, degrees, shape (n, 2)."""
    path = Path(os.environ.get(FOLDER, ".")) / "earth.npz"
    if not path.exists():
        raise ValueError(f"{path} is not there: set {FOLDER} to the folder that holds earth.npz")
    with np.load(path, allow_pickle=False) as content:
        return content[name].astype(float)[:, ::-1]


def measure(name: str, seconds: float, seed: int, base: str) -> tuple[float, str]:
    """Return the mean test NLL of a fit, and its line of the table."""
    x = places(name)
    x = x[np.random.default_rng(seed).permutation(len(x))]
    fitted, test = np.split(x, [round(0.9 * len(x))])
    begun = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # places that are there more than once
        model = FFJORD(
            columns={("lon", "lat"): Sphere("deg")},
            max_seconds=seconds,
            validation_fraction=1 / 9,
            random_state=seed,
            base=base,
        ).fit(fitted, columns=["lon", "lat"])
    spent = time.process_time() - begun
    scores = model.score_samples(test)
    nll, error = -float(scores.mean()), float(scores.std() / math.sqrt(len(scores)))
    chosen = model.model_.config.fields.base
    density = chosen if chosen == "kernels" else model.model_.density
    return nll, f"| {name} | {len(x)} | {seed} | {nll:.3f} ± {error:.3f} | {density} | {spent:.0f} |"


def main() -> None:
    """Run what the options ask for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS), help="sets (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0 on (default: %(default)s)")
    parser.add_argument("--base", default="auto", help="base: auto, normal (a flow) or kernels (default: auto)")
    given = parser.parse_args()
    unknown = [name for name in given.sets.split(",") if name not in SETS]
    if unknown:
        raise ValueError(f"no set {unknown[0]!r}: the sets are {', '.join(SETS)}")
    torch.set_num_threads(1)
    head = "| set | places | seed | test NLL (± is over places) | density | CPU s |"
    print(head, "|---|---|---|---|---|---|", sep="\n", flush=True)
    for name in given.sets.split(","):
        nlls = []
        for seed in range(given.seeds):
            nll, line = measure(name, given.seconds, seed, given.base)
            nlls.append(nll)
            print(line, flush=True)
        if len(nlls) > 1:
            print(f"| {name} | | all | {np.mean(nlls):.3f} ± {np.std(nlls, ddof=1):.3f} over seeds | | |", flush=True)


if __name__ == "__main__":
    run(main)
