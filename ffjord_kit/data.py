r"""Batches, the rows that they come from, and how many rows are computed at once.

Uniform dequantization of images with grey levels k of 0 .. L - 1 trains on k + u, u uniform on [0, 1), drawn anew for
every batch: then

    E_u[log p(k + u)] <= log P(k),    P(k) = the integral of p over [k, k + 1)      (Theis et al. 2016).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ffjord_kit.noise import per_row_noise

# Numbers of one hidden layer, for the rows computed at once and their tangents, that the caches of a CPU hold, 1 MiB:
# of 9 columns 200 rows at once take 0.9 of the time of 900, of 63 columns 32 take 0.9 of that of 130 (few exact steps),
# 0.8 on a busy machine, and of 5 and 7 columns some hundreds 0.7 of that of a thousand (continuous flow). Fewer than
# the least rows gain nothing.
CACHED, LEAST_SCORED = 2**18, 16
SCORED_ELEMENTS = {"mps": 131_072, "cuda": 1_048_576}  # of rows, which keep an accelerator busy
SCORED_PIXELS = {**SCORED_ELEMENTS, "cpu": 32_768}  # few probes
SAMPLED_ROWS = {"cpu": 4_096, "mps": 32_768, "cuda": 131_072}  # of a table, without tangents


@dataclass(frozen=True)
class Batch:
    """Rows, their contexts and their weights, which are sliced and moved together.

    Args:
        x: Rows, shape (batch, *event).
        context: Contexts, shape (batch, context_dim), or None.
        weight: Weights, of mean 1 over all rows, shape (batch,); None where each row counts alike.
        noise: Standard deviations of the rows' measurement errors, shape (batch, *event); None where they have none.

    Example:
        >>> batch = Batch(torch.arange(4.0)[:, None], torch.ones(4, 2))
        >>> len(batch[:3]), batch[:3].context.shape
        (3, torch.Size([3, 2]))
    """

    x: Tensor
    context: Tensor | None = None
    weight: Tensor | None = None
    noise: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        """Return some of the rows.

        Args:
            rows: A slice, indices or a mask.

        Returns:
            Their batch.
        """
        return self._mapped(lambda part: part[rows])

    def to(self, like: Tensor) -> Batch:
        """Return the batch in the dtype and on the device of a tensor.

        Args:
            like: Any tensor.

        Returns:
            The moved batch.
        """
        return self._mapped(lambda part: part.to(like))

    def repeat(self, times: int) -> Batch:
        """Return the batch several times over, one after another.

        Args:
            times: Number of repetitions.

        Returns:
            A batch of `times` as many rows.
        """
        return self._mapped(lambda part: torch.cat([part] * times))

    def split(self, rows: int) -> Iterator[Batch]:
        """Yield consecutive pieces.

        Args:
            rows: Rows of a piece; the last may have fewer.

        Yields:
            The pieces, in order.
        """
        for start in range(0, len(self), rows):
            yield self[start : start + rows]

    def with_x(self, x: Tensor) -> Batch:
        """Return other rows with the same contexts and weights.

        Args:
            x: Rows, shape (batch, *event).

        Returns:
            The new batch.
        """
        return replace(self, x=x)

    def joined(self, other: Batch) -> Batch:
        """Return the rows of this batch and of another, which has contexts and weights where this one has.

        Args:
            other: The other batch.

        Returns:
            A batch of both.
        """
        return Batch(*(_joined(*parts) for parts in zip(self._parts, other._parts, strict=True)))  # type: ignore[arg-type]

    def sized(self) -> Batch:
        """Return the rows with the sizes of their weights, of mean 1, as signed weights of a few rows may cancel.

        Returns:
            The batch.
        """
        sizes = None if self.weight is None else self.weight.abs() / self.weight.abs().mean()
        return replace(self, weight=sizes)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of the rows' values, 1/n sum w v; parts of a batch have the batch's mean on average.

        Args:
            values: Values, shape (batch,).

        Returns:
            The mean, shape ().
        """
        return values.mean() if self.weight is None else (self.weight.to(values) * values).mean()

    def size_mean(self, values: Tensor) -> Tensor:
        """Return the mean under the sizes of the weights, sum |w| v / sum |w|, for values to keep small everywhere.

        Args:
            values: Values, shape (batch,).

        Returns:
            The mean, shape ().
        """
        if self.weight is None:
            return values.mean()
        sizes = self.weight.abs().to(values)
        return (sizes * values).sum() / sizes.sum().clamp(min=torch.finfo(sizes.dtype).tiny)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return a batch of changed rows, contexts and weights."""
        return Batch(*(None if part is None else change(part) for part in self._parts))  # type: ignore[arg-type]

    @property
    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.x, self.context, self.weight, self.noise


def _joined(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else torch.cat([first, second])


class Rows(ABC):
    """Rows that are fetched, or made, batch by batch."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape (n, *event)."""

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def fetch(self, rows: Tensor | slice, generator: torch.Generator | None = None) -> Tensor:
        """Return some rows.

        Args:
            rows: Indices, or a slice.
            generator: Source of the rows' noise, if they have any; None for noise that does not change.

        Returns:
            Rows in float64, shape (batch, *event).
        """


