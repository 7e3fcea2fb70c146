"""Trained flows as things to solve: ours and zuko's CNF, log-likelihoods and samples, by any setting of a solve.

The values are log-densities (ROWS,) up to a constant, or samples (ROWS, d) in deviations of a column. The reference is
a float64 solve of the first REFERENCE_ROWS rows, each with steps of its own: at 1e-10 for ours, at 1e-8 for zuko's,
whose activation has a kink in its slope that a finer solve does not get past.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from peers import METHODS, as_flow
from sets import Split
from torch import Tensor, nn

from ffjord_kit import CNF, FFJORD, Flow, Integration, Solver, Standardize

ROWS, REFERENCE_ROWS = 10_000, 500
OURS, ZUKO = 1e-10, 1e-8  # tolerances of the references
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
STEPS = (
    *(f"rk4:{n}" for n in (1, 2, 3, 4, 5, 6, 8, 12, 16, 24)),
    *(f"midpoint:{n}" for n in (1, 2, 3, 4, 8, 16)),
)
STEPS_OF_SAMPLES = ("euler:1", "euler:2", *STEPS)
FEW_COLUMNS, SMALL, LESS_SMALL = 3, (32, 32), (64, 64)  # networks of straightened flows

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
    """A hook that counts how often a network is called."""

    def __init__(self, network: nn.Module) -> None:
        self.count = 0
        network.register_forward_hook(self._add)

    def _add(self, *_: object) -> None:
        self.count += 1

    def taken(self) -> int:
        """The calls since the last time it was asked."""
        count, self.count = self.count, 0
        return count


def of_ours(split: Split, given: argparse.Namespace) -> Iterator[Subject]:
    """Our flow, by the estimator's verbs, and in float32 with one step size for all rows; then straightened."""
    model = _trained(split, given)
    rows, z = test_rows(split), _noise(split.test.shape[1], given)
    exact = _numpy(model.flow_.log_prob(torch.tensor(rows[:REFERENCE_ROWS], device=given.device), solver=_by_row(OURS)))

    def scored(tolerance: float) -> tuple[np.ndarray, int]:
        return tuple(model.set_params(tolerance=tolerance).evaluate(rows))

    yield Subject("ours, by row", "log-likelihood", -float(exact.mean()), scored, exact)
    landed = _drawn(model.flow_, z[:REFERENCE_ROWS].double(), _by_row(OURS), split)[0]
    drawn = partial(_at, model.flow_, z.double(), _by_row, split)
    yield Subject("ours, by row", "sample", -float(exact.mean()), drawn, landed)
    yield from _single("ours, float32", model.flow_, exact, landed, split, given)
    yield from _straightened(model.set_params(tolerance=FFJORD().tolerance), split, given)


def _straightened(model: FFJORD, split: Split, given: argparse.Namespace) -> Iterator[Subject]:
    """The flow trained again on its own pairs in a small network; by fixed steps too."""
    hidden = SMALL if split.test.shape[1] <= FEW_COLUMNS else LESS_SMALL
    flow = model.straighten(hidden=hidden, random_state=given.seed).flow_
    x = torch.tensor(test_rows(split)[:REFERENCE_ROWS], device=given.device)
    z = _noise(x.shape[1], given)[:REFERENCE_ROWS].double()
    exact, landed = _numpy(flow.log_prob(x, solver=_by_row(OURS))), _drawn(flow, z, _by_row(OURS), split)[0]
    for subject in _single("ours, straightened", flow, exact, landed, split, given):
        steps = STEPS_OF_SAMPLES if subject.quantity == "sample" else STEPS
        yield subject._replace(settings=(*TOLERANCES, *steps))


