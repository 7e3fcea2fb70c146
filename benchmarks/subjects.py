"""Trained flows as things to solve: ours and zuko's CNF, log-likelihoods and samples, by any setting of a solve.

The values are log-densities (ROWS,) up to a constant, or samples (ROWS, d) in deviations of a column. All solve for
AT_ONCE rows at a time, which the caches of a CPU hold, except `evaluate`, which has its own batch size. The
reference is a float64 solve of the first REFERENCE_ROWS rows, each with steps of its own: at 1e-10 for ours, at 1e-8
for zuko's, whose activation has a kink in its slope that a finer solve does not get past.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from peers import METHODS, as_flow
from sets import Split
from torch import Tensor, nn

from ffjord_kit import CNF, FFJORD, AdaptiveSolver, Flow, PerRowSolver, Standardize
from ffjord_kit.cli.parsing import parse_schedule
from ffjord_kit.ode import Solver, make_solver
from ffjord_kit.transforms.cnf import SolveOptions

ROWS, REFERENCE_ROWS, AT_ONCE = 10_000, 500, 4_096
OURS, ZUKO = 1e-10, 1e-8  # tolerances of the references
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
STEPS = (
    *(f"rk4:{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16)),
    *(f"midpoint:{n}" for n in (1, 2, 3, 4)),
)
STEPS_OF_SAMPLES = ("euler:1", "euler:2", *STEPS)
SMALL = (32,)  # widths of the network after reflow: one hidden layer, whose trace has a closed form

Setting = float | str  # a tolerance, or fixed steps such as "rk4:4"


class Subject(NamedTuple):
    """One way to solve one flow: `work` maps a setting to values and evaluations; `exact` are the first rows' values.

    `nll` is the flow's negative log-likelihood of those rows in the units of the data: how good it is.
    """

    method: str
    quantity: str
    nll: float
    work: Callable[[Setting], tuple[np.ndarray, int]]
    exact: np.ndarray
    settings: tuple[Setting, ...] = TOLERANCES


class Calls:
    """Counts how often networks are called while it is entered; of batches, the mean."""

    def __init__(self, *networks: nn.Module) -> None:
        self.networks, self.count = networks, 0

    def __enter__(self) -> Calls:
        self.count, self.hooks = 0, [network.register_forward_hook(self._add) for network in self.networks]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _add(self, *_: object) -> None:
        self.count += 1

    def of_a_portion(self, rows: int) -> int:
        """The calls that a portion of so many rows took."""
        return round(self.count / math.ceil(rows / AT_ONCE))


def of_ours(split: Split, given: argparse.Namespace) -> Iterator[Subject]:
    """Our flow, by the estimator's verbs, and in float32 with one step size for all rows."""
    model = _trained(split, given)
    rows, z, unit = test_rows(split), _noise(split.test.shape[1], given), _deviations(split)
    exact = _numpy(model.flow_.log_prob(torch.tensor(rows[:REFERENCE_ROWS], device=given.device), solver=_by_row(OURS)))

    def scored(tolerance: float) -> tuple[np.ndarray, int]:
        return tuple(model.set_params(tolerance=tolerance, density="continuous").evaluate(rows))

    yield Subject("ours, by row", "log-likelihood", -float(exact.mean()), scored, exact)
    landed = _drawn(model.flow_, z[:REFERENCE_ROWS].double(), _by_row(OURS), unit)[0]
    drawn = partial(_at, model.flow_, z.double(), _by_row, unit)
    yield Subject("ours, by row", "sample", -float(exact.mean()), drawn, landed)
    yield from _single("ours, float32", model.flow_, exact, landed, split, given)


def of_straightened(split: Split, given: argparse.Namespace) -> Iterator[Subject]:
    """Our flow after reflow into a small network; by fixed steps too, with the grading that reflow measured."""
    straight = _trained(split, given).reflow(hidden=SMALL, random_state=given.seed)
    flow, grading = straight.flow_, straight.model_.grading
    x = torch.tensor(test_rows(split)[:REFERENCE_ROWS], device=given.device)
    z = _noise(x.shape[1], given)[:REFERENCE_ROWS].double()
    exact, landed = (
        _numpy(flow.log_prob(x, solver=_by_row(OURS))),
        _drawn(flow, z, _by_row(OURS), _deviations(split))[0],
    )
    for subject in _single("ours, straightened", flow, exact, landed, split, given, grading):
        steps = STEPS_OF_SAMPLES if subject.quantity == "sample" else STEPS
        yield subject._replace(settings=(*TOLERANCES, *steps))


