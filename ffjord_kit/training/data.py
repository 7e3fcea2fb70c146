r"""The data of a training run: prepared once, and drawn in an order that the seed and the step alone decide."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from threading import Lock

import torch
from torch import Tensor

from ffjord_kit.cnf import CNF
from ffjord_kit.flow import Flow
from ffjord_kit.layers import Layer

LOOKED_AT = 1000  # rows


@dataclass(frozen=True)
class Data:
    """Rows as the first continuous layer sees them, and the log-determinants of the way there, (n,)."""

    x: Tensor
    context: Tensor | None
    log_det: Tensor

    def __len__(self) -> int:
        return len(self.x)

    @property
    def device(self) -> torch.device:
        """Where rows are taken from."""
        return self.x.device

    def take(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Some rows and their contexts, without noise."""
        return self.x[rows], None if self.context is None else self.context[rows]


class Rows(ABC):
    """Rows (n, *event) that are not there all at once: they are fetched, or made, batch by batch."""

    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def fetch(self, rows: Tensor | slice, generator: torch.Generator | None = None) -> Tensor:
        """Some of them, (batch, *event), in float64; their noise, if they have any, comes from the generator."""


@dataclass(frozen=True)
class Streamed(Rows):
    """Rows of a table that stay where they are, as in a file, and are fetched as they are needed.

    They are all but those `left_out` (k,), whose numbers ascend. Shapes: table (m, *event), of any float type.
    """

    table: Tensor
    left_out: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(m - k, *event)."""
        return (len(self.table) - len(self.left_out), *self.table.shape[1:])

    def fetch(self, rows: Tensor | slice, generator: torch.Generator | None = None) -> Tensor:
        rows = torch.arange(len(self))[rows] if isinstance(rows, slice) else rows.long()
        gaps = self.left_out - torch.arange(len(self.left_out))  # a row after i that are left out stands i further on
        return self.table[rows + torch.searchsorted(gaps, rows, right=True)].double()


@dataclass(frozen=True)
class FetchedData:
    """The same as `Data` of rows that are not there all at once: each batch is prepared when its turn comes."""

    rows: Rows
    context: Tensor | None
    fixed: Fixed
    like: Tensor
    device: torch.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Some rows and their contexts. Raises ValueError where they are not finite."""
        x = self.rows.fetch(rows, generator)
        refuse_not_finite(x)
        prepared = self.fixed.prepare(x, None if self.context is None else self.context[rows], self.like)
        return prepared.x, prepared.context


