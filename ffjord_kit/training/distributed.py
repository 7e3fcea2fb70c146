r"""Workers: the processes that `torchrun` starts, which make one fit together.

All workers do the same with the same numbers. Whatever can differ between them (clocks, files, the seed of an operating
system, a request to stop) is read by the first worker and broadcast, so that no decision is made twice. A batch is
computed in parts (see `micro_batches.py`), whose gradients are summed over workers.

Broadcast values are JSON, and never unpickled. They go through gloo, gradients on GPUs through NCCL. A worker that ends
closes its connections, so the others notice it at once, wherever they wait.

torchrun keeps one store of addresses over its restarts, in which gloo would find the addresses of dead workers. So
the workers first agree on a new prefix, under which all addresses are kept: the first worker proposes one, together
with the random words of the others that it has read, and each confirms it only if its own word of this start is among
them.
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

ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # variables that torchrun sets
STEP_TIMEOUT = timedelta(minutes=30)  # for the other workers' parts of a step
WORK_TIMEOUT = timedelta(days=1)  # for work that the first worker alone does
JOIN_TIMEOUT = timedelta(minutes=10)
POLL_INTERVAL = 0.02  # seconds between two reads of the store
STORE_PREFIX = "ffjord_kit"
COMPARED_ROWS = 16  # spread over the data

T = TypeVar("T")


class WorkersError(RuntimeError):
    """Signal workers whose data or options differ, or a lost worker; the message says which, and what to do."""


@dataclass(frozen=True)
class Workers:
    """This process among the workers of a fit; a single process neither waits nor communicates.

    The methods that communicate wait for the other workers, so all must call them; they raise WorkersError if a worker
    has ended.

    Args:
        rank: Number of this process, from 0.
        size: Number of processes.
        local_rank: Number of this process on its machine, from 0.

    Example:
        >>> Workers().broadcast(lambda: "alone")
        'alone'
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def here(cls) -> Workers:
        """Return the workers that torchrun has started, joined at the first call; else this process alone.

        Returns:
            The workers.

        Raises:
            WorkersError: If they cannot be joined.
        """
        workers = current_workers()
        if workers.size > 1 and not dist.is_initialized():
            with workers._explained():
                _join()
                _group("gloo", STEP_TIMEOUT), _group("gloo", WORK_TIMEOUT)  # all workers make the groups here
            atexit.register(_shut_down)
        return workers

    @property
    def is_first(self) -> bool:
        """Whether this is the first worker, which writes, prints and decides."""
        return self.rank == 0

    def first_only(self, values: Sequence[float]) -> tuple[float, ...]:
        """Return numbers on the first worker and zeros on the others, whose sum is the first worker's numbers.

        Args:
            values: Numbers of this worker.

        Returns:
            The numbers, or zeros.
        """
        return tuple(value if self.is_first else 0.0 for value in values)

    def device(self, device: torch.device) -> torch.device:
        """Return this worker's own GPU if `cuda` is requested, else the requested device.

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
            tensor: Tensor of the same shape on all workers.

        Returns:
            The tensor, bit for bit the same on all workers.
        """
        if self.size > 1:
            with self._explained():
                dist.all_reduce(tensor, group=_group("nccl" if tensor.is_cuda else "gloo", STEP_TIMEOUT))
        return tensor

    @torch.no_grad()
    def copy_from_first_(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first worker's tensors into the tensors of all workers, in place.

        Args:
            tensors: Tensors of the same shapes on all workers.
        """
        for tensor in tensors if self.size > 1 else ():
            buffer = tensor.detach().to("cpu", copy=True).reshape(-1)
            self._broadcast(buffer.view(torch.uint8))
            tensor.copy_(buffer.reshape(tensor.shape))

    def broadcast(self, make: Callable[[], T]) -> T:
        """Run a function on the first worker, and give its result to all.

        Args:
            make: Function of no arguments, whose result consists of plain values that JSON can hold; the other workers
                get lists for tuples.

        Returns:
            The first worker's result.

        Raises:
            WorkersError: On the other workers, if the function fails; the first one raises its own error.
        """
        if self.size == 1:
            return make()
        results: list[T] = []
        error, text = None, ""
        if self.is_first:
            try:
                results.append(make())
                text = to_json({"value": results[0]})
            except Exception as raised:
                error, text = raised, json.dumps({"error": " ".join(str(raised).split())})
        answer = json.loads(self._broadcast_text(text))
        if error is not None:
            raise error
        if "error" in answer:
            raise WorkersError(f"worker {self.rank} of {self.size} ends, as the first one failed: {answer['error']}")
        return results[0] if self.is_first else answer["value"]

    def run_on_first(self, make: Callable[[], T]) -> T | None:
        """Run a function on the first worker alone, while the others wait; all of them fail if it fails.

        Args:
            make: Function of no arguments.

        Returns:
            The result on the first worker, None on the others.
        """
        results: list[T] = []
        self.broadcast(lambda: results.append(make()))
        return results[0] if results else None

    def broadcast_tensors(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Give the first worker's tensors to all.

        Args:
            tensors: Tensors by name; ignored on the other workers.

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
        """Check that values are the same on all workers.

        Args:
            facts: Values by name, compared as text.

        Raises:
            WorkersError: On all workers, if a value differs; the message names the first difference.
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
        """Return the first worker's text on all workers."""
        length = torch.tensor([len(text.encode())])
        self._broadcast(length)
        buffer = torch.zeros(int(length), dtype=torch.uint8)
        if self.is_first:
            buffer.copy_(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))
        self._broadcast(buffer)
        return bytes(buffer.tolist()).decode()

    def _broadcast(self, buffer: Tensor) -> None:
        """Copy the first worker's bytes to all workers, after whatever work it has to do first."""
        if buffer.numel():
            with self._explained():
                dist.broadcast(buffer, src=0, group=_group("gloo", WORK_TIMEOUT))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error of communication into one line about a lost worker."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            atexit.unregister(_shut_down)  # it would wait for the lost worker
            reason = " ".join(str(error).split())[:160]
            raise WorkersError(
                f"worker {self.rank} of {self.size} lost another one, whose own output says why ({reason})"
            ) from error


