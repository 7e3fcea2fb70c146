"""Table 1 of Neural ODEs (Chen et al. 2018) at CPU size, and what a trained network loses when it is solved cheaply.

    FFJORD_KIT_DATA=FOLDER python benchmarks/odenet.py [--only ode,resnet] [--seeds 5] [--json FILE] [--picture FILE]
    FFJORD_KIT_DATA=FOLDER python benchmarks/odenet.py --rows 60000 --epochs 20 --seeds 5 --device cuda --json FILE

MNIST: ROWS train images drawn at random, all test images. All networks but the MLP have the same stem of two
convolutions of stride 2, the same field (two convolutions between norms) and the same head; they differ in the block
between. All make the same passes over the images at one rate. The ODE-Net's gradients are by the adjoint equation,
whose evaluations are counted; the others' gradients go through their own steps. Means are over seeds, which draw the
first weights and the order of the images; intervals are Student's of 95 % over seeds, of one seed Wilson's.

    error     share of wrong test images
    paired    the error less that of the ResNet with the same seed
    weights   trained numbers
    seconds   CPU seconds of training, one thread; on a GPU seconds on the wall
    memory    peak of one training step of BATCH images over that of a small one, in a process of its own
    NFE       evaluations of the field for a batch, mean of each pass: forward and backward

After training the ODE-Net and the RK-Net of the first seed are solved again at other tolerances and steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from clock import Clock
from command import SEEDS, environment, options, run
from memory import MEGABYTE, alone, used
from results import Row, Store
from scipy import stats
from sklearn.neural_network import MLPClassifier

from ffjord_kit import plots
from ffjord_kit.datasets.images import load_images
from ffjord_kit.models import ODENetClassifier
from ffjord_kit.ode import AdaptiveSolver, FixedSolver, Solver
from ffjord_kit.training.history import History

BENCHMARK = "odenet"
NAMES = {"mlp": "MLP, one layer of 300", "resnet": "ResNet", "rk": "RK-Net", "ode": "ODE-Net", "lm": "LM-ResNet"}
ROWS, EPOCHS, WIDTH, LAYERS, BATCH = 10_000, 5, 32, 6, 128
COMMON = {"width": WIDTH, "layers": LAYERS, "augmented": 0, "batch_size": BATCH}
SIDE, CLASSES, WARM_UP_ROWS = 28, 10, 8  # of the images that memory is measured with
SOLVERS: dict[str, Sequence[Solver]] = {
    "dopri5": [AdaptiveSolver("dopri5", 10.0**-k, 10.0**-k) for k in range(0, 6)],
    "rk4": [FixedSolver("rk4", n) for n in (1, 2, 3, 4, 6, 8)],
    "euler": [FixedSolver("euler", n) for n in (1, 2, 4, 8, 16)],
}
SOLVED_AGAIN = ("ode", "rk")


def main() -> None:
    """Train what the options ask for, print the tables and draw."""
    extra = {"--rows": {"type": int, "default": ROWS, "help": "train images, at most 60000 (default: %(default)s)"},
             "--epochs": {"type": int, "default": EPOCHS, "help": "passes over the images (default: %(default)s)"},
             "--seeds": SEEDS, "--picture": {"help": "file to draw error against NFE to"}}  # fmt: skip
    given = options(__doc__, sets=("mnist",), methods=tuple(NAMES), budgets=(), extra=extra)
    here = {"setting": f"{given.epochs} epochs of {given.rows}", "device": given.device}
    store, train, test = Store(given.json), None, None
    for seed in range(given.seed, given.seed + given.seeds):
        for method in given.only:
            key = {"benchmark": BENCHMARK, "set": "mnist", "method": method, **here, "seed": seed}
            if given.again or not store.has(**key):
                train = train or arrays(load_images("mnist", rows=given.rows, seed=0))
                test = test or arrays(load_images("mnist:test"))
                row = measured(method, train, test, given.epochs, seed, given.device, curves=seed == given.seed)
                store.add({**key, **row, **memory(method, given.device), **environment()})
                print(method, seed, flush=True)
    rows = [row for row in store.rows() if here.items() <= row.items()]
    print(table(rows), passes_table(rows), curves_table(rows), sep="\n\n")
    if given.picture:
        plots.save(plots.error_against_cost(drawn(rows), error="share of wrong test images"), given.picture)


def arrays(images: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, c, h, w) and labels (n,)."""
    return images.images, images.labels


def measured(
    method: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], epochs: int, seed: int,
    device: str = "cpu", *, curves: bool = True,
) -> Row:  # fmt: skip
    """Train a network and judge it."""
    if method == "mlp":
        return measured_mlp(train, test, epochs, seed)
    model = network(method, epochs, seed, device)
    watch = Clock(device)
    model.fit(*train)
    seconds = watch.seconds()
    own = model.evaluate(*test)
    row = {**error(own.score, len(test[1])), "weights": model.weight_count, "seconds": seconds,
           "nfe_forward": passes(model.history_, "nfe_forward", epochs),
           "nfe_backward": passes(model.history_, "nfe_backward", epochs), "nfe_test": own.nfe}  # fmt: skip
    if curves and method in SOLVED_AGAIN:
        row["curves"] = {word: curve(model, test, solvers) for word, solvers in SOLVERS.items()}
    return row


