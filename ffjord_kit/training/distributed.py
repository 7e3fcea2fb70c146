r"""Workers: the processes that `torchrun` starts, which make one fit together.

All do the same with the same numbers. What cannot be the same (clocks, files, the seed of an operating system, a request to
stop) is the first worker's, who broadcasts it, so that no decision is ever made twice. A batch is computed in parts (see
`micro_batches.py`), whose gradients are summed over workers.

Broadcast values are JSON, and never unpickled. They go through gloo, gradients on GPUs through NCCL. A worker that ends
closes its connections, so the others learn of it at once, wherever they wait.

torchrun keeps one store of addresses over its restarts, in which gloo would meet the addresses of dead workers. So workers
first agree on a prefix that is new: the first one's, given only to those whose own new prefix it has read, and confirmed by
each. All addresses are then kept under that prefix.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from ffjord_kit.data import Batch, Rows
from ffjord_kit.noise import keyed_generator
from ffjord_kit.run import to_json
from ffjord_kit.training.config import Phase, TrainConfig

ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
STEP_TIMEOUT, WORK_TIMEOUT = timedelta(minutes=30), timedelta(days=1)  # of the other workers, of the first one's work
JOIN_TIMEOUT = timedelta(minutes=10)
POLL_INTERVAL = 0.02  # seconds between two looks at the store
STORE_PREFIX = "ffjord_kit"
COMPARED_ROWS = 16  # spread over the data

T = TypeVar("T")


class WorkersError(RuntimeError):
    """Signal workers that were not given the same, or one that was lost; the message says which, and what to do."""


@dataclass(frozen=True)
class Workers:
    """This process among `size` of them; alone, every method does nothing.

    Every method waits for the others, so all must call it; it raises WorkersError where one of them has ended.

    Args:
        rank: Number of this process.
        size: Number of processes.
        local_rank: Number of this process on its machine.

    Example:
        >>> Workers().broadcast(lambda: "alone")
        'alone'
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def here(cls) -> Workers:
        """Return the workers that torchrun has started, joined once in a process; else this process alone.

        Returns:
            The workers.

        Raises:
            WorkersError: If they do not come together.
        """
        workers = current_workers()
        if workers.size > 1 and not dist.is_initialized():
            with workers._explained():
                _join()
                _group("gloo", STEP_TIMEOUT), _group("gloo", WORK_TIMEOUT)  # now, while all are here
            atexit.register(_shut_down)
        return workers

    @property
    def is_first(self) -> bool:
        """Whether this process writes, prints and decides."""
        return self.rank == 0

    def first_only(self, values: Sequence[float]) -> tuple[float, ...]:
        """Return the numbers of the first worker, zeros on the others: their sum is the first one's.

        Args:
            values: Numbers.

        Returns:
            The numbers, or zeros.
        """
        return tuple(value if self.is_first else 0.0 for value in values)

    def device(self, device: torch.device) -> torch.device:
        """Return this worker's own GPU where `cuda` is requested.

        Args:
            device: Requested device.

        Returns:
            The device.

        Raises:
            WorkersError: If this machine has fewer GPUs than workers.
        """
        if self.size == 1 or device.type != "cuda" or device.index is not None:
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise WorkersError(
                f"worker {self.rank} has no GPU: torch finds {torch.cuda.device_count()} on this machine; start as "
                "many workers there (torchrun --nproc-per-node), or train on the CPU (--device cpu)"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over workers, in place.

        Args:
            tensor: Tensor of the same shape on all.

        Returns:
            The tensor, to the bit the same on all.
        """
        if self.size > 1:
            with self._explained():
                dist.all_reduce(tensor, group=_group("nccl" if tensor.is_cuda else "gloo", STEP_TIMEOUT))
        return tensor

    @torch.no_grad()
    def copy_from_first_(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first worker's tensors into those of all.

        Args:
            tensors: Tensors of the same shapes on all.
        """
        for tensor in tensors if self.size > 1 else ():
            buffer = tensor.detach().to("cpu", copy=True).reshape(-1)
            self._broadcast(buffer.view(torch.uint8))
            tensor.copy_(buffer.reshape(tensor.shape))

    def broadcast(self, make: Callable[[], T]) -> T:
        """Run a function on the first worker, and give its result to all.

        Args:
            make: Function of no arguments; its result is made of plain values as JSON knows them, lists for tuples.

        Returns:
            The result.

        Raises:
            WorkersError: On the other workers, if the function fails; the first one raises its own error.
        """
        if self.size == 1:
            return make()
        value, error, text = None, None, ""
        if self.is_first:
            try:
                value = make()
                text = to_json({"value": value})
            except Exception as raised:
                error, text = raised, json.dumps({"error": " ".join(str(raised).split())})
        answer = json.loads(self._broadcast_text(text))
        if error is not None:
            raise error
        if "error" in answer:
            raise WorkersError(f"worker {self.rank} of {self.size} ends, as the first one failed: {answer['error']}")
        return value if self.is_first else answer["value"]

    def run_on_first(self, make: Callable[[], T]) -> T | None:
        """Run a function on the first worker alone; the others wait, and share its failure.

        Args:
            make: Function of no arguments.

        Returns:
            Its result on the first worker, None on the others.
        """
        results: list[T] = []
        self.broadcast(lambda: results.append(make()))
        return results[0] if results else None

    def broadcast_tensors(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Give the first worker's tensors to all.

        Args:
            tensors: Tensors by name; those of the other workers are ignored.

        Returns:
            The first worker's tensors.
        """
        if self.size == 1:
            return dict(tensors or {})
        own = {} if tensors is None or not self.is_first else tensors
        kinds = self.broadcast(
            lambda: [(n, str(t.dtype).removeprefix("torch."), list(t.shape)) for n, t in own.items()]
        )
        held = dict(own) or {name: torch.empty(shape, dtype=getattr(torch, kind)) for name, kind, shape in kinds}
        self.copy_from_first_(held.values())
        return held

    def all_gather(self, text: str) -> list[str]:
        """Return the texts of all workers.

        Args:
            text: This worker's text.

        Returns:
            Texts, in the order of the ranks.
        """
        if self.size == 1:
            return [text]
        content = text.encode()
        lengths = self.all_reduce_(torch.eye(self.size, dtype=torch.int64)[self.rank] * len(content)).tolist()
        buffer = torch.zeros(self.size, max(lengths), dtype=torch.uint8)
        own = torch.frombuffer(bytearray(content or b" "), dtype=torch.uint8)[: len(content)]
        buffer[self.rank, : len(content)] = own
        rows = self.all_reduce_(buffer)
        return [bytes(row[:length].tolist()).decode() for row, length in zip(rows, lengths, strict=True)]

    def check_equal(self, facts: Mapping[str, Any]) -> None:
        """Check that all workers were given the same.

        Args:
            facts: Values by name, compared as text.

        Raises:
            WorkersError: On all of them, if one differs; it names the first difference.
        """
        texts = self.all_gather(json.dumps({name: str(value) for name, value in facts.items()}))
        first, *others = (json.loads(text) for text in texts)
        for rank, other in enumerate(others, 1):
            odd = [name for name in {**first, **other} if first.get(name) != other.get(name)]
            if odd:
                mine, its = (_shortened(facts.get(odd[0])) for facts in (first, other))
                raise WorkersError(
                    f"worker {self.rank} of {self.size} ends, as workers 0 and {rank} were not given the same "
                    f"{odd[0]}: {mine}, and {its}; start all with the same data and options"
                )

    def _broadcast_text(self, text: str) -> str:
        length = torch.tensor([len(text.encode())])
        self._broadcast(length)
        buffer = torch.zeros(int(length), dtype=torch.uint8)
        if self.is_first:
            buffer.copy_(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))
        self._broadcast(buffer)
        return bytes(buffer.tolist()).decode()

    def _broadcast(self, buffer: Tensor) -> None:
        """Give everybody the first worker's bytes, for which there may be work to wait for."""
        if buffer.numel():
            with self._explained():
                dist.broadcast(buffer, src=0, group=_group("gloo", WORK_TIMEOUT))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in one line that a worker is lost."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            atexit.unregister(_shut_down)  # there is nobody left to take leave of
            reason = " ".join(str(error).split())[:160]
            raise WorkersError(
                f"worker {self.rank} of {self.size} lost another one, which has told why in its own output ({reason})"
            ) from error


def current_workers() -> Workers:
    """Return the place that torchrun's environment gives this process; nothing is joined.

    Returns:
        The workers.
    """
    if not all(os.environ.get(name) for name in ENVIRONMENT):
        return Workers()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Workers(rank, size, int(os.environ.get("LOCAL_RANK", rank))) if size > 1 else Workers()


def restarted() -> bool:
    """Say whether torchrun has started the workers again, after one of them had ended.

    Returns:
        True after a restart.
    """
    return current_workers().size > 1 and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def check_agreement(
    workers: Workers,
    model: nn.Module,
    rows: tuple[Tensor | Rows, Tensor | None],
    held_out: Batch | None,
    schedule: Sequence[Phase],
    config: TrainConfig,
    *,
    resume: bool,
) -> None:
    """Compare data, schedule and options of all workers, and give all of them the first one's weights.

    Weights that each draws for itself become one, and so do transforms fitted on machines that round differently.

    Args:
        workers: The workers.
        model: Model to train.
        rows: Rows, or their source, and contexts.
        held_out: Held-out rows, or None.
        schedule: Phases.
        config: Options of the fit.
        resume: Whether the fit goes on.

    Raises:
        WorkersError: On all of them, if something differs.
    """
    if workers.size == 1:
        return
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    workers.check_equal(
        {
            "schedule": ", ".join(f"{p.objective.name}:{p.steps}:{p.seconds:g}s at {p.learning_rate:g}" for p in schedule),
            "batch_size": config.batch_size,
            "seed": config.seed,
            "micro_batches": config.micro_batches,
            "resume": resume,
            "number of rows": len(rows[0]),
            "number of held-out rows": 0 if held_out is None else len(held_out),
            "rows": digest(_some_rows(*rows)),
            "held-out rows": "" if held_out is None else digest(_some_rows(held_out.x, held_out.context)),
            "network": shapes,
        }
    )
    workers.copy_from_first_(model.state_dict().values())


def digest(tensors: Iterable[Tensor]) -> str:
    """Return a short name of the content of tensors: types, shapes and bytes.

    Args:
        tensors: Tensors.

    Returns:
        Hexadecimal digits.
    """
    held = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        held.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + bytes(flat.tolist()))
    return held.hexdigest()


def agree_on_prefix(store: dist.Store, rank: int, size: int, timeout: timedelta) -> str:
    """Agree on a prefix that no earlier workers had.

    Args:
        store: torchrun's store.
        rank: Number of this process.
        size: Number of processes.
        timeout: Longest time to wait.

    Returns:
        The prefix, the same on all.

    Raises:
        RuntimeError: If a worker does not come.
    """
    own, until, others = secrets.token_hex(8), time.monotonic() + timeout.total_seconds(), range(1, size)
    if rank:
        store.set(f"{STORE_PREFIX}/own/{rank}", own)
    while time.monotonic() < until:
        if rank == 0:
            store.set(f"{STORE_PREFIX}/prefix", json.dumps([own, *(_read(store, f"own/{r}") for r in others)]))
            if all(_read(store, f"answer/{r}") == own for r in others):
                return own
        else:
            prefix, *seen = json.loads(_read(store, "prefix") or "[null]")
            if seen[rank - 1 : rank] == [own]:
                store.set(f"{STORE_PREFIX}/answer/{rank}", prefix)
                return prefix
        time.sleep(POLL_INTERVAL)
    raise RuntimeError(f"not all {size} came within {timeout.total_seconds():.0f} s")


def _join() -> None:
    """Make the process group of all workers in torchrun's environment, over gloo."""
    store, rank, size = next(rendezvous("env://", timeout=JOIN_TIMEOUT))
    prefix = agree_on_prefix(store, rank, size, JOIN_TIMEOUT)
    dist.init_process_group(
        "gloo", store=dist.PrefixStore(prefix, store), rank=rank, world_size=size, timeout=JOIN_TIMEOUT
    )


def _read(store: dist.Store, name: str) -> str | None:
    key = f"{STORE_PREFIX}/{name}"
    return store.get(key).decode() if store.check([key]) else None


def _some_rows(x: Tensor | Rows, context: Tensor | None) -> Iterator[Tensor]:
    """Yield a few rows and their contexts."""
    some = torch.linspace(0, len(x) - 1, min(len(x), COMPARED_ROWS), dtype=torch.float64).long()
    yield x.fetch(some, keyed_generator(torch.device("cpu"), "agree")) if isinstance(x, Rows) else x[some]
    if context is not None:
        yield context[some]


@cache
def _group(backend: str, timeout: timedelta) -> dist.ProcessGroup:
    return dist.new_group(backend=backend, timeout=timeout)


def _shut_down() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _shortened(text: str | None) -> str:
    return repr(text if text is None or len(text) <= 60 else f"{text[:57]}...")
