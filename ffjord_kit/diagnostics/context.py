"""What is examined: a flow in float64, some rows, and draws of its own; each is made once and used by every check."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ffjord_kit.accuracy import LogDensity
from ffjord_kit.cnf import CNF, Integration
from ffjord_kit.flow import Flow, Moved
from ffjord_kit.solver import Solver

FINE = 1e-8  # the tolerance of what others are measured against
DRAWS, REPORTED = 1e-6, 1e-5  # those of draws, and of the rows
SWEPT, SWEPT_ELEMENTS, FEWEST = 64, 1024, 16  # rows to compare solvers on
PART = 4096  # elements of a solve


@dataclass(frozen=True)
class Case:
    """A flow, rows x (n, *event) with contexts (n, context_dim), and the seed of all noise."""

    flow: Flow
    x: Tensor
    context: Tensor | None
    seed: int

    @classmethod
    def of(cls, flow: Flow, x: Tensor, context: Tensor | None, rows: int, seed: int) -> Case:
        """The case of at most so many of the rows, drawn by the seed; the flow and the rows stay as they are.

        Raises ValueError for rows that are not the flow's own.
        """
        flow.check(x, context)
        generator = torch.Generator().manual_seed(seed)
        some = torch.randperm(len(x), generator=generator)[:rows].sort().values.to(x.device)
        given = None if context is None else context.detach()[some].double()
        return cls(copy.deepcopy(flow).double().requires_grad_(False), x.detach()[some].double(), given, seed)

    def generator(self) -> torch.Generator:
        """A generator at the seed."""
        return torch.Generator().manual_seed(self.seed)

    @property
    def size(self) -> int:
        """The elements of an event."""
        return self.x[0].numel()

    @cached_property
    def scale(self) -> Tensor:
        """The deviations of the rows' elements, (d,), 1 where there is none."""
        rows = flat(self.x)
        deviation = rows.std(0, correction=0)
        return torch.where(deviation > 0, deviation, torch.ones_like(deviation))

    @property
    def continuous(self) -> list[CNF]:
        """The continuous layers, from data to base."""
        return [layer for layer in self.flow.layers if isinstance(layer, CNF)]

    @cached_property
    def samples(self) -> tuple[Tensor, Tensor]:
        """As many draws as there are rows, given the same contexts, and their log-densities; NaN where a solve ends."""
        return self.flow.sample_with_log_prob(
            len(self.x), self.context, solver=forgiving(DRAWS), generator=self.generator()
        )

    @cached_property
    def carried(self) -> tuple[Tensor, Moved]:
        """The log-densities of the rows, (n,), NaN where a solve ends, and their way to the base."""
        how = Integration(solver=forgiving(REPORTED))
        return self.flow.evaluate_log_prob(self.x, self.context, integration=how)

    @cached_property
    def truth(self) -> Tensor:
        """Converged log-densities of the first rows, (k,)."""
        rows = min(SWEPT, max(FEWEST, SWEPT_ELEMENTS // self.size))
        return self.evaluate(rows, tolerance=FINE).value

    def only(self, which: Tensor) -> Case:
        """The same of some of the rows, a mask (n,), with the draws of the same places."""
        part = replace(self, x=self.x[which], context=None if self.context is None else self.context[which])
        part.__dict__["samples"] = tuple(drawn[which] for drawn in self.samples)  # not to be made anew
        log_prob, moved = self.carried
        evaluations = tuple(replace(e, taken=e.taken[which], refused=e.refused[which]) for e in moved.evaluations)
        moved = moved._replace(x=moved.x[which], log_det=moved.log_det[which], evaluations=evaluations)
        part.__dict__["carried"] = log_prob[which], moved
        return part

    def few(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Some of the rows, and their contexts."""
        return self.x[:count], None if self.context is None else self.context[:count]

    def log_prob(self, x: Tensor, context: Tensor | None, tolerance: float) -> Tensor:
        """Log-densities of many rows, (n,), part by part; NaN where a solve ends."""
        rows, solver = max(1, PART // self.size), forgiving(tolerance)
        given = [None] * len(x) if context is None else context.split(rows)
        return torch.cat([self.flow.log_prob(p, c, solver=solver) for p, c in zip(x.split(rows), given, strict=False)])

    def evaluate(self, count: int, **asked: float | int | bool) -> LogDensity:
        """The log-densities of some of the rows with their errors."""
        return self.flow.evaluate(*self.few(count), generator=self.generator(), **asked)


def moving(tolerance: float) -> Integration:
    """How states are carried without their log-determinants."""
    return Integration(trace=None, solver=forgiving(tolerance))


def forgiving(tolerance: float) -> Solver:
    """Steps for each row, which is NaN where it cannot go on."""
    return Solver("dopri5_by_row", tolerance, tolerance, forgiving=True)


def flat(x: Tensor) -> Tensor:
    """Events as rows of numbers, (n, d)."""
    return x.reshape(len(x), -1)
