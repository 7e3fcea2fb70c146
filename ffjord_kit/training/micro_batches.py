r"""A batch made in M equal parts, one after another or by W workers, M/W of them each.

    loss = 1/M sum_j loss_j,    gradient = 1/M sum_j gradient_j

Part j has rows of its own, a slice of the batch, and noise of its own, a function of (seed, step, j): who makes it does
not matter. So W workers make the step that one process makes with the same M, up to the rounding of sums; memory is
that of a batch M times smaller.

torch's DistributedDataParallel is not used: it hooks into the one forward of one module, sums in buckets while going
back, and must know which weights take part. An objective here calls a flow's layers as it likes, and may leave some of
them out. Each step has one sum of all gradients and the loss, and before it one of a few numbers, which never waits for
a GPU: whether a part has failed, which weights have a gradient, how many evaluations it took, and the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ffjord_kit.evaluations import Evaluations
from ffjord_kit.failures import SolveError
from ffjord_kit.flow import Flow
from ffjord_kit.objectives import Loss, Objective
from ffjord_kit.training.data import Batches, noise_generator
from ffjord_kit.training.workers import Workers

FAILURES = (SolveError, ArithmeticError)  # those that training goes back from


def check_parts(count: int, size: int, workers: Workers) -> None:
    """Raise ValueError unless a batch of `size` rows can be made in so many parts by the workers."""
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
class Parts:
    """How the batches of a flow are made: in so many parts, by these workers.

    Raises ValueError where batch, parts and workers do not go into each other.
    """

    flow: Flow
    batches: Batches
    parameters: Sequence[nn.Parameter]
    count: int
    workers: Workers

    def __post_init__(self) -> None:
        check_parts(self.count, self.batches.size, self.workers)

    def backward(
        self, objective: Objective, step: int, news: Callable[[], Sequence[float]]
    ) -> tuple[Loss, list[float]]:
        """The loss of a batch, its gradient left in the parameters, and the workers' numbers of `news`, summed.

        Raises what the objective raises; SolveError on all workers where that of one raises SolveError or
        ArithmeticError.
        """
        for parameter in self.parameters:
            parameter.grad = None
        losses, failure = self._made(objective, step)
        if self.workers.size == 1:
            return self._joined(losses), list(news())
        present = [float(parameter.grad is not None) for parameter in self.parameters]
        counts = [0.0] * (2 * self.count)
        for j, loss in losses.items():
            counts[j], counts[self.count + j] = loss.evaluations[0].forward, loss.evaluations[0].backward
        told = self._summed([float(failure is not None), *present, *counts, *news()])
        if told[0]:
            raise SolveError(failed(self.workers, failure))
        used, rest = told[1 : 1 + len(present)], told[1 + len(present) :]
        loss = self._reduced(self._joined(losses), used)
        evaluations = Evaluations(int(max(rest[: self.count])), int(max(rest[self.count : 2 * self.count])))
        return loss._replace(evaluations=(evaluations,)), rest[2 * self.count :]

    def rows(self, step: int, j: int) -> tuple[Tensor, Tensor | None]:
        """The rows of a part, and their contexts."""
        return self.batches.part(step, j, self.count)

    def _made(self, objective: Objective, step: int) -> tuple[dict[int, Loss], Exception | None]:
        """The losses of the parts that are this worker's, gone back through, or what one failed of."""
        losses, (rank, size) = {}, (self.workers.rank, self.workers.size)
        try:
            for j in range(rank * self.count // size, (rank + 1) * self.count // size):
                losses[j] = self._part(objective, step, j)
        except FAILURES as error:
            if size == 1:
                raise
            return losses, error
        return losses, None

    def _part(self, objective: Objective, step: int, j: int) -> Loss:
        x, context = self.rows(step, j)
        key = (self.batches.seed, "noise", step, *([j] if self.count > 1 else []))
        loss = objective.loss(self.flow, x, context, noise_generator(self.parameters[0].device, *key))
        share = loss.value / self.count
        share.backward()
        forward, backward = (sum(getattr(e, way) for e in loss.evaluations) for way in ("forward", "backward"))
        terms = {name: term.detach() / self.count for name, term in loss.terms.items()}
        return Loss(share.detach(), terms, (Evaluations(forward, backward),))

    def _joined(self, losses: dict[int, Loss]) -> Loss:
        """The sum of this worker's parts; of the evaluations the most."""
        made = list(losses.values())
        terms = {name: sum(loss.terms[name] for loss in made) for name in made[0].terms}
        most = [max(getattr(loss.evaluations[0], way) for loss in made) for way in ("forward", "backward")]
        return Loss(sum(loss.value for loss in made), terms, (Evaluations(*most),))

    def _summed(self, numbers: list[float]) -> list[float]:
        return self.workers.sum_(torch.tensor(numbers, dtype=torch.float64)).tolist()

    def _reduced(self, loss: Loss, used: list[float]) -> Loss:
        """The loss and the gradients, summed over workers; those of weights that nobody used stay None."""
        taken = [p for p, share in zip(self.parameters, used, strict=True) if share]
        for parameter in taken:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        heads = [loss.value, *loss.terms.values()]
        flat = self.workers.sum_(
            torch.cat([*(p.grad.reshape(-1) for p in taken), *(head.reshape(1) for head in heads)])
        )
        sums = flat.split([*(p.numel() for p in taken), *(1 for _ in heads)])
        for parameter, value in zip(taken, sums, strict=False):
            parameter.grad.copy_(value.view_as(parameter))
        value, *terms = (part.reshape(()) for part in sums[len(taken) :])
        return Loss(value, dict(zip(loss.terms, terms, strict=True)), loss.evaluations)


def failed(workers: Workers, failure: Exception | None) -> str:
    """What the first worker to fail says, for all."""
    texts = workers.gathered("" if failure is None else " ".join(str(failure).split()) or "a failure without words")
    return next(text for text in texts if text)


def together(workers: Workers, make: Callable[[], Any]) -> Any:
    """What `make` gives; SolveError on all workers where it fails, by SolveError or ArithmeticError, on one."""
    if workers.size == 1:
        return make()
    made, failure = None, None
    try:
        made = make()
    except FAILURES as error:
        failure = error
    if float(workers.sum_(torch.tensor(float(failure is not None)))):
        raise SolveError(failed(workers, failure))
    return made