def current_workers() -> Workers:
    """Return the workers that torchrun's environment describes, without joining them.

    Returns:
        The workers.
    """
    if not all(os.environ.get(name) for name in ENVIRONMENT):
        return Workers()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Workers(rank, size, int(os.environ.get("LOCAL_RANK", rank))) if size > 1 else Workers()


def restarted() -> bool:
    """Return whether torchrun has restarted the workers after one of them ended.

    Returns:
        True after a restart.
    """
    return current_workers().size > 1 and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def check_agreement(
    workers: Workers,
    model: nn.Module,
    rows: tuple[Tensor | Rows, Tensor | None, Tensor | None],
    held_out: Batch | None,
    schedule: Sequence[Phase],
    config: TrainConfig,
    *,
    resume: bool,
) -> None:
    """Check that data, schedule and options are the same on all workers, and give all the first worker's weights.

    The copy makes equal the weights that each worker drew for itself, and transforms that were fitted on machines with
    different rounding.

    Args:
        workers: Workers that share the fit.
        model: Model to train.
        rows: Rows, or their source, contexts and weights.
        held_out: Held-out rows, or None.
        schedule: Phases.
        config: Options of the fit.
        resume: Whether the fit continues from a checkpoint.

    Raises:
        WorkersError: On all workers, if something differs.
    """
    if workers.size == 1:
        return
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    workers.check_equal(
        {
            "schedule": ", ".join(_phase_text(phase) for phase in schedule),
            "batch_size": config.batch_size,
            "seed": config.seed,
            "micro_batches": config.micro_batches,
            "resume": resume,
            "number of rows": len(rows[0]),
            "number of held-out rows": 0 if held_out is None else len(held_out),
            "rows": digest(_some_rows(*rows)),
            "held-out rows": ""
            if held_out is None
            else digest(_some_rows(held_out.x, held_out.context, held_out.weight)),
            "network": shapes,
        }
    )
    workers.copy_from_first_(model.state_dict().values())


def _phase_text(phase: Phase) -> str:
    return f"{phase.objective.name}:{phase.steps}:{phase.seconds:g}s at {phase.learning_rate:g}"


def digest(tensors: Iterable[Tensor]) -> str:
    """Return a short hash of tensors: their types, shapes and bytes.

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
    """Agree on a prefix of the store that no earlier workers used.

    Args:
        store: torchrun's store.
        rank: Number of this process.
        size: Number of processes.
        timeout: Longest time to wait.

    Returns:
        The prefix, the same on all workers.

    Raises:
        RuntimeError: If a worker does not come in time.
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
    """Initialise the process group of all workers in torchrun's environment, over gloo."""
    store, rank, size = next(rendezvous("env://", timeout=JOIN_TIMEOUT))
    prefix = agree_on_prefix(store, rank, size, JOIN_TIMEOUT)
    dist.init_process_group(
        "gloo", store=dist.PrefixStore(prefix, store), rank=rank, world_size=size, timeout=JOIN_TIMEOUT
    )


def _read(store: dist.Store, name: str) -> str | None:
    key = f"{STORE_PREFIX}/{name}"
    return store.get(key).decode() if store.check([key]) else None


def _some_rows(x: Tensor | Rows, context: Tensor | None, weight: Tensor | None) -> Iterator[Tensor]:
    """Yield a few rows, spread over the data, with their contexts and weights."""
    some = torch.linspace(0, len(x) - 1, min(len(x), COMPARED_ROWS), dtype=torch.float64).long()
    yield x.fetch(some, keyed_generator(torch.device("cpu"), "agree")) if isinstance(x, Rows) else x[some]
    yield from (part[some] for part in (context, weight) if part is not None)


@cache
def _group(backend: str, timeout: timedelta) -> dist.ProcessGroup:
    return dist.new_group(backend=backend, timeout=timeout)


def _shut_down() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _shortened(text: str | None) -> str:
    return repr(text if text is None or len(text) <= 60 else f"{text[:57]}...")