def _single(
    name: str, flow: Flow, exact: np.ndarray, landed: np.ndarray, split: Split, given: argparse.Namespace
) -> Iterator[Subject]:
    """A flow of ours in float32 with one step size for all rows."""
    single, x = copy.deepcopy(flow).float(), torch.tensor(test_rows(split), device=given.device).float()

    def scored(setting: Setting) -> tuple[np.ndarray, int]:
        log_prob, moved = single.evaluate_log_prob(x, integration=Integration(solver=_solver(setting)))
        return _numpy(log_prob), moved.nfe

    yield Subject(name, "log-likelihood", -float(exact.mean()), scored, exact)
    drawn = partial(_at, single, _noise(x.shape[1], given), _solver, split)
    yield Subject(name, "sample", -float(exact.mean()), drawn, landed)


def of_zuko(split: Split, given: argparse.Namespace) -> Iterator[Subject]:
    """zuko's CNF, by its own log_prob with the exact trace, and its own way from base to data, in float32."""
    (fitted,) = METHODS["zuko CNF"].fit(split, [given.peer_seconds], given.seed, given.device)
    scaling = Standardize.of(torch.tensor(split.train))
    reference, single = as_flow(fitted.model), copy.deepcopy(fitted.model).float()
    x, log_det = scaling.to_base(torch.tensor(test_rows(split)))
    x = x.to(given.device)
    z, calls = _noise(x.shape[1], given), Calls(single.transform.ode)
    single.transform.exact = True

    def at(tolerance: float) -> object:
        single.transform.atol = single.transform.rtol = tolerance
        return single()

    def scored(tolerance: float) -> tuple[np.ndarray, int]:
        return _numpy(at(tolerance).log_prob(x.float())), calls.taken()

    def drawn(tolerance: float) -> tuple[np.ndarray, int]:
        return _numpy(at(tolerance).transform.inv(z)), calls.taken()

    exact = _numpy(reference.log_prob(x[:REFERENCE_ROWS], solver=_by_row(ZUKO)))
    nll = -float(exact.mean() + log_det[0])
    yield Subject("zuko CNF", "log-likelihood", nll, scored, exact)
    landed = _drawn(reference, z[:REFERENCE_ROWS].double(), _by_row(ZUKO))[0]
    yield Subject("zuko CNF", "sample", nll, drawn, landed)


def test_rows(split: Split) -> np.ndarray:
    """ROWS rows of the test data, again from the first where there are fewer."""
    return np.resize(split.test, (ROWS, split.test.shape[1]))


def _trained(split: Split, given: argparse.Namespace) -> FFJORD:
    if given.schedule == "auto":
        (fitted,) = METHODS["auto"].fit(split, given.budgets[:1], given.seed, given.device)
        return fitted.model
    model = FFJORD(schedule=given.schedule, random_state=given.seed, device=given.device)
    return model.fit(np.concatenate([split.train, split.validation]))


def _drawn(flow: Flow, z: Tensor, solver: Solver, split: Split | None = None) -> tuple[np.ndarray, int]:
    """Where the flow carries z, without any log-determinant: what `sample` does; in deviations of the split's columns.

    Without a split, of a flow of standardised columns.
    """
    calls = [Calls(layer.dynamics) for layer in flow.layers if isinstance(layer, CNF)]
    x, _ = flow.to_data(z, integration=Integration(trace=None, solver=solver))
    return _numpy(x) / (1.0 if split is None else split.train.std(0)), sum(call.taken() for call in calls)


def _at(
    flow: Flow, z: Tensor, solver: Callable[[Setting], Solver], split: Split, setting: Setting
) -> tuple[np.ndarray, int]:
    return _drawn(flow, z, solver(setting), split)


def _solver(setting: Setting) -> Solver:
    if isinstance(setting, float):
        return Solver("dopri5", setting, setting)
    method, _, steps = setting.partition(":")
    return Solver(method, steps=int(steps))


def _by_row(tolerance: float) -> Solver:
    return Solver("dopri5_by_row", tolerance, tolerance, max_nfe=10**6)


def _noise(dimensions: int, given: argparse.Namespace) -> Tensor:
    generator = torch.Generator().manual_seed(given.seed)
    return torch.randn(ROWS, dimensions, generator=generator).to(given.device)


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()


SUBJECTS: dict[str, Callable[[Split, argparse.Namespace], Iterator[Subject]]] = {"ours": of_ours, "zuko CNF": of_zuko}
