"""Examination: a flow in float64, held-out rows and as many samples, which all checks of a diagnosis share."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ffjord_kit.accuracy import MAX_STEP, LogDensity
from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.ode import PerRowSolver, SolverStats
from ffjord_kit.transforms.cnf import CNF, SolveOptions

REFERENCE_TOLERANCE = 1e-8  # of the solves that others are measured against
SAMPLING_TOLERANCE, REPORTING_TOLERANCE = 1e-6, 1e-5  # of the samples, and of the rows
MAX_REFERENCE_ROWS, MIN_REFERENCE_ROWS, REFERENCE_ELEMENTS = 64, 16, 1024
CHUNK_ELEMENTS = 4096  # elements of the rows solved at once


@dataclass(frozen=True)
class Examination:
    """A flow under examination, with held-out rows and samples that are solved for once.

    Args:
        flow: The flow, in float64 and without gradients.
        batch: Held-out rows, shape (n, *event), and their contexts, shape (n, context_dim).
        seed: Seed of all noise.
        row_log_probs: Log-densities of the rows, nats, shape (n,); NaN where a solve fails.
        at_base: Rows at the base, shape (n, *event).
        accepted: Accepted steps of each row over all continuous transforms, shape (n,).
        rejected: Rejected steps of each row, shape (n,).
        samples: Samples of the flow given the same contexts, shape (n, *event).
        sample_log_probs: Log-densities of the samples, nats, shape (n,); NaN where a solve fails.
    """

    flow: Flow
    batch: Batch
    seed: int
    row_log_probs: Tensor
    at_base: Tensor
    accepted: Tensor
    rejected: Tensor
    samples: Tensor
    sample_log_probs: Tensor

    @classmethod
    def begin(cls, flow: Flow, batch: Batch, *, rows: int, seed: int) -> Examination:
        """Copy a flow, choose rows at random, solve for them, and draw as many samples.

        Args:
            flow: Flow; it stays as it is.
            batch: Held-out rows and contexts.
            rows: Largest number of rows to choose.
            seed: Seed of the choice and of all noise.

        Returns:
            The examination.

        Raises:
            ValueError: If the rows or contexts do not fit the flow.
        """
        flow.check(batch.x, batch.context)
        flow, batch = copy.deepcopy(flow).double().requires_grad_(False), _choose_rows(flow, batch, rows, seed)
        options = SolveOptions(solver=lenient_solver(REPORTING_TOLERANCE))
        log_prob, transported = flow.evaluate_log_prob(batch.x, batch.context, options=options)
        samples, sample_log_prob = flow.sample_with_log_prob(
            len(batch), batch.context, solver=lenient_solver(SAMPLING_TOLERANCE), generator=_generator(seed)
        )
        accepted, rejected = _total_steps(transported.stats, like=transported.x)
        at_base = flow.base.project(transported.x)
        return cls(flow, batch, seed, log_prob, at_base, accepted, rejected, samples, sample_log_prob)

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def size(self) -> int:
        """Number of elements of an event."""
        return self.batch.x[0].numel()

    @property
    def continuous(self) -> list[CNF]:
        """The continuous transforms, from data to base."""
        return [transform for transform in self.flow.transforms if isinstance(transform, CNF)]

    @cached_property
    def scale(self) -> Tensor:
        """Standard deviations of the elements of the rows, shape (d,); 1 where an element is constant."""
        deviation = flat(self.batch.x).std(0, correction=0)
        return torch.where(deviation > 0, deviation, torch.ones_like(deviation))

    @cached_property
    def reference(self) -> Tensor:
        """Converged log-densities of the first rows, nats, shape (k,)."""
        rows = min(MAX_REFERENCE_ROWS, max(MIN_REFERENCE_ROWS, REFERENCE_ELEMENTS // self.size))
        return self.evaluate(rows, tolerance=REFERENCE_TOLERANCE).value

    def generator(self) -> torch.Generator:
        """Return a new generator at the seed of the examination.

        Returns:
            A generator on the CPU.
        """
        return _generator(self.seed)

    def subset(self, mask: Tensor) -> Examination:
        """Return the examination of some of the rows and of the samples at the same places.

        Args:
            mask: Whether to keep each row, shape (n,).

        Returns:
            The smaller examination; nothing is solved again.
        """
        return replace(
            self, batch=self.batch[mask], row_log_probs=self.row_log_probs[mask], at_base=self.at_base[mask],
            accepted=self.accepted[mask], rejected=self.rejected[mask], samples=self.samples[mask],
            sample_log_probs=self.sample_log_probs[mask],
        )  # fmt: skip

    def log_prob(self, batch: Batch, tolerance: float) -> Tensor:
        """Return log-densities of many rows, computed in chunks.

        Args:
            batch: Rows, shape (m, *event), and contexts.
            tolerance: Relative and absolute tolerance.

        Returns:
            Log-densities, nats, shape (m,); minus infinity outside the support, NaN where a solve fails.
        """
        inside = self.flow.support.check(batch.x)
        result = batch.x.new_full((len(batch),), -math.inf)
        chunks, solver = batch[inside].split(max(1, CHUNK_ELEMENTS // self.size)), lenient_solver(tolerance)
        if inside.any():
            parts = [self.flow.log_prob(chunk.x, chunk.context, solver=solver) for chunk in chunks]
            result[inside] = torch.cat(parts).to(result)
        return result

    def evaluate(self, count: int, *, tolerance: float, probes: int | None = None) -> LogDensity:
        """Return log-densities of the first rows with their errors.

        Args:
            count: Number of rows.
            tolerance: Relative and absolute tolerance.
            probes: Number of Hutchinson probes; None for the exact trace.

        Returns:
            Log-densities and errors, each of shape (count,).
        """
        first = self.batch[:count]
        return self.flow.evaluate(
            first.x, first.context, tolerance=tolerance, probes=probes, generator=self.generator()
        )


def preprocessed(flow: Flow, batch: Batch) -> tuple[Batch, Tensor]:
    """Return rows and contexts in the form in which the transforms of a flow take them.

    Args:
        flow: Flow.
        batch: Rows in the units of the data, shape (batch, *event), and contexts.

    Returns:
        Rows and contexts behind the preprocessing, in the dtype and on the device of the transforms, and the
        preprocessing's log|det|, shape (batch,), in float64 on the CPU.
    """
    x, log_det = flow.preprocess.to_base(batch.x, batch.context)
    like = flow.like
    return Batch(x.to(like), flow.preprocess.scale_context(batch.context, like)), log_det


def lenient_solver(tolerance: float) -> PerRowSolver:
    """Return a solver that steps each row by itself and gives NaN where it cannot go on.

    Args:
        tolerance: Relative and absolute tolerance.

    Returns:
        The solver.
    """
    return PerRowSolver(tolerance, tolerance, max_step=MAX_STEP, on_failure="nan")


def states_only(tolerance: float) -> SolveOptions:
    """Return options that transport states without their log-determinants.

    Args:
        tolerance: Relative and absolute tolerance.

    Returns:
        The options.
    """
    return SolveOptions(trace=None, solver=lenient_solver(tolerance))


def flat(x: Tensor) -> Tensor:
    """Flatten events to vectors.

    Args:
        x: Events, shape (batch, *event).

    Returns:
        Vectors, shape (batch, d).
    """
    return x.reshape(len(x), -1)


def _choose_rows(flow: Flow, batch: Batch, rows: int, seed: int) -> Batch:
    """Choose rows at random, in float64 and in their order, where the flow gives its samples."""
    order = torch.randperm(len(batch), generator=_generator(seed))[:rows].sort().values.to(batch.x.device)
    x = batch.x.detach()[order].double()
    context = None if batch.context is None else batch.context.detach()[order].double()
    chosen = Batch(x, context)
    return chosen if flow.preprocess.identity else chosen.to(torch.zeros((), dtype=torch.float64))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _total_steps(stats: tuple[SolverStats, ...], *, like: Tensor) -> tuple[Tensor, Tensor]:
    """Add the accepted and rejected steps of each row, (n,), over all continuous transforms."""
    accepted = rejected = torch.zeros(len(like), dtype=torch.long, device=like.device)
    for counts in stats:
        accepted = accepted + torch.as_tensor(counts.accepted)
        rejected = rejected + torch.as_tensor(counts.rejected)
    return accepted, rejected
