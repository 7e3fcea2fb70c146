r"""A batch computed in M equal parts, one after another or by W workers, M/W of them each.

    loss = 1/M sum_j loss_j,    gradient = 1/M sum_j gradient_j

Part j has rows of its own, a slice of the batch, and noise of its own, a function of (seed, step, j), so it does not
matter which worker computes it. W workers make the step that one process makes with the same M, up to the rounding of
sums. The memory is that of a batch M times smaller.

torch's DistributedDataParallel is not used: it hooks into the forward pass of one module, sums in buckets during the
backward pass, and must know which parameters take part. An objective here calls any of a model's modules, and may
leave some of them out. Each step makes two sums over workers: first a few numbers, which never wait for a GPU (whether
a part has failed, which parameters have a gradient, the number of evaluations, and the clock), then all gradients and
the loss.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ffjord_kit.data import Batch
from ffjord_kit.noise import keyed_generator
from ffjord_kit.objectives import Loss, Objective
from ffjord_kit.ode import SolveError, SolverStats
from ffjord_kit.training.data import Batches
from ffjord_kit.training.distributed import Workers

FAILURES = (SolveError, ArithmeticError)  # training goes back to the last good weights after these

T = TypeVar("T")


def check_micro_batches(count: int, size: int, workers: Workers) -> None:
    """Check that workers can compute a batch in equal parts.

    Args:
        count: Number of parts.
        size: Number of rows of a batch.
        workers: Workers that share the parts.

    Raises:
        ValueError: If they cannot.
    """
    if count % workers.size:
        raise ValueError(
            f"micro_batches must be a multiple of the number of workers, {workers.size}; got {count}: "
            f"pass {workers.size * max(1, round(count / workers.size))}"
        )
    if size % count:
        better = f"pass batch_size={size - size % count}" if size > count else "start fewer workers"
        raise ValueError(
            f"a batch of {size} rows cannot be made in {count} equal parts: {better}, or other micro_batches"
        )


@dataclass(frozen=True)
class MicroBatches:
    """Compute losses and gradients of batches part by part.

    Args:
        model: Model to train.
        batches: Batches of its data.
        parameters: Parameters that get gradients.
        count: Number of parts of a batch.
        workers: Workers that share the parts.

    Raises:
        ValueError: If `count` is no multiple of the number of workers, or does not divide the size of a batch.
    """

    model: nn.Module
    batches: Batches
    parameters: Sequence[nn.Parameter]
    count: int
    workers: Workers

    def __post_init__(self) -> None:
        check_micro_batches(self.count, self.batches.size, self.workers)

    def backward(
        self, objective: Objective[Any], step: int, extra: Callable[[], Sequence[float]]
    ) -> tuple[Loss, list[float]]:
        """Compute the loss of a batch, and store its gradient in the parameters.

        Args:
            objective: Objective to differentiate.
            step: Number of the step.
            extra: Function that returns further numbers of this worker, to be summed over workers.

        Returns:
            The loss, and the sums of the further numbers.

        Raises:
            SolveError: On all workers, if a solve or the arithmetic fails on one of several.
            ArithmeticError: If the arithmetic fails in a single process.
        """
        for parameter in self.parameters:
            parameter.grad = None
        losses, failure = self._own_losses(objective, step)
        if self.workers.size == 1:
            return _sum(losses), list(extra())
        present = [float(parameter.grad is not None) for parameter in self.parameters]
        counts = [0.0] * (2 * self.count)
        for j, loss in losses.items():
            counts[j], counts[self.count + j] = loss.stats[0].nfe, loss.stats[0].nfe_backward
        numbers = torch.tensor([float(failure is not None), *present, *counts, *extra()], dtype=torch.float64)
        failed, *rest = self.workers.all_reduce_(numbers).tolist()
        if failed:
            raise SolveError(first_failure(self.workers, failure))
        used, rest = rest[: len(present)], rest[len(present) :]
        loss = self._reduce(_sum(losses), used)
        stats = SolverStats(int(max(rest[: self.count])), int(max(rest[self.count : 2 * self.count])))
        return loss._replace(stats=(stats,)), rest[2 * self.count :]

    def part(self, step: int, j: int) -> Batch:
        """Return the rows and contexts of one part of a batch.

        Args:
            step: Number of the step.
            j: Number of the part, from 0.

        Returns:
            The part.
        """
        return self.batches.part(step, j, self.count)

    def _own_losses(self, objective: Objective[Any], step: int) -> tuple[dict[int, Loss], Exception | None]:
        """Compute this worker's parts with their gradients; return the losses, and a failure that ended them early."""
        losses: dict[int, Loss] = {}
        rank, size = self.workers.rank, self.workers.size
        try:
            for j in range(rank * self.count // size, (rank + 1) * self.count // size):
                losses[j] = self._loss(objective, step, j)
        except FAILURES as error:
            if size == 1:
                raise
            return losses, error
        return losses, None

    def _loss(self, objective: Objective[Any], step: int, j: int) -> Loss:
        """Compute one part's share of the loss, and add its gradient to the parameters'."""
        key: list[int | str] = [self.batches.seed, "noise", step, *([j] if self.count > 1 else [])]
        generator = keyed_generator(self.parameters[0].device, *key)
        loss = objective.loss(self.model, self.part(step, j), generator)
        share = loss.value / self.count
        share.backward()
        terms = {name: term.detach() / self.count for name, term in loss.terms.items()}
        stats = SolverStats(sum(s.nfe for s in loss.stats), sum(s.nfe_backward for s in loss.stats))
        return Loss(share.detach(), terms, (stats,))

    def _reduce(self, loss: Loss, used: list[float]) -> Loss:
        """Sum the loss and the gradients over workers; gradients of parameters without any use stay None."""
        gradients = [_gradient(p) for p, uses in zip(self.parameters, used, strict=True) if uses]
        scalars = [loss.value, *loss.terms.values()]
        flat = torch.cat([*(g.reshape(-1) for g in gradients), *(scalar.reshape(1) for scalar in scalars)])
        sums = self.workers.all_reduce_(flat).split([*(g.numel() for g in gradients), *(1 for _ in scalars)])
        for gradient, total in zip(gradients, sums, strict=False):
            gradient.copy_(total.view_as(gradient))
        value, *terms = (total.reshape(()) for total in sums[len(gradients) :])
        return Loss(value, dict(zip(loss.terms, terms, strict=True)), loss.stats)


def first_failure(workers: Workers, failure: Exception | None) -> str:
    """Return the message of the first worker that failed, on all workers.

    Args:
        workers: Workers that share the fit.
        failure: This worker's failure, or None.

    Returns:
        The message.
    """
    own = "" if failure is None else " ".join(str(failure).split()) or "a failure without words"
    return next(text for text in workers.all_gather(own) if text)


def run_together(workers: Workers, make: Callable[[], T]) -> T:
    """Run a function on all workers, and let all of them fail if one fails.

    Args:
        workers: Workers that share the fit.
        make: Function of no arguments.

    Returns:
        The result on this worker.

    Raises:
        SolveError: On all workers, if a solve or the arithmetic fails on one of several.
    """
    if workers.size == 1:
        return make()
    results: list[T] = []
    failure: Exception | None = None
    try:
        results.append(make())
    except FAILURES as error:
        failure = error
    if float(workers.all_reduce_(torch.tensor(float(failure is not None)))):
        raise SolveError(first_failure(workers, failure))
    return results[0]


def broadcast_together(workers: Workers, make: Callable[[], T]) -> T:
    """Run a function on the first worker, give its result to all, and let all of them fail if it fails.

    Args:
        workers: Workers that share the fit.
        make: Function of no arguments, whose result consists of plain values.

    Returns:
        The first worker's result.

    Raises:
        SolveError: On all workers, if a solve or the arithmetic fails.
    """
    results: list[T] = []
    run_together(workers, lambda: results.append(make()) if workers.is_first else None)
    return workers.broadcast(lambda: results[0])


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return a parameter's gradient, made zero if there is none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _sum(losses: dict[int, Loss]) -> Loss:
    """Sum the losses of one worker's parts; of the evaluations take the largest number."""
    parts = list(losses.values())
    terms = {name: reduce(operator.add, [part.terms[name] for part in parts]) for name in parts[0].terms}
    stats = SolverStats(max(p.stats[0].nfe for p in parts), max(p.stats[0].nfe_backward for p in parts))
    return Loss(reduce(operator.add, [part.value for part in parts]), terms, (stats,))
