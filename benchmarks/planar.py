"""Planar flows of depth K against planar CNFs of width M, as in Neural ODEs (Chen et al. 2018, sec. 4), with their KL.

    python benchmarks/planar.py [--sets ring,wave] [--only K=8,M=8] [--budgets 20] [--seeds 3] [--json FILE]
                                [--picture FILE]

`ring`, `wave`, `fork` and `step` are the four energies of Rezende & Mohamed 2015, to which flows are matched without
data; the last three have no end in x, so a wall is added beyond |x| = 4. KL(q || p) = log Z - ELBO, with log Z by a
grid and the ELBO by DRAWS draws; in brackets the effective share of the draws. `moons` is a set of points, to which
flows are fitted by maximum likelihood; KL(p || q) is over test points, whose true density is known.

Each flow has the same CPU seconds, one thread, one rate and batch. A CNF is trained by rk4 steps and judged by an
adaptive solve: the flow of its field, whatever the steps. Of one seed the table has the KL and its standard error by
draws; of several the mean over seeds, and from the least to the largest. The picture has the flows of the first seed
that the command has trained; those that it has found in the file are left blank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import sets
import torch
from command import SEEDS, environment, options, run
from results import Row, Store
from torch import Tensor

from ffjord_kit import CNF, AdaptiveSolver, FixedSolver, Flow, MaximumLikelihood, Phase, Standardize, fit_flow, plots
from ffjord_kit.metrics import grid, kl_divergence
from ffjord_kit.nn import PlanarDynamics
from ffjord_kit.objectives import EnergyMatching, evidence
from ffjord_kit.trace import ExactTrace
from ffjord_kit.training import TrainConfig, fit_energy
from ffjord_kit.transforms import Planar

BENCHMARK = "planar"
SIZES = (2, 8, 32)
METHODS = (*(f"K={n}" for n in SIZES), *(f"M={n}" for n in SIZES))
POINTS = ("moons",)
BUDGET, RATE = 20.0, 2e-2
OPTIONS = {"batch_size": 256, "warmup": 50, "ema_decay": 0.99}
TRAINED_BY, JUDGED_BY = FixedSolver("rk4", 8), AdaptiveSolver("dopri5", 1e-5, 1e-5)
DRAWS = 10_000
BOUNDS, SIZE = ((-4.5, 4.5), (-4.5, 4.5)), 90  # of the pictures
FAR, FINE = ((-9.0, 9.0), (-9.0, 9.0)), 1200  # of the grid that gives log Z
WALL, STEEPNESS = 4.0, 0.4


def ring(x: Tensor) -> Tensor:
    """Two arcs of a ring."""
    modes = torch.stack([-0.5 * ((x[:, 0] - m) / 0.6).square() for m in (2.0, -2.0)])
    return 0.5 * ((x.norm(dim=1) - 2) / 0.4).square() - modes.logsumexp(0)


def wave(x: Tensor) -> Tensor:
    """One sine wave."""
    return 0.5 * ((x[:, 1] - _sine(x)) / 0.4).square() + _wall(x)


def fork(x: Tensor) -> Tensor:
    """A sine wave, and another that leaves it in the middle."""
    bump = 3 * (-0.5 * ((x[:, 0] - 1) / 0.6).square()).exp()
    return _two_waves(x, bump, 0.35, 0.35)


def step(x: Tensor) -> Tensor:
    """A sine wave, and another that leaves it for good."""
    return _two_waves(x, 3 * ((x[:, 0] - 1) / 0.3).sigmoid(), 0.4, 0.35)


def _two_waves(x: Tensor, apart: Tensor, width: float, other_width: float) -> Tensor:
    away = x[:, 1] - _sine(x)
    powers = [-0.5 * (away / width).square(), -0.5 * ((away + apart) / other_width).square()]
    return _wall(x) - torch.stack(powers).logsumexp(0)


def _sine(x: Tensor) -> Tensor:
    return (2 * math.pi * x[:, 0] / 4).sin()


def _wall(x: Tensor) -> Tensor:
    return 0.5 * ((x[:, 0].abs() - WALL).clamp(min=0) / STEEPNESS).square()


ENERGIES: dict[str, Callable[[Tensor], Tensor]] = {"ring": ring, "wave": wave, "fork": fork, "step": step}


def main() -> None:
    """Train what the options ask for, print the table and draw."""
    extra = {"--seeds": SEEDS, "--picture": {"help": "file to draw the densities to"}}
    given = options(__doc__, sets=(*ENERGIES, *POINTS), methods=METHODS, budgets=(BUDGET,), extra=extra)
    store, trained = Store(given.json), dict[tuple[str, str], Flow]()
    here = {"benchmark": BENCHMARK, "budget": given.budgets[0], "device": "cpu"}
    by_energy("ring", "K=2", 1.0, 0)  # what is loaded at the first step counts for none
    for seed in range(given.seed, given.seed + given.seeds):
        for name in given.sets:
            for method in given.only:
                key = {**here, "set": name, "method": method, "seed": seed}
                if given.again or not store.has(**key):
                    flow, row = measured(name, method, given.budgets[0], seed)
                    trained.setdefault((name, method), flow)
                    store.add({**key, **row, **environment()})
                    print(name, method, seed, flush=True)
    rows = [row for row in store.rows() if here.items() <= row.items()]
    print(table(rows))
    if given.picture:
        plots.save(
            plots.density_panels(panels(rows, given.sets, trained), BOUNDS, per_row=1 + len(METHODS)), given.picture
        )


def measured(name: str, method: str, seconds: float, seed: int) -> tuple[Flow, Row]:
    """Train a flow, and judge it."""
    torch.manual_seed(seed)
    return (by_energy if name in ENERGIES else by_likelihood)(name, method, seconds, seed)


def by_energy(name: str, method: str, seconds: float, seed: int) -> tuple[Flow, Row]:
    """Match a flow to an energy."""
    energy, flow = ENERGIES[name], Flow(transforms(method, "base"))
    phase = Phase(EnergyMatching(energy), math.inf, RATE, seconds)
    history = fit_energy(flow, [phase], config=TrainConfig(seed=seed, **OPTIONS))
    found = evidence(flow, energy, draws=DRAWS, solver=JUDGED_BY, generator=torch.Generator().manual_seed(seed))
    row = {"kl": log_evidence(energy) - found.elbo, "error": found.elbo_error,
           "ess": found.effective_sample_size / DRAWS}  # fmt: skip
    return flow, {**row, **common(flow, history.step)}


def by_likelihood(name: str, method: str, seconds: float, seed: int) -> tuple[Flow, Row]:
    """Fit a flow to points."""
    split = sets.load(name)
    train, test = (torch.as_tensor(rows, dtype=torch.float32) for rows in (split.train, split.test))
    flow = Flow(transforms(method, "data"), preprocess=[Standardize.of(train)])
    phase = Phase(MaximumLikelihood(ExactTrace()), math.inf, RATE, seconds)
    history = fit_flow(flow, train, schedule=[phase], config=TrainConfig(seed=seed, **OPTIONS))
    log_q = log_prob(flow, test)
    kl, error = kl_divergence(split.log_prob(split.test), log_q)
    return flow, {"kl": kl, "error": error, **common(flow, history.step)}


def transforms(method: str, end: str) -> list[Any]:
    """K planar transforms, explicit from an end, or a planar CNF of width M."""
    kind, _, size = method.partition("=")
    if kind == "K":
        return [Planar((2,), explicit_from=end) for _ in range(int(size))]
    return [CNF(PlanarDynamics((2,), width=int(size)), (2,), solver=TRAINED_BY)]


def common(flow: Flow, steps: int) -> Row:
    """Weights and steps."""
    return {"weights": sum(p.numel() for p in flow.transforms.parameters()), "steps": steps}


@torch.no_grad()
def log_prob(flow: Flow, x: Tensor) -> np.ndarray:
    """Log-densities by a fine solve."""
    return torch.cat([flow.log_prob(part, solver=JUDGED_BY) for part in x.split(2000)]).double().numpy()


def log_evidence(energy: Callable[[Tensor], Tensor]) -> float:
    """log Z by a grid."""
    points, area = grid(FAR, FINE)
    return float((-energy(torch.as_tensor(points))).logsumexp(0)) + math.log(area)


def table(rows: list[Row]) -> str:
    """One line for each set: the KL of each flow, and in brackets the effective share of the draws."""
    lines = ["| target | " + " | ".join(METHODS) + " |", "|---|" + "---|" * len(METHODS)]
    for name in (*ENERGIES, *POINTS):
        own = [row for row in rows if row["set"] == name]
        if own:
            cells = [cell([row for row in own if row["method"] == method]) for method in METHODS]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for quantity in ("weights", "steps"):
        cells = [[row[quantity] for row in rows if row["method"] == method] for method in METHODS]
        shown = [f"{min(c):,} to {max(c):,}" if c and min(c) < max(c) else f"{c[0]:,}" if c else "-" for c in cells]
        lines.append(f"| {quantity} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def cell(rows: list[Row]) -> str:
    """The KL of one seed with its error, or of several with its range; and the mean effective share of the draws."""
    if not rows:
        return "-"
    kl = [row["kl"] for row in rows]
    shares = [100 * row["ess"] for row in rows if "ess" in row]
    share = f" ({np.mean(shares):.0f} %)" if shares else ""
    if len(rows) == 1:
        return f"{kl[0]:.3f} ± {rows[0]['error']:.3f}{share}"
    return f"{np.mean(kl):.3f}, {min(kl):.3f} to {max(kl):.3f}{share}"


def panels(rows: list[Row], names: tuple[str, ...], trained: dict[tuple[str, str], Flow]) -> list[tuple[str, Any]]:
    """The target and each flow, a row of panels for each set, with the KL of the first seed."""
    found: list[tuple[str, Any]] = []
    for name in names:
        first = {row["method"]: row for row in reversed(rows) if row["set"] == name}
        kl = {method: f", KL {row['kl']:.2f}" for method, row in first.items()}
        found.append((name, truth(name)))
        found += [(method + kl.get(method, ""), density(trained.get((name, method)))) for method in METHODS]
    return found


def density(flow: Flow | None) -> np.ndarray:
    """The density of a flow on the grid of the pictures; zero without a flow."""
    if flow is None:
        return np.zeros((SIZE, SIZE))
    points = torch.as_tensor(plots.grid_points(BOUNDS, SIZE), dtype=torch.float32)
    return np.exp(log_prob(flow, points)).reshape(SIZE, SIZE)


def truth(name: str) -> np.ndarray:
    """The density of a target on the grid of the pictures."""
    points = plots.grid_points(BOUNDS, SIZE)
    if name in ENERGIES:
        values = -ENERGIES[name](torch.as_tensor(points)).numpy() - log_evidence(ENERGIES[name])
    else:
        values = sets.load(name).log_prob(points)
    return np.exp(values).reshape(SIZE, SIZE)


if __name__ == "__main__":
    run(main)