def network(method: str, epochs: int, seed: int, device: str) -> ODENetClassifier:
    """A network to train."""
    adjoint = "adjoint" if method == "ode" else "backprop"
    return ODENetClassifier(method, adjoint=adjoint, epochs=epochs, random_state=seed, device=device, **COMMON)


def passes(history: History, quantity: str, epochs: int) -> list[float]:
    """The mean of a logged count over each pass."""
    logged = [record for record in history.records if quantity in record]
    steps, counts = np.array([[record["step"], record[quantity]] for record in logged]).T
    which = np.ceil(steps * epochs / history.step)
    return [float(counts[which == epoch].mean()) for epoch in range(1, epochs + 1)]


def memory(method: str, device: str) -> Row:
    """The peak of a training step in a process of its own, MB; nothing for the MLP, which is not torch's."""
    return {} if method == "mlp" else {"peak_mb": round(alone(peak, method, device) / MEGABYTE, 1)}


def peak(method: str, device: str) -> int:
    """Bytes that a training step of a batch takes over a small one."""
    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 1, SIDE, SIDE)).astype(np.uint8)
    labels = np.arange(BATCH) % CLASSES
    network(method, 1, 0, device).fit(images[:WARM_UP_ROWS], labels[:WARM_UP_ROWS])
    before = used(device)
    network(method, 1, 0, device).fit(images, labels)
    return used(device) - before


def measured_mlp(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], epochs: int, seed: int
) -> Row:
    """Train scikit-learn's network of one hidden layer."""
    model = MLPClassifier((300,), max_iter=epochs, batch_size=BATCH, random_state=seed)
    watch = Clock()
    model.fit(train[0].reshape(len(train[0]), -1) / 255, train[1])
    seconds = watch.seconds()
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
    interval = stats.binomtest(wrong, count).proportion_ci(method="wilson")
    return {"error": wrong / count, "low": float(interval.low), "high": float(interval.high)}


def table(rows: list[Row]) -> str:
    """One line for each network: means over its seeds."""
    lines = [
        "| network | error, % | less that of the ResNet | weights | seconds | peak MB | NFE forward | NFE backward |",
        "|---|" + "---|" * 7,
    ]
    resnet = {row["seed"]: row["error"] for row in rows if row["method"] == "resnet"}
    for method, own in by_method(rows).items():
        pairs = [row["error"] - resnet[row["seed"]] for row in own if method != "resnet" and row["seed"] in resnet]
        wrong = student([row["error"] for row in own]) if len(own) > 1 else percent(own[0])
        cells = [f"{own[0]['weights']:,}", mean(own, "seconds", ".0f"), mean(own, "peak_mb", ".0f"),
                 *[mean(own, quantity, ".1f") for quantity in ("nfe_forward", "nfe_backward")]]  # fmt: skip
        lines.append("| " + " | ".join([NAMES[method], wrong, student(pairs, "+.2f"), *cells]) + " |")
    return "\n".join(lines)


def by_method(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each network that has any, in the order of NAMES."""
    found = {method: [row for row in rows if row["method"] == method] for method in NAMES}
    return {method: own for method, own in found.items() if own}


def student(shares: list[float], form: str = ".2f") -> str:
    """A mean of percent over seeds, with Student's interval of 95 %; a dash for fewer than two."""
    if len(shares) < 2:
        return "-"
    middle, spread = 100 * np.mean(shares), 100 * stats.sem(shares)
    half = stats.t.ppf(0.975, len(shares) - 1) * spread
    return f"{middle:{form}} ({middle - half:{form}} to {middle + half:{form}})"


def mean(rows: list[Row], quantity: str, form: str) -> str:
    """A mean over seeds, of the last pass where there are several; a dash for nothing."""
    found = [row[quantity][-1] if isinstance(row[quantity], list) else row[quantity] for row in rows if quantity in row]
    return f"{np.mean(found):{form}}" if np.any(found) else "-"


def passes_table(rows: list[Row]) -> str:
    """Evaluations of the ODE-Net pass by pass, mean over seeds."""
    own = [row for row in rows if row["method"] == "ode"]
    if not own:
        return ""
    counts = {word: np.mean([row[f"nfe_{word}"] for row in own], axis=0) for word in ("forward", "backward")}
    epochs = len(counts["forward"])
    lines = ["| pass | " + " | ".join(map(str, range(1, epochs + 1))) + " |", "|---|" + "---|" * epochs]
    lines += [f"| NFE {word} | " + " | ".join(f"{n:.1f}" for n in found) + " |" for word, found in counts.items()]
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
