"""What the shape of the loss has to do with skips, batches and robust fits: three statements of papers, at CPU size.

    python benchmarks/landscapes.py --sets skips [--seeds 5] [--json FILE] [--picture FILE]

Each row is one fit with one seed; the tables give means over seeds with Student's intervals of 95 %.

    skips     Li et al. 2018: networks of LAYERS tanh layers on scikit-learn's digits, with and without skips, by width.
              rise: mean rise of the training loss at steps of 0.5 and 1 along filter-normalised directions; top: the
              largest eigenvalue of its Hessian; ratio: |lowest / highest| eigenvalue, the mean over a plane of 3 by 3
              points within 0.5. The picture has the first seed's planes.
    batches   Yao et al. 2018: one flow on two moons by maximum likelihood, the same number of steps and rate for each
              size of a batch. top: the largest eigenvalue of the Hessian on training and on test rows; cost: rise of
              -log p by an adversary of 0.1 standard deviations. The picture has the loss along the top eigenvectors.
    robust    The same flow, and an ODE-Net on the digits, trained plainly and on the worst points within eps; the
              adversary that judges makes ten steps within 0.1 (flow) and 0.5 (ODE-Net) standard deviations.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import sets
import torch
from command import environment, options, run
from results import Row, Store
from scipy.stats import t as student
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ffjord_kit import CNF, ConcatDynamics, FixedSolver, Flow, MaximumLikelihood, Phase, Standardize, fit_flow, plots
from ffjord_kit.data import Batch
from ffjord_kit.diagnostics import (
    WeightLoss,
    attack,
    curvature_on_plane,
    loss_along,
    loss_on_plane,
    random_direction,
    top_eigenvalues,
)
from ffjord_kit.models import ODENetClassifier
from ffjord_kit.objectives import CrossEntropy, Neighbourhood, made_robust
from ffjord_kit.ode import SolverStats
from ffjord_kit.trace import ExactTrace
from ffjord_kit.training import TensorData, TrainConfig, fit

BENCHMARK = "landscapes"
LAYERS, WIDTHS = 16, (16, 64)
SKIPS = tuple(f"{word}, width {width}" for width in WIDTHS for word in ("skips", "no skips"))
BATCHES = ("16", "64", "256", "1024", "4096")
ROBUST = ("flow, plain", "flow, eps 0.1", "flow, eps 0.2", "odenet, plain", "odenet, eps 0.5")
STUDIES = {"skips": SKIPS, "batches": BATCHES, "robust": ROBUST}
EPOCHS = 20  # of the ODE-Net
STEPS, RATE = {"skips": 300, "flow": 300}, {"skips": 3e-3, "flow": 1e-2}
ROWS, DIRECTIONS, SIDE, RADIUS = 400, 8, 21, 1.0  # of the landscapes: rows, directions, points of a plane's side
TRAINED_ON, JUDGED_ON = 8000, 2000  # moons
SOLVER = FixedSolver("rk4", 6)
EPS = {"flow": 0.1, "odenet": 0.5}  # of the adversary that judges


class Deep(nn.Module):
    """A network of tanh layers of one width, with or without skips; it gives outputs and no counts."""

    def __init__(self, width: int, skips: bool) -> None:
        super().__init__()
        self.stem, self.head, self.skips = nn.Linear(64, width), nn.Linear(width, 10), skips
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(LAYERS))
        for layer in self.layers:
            nn.init.xavier_normal_(layer.weight, gain=nn.init.calculate_gain("tanh"))
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, SolverStats]:
        """Outputs (n, 10)."""
        h = self.stem(x)
        for layer in self.layers:
            h = self.skips * h + layer(h).tanh()
        return self.head(h), SolverStats()


def main() -> None:
    """Measure what the options ask for, print the tables and draw."""
    extra = {"--seeds": {"type": int, "default": 5, "help": "number of seeds, from 0 (default: %(default)s)"},
             "--picture": {"help": "file to draw the first seed of one study to"}}  # fmt: skip
    methods = tuple(dict.fromkeys(word.replace(", ", " ") for words in STUDIES.values() for word in words))
    given = options(__doc__, sets=tuple(STUDIES), methods=methods, budgets=(), extra=extra)
    store, drawn = Store(given.json), {}
    for study in given.sets:
        for method in (word for word in STUDIES[study] if word.replace(", ", " ") in given.only):
            for seed in range(given.seeds):
                key = {"benchmark": BENCHMARK, "set": study, "method": method, "seed": seed}
                if given.again or not store.has(**key):
                    begun = time.process_time()
                    row, picture = MEASURES[study](method, seed)
                    seconds = time.process_time() - begun
                    store.add({**key, **row, "seconds": seconds, **environment()})
                    drawn.setdefault((study, method), picture)
                    print(study, method, seed, f"{seconds:.0f} s", flush=True)
        print(table([row for row in store.rows() if row["benchmark"] == BENCHMARK and row["set"] == study]))
    if given.picture:
        study = given.sets[0]
        planes = {method: picture for (name, method), picture in drawn.items() if name == study}
        plots.save(DRAWING[study](planes), given.picture)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standardised training rows and labels, test rows and labels; the split does not change."""
    x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = ((x - x.mean()) / x.std()).float()[order], y[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def moons() -> tuple[Tensor, Tensor]:
    """Training and test rows of two moons."""
    split = sets.load("moons")
    return torch.as_tensor(split.train[:TRAINED_ON]).float(), torch.as_tensor(split.test[:JUDGED_ON]).float()


def skips(method: str, seed: int) -> tuple[Row, Any]:
    """A deep network on the digits: its errors, and the shape of its loss."""
    x, y, x_test, y_test = digits()
    torch.manual_seed(seed)
    net = Deep(int(method.split()[-1]), not method.startswith("no"))
    config = TrainConfig(batch_size=128, warmup=30, ema_decay=0.0, seed=seed)
    fit(net, TensorData(Batch(x, y)), [Phase(CrossEntropy(), STEPS["skips"], RATE["skips"])], config=config)
    loss = WeightLoss.of(net, Batch(x[:ROWS], y[:ROWS]), CrossEntropy())
    directions = torch.stack([random_direction(loss, i) for i in range(DIRECTIONS)])
    lines = np.array([loss_along(loss, d, [-1, -0.5, 0, 0.5, 1]) for d in directions])
    curvature = curvature_on_plane(loss, directions[:2], ([-0.5, 0.0, 0.5], [-0.5, 0.0, 0.5]))
    wrong = float((net(x_test)[0].argmax(1) != y_test).float().mean())
    near, far = (float(lines[:, ends].mean() - lines[0, 2]) for ends in ([1, 3], [0, 4]))
    row = {"test error, %": 100 * wrong, "loss": lines[0, 2], "rise at 0.5": near, "rise at 1": far,
           "top": float(curvature.highest[1, 1]), "ratio": float(curvature.ratio.mean())}  # fmt: skip
    steps = np.linspace(-RADIUS, RADIUS, SIDE)
    return row, (steps, steps, loss_on_plane(loss, directions[:2], (steps, steps))) if seed == 0 else None


def flow_on_moons(x: Tensor, seed: int, batch: int, eps: float = 0.0) -> Flow:
    """A flow trained by maximum likelihood, on the worst points where eps is positive."""
    torch.manual_seed(seed)
    flow = Flow([CNF(ConcatDynamics((2,), hidden=(32, 32)), (2,), solver=SOLVER)], preprocess=[Standardize.of(x)])
    plain = MaximumLikelihood(ExactTrace())
    phase = Phase(made_robust(plain, eps) if eps else plain, STEPS["flow"], RATE["flow"])
    fit_flow(flow, x, schedule=[phase], config=TrainConfig(batch_size=batch, warmup=30, ema_decay=0.0, seed=seed))
    return flow


def judged(flow: Flow, x: Tensor, test: Tensor) -> tuple[Row, WeightLoss, WeightLoss, Tensor]:
    """Held-out likelihood, curvature and the cost of an adversary; the losses, and the top eigenvector."""
    objective = MaximumLikelihood(ExactTrace(), solver=SOLVER)
    train_loss, test_loss = (WeightLoss.of(flow, Batch(rows[:ROWS]), objective) for rows in (x, test))
    top = top_eigenvalues(train_loss, tolerance=1e-3)
    flow = flow.double()
    losses: Callable[[Tensor], Tensor] = lambda rows: -flow.log_prob(rows, solver=SOLVER)  # noqa: E731
    with torch.no_grad():
        nll = float(losses(test.double()).mean())
    found = attack(losses, test[:ROWS].double(), Neighbourhood(EPS["flow"], 10), scale=x.std(0), starts=1)
    on_test = top_eigenvalues(test_loss, tolerance=1e-3)
    row = {"held-out NLL": nll, "attacked NLL": float(found.after.mean()), "cost": found.cost[0],
           "top": float(top.values[0]), "top, test": float(on_test.values[0])}  # fmt: skip
    return row, train_loss, test_loss, top.vectors[0]


def batches(method: str, seed: int) -> tuple[Row, Any]:
    """The flow by one size of a batch."""
    x, test = moons()
    row, train_loss, _, vector = judged(flow_on_moons(x, seed, int(method)), x, test)
    steps = np.linspace(-0.3, 0.3, 31)
    return row, (steps, loss_along(train_loss, vector, steps)) if seed == 0 else None


def robust(method: str, seed: int) -> tuple[Row, Any]:
    """The flow or the ODE-Net, trained plainly or robustly."""
    kind, eps = method.split(", ")
    radius = 0.0 if eps == "plain" else float(eps.split()[1])
    if kind == "flow":
        x, test = moons()
        return judged(flow_on_moons(x, seed, 256, radius), x, test)[0], None
    x, y, x_test, y_test = (part.numpy() for part in digits())
    model = ODENetClassifier(
        "rk",
        width=32,
        layers=2,
        augmented=0,
        epochs=EPOCHS,
        learning_rate=3e-3,
        robust=radius or None,
        random_state=seed,
    ).fit(x, y)
    found = model.attack(x_test, y_test, EPS["odenet"], steps=10, starts=1)
    top = top_eigenvalues(model.weight_loss(x[:ROWS], y[:ROWS]), tolerance=1e-3).values[0]
    plain, attacked = (100 * (1 - model.score(rows, y_test)) for rows in (x_test, found.x))
    return {"test error, %": plain, "attacked error, %": attacked, "cost": found.cost[0], "top": float(top)}, None


def table(rows: list[Row]) -> str:
    """Means over seeds with intervals, one line for each method; methods of other measures get a table of their own."""
    text, methods = [], list(dict.fromkeys(row["method"] for row in rows))
    last: tuple[str, ...] = ()
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        names = measure_names(own[0])
        if names != last:
            text += ["", "| fit | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
        text.append(f"| {method} | " + " | ".join(interval([row[name] for row in own]) for name in names) + " |")
        last = names
    return "\n".join(text)


def measure_names(row: Row) -> tuple[str, ...]:
    """The measures of a row."""
    other = ("benchmark", "set", "method", "seed", "torch", "threads", "command")
    return tuple(name for name in row if name not in other)


def interval(values: list[float]) -> str:
    """The mean and half of Student's interval of 95 %."""
    if len(values) < 2:
        return f"{values[0]:.3g}"
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.3g} ± {half:.2g}"


def drawn_lines(lines: dict[str, Any]) -> Any:
    """Losses along the top eigenvectors."""
    steps = next(iter(lines.values()))[0]
    return plots.loss_lines(
        steps, {f"batch of {size}": values for size, (_, values) in lines.items()},
        along="step along the top eigenvector", label="training loss, nats",
    )  # fmt: skip


MEASURES: dict[str, Callable[[str, int], tuple[Row, Any]]] = {"skips": skips, "batches": batches, "robust": robust}
DRAWING: dict[str, Callable[[dict[str, Any]], Any]] = {
    "skips": lambda planes: plots.loss_planes(planes, largest=6.0, label="training loss, nats"),
    "batches": drawn_lines,
}

if __name__ == "__main__":
    run(main)
