"""Stability of methods of integration, measured by running them: a picture, and how far each is stable on the axes.

    python benchmarks/stability.py [--picture docs/stability.png]

Each method makes STEPS steps of length one on dx/dt = z x, x(0) = 1, for all z of a grid at once. It is stable at z
where |x| grows by less than GROWTH - 1 a step. The table tells how far from zero that holds on the negative real axis
(a field that contracts) and on the imaginary axis (a field that turns), in steps of 0.05.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ffjord_kit import plots
from ffjord_kit.ode import FixedSolver

METHODS = {
    **{word: (word, "backprop") for word in (
        "euler", "poly2", "poly3", "fractal2", "fractal3", "midpoint", "rk4", "linear_multistep", "revnet",
        "asynchronous_leapfrog",
    )},
    "euler, coupled": ("euler", "reversible"),
    "rk4, coupled": ("rk4", "reversible"),
}  # fmt: skip
BOUNDS = ((-9.0, 1.0), (-3.5, 3.5))
SHAPE = (141, 201)  # of the grid, whose axes are the axes of the plane
STEPS, GROWTH, OUT = 1000, 1.001, 1e100
AXIS = np.arange(1, 201) * 0.05


def main() -> None:
    """Measure, print the table and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", default="docs/stability.png", help="file to draw to (default: %(default)s)")
    path = Path(parser.parse_args().picture)
    torch.set_num_threads(1)
    real, imaginary = np.meshgrid(*(np.linspace(*ends, n) for ends, n in zip(BOUNDS, SHAPE[::-1], strict=True)))
    print("| method | negative real axis | imaginary axis |\n|---|---|---|")
    growths = {}
    for name, (method, adjoint) in METHODS.items():
        growths[name] = growth(method, adjoint, real + 1j * imaginary)
        ends = [reach(growth(method, adjoint, AXIS * way)) for way in (-1, 1j)]
        print(f"| {name} | {ends[0]:.2f} | {ends[1]:.2f} |", flush=True)
    plots.save(plots.stability_regions(growths, BOUNDS, level=GROWTH), path)


@torch.no_grad()
def growth(method: str, adjoint: str, z: np.ndarray) -> np.ndarray:
    """The mean growth of |x| in a step at each z; a state beyond OUT grows no further."""
    factors = torch.as_tensor(z.astype(complex).ravel())

    def rhs(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = torch.view_as_complex(state[0].contiguous()) * factors
        return (torch.view_as_real(x).nan_to_num(OUT, OUT, -OUT).clamp(-OUT, OUT),)

    start = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(len(factors), 2)
    solver = FixedSolver(method, STEPS, adjoint=adjoint, max_nfe=10**6)
    x = solver.solve(rhs, (start,), torch.tensor([0.0, float(STEPS)])).states[0][-1]
    size = torch.hypot(*x.unbind(1)).nan_to_num(OUT, OUT)
    return (size ** (1 / STEPS)).reshape(z.shape).numpy()


def reach(growths: np.ndarray) -> float:
    """The end of the stable part of an axis that begins at zero; `growths` are those at AXIS."""
    unstable = np.flatnonzero(growths > GROWTH)
    first = unstable[0] if len(unstable) else len(AXIS)
    return float(AXIS[first - 1]) if first else 0.0


if __name__ == "__main__":
    main()