@dataclass(frozen=True)
class StreamedRows(Rows):
    """Rows of a table that stays where it is, e.g. in a file; some may be left out.

    Args:
        table: The table, shape (m, *event), of any float type.
        left_out: Indices of the rows to leave out, ascending, shape (k,).

    Example:
        >>> rows = StreamedRows(torch.arange(4.0)[:, None], torch.tensor([1]))
        >>> rows.fetch(slice(None)).flatten().tolist()
        [0.0, 2.0, 3.0]
    """

    table: Tensor
    left_out: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (m - k, *event)."""
        return (len(self.table) - len(self.left_out), *self.table.shape[1:])

    def fetch(self, rows: Tensor | slice, generator: torch.Generator | None = None) -> Tensor:
        rows = torch.arange(len(self))[rows] if isinstance(rows, slice) else rows.long()
        gaps = self.left_out - torch.arange(len(self.left_out))  # a row after i left-out rows stands i further on
        return self.table[rows + torch.searchsorted(gaps, rows, right=True)].double()


@dataclass(frozen=True)
class Pixels(Rows):
    """Images of 8 bits as rows with uniform noise, drawn anew for each batch; they stay bytes in memory.

    Args:
        images: Images, uint8, shape (n, *event).
        bits: Bits of the grey levels, 1 to 8; fewer make them coarser.

    Raises:
        ValueError: If the images are not uint8, or the bits not 1 to 8.

    Example:
        >>> pixels = Pixels(torch.full((1, 1, 1, 1), 200, dtype=torch.uint8), bits=5)
        >>> pixels.level(slice(None)).item()
        25.0
    """

    images: Tensor
    bits: int = 8

    def __post_init__(self) -> None:
        if self.images.dtype is not torch.uint8:
            raise ValueError(f"images must be of type uint8, 0 to 255; got {self.images.dtype}")
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be 1 to 8; got {self.bits}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (n, *event)."""
        return tuple(self.images.shape)

    @property
    def levels(self) -> int:
        """Number L of grey levels."""
        return 2**self.bits

    def level(self, rows: Tensor | slice) -> Tensor:
        """Return grey levels of some images.

        Args:
            rows: Indices, or a slice.

        Returns:
            Whole numbers in float64, shape (batch, *event).
        """
        return (self.images[rows] >> (8 - self.bits)).double()

    def fetch(self, rows: Tensor | slice, generator: torch.Generator | None = None) -> Tensor:
        level = self.level(rows)
        if generator is None:
            return level + self.own_noise(rows)
        return level + torch.rand(level.shape, generator=generator, dtype=level.dtype).to(level.device)

    def own_noise(self, rows: Tensor | slice, draw: int = 0) -> Tensor:
        """Return uniform noise that each image seeds by its pixels.

        Args:
            rows: Indices, or a slice.
            draw: Number of the draw, which is part of the seed.

        Returns:
            Noise in float64, shape (batch, *event).
        """
        return per_row_noise(self.images[rows], 1, draw)[0].to(self.images.device)


@dataclass(frozen=True)
class Subset(Rows):
    """Some of other rows; images may be flipped left to right at random.

    Args:
        rows: The other rows.
        indices: Indices of those to take, shape (k,).
        flip: Whether each image is flipped with probability 1/2 where a generator is given.

    Example:
        >>> table = StreamedRows(torch.arange(4.0)[:, None], torch.tensor([], dtype=torch.long))
        >>> Subset(table, torch.tensor([3, 0])).fetch(slice(None)).flatten().tolist()
        [3.0, 0.0]
    """

    rows: Rows
    indices: Tensor
    flip: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (k, *event)."""
        return (len(self.indices), *self.rows.shape[1:])

    def fetch(self, rows: Tensor | slice, generator: torch.Generator | None = None) -> Tensor:
        x = self.rows.fetch(self.indices[rows], generator)
        if not self.flip or generator is None:
            return x
        turned = torch.rand(len(x), 1, 1, 1, generator=generator).to(x.device) < 0.5
        return torch.where(turned, x.flip(-1), x)


def scoring_batch_size(event: Sequence[int], device: str, width: int = 128) -> int:
    """Return the number of rows whose log-densities are computed at once.

    Args:
        event: Shape of an event.
        device: Type of the device, e.g. "cpu".
        width: Width of the hidden layers: on a CPU a row of a table has it once, and once for each tangent.

    Returns:
        Number of rows, at least 1.
    """
    size = max(1, math.prod(event))
    if len(event) == 1 and device == "cpu":
        return max(LEAST_SCORED, CACHED // ((1 + size) * max(1, width)))
    elements = SCORED_ELEMENTS if len(event) == 1 else SCORED_PIXELS
    return max(1, elements.get(device, elements["cuda"]) // size)


def sampling_batch_size(event: Sequence[int], device: str) -> int:
    """Return the number of rows that are drawn at once.

    Args:
        event: Shape of an event.
        device: Type of the device, e.g. "cpu".

    Returns:
        Number of rows, at least 1.
    """
    return SAMPLED_ROWS.get(device, SAMPLED_ROWS["cuda"]) if len(event) == 1 else scoring_batch_size(event, device)
