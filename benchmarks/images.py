"""Bits per dimension of small images, against seconds of training on one CPU thread.

    FFJORD_KIT_DATA=FOLDER python benchmarks/images.py [--sets mnist14] [--only ours,gaussian] [--json FILE]

`digits` are scikit-learn's 8 by 8 of 17 grey levels, `mnist14` MNIST averaged over 2 by 2 pixels, 8 bits. All methods
see grey levels with uniform noise through the logit with alpha = 1e-6. Ours is a U-Net under flow matching with
likelihood weighting, the weights' average being judged; the likelihood of its images is by two probes of Hutchinson's
trace and adaptive steps, the others' is exact. Peers keep one draw of the noise for each training image, ours a new one
for each batch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from clock import Clock
from command import environment, options, run
from peers import DISCRETE, METHODS, Fit, peer, zuko_discrete
from results import Store
from sets import Split
from sklearn.datasets import load_digits
from torch import Tensor

from ffjord_kit import CNF, Flow, FlowMatching, PerRowSolver, Phase, Standardize, fit_flow
from ffjord_kit.data import Pixels
from ffjord_kit.diagnostics import BitsPerDim, bits_per_dim
from ffjord_kit.nn import UNetDynamics
from ffjord_kit.training import TrainConfig
from ffjord_kit.transforms.bounded import pixel_logit

BENCHMARK = "images"
TEST = 256
SOLVER = PerRowSolver(1e-4, 1e-4)
WIDTHS = {"digits": (32, 48), "mnist14": (32, 64, 64)}
BITS = {"digits": 5, "mnist14": 8}  # of 17 levels, which five bits hold
PEERS: dict[str, Fit] = {
    "mixture": METHODS["mixture"].fit,
    "zuko coupling": peer(zuko_discrete("NSF", transforms=6, hidden_features=(128, 128), passes=2), DISCRETE),
    "zuko MAF": METHODS["zuko MAF"].fit,
}


class Images(NamedTuple):
    """Grey levels (n, 1, h, w), uint8 in the highest bits, to train on and to judge by."""

    train: Tensor
    test: Tensor
    bits: int


def load(name: str) -> Images:
    """The set of that name. Raises ValueError where its file is not to be found."""
    if name == "digits":
        levels = load_digits().images.astype(np.uint8)[:, None] << 3
        order = np.random.default_rng(0).permutation(len(levels))
        return Images(torch.tensor(levels[order[TEST:]]), torch.tensor(levels[order[:TEST]]), BITS[name])
    path = Path(os.environ.get("FFJORD_KIT_DATA", "."), "mnist.npz")
    if not path.exists():
        raise ValueError(f"{path}: no such file; name its folder by FFJORD_KIT_DATA")
    with np.load(path, allow_pickle=False) as arrays:
        halves = [arrays[key].reshape(-1, 14, 2, 14, 2).mean((2, 4)).round() for key in ("x_train", "x_test")]
    train, test = (torch.tensor(half.astype(np.uint8))[:, None] for half in halves)
    return Images(train, test[:TEST], BITS[name])


def ours(images: Images, seconds: float, seed: int, name: str) -> tuple[BitsPerDim, Flow, dict[str, Any]]:
    """A U-Net by flow matching, and its bits."""
    clock = Clock()
    torch.manual_seed(seed)
    pixels, shape = Pixels(images.train, images.bits), tuple(images.train.shape[1:])
    logit = pixel_logit(shape, bits=images.bits)
    logits, _ = logit.to_base(pixels.fetch(slice(0, 5000), torch.Generator().manual_seed(seed)))
    dynamics = UNetDynamics(shape, hidden=WIDTHS[name])
    scaling = Standardize(logits.mean().expand(shape), logits.std().expand(shape))
    flow = Flow([CNF(dynamics, shape)], preprocess=[logit, scaling])
    history = fit_flow(
        flow, pixels, schedule=[Phase(FlowMatching("likelihood"), math.inf, 2e-3, seconds)],
        config=TrainConfig(batch_size=64, seed=seed),
    )  # fmt: skip
    facts = {"seconds": round(clock.seconds(), 1), "steps": history.step}
    found = bits_per_dim(flow, Pixels(images.test, images.bits), solver=SOLVER)
    return found, flow, {**facts, "parameters": sum(p.numel() for p in dynamics.parameters()), "note": str(found)}


def gaussian(images: Images) -> tuple[np.ndarray, dict[str, Any]]:
    """Bits of a Gaussian with a full covariance."""
    clock = Clock()
    split, log_det = flattened(images)
    rows = np.concatenate([split.train, split.validation])
    mean, covariance = rows.mean(0), np.cov(rows, rowvar=False) + 1e-6 * np.eye(rows.shape[1])
    factor = np.linalg.cholesky(covariance)
    z = np.linalg.solve(factor, (split.test - mean).T)
    nats = -0.5 * ((z**2).sum(0) + len(mean) * math.log(2 * math.pi)) - np.log(np.diag(factor)).sum()
    return -(nats + log_det) / (len(mean) * math.log(2)), {"seconds": round(clock.seconds(), 1), "steps": 0}


def peer_bits(images: Images, how: Fit, seconds: float, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Bits of another method."""
    split, log_det = flattened(images)
    fitted = list(how(split, [seconds], seed, "cpu"))[-1]
    return -(fitted.score(split.test) + log_det) / (split.test.shape[1] * math.log(2)), fitted.facts


def flattened(images: Images) -> tuple[Split, np.ndarray]:
    """Logits of grey levels with noise, a tenth of those to train on to validate by; log|det| of the test's."""
    generator, parts = torch.Generator().manual_seed(0), []
    layer = pixel_logit(tuple(images.train.shape[1:]), bits=images.bits)
    for part in (images.train, images.test):
        z, log_det = layer.to_base(Pixels(part, images.bits).fetch(slice(None), generator))
        parts.append((z.flatten(1).numpy(), log_det.numpy()))
    cut = len(images.train) // 10
    return Split(parts[0][0][cut:], parts[0][0][:cut], parts[1][0]), parts[1][1]


def measured(name: str, method: str, seconds: float, seed: int) -> dict[str, Any]:
    """One row."""
    images = load(name)
    if method == "ours":
        found, _, facts = ours(images, seconds, seed, name)
        return {"mean": found.mean, "standard_error": found.standard_error, **facts}
    bits, facts = gaussian(images) if method == "gaussian" else peer_bits(images, PEERS[method], seconds, seed)
    return {"mean": float(bits.mean()), "standard_error": float(bits.std() / math.sqrt(len(bits))), **facts}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as lines of a table."""
    lines = ["| set | method | budget, s | bits/dim | steps |", "|---|---|---|---|---|"]
    for row in rows:
        bits = f"{row['mean']:.3f} ± {row['standard_error']:.3f}"
        lines.append(f"| {row['set']} | {row['method']} | {row['budget']:g} | {bits} | {row.get('steps', '')} |")
    return "\n".join(lines)


def main() -> None:
    """Run what the options ask for, and print the table."""
    given = options(__doc__, sets=tuple(WIDTHS), methods=("ours", "gaussian", *PEERS), budgets=(240.0,))
    store = Store(given.json)
    for name in given.sets:
        for method in given.only:
            for budget in given.budgets:
                key = {"benchmark": BENCHMARK, "set": name, "method": method, "budget": budget, "seed": given.seed}
                if given.again or not store.has(**key, device="cpu"):
                    store.add({**key, "device": "cpu", **measured(name, method, budget, given.seed), **environment()})
    print(table([row for row in store.rows() if row["benchmark"] == BENCHMARK]))


if __name__ == "__main__":
    run(main)
