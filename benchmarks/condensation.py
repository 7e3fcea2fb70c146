"""Condensation of a two-layer network, by its initial scale and by dropout; pictures of directions and likeness.

    python benchmarks/condensation.py [--seeds 5] [--folder docs]

f(x) = sum_j a_j tanh(w_j x + b_j) with 100 neurons learns tanh(3 x) - 0.7 sin(5 x) from 40 points by 2,000 steps of
Adam at a rate of 1e-2. All weights begin at a deviation of 100^(-gamma / 2), so that gamma < 1 is the linear phase and
gamma > 1 the condensed one. The table gives the effective number of neurons (groups at a mean cosine of 0.999, opposite
directions as one), the relative change of what feeds the neurons, and the error at the end: the median over seeds, the
least and the most.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ffjord_kit import plots
from ffjord_kit.diagnostics.condensation import Condensation, initial_scale_phase, network_condensation, relative_change

WIDTH, POINTS, STEPS, RATE = 100, 40, 2_000, 1e-2
THRESHOLD = 0.999  # cosine, 2.6 degrees: directions of two numbers are crowded
GAMMAS = (0.5, 1.0, 2.0, 3.0)
DROPPED = (0.5, 1.0)  # values of gamma that are trained with dropout too
DROPOUT = 0.3
SHOWN = (0, 50, 300, STEPS)
Snapshots = dict[int, Condensation]


def main() -> None:
    """Train, print the table and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("docs"), help="of the pictures (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| initial scale | phase | dropout | effective neurons of 100 | relative change | mean square error |")
    print("|---|---|---|---|---|---|")
    shown: dict[str, Snapshots] = {}
    for gamma, dropout in [*((gamma, 0.0) for gamma in GAMMAS), *((gamma, DROPOUT) for gamma in DROPPED)]:
        scale = WIDTH ** (-gamma / 2)
        found = [trained(scale, dropout, seed) for seed in range(given.seeds)]
        numbers = torch.tensor([row for row, _ in found], dtype=torch.float64)
        phase, name = initial_scale_phase(scale, scale, WIDTH)[0], f"gamma = {gamma:g}"
        cells = [spread(numbers[:, 0], ".0f"), spread(numbers[:, 1], ".3g"), spread(numbers[:, 2], ".1e")]
        print(f"| {name} | {phase} | {dropout or 'none'} | " + " | ".join(cells) + " |", flush=True)
        shown[f"{name}, dropout" if dropout else name] = found[0][1]
    draw(shown, given.folder)


def trained(scale: float, dropout: float, seed: int) -> tuple[tuple[float, float, float], Snapshots]:
    """The numbers of a training, and the neurons at some steps."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(1, WIDTH), nn.Tanh(), nn.Dropout(dropout), nn.Linear(WIDTH, 1, bias=False))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=scale)
    x = torch.linspace(-1, 1, POINTS)[:, None]
    target = (3 * x).tanh() - 0.7 * (5 * x).sin()
    before, seen = feeding(net), {}
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    for step in range(STEPS + 1):
        if step in SHOWN:
            seen[step] = network_condensation(net, threshold=THRESHOLD, odd=True)[0]
        optimizer.zero_grad()
        (net(x) - target).square().mean().backward()
        optimizer.step()
    net.eval()
    error = float((net(x) - target).detach().square().mean())
    return (seen[STEPS].effective, relative_change(before, feeding(net)), error), seen


def feeding(net: nn.Sequential) -> Tensor:
    """All that feeds the neurons, shape (m, 2)."""
    return torch.cat([net[0].weight, net[0].bias[:, None]], dim=1).detach().clone()


def spread(values: Tensor, kind: str) -> str:
    """The median, and the ends."""
    low, middle, high = (float(v) for v in (values.min(), values.median(), values.max()))
    return f"{middle:{kind}} ({low:{kind}} to {high:{kind}})" if not math.isclose(low, high) else f"{middle:{kind}}"


def draw(shown: dict[str, Snapshots], folder: Path) -> None:
    """Draw directions over training and the likeness at the end."""
    directions = {
        name: {step: (layer.angles.numpy(), layer.amplitudes.numpy()) for step, layer in panels.items()}
        for name, panels in shown.items()
    }
    chosen = ("gamma = 0.5", "gamma = 2", "gamma = 0.5, dropout")
    plots.save(plots.directions_over_training({name: directions[name] for name in chosen}), folder / "condensation.png")
    matrices = {name: shown[name][STEPS].ordered_similarity.abs().numpy() for name in chosen}
    plots.save(plots.similarity_matrices(matrices), folder / "similarity.png")


if __name__ == "__main__":
    main()
