"""Table 1 of Neural ODEs (Chen et al. 2018) at CPU size, and what a trained network loses when it is solved cheaply.

    FFJORD_KIT_DATA=FOLDER python benchmarks/odenet.py [--only ode,resnet] [--epochs 5] [--json FILE] [--picture FILE]

MNIST: ROWS train images drawn at random, all test images. All networks but the MLP have the same stem of two
convolutions of stride 2, the same field (two convolutions between norms) and the same head; they differ in the block
between. All make the same passes over the images at one rate. The ODE-Net's gradients are by the adjoint equation,
whose evaluations are counted; the others' gradients go through their own steps.

    error     share of wrong test images, with Wilson's interval of 95 %
    weights   trained numbers
    seconds   CPU seconds of training, one thread
    NFE       evaluations of the field for a batch, mean of the last pass: forward and backward

After training the ODE-Net and the RK-Net are solved again at other tolerances and steps: error against NFE.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from command import environment, options, run
from results import Row, Store
from scipy.stats import binomtest
from sklearn.neural_network import MLPClassifier

from ffjord_kit import plots
from ffjord_kit.datasets.images import load_images
from ffjord_kit.models import ODENetClassifier
from ffjord_kit.ode import AdaptiveSolver, FixedSolver, Solver

BENCHMARK = "odenet"
NAMES = {"mlp": "MLP, one layer of 300", "resnet": "ResNet", "rk": "RK-Net", "ode": "ODE-Net", "lm": "LM-ResNet"}
ROWS, EPOCHS, WIDTH, LAYERS = 10_000, 5, 32, 6
COMMON = {"width": WIDTH, "layers": LAYERS, "augmented": 0, "batch_size": 128}
SOLVERS: dict[str, Sequence[Solver]] = {
    "dopri5": [AdaptiveSolver("dopri5", 10.0**-k, 10.0**-k) for k in range(0, 6)],
    "rk4": [FixedSolver("rk4", n) for n in (1, 2, 3, 4, 6, 8)],
    "euler": [FixedSolver("euler", n) for n in (1, 2, 4, 8, 16)],
}


def main() -> None:
    """Train what the options ask for, print the tables and draw."""
    extra = {"--epochs": {"type": int, "default": EPOCHS, "help": "passes over the images (default: %(default)s)"},
             "--picture": {"help": "file to draw error against NFE to"}}  # fmt: skip
    given = options(__doc__, sets=("mnist",), methods=tuple(NAMES), budgets=(), extra=extra)
    store, train, test = Store(given.json), None, None
    for method in given.only:
        key = {"benchmark": BENCHMARK, "set": "mnist", "method": method, "setting": f"{given.epochs} epochs",
               "seed": given.seed, "device": given.device}  # fmt: skip
        if given.again or not store.has(**key):
            train = train or arrays(load_images("mnist", rows=ROWS, seed=0))
            test = test or arrays(load_images("mnist:test"))
            store.add({**key, **measured(method, train, test, given.epochs, given.seed, given.device), **environment()})
            print(method, flush=True)
    rows = [row for name in NAMES for row in store.rows() if row["benchmark"] == BENCHMARK and row["method"] == name]
    print(table(rows), curves_table(rows), sep="\n\n")
    if given.picture:
        plots.save(plots.error_against_cost(drawn(rows), error="share of wrong test images"), given.picture)


def arrays(images: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, c, h, w) and labels (n,)."""
    return images.images, images.labels


def measured(
    method: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], epochs: int, seed: int,
    device: str = "cpu",
) -> Row:  # fmt: skip
    """Train a network and judge it."""
    if method == "mlp":
        return measured_mlp(train, test, epochs, seed)
    adjoint = "adjoint" if method == "ode" else "backprop"
    model = ODENetClassifier(method, adjoint=adjoint, epochs=epochs, random_state=seed, device=device, **COMMON)
    begun = time.process_time()
    model.fit(*train)
    seconds = time.process_time() - begun
    own = model.evaluate(*test)
    last = [
        r for r in model.history_.records if "nfe_forward" in r and r["step"] > model.history_.step * (1 - 1 / epochs)
    ]
    row = {**error(own.score, len(test[1])), "weights": model.weight_count, "seconds": seconds,
           "nfe_forward": float(np.mean([r["nfe_forward"] for r in last])),
           "nfe_backward": float(np.mean([r["nfe_backward"] for r in last])), "nfe_test": own.nfe}  # fmt: skip
    if method in ("ode", "rk"):
        row["curves"] = {word: curve(model, test, solvers) for word, solvers in SOLVERS.items()}
    return row


def measured_mlp(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], epochs: int, seed: int
) -> Row:
    """Train scikit-learn's network of one hidden layer."""
    model = MLPClassifier((300,), max_iter=epochs, batch_size=128, random_state=seed)
    begun = time.process_time()
    model.fit(train[0].reshape(len(train[0]), -1) / 255, train[1])
    seconds = time.process_time() - begun
    score = model.score(test[0].reshape(len(test[0]), -1) / 255, test[1])
    weights = sum(a.size for a in (*model.coefs_, *model.intercepts_))
    return {**error(score, len(test[1])), "weights": weights, "seconds": seconds}


def curve(model: ODENetClassifier, test: tuple[np.ndarray, np.ndarray], solvers: Sequence[Solver]) -> list[Row]:
    """Error and evaluations of a trained network by each solver."""
    points = model.cost_curve(*test, solvers)
    return [{"solver": p.solver, "nfe": p.nfe, **error(p.score, len(test[1]))} for p in points]


def error(accuracy: float, count: int) -> Row:
    """The share of wrong images, and Wilson's interval of 95 %."""
    wrong = round((1 - accuracy) * count)
    interval = binomtest(wrong, count).proportion_ci(method="wilson")
    return {"error": wrong / count, "low": float(interval.low), "high": float(interval.high)}


def table(rows: list[Row]) -> str:
    """One line for each network."""
    lines = ["| network | error, % | weights | seconds | NFE forward | NFE backward |", "|---|---|---|---|---|---|"]
    for row in rows:
        nfe = [f"{row[key]:.1f}" if row.get(key) else "-" for key in ("nfe_forward", "nfe_backward")]
        cells = [NAMES[row["method"]], percent(row), f"{row['weights']:,}", f"{row['seconds']:.0f}", *nfe]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def curves_table(rows: list[Row]) -> str:
    """One line for each way to solve a trained network."""
    lines = ["| trained network | solved by | NFE | error, % |", "|---|---|---|---|"]
    for row in rows:
        for point in (point for points in row.get("curves", {}).values() for point in points):
            lines.append(f"| {NAMES[row['method']]} | {point['solver']} | {point['nfe']:.1f} | {percent(point)} |")
    return "\n".join(lines)


def percent(row: Row) -> str:
    """An error with its interval."""
    return f"{100 * row['error']:.2f} ({100 * row['low']:.2f} to {100 * row['high']:.2f})"


def drawn(rows: list[Row]) -> dict[str, list[list[float]]]:
    """Every curve to draw."""
    return {
        f"{NAMES[row['method']]}, {word}": [[p["nfe"], p["error"], p["low"], p["high"]] for p in points]
        for row in rows
        for word, points in row.get("curves", {}).items()
    }


if __name__ == "__main__":
    run(main)
