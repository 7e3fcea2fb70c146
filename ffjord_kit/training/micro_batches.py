r"""A batch computed in M equal parts, one after another or by W workers, M/W of them each.

    loss = 1/M sum_j loss_j,    gradient = 1/M sum_j gradient_j

Part j has rows of its own, a slice of the batch, and noise of its own, a function of (seed, step, j): it does not matter
which worker computes it. So W workers make the step that one process makes with the same M, up to the rounding of sums;
the memory is that of a batch M times smaller.

torch's DistributedDataParallel is not used: it hooks into the one forward of one module, sums in buckets during the
backward pass, and must know which weights take part. An objective here calls a model's modules as it likes, and may leave
some of them out. Each step has one sum of all gradients and the loss, and before it one of a few numbers, which never waits
for a GPU: whether a part has failed, which weights have a gradient, the number of evaluations, and the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ffjord_kit.data import Batch
from ffjord_kit.noise import keyed_generator
from ffjord_kit.objectives import Loss, Objective
from ffjord_kit.ode import SolveError, SolverStats
from ffjord_kit.training.data import Batches
from ffjord_kit.training.distributed import Workers

FAILURES = (SolveError, ArithmeticError)  # those that training goes back from

T = TypeVar("T")


def check_micro_batches(count: int, size: int, workers: Workers) -> None:
    """Check that a batch can be computed in equal parts by the workers.

    Args:
        count: Number of parts.
        size: Rows of a batch.
        workers: The workers.

    Raises:
        ValueError: If it cannot.
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
    """Losses and gradients of batches, part by part.

    Args:
        model: Model that trains.
        batches: Its batches.
        parameters: Parameters that get gradients.
        count: Number of parts of a batch.
        workers: Workers that share them.

    Raises:
        ValueError: If batch, parts and workers do not divide each other.
    """

    model: nn.Module
    batches: Batches
    parameters: Sequence[nn.Parameter]
    count: int
    workers: Workers

    def __post_init__(self) -> None:
        check_micro_batches(self.count, self.batches.size, self.workers)

    def backward(
        self, objective: Objective, step: int, extra: Callable[[], Sequence[float]]
    ) -> tuple[Loss, list[float]]:
        """Compute the loss of a batch, and leave its gradient in the parameters.

        Args:
            objective: Objective.
            step: Number of the batch.
            extra: Gives numbers of each worker, to be summed over workers.

        Returns:
            The loss, and the summed numbers.

        Raises:
            SolveError: On all workers, if a solve or the arithmetic fails on one.
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
        """Return the rows of a part, and their contexts.

        Args:
            step: Number of the batch.
            j: Number of the part.

        Returns:
            The part.
        """
        return self.batches.part(step, j, self.count)

    def _own_losses(self, objective: Objective, step: int) -> tuple[dict[int, Loss], Exception | None]:
        """Compute this worker's parts with their gradients; return their losses, or the failure of one."""
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

    def _loss(self, objective: Objective, step: int, j: int) -> Loss:
        key = (self.batches.seed, "noise", step, *([j] if self.count > 1 else []))
        generator = keyed_generator(self.parameters[0].device, *key)
        loss = objective.loss(self.model, self.part(step, j), generator)
        share = loss.value / self.count
        share.backward()
        terms = {name: term.detach() / self.count for name, term in loss.terms.items()}
        stats = SolverStats(sum(s.nfe for s in loss.stats), sum(s.nfe_backward for s in loss.stats))
        return Loss(share.detach(), terms, (stats,))

    def _reduce(self, loss: Loss, used: list[float]) -> Loss:
        """Sum the loss and the gradients over workers; gradients of weights that nobody used stay None."""
        parameters = [p for p, share in zip(self.parameters, used, strict=True) if share]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        heads = [loss.value, *loss.terms.values()]
        flat = torch.cat([*(p.grad.reshape(-1) for p in parameters), *(head.reshape(1) for head in heads)])
        sums = self.workers.all_reduce_(flat).split([*(p.numel() for p in parameters), *(1 for _ in heads)])
        for parameter, value in zip(parameters, sums, strict=False):
            parameter.grad.copy_(value.view_as(parameter))
        value, *terms = (part.reshape(()) for part in sums[len(parameters) :])
        return Loss(value, dict(zip(loss.terms, terms, strict=True)), loss.stats)


def first_failure(workers: Workers, failure: Exception | None) -> str:
    """Return the message of the first worker that failed, on all.

    Args:
        workers: The workers.
        failure: This worker's failure, or None.

    Returns:
        The message.
    """
    own = "" if failure is None else " ".join(str(failure).split()) or "a failure without words"
    return next(text for text in workers.all_gather(own) if text)


def run_together(workers: Workers, make: Callable[[], T]) -> T:
    """Run a function on all workers; a failure of one is one of all.

    Args:
        workers: The workers.
        make: Function of no arguments.

    Returns:
        Its result on this worker.

    Raises:
        SolveError: On all workers, if it fails by SolveError or ArithmeticError on one.
    """
    if workers.size == 1:
        return make()
    result, failure = None, None
    try:
        result = make()
    except FAILURES as error:
        failure = error
    if float(workers.all_reduce_(torch.tensor(float(failure is not None)))):
        raise SolveError(first_failure(workers, failure))
    return result


def _sum(losses: dict[int, Loss]) -> Loss:
    """Sum the parts of one worker; of the evaluations take the most."""
    parts: list[Loss] = list(losses.values())
    terms: dict[str, Tensor] = {name: sum(loss.terms[name] for loss in parts) for name in parts[0].terms}
    stats = SolverStats(max(p.stats[0].nfe for p in parts), max(p.stats[0].nfe_backward for p in parts))
    return Loss(sum(loss.value for loss in parts), terms, (stats,))