def noise_generator(device: torch.device, *key: int | str) -> torch.Generator:
    """A generator that depends on the key alone: (seed, purpose, step)."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    place = device if device.type == "cuda" else "cpu"
    return torch.Generator(place).manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True)
class Fixed:
    """The parts of a flow that come first and have nothing to learn: leading exact layers, and the context's own."""

    layers: list[Layer]
    context_layer: Layer | None

    def prepare(self, x: Tensor, context: Tensor | None, like: Tensor) -> Data:
        """Rows through these layers in float64 on the CPU, then in the dtype and on the device of `like`."""
        x, log_det = self.to_base(x.detach())
        return Data(x.to(like), self.scaled(context, like), log_det)

    def to_base(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows x (n, *event) through these layers, and log|det|, (n,), in float64 on the CPU; gradients go through."""
        x, log_det = x.cpu().double(), torch.zeros(len(x), dtype=torch.float64)
        for layer in self.layers:
            x, step = _exactly(layer).to_base(x)
            log_det = log_det + step
        return x, log_det

    def feed(self, x: Tensor | Rows, context: Tensor | None, like: Tensor) -> Data | FetchedData:
        """Rows for batches: prepared at once, or, if they are not all there, batch by batch."""
        if isinstance(x, Rows):
            return FetchedData(x, context, self, like)
        return self.prepare(x, context, like)

    def restore(self, x: Tensor) -> Tensor:
        """Rows x (n, *event) back from where they were prepared for, in float64 on the CPU."""
        x = x.detach().cpu().double()
        for layer in reversed(self.layers):
            x, _ = _exactly(layer).to_data(x)
        return x

    def scaled(self, context: Tensor | None, like: Tensor) -> Tensor | None:
        """Contexts (n, context_dim) as the layers see them, in the dtype and on the device of `like`."""
        if context is None:
            return None
        context = context.detach().cpu().double()
        scaled = context if self.context_layer is None else _exactly(self.context_layer).to_base(context)[0]
        return scaled.to(like)


def peel(flow: Flow) -> tuple[Fixed, Flow]:
    """What comes first and has nothing to learn, and the flow that remains; all are shared, not copied."""
    layers = list(takewhile(lambda layer: not (isinstance(layer, CNF) or list(layer.parameters())), flow.layers))
    learns = flow.context_layer is not None and bool(list(flow.context_layer.parameters()))
    rest = Flow(
        list(flow.layers)[len(layers) :],
        base=flow.base,
        context_dim=flow.context_dim,
        context_layer=flow.context_layer if learns else None,
    )
    return Fixed(layers, None if learns else flow.context_layer), rest


def _exactly(layer: Layer) -> Layer:
    return copy.deepcopy(layer).cpu().double()


class Batches:
    """Batches of a fixed size, without replacement within an epoch; batch number s depends on (seed, s) alone.

    With `ahead` a thread fetches the next one meanwhile, as a GPU that works leaves the CPU the time for it.
    """

    def __init__(self, data: Data | FetchedData, size: int, seed: int, *, ahead: bool = False) -> None:
        self.data, self.size, self.seed = data, min(size, len(data)), seed
        self.per_epoch = len(data) // self.size
        self.epoch, self.order = -1, torch.empty(0)
        self.thread = ThreadPoolExecutor(1) if ahead else None
        self.lock, self.ready = Lock(), {}

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor | None]:
        return self.part(step, 0, 1)

    def part(self, step: int, j: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Part j of so many equal ones of batch number `step`; what comes with a part's rows has noise of its own."""
        if self.thread is None:
            return self._made(step, j, count)
        self.ready = {key: made for key, made in self.ready.items() if step <= key[0] <= step + 1}
        for when in (step, step + 1):
            if (when, j, count) not in self.ready:
                self.ready[when, j, count] = self.thread.submit(self._made, when, j, count)
        return self.ready[step, j, count].result()

    def _made(self, step: int, j: int, count: int) -> tuple[Tensor, Tensor | None]:
        length = self.size // count
        start = (step % self.per_epoch) * self.size + j * length
        with self.lock:
            self._shuffle(step // self.per_epoch)
            rows = self.order[start : start + length]
        key = (self.seed, "rows", step, *([j] if count > 1 else []))
        return self.data.take(rows, noise_generator(torch.device("cpu"), *key))

    def _shuffle(self, epoch: int) -> None:
        if epoch != self.epoch:
            generator = noise_generator(torch.device("cpu"), self.seed, "order", epoch)
            kind = torch.int32 if isinstance(self.data, FetchedData) else torch.int64  # half the memory of millions
            order = torch.randperm(len(self.data), generator=generator, dtype=kind)
            self.order = order.to(self.data.device)
            self.epoch = epoch


def looked_at(x: Tensor | Rows, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What is checked before training: all rows, or the first of those that are not all there."""
    if not isinstance(x, Rows):
        return x, context
    first = slice(0, LOOKED_AT)
    return x.fetch(first), None if context is None else context[first]


def refuse_not_finite(x: Tensor) -> None:
    """Raise ValueError naming the first rows of x (n, *event) that are NaN or infinite."""
    bad = (~x.reshape(len(x), -1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"{len(bad)} of {len(x)} rows are NaN or infinite (first: {bad[:5]}): drop or mend them")
