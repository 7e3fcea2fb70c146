"""Training data: preprocessed once, and drawn in an order that the seed and the step alone decide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from ffjord_kit.data import Batch, Rows
from ffjord_kit.flow import Flow
from ffjord_kit.noise import keyed_generator

CHECKED_ROWS = 1000  # of rows that are fetched batch by batch


class TrainingRows(ABC):
    """Rows from which batches are taken, as the model takes them."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the indices by which rows are taken."""

    @abstractmethod
    def take(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """Return some rows and their contexts.

        Args:
            rows: Indices, shape (batch,).
            generator: Source of the rows' noise, if they have any.

        Returns:
            The batch.
        """


@dataclass(frozen=True)
class TensorData(TrainingRows):
    """Rows in memory, as the model takes them.

    Args:
        batch: All rows, contexts and weights.
        log_det: Log-determinants of their preprocessing, shape (n,), nats; None if there was none.

    Example:
        >>> data = TensorData(Batch(torch.arange(4.0)[:, None]))
        >>> data.take(torch.tensor([3, 0]), torch.Generator()).x.flatten()
        tensor([3., 0.])
    """

    batch: Batch
    log_det: Tensor | None = None

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def device(self) -> torch.device:
        """Device of the rows."""
        return self.batch.x.device

    def take(self, rows: Tensor, generator: torch.Generator) -> Batch:
        return self.batch[rows]


@dataclass(frozen=True)
class StreamedData(TrainingRows):
    """Rows that are fetched and preprocessed batch by batch.

    `take` raises ValueError for a row that is not finite.

    Args:
        rows: Rows in the units of the data.
        context: Contexts, shape (n, context_dim), or None.
        flow: Flow whose preprocessing is applied.
        weight: Weights of the rows, shape (n,), or None.

    Example:
        >>> from ffjord_kit.data import Pixels
        >>> from ffjord_kit.transforms import Standardize
        >>> images = Pixels(torch.tensor([[[[90]]], [[[110]]]], dtype=torch.uint8))
        >>> data = StreamedData(images, None, Flow([], preprocess=[Standardize.of(images.fetch(slice(None)))]))
        >>> len(data), data.take(torch.tensor([1]), torch.Generator()).x.sign().item()  # the lighter one
        (2, 1.0)
    """

    rows: Rows
    context: Tensor | None
    flow: Flow
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def device(self) -> torch.device:
        """Device of the rows, the CPU."""
        return torch.device("cpu")

    def take(self, rows: Tensor, generator: torch.Generator) -> Batch:
        x = self.rows.fetch(rows, generator)
        check_finite(x)
        context, weight = (None if part is None else part[rows] for part in (self.context, self.weight))
        return preprocessed(self.flow, Batch(x, context, weight)).batch


def preprocessed(flow: Flow, batch: Batch) -> TensorData:
    """Preprocess rows in float64, and move them to the dtype and device of the flow's transforms.

    Args:
        flow: Flow.
        batch: Rows in the units of the data, contexts and weights.

    Returns:
        Rows, contexts and weights for `flow.inner`.
    """
    like = flow.like
    context = None if batch.context is None else batch.context.detach()
    x, log_det = flow.preprocess.to_base(batch.x.detach(), context)
    weight = None if batch.weight is None else batch.weight.to(like.device, like.dtype)
    scaled, noise = flow.preprocess.scale_context(context, like), _scaled_noise(flow, batch, x)
    return TensorData(Batch(x.to(like.device, like.dtype), scaled, weight, noise), log_det)


def _scaled_noise(flow: Flow, batch: Batch, x: Tensor) -> Tensor | None:
    """Return the deviations of measurement errors in preprocessed units, which scale each column by itself."""
    if batch.noise is None:
        return None
    moved, _ = flow.preprocess.to_base(batch.x.detach() + batch.noise, batch.context)
    return (moved - x).abs().to(flow.like.device, flow.like.dtype)


class Batches:
    """Draw batches of a fixed size without replacement within an epoch; batch s depends on (seed, s) alone.

    Args:
        data: Rows to draw from.
        size: Number of rows of a batch; at most all.
        seed: Seed of the order and of the rows' noise.
        prefetch: Whether a thread fetches the next batch while a GPU works on the present one.
    """

    def __init__(self, data: TrainingRows, size: int, seed: int, *, prefetch: bool = False) -> None:
        self.data, self.size, self.seed = data, min(size, len(data)), seed
        self.per_epoch = len(data) // self.size
        self.epoch, self.order = -1, torch.empty(0)
        self.thread = ThreadPoolExecutor(1) if prefetch else None
        self.lock, self.ready = Lock(), dict[tuple[int, int, int], Future[Batch]]()

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step."""
        return self.part(step, 0, 1)

    def part(self, step: int, j: int, count: int) -> Batch:
        """Return one of several equal parts of a batch.

        Args:
            step: Number of the step.
            j: Number of the part, from 0.
            count: Number of parts.

        Returns:
            The part, whose noise depends on (seed, step, j) alone.
        """
        if self.thread is None:
            return self._fetch(step, j, count)
        self.ready = {key: future for key, future in self.ready.items() if step <= key[0] <= step + 1}
        for number in (step, step + 1):
            if (number, j, count) not in self.ready:
                self.ready[number, j, count] = self.thread.submit(self._fetch, number, j, count)
        return self.ready[step, j, count].result()

    def _fetch(self, step: int, j: int, count: int) -> Batch:
        length = self.size // count
        start = (step % self.per_epoch) * self.size + j * length
        with self.lock:
            self._shuffle(step // self.per_epoch)
            rows = self.order[start : start + length]
        key: list[int | str] = [self.seed, "rows", step, *([j] if count > 1 else [])]
        return self.data.take(rows, keyed_generator(torch.device("cpu"), *key))

    def _shuffle(self, epoch: int) -> None:
        if epoch != self.epoch:
            generator = keyed_generator(torch.device("cpu"), self.seed, "order", epoch)
            dtype = torch.int32 if isinstance(self.data, StreamedData) else torch.int64  # half the memory of millions
            self.order = torch.randperm(len(self.data), generator=generator, dtype=dtype).to(self.data.device)
            self.epoch = epoch


def sample_rows(x: Tensor | Rows, context: Tensor | None) -> Batch:
    """Return the rows to check before training: all rows in memory, or the first rows of a source.

    Args:
        x: Rows, shape (n, *event), or their source.
        context: Contexts, shape (n, context_dim), or None.

    Returns:
        Rows and contexts.
    """
    if not isinstance(x, Rows):
        return Batch(x, context)
    first = slice(0, CHECKED_ROWS)
    return Batch(x.fetch(first), None if context is None else context[first])


def check_finite(x: Tensor) -> None:
    """Check that all rows are finite.

    Args:
        x: Rows, shape (n, *event).

    Raises:
        ValueError: If some are not; the message names the first.
    """
    bad = (~x.reshape(len(x), -1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"{len(bad)} of {len(x)} rows are NaN or infinite (first: {bad[:5]}): drop or mend them")