def _single(
    name: str,
    flow: Flow,
    exact: np.ndarray,
    landed: np.ndarray,
    split: Split,
    given: argparse.Namespace,
    grading: float = 1.0,
) -> Iterator[Subject]:
    """A flow of ours in float32 with one step size for all rows."""
    single, x = copy.deepcopy(flow).float(), torch.tensor(test_rows(split), device=given.device).float()

    solver = partial(_solver, grading=grading)

    def scored(setting: Setting) -> tuple[np.ndarray, int]:
        how = SolveOptions(solver=solver(setting))
        found = [single.evaluate_log_prob(part, options=how) for part in x.split(AT_ONCE)]
        return _numpy(torch.cat([log_prob for log_prob, _ in found])), max(moved.nfe for _, moved in found)

    yield Subject(name, "log-likelihood", -float(exact.mean()), scored, exact)
    drawn = partial(_at, single, _noise(x.shape[1], given), solver, _deviations(split))
    yield Subject(name, "sample", -float(exact.mean()), drawn, landed)


def of_zuko(split: Split, given: argparse.Namespace) -> Iterator[Subject]:
    """zuko's CNF, by its own log_prob with the exact trace, and its own way from base to data, in float32."""
    (fitted,) = METHODS["zuko CNF"].fit(split, [given.peer_seconds], given.seed, given.device)
    scaling = Standardize.of(torch.tensor(split.train))
    reference, single = as_flow(fitted.model), copy.deepcopy(fitted.model).float()
    x, log_det = scaling.to_base(torch.tensor(test_rows(split)))
    x, z = x.to(given.device).float(), _noise(x.shape[1], given)
    single.transform.exact = True

    def at(tolerance: float) -> object:
        single.transform.atol = single.transform.rtol = tolerance
        return single()

    def scored(tolerance: float) -> tuple[np.ndarray, int]:
        with Calls(single.transform.ode) as calls:
            values = [at(tolerance).log_prob(part) for part in x.split(AT_ONCE)]
        return _numpy(torch.cat(values)), calls.of_a_portion(len(x))

    def drawn(tolerance: float) -> tuple[np.ndarray, int]:
        with Calls(single.transform.ode) as calls:
            values = [at(tolerance).transform.inv(part) for part in z.split(AT_ONCE)]
        return _numpy(torch.cat(values)), calls.of_a_portion(len(z))

    exact = _numpy(reference.log_prob(x[:REFERENCE_ROWS].double(), solver=_by_row(ZUKO)))
    nll = -float(exact.mean() + log_det[0])
    yield Subject("zuko CNF", "log-likelihood", nll, scored, exact)
    landed = _drawn(reference, z[:REFERENCE_ROWS].double(), _by_row(ZUKO))[0]
    yield Subject("zuko CNF", "sample", nll, drawn, landed)


def test_rows(split: Split) -> np.ndarray:
    """ROWS rows of the test data, again from the first where there are fewer."""
    return np.resize(split.test, (ROWS, split.test.shape[1]))


def _deviations(split: Split) -> Tensor:
    """Those of the columns of the training rows, (d,)."""
    return torch.tensor(split.train.std(0))


def _trained(split: Split, given: argparse.Namespace) -> FFJORD:
    if given.schedule == "auto":
        (fitted,) = METHODS["auto"].fit(split, given.budgets[:1], given.seed, given.device)
        return fitted.model
    model = FFJORD(schedule=parse_schedule(given.schedule), random_state=given.seed, device=given.device)
    return model.fit(np.concatenate([split.train, split.validation]))


def _drawn(flow: Flow, z: Tensor, solver: Solver, unit: Tensor | float = 1.0) -> tuple[np.ndarray, int]:
    """Where the flow carries z, without any log-determinant: what `sample` does; in the unit (d,) of each column."""
    how = SolveOptions(trace=None, solver=solver)
    with Calls(*(layer.dynamics for layer in flow.transforms if isinstance(layer, CNF))) as calls:
        x = torch.cat([flow.to_data(part, options=how)[0] for part in z.split(AT_ONCE)])
    return _numpy(x.cpu() / unit), calls.of_a_portion(len(z))


def _at(
    flow: Flow, z: Tensor, solver: Callable[[Setting], Solver], unit: Tensor, setting: Setting
) -> tuple[np.ndarray, int]:
    return _drawn(flow, z, solver(setting), unit)


def _solver(setting: Setting, grading: float = 1.0) -> Solver:
    if isinstance(setting, float):
        return AdaptiveSolver("dopri5", setting, setting)
    method, _, steps = setting.partition(":")
    return make_solver(method, steps=int(steps), grading=grading)


def _by_row(tolerance: float) -> Solver:
    return PerRowSolver(tolerance, tolerance, max_nfe=10**6)


def _noise(dimensions: int, given: argparse.Namespace) -> Tensor:
    generator = torch.Generator().manual_seed(given.seed)
    return torch.randn(ROWS, dimensions, generator=generator).to(given.device)


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()


SUBJECTS: dict[str, Callable[[Split, argparse.Namespace], Iterator[Subject]]] = {
    "ours": of_ours,
    "straightened": of_straightened,
    "zuko CNF": of_zuko,
}
