"""Trained flows as things to solve: ours and zuko's CNF, log-likelihoods and samples, at any tolerance.

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

ROWS, REFERENCE_ROWS = 2_000, 500
OURS, ZUKO = 1e-10, 1e-8  # tolerances of the references


class Subject(NamedTuple):
    """One way to solve one flow: `work` maps a tolerance to values and evaluations; `exact` are the first rows'.

    `nll` is the flow's negative log-likelihood of those rows in the units of the data: how good it is.
    """

    method: str
    quantity: str
    nll: float
    work: Callable[[float], tuple[np.ndarray, int]]
    exact: np.ndarray


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
    """Our flow, by the estimator's verbs, and in float32 with one step size for all rows."""
    model = _trained(split, given)
    rows, scale = test_rows(split), split.train.std(0)
    single, exact_flow = copy.deepcopy(model.flow_).float(), model.flow_
    x, z = torch.tensor(rows, device=given.device), _noise(rows.shape[1], given)
    exact = _numpy(exact_flow.log_prob(x[:REFERENCE_ROWS], solver=_by_row(OURS)))

    def scored(tolerance: float) -> tuple[np.ndarray, int]:
        return tuple(model.set_params(tolerance=tolerance).evaluate(rows))

    def scored_single(tolerance: float) -> tuple[np.ndarray, int]:
        how = Integration(solver=Solver("dopri5", tolerance, tolerance))
        log_prob, moved = single.evaluate_log_prob(x.float(), integration=how)
        return _numpy(log_prob), moved.nfe

    nll = -float(exact.mean())
    yield Subject("ours, by row", "log-likelihood", nll, scored, exact)
    yield Subject("ours, float32", "log-likelihood", nll, scored_single, exact)
    landed = _drawn(exact_flow, z[:REFERENCE_ROWS].double(), _by_row(OURS), scale)[0]
    for name, flow, start, solver in (
        ("ours, by row", exact_flow, z.double(), _by_row),
        ("ours, float32", single, z, lambda tolerance: Solver("dopri5", tolerance, tolerance)),
    ):
        yield Subject(name, "sample", nll, partial(_at, flow, start, solver, scale), landed)


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
    landed = _drawn(reference, z[:REFERENCE_ROWS].double(), _by_row(ZUKO), np.ones(x.shape[1]))[0]
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


def _drawn(flow: Flow, z: Tensor, solver: Solver, scale: np.ndarray) -> tuple[np.ndarray, int]:
    """Where the flow carries z, without any log-determinant: what `sample` does."""
    calls = [Calls(layer.dynamics) for layer in flow.layers if isinstance(layer, CNF)]
    x, _ = flow.to_data(z, integration=Integration(trace=None, solver=solver))
    return _numpy(x) / scale, sum(call.taken() for call in calls)


def _at(
    flow: Flow, z: Tensor, solver: Callable[[float], Solver], scale: np.ndarray, tolerance: float
) -> tuple[np.ndarray, int]:
    return _drawn(flow, z, solver(tolerance), scale)


def _by_row(tolerance: float) -> Solver:
    return Solver("dopri5_by_row", tolerance, tolerance, max_nfe=10**6)


def _noise(dimensions: int, given: argparse.Namespace) -> Tensor:
    generator = torch.Generator().manual_seed(given.seed)
    return torch.randn(ROWS, dimensions, generator=generator).to(given.device)


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()


SUBJECTS: dict[str, Callable[[Split, argparse.Namespace], Iterator[Subject]]] = {"ours": of_ours, "zuko CNF": of_zuko}
