r"""Workers: the processes that `torchrun` starts, which make one fit together.

All do the same with the same numbers. What cannot be the same (clocks, files, the seed of an operating system, who was
asked to stop) is the first worker's, who tells the others, so that no decision is ever made twice. A batch is made in
parts (see `parts.py`), whose gradients are summed over workers.

What is told is JSON, and never unpickled. It goes through gloo, gradients on GPUs through NCCL. A worker that ends
takes its connections with it, so the others learn of it at once, in whatever they wait for.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ffjord_kit.runs import to_json
from ffjord_kit.training.joining import join

ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
STEP, WORK = timedelta(minutes=30), timedelta(days=1)  # the longest to wait: for the others, for the first one's work

T = TypeVar("T")


class WorkersError(RuntimeError):
    """Workers that were not given the same, or one that was lost; the text says which, and what to do."""


@dataclass(frozen=True)
class Workers:
    """This process among `size` of them, and its number on its machine; alone, every verb does nothing.

    Every verb waits for the others: all must call it. Raises WorkersError where one of them has ended.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def here(cls) -> Workers:
        """The workers that torchrun has started, joined once in a process; else this process alone."""
        workers = found()
        if workers.size > 1 and not dist.is_initialized():
            with workers._meeting():
                join()
                _group("gloo", STEP), _group("gloo", WORK)  # now, while all are here
            atexit.register(_leave)
        return workers

    @property
    def first(self) -> bool:
        """Whether it is the one that writes, prints and decides."""
        return self.rank == 0

    def own(self, values: Sequence[float]) -> tuple[float, ...]:
        """The numbers of the first worker, zeros on the others: their sum is what the first one says."""
        return tuple(value if self.first else 0.0 for value in values)

    def device(self, device: torch.device) -> torch.device:
        """The worker's own GPU where `cuda` is asked for. Raises WorkersError where there are fewer."""
        if self.size == 1 or device.type != "cuda" or device.index is not None:
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise WorkersError(
                f"worker {self.rank} has no GPU: torch finds {torch.cuda.device_count()} on this machine; start so "
                "many workers there (torchrun --nproc-per-node), or train on the CPU (--device cpu)"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Put the sum over workers in a tensor's place, and give it back; to the bit the same on all."""
        if self.size > 1:
            with self._meeting():
                dist.all_reduce(tensor, group=_group("nccl" if tensor.is_cuda else "gloo", STEP))
        return tensor

    @torch.no_grad()
    def copy_(self, tensors: Iterable[Tensor]) -> None:
        """Put the first worker's numbers in the place of everybody's."""
        for tensor in tensors if self.size > 1 else ():
            held = tensor.detach().to("cpu", copy=True).reshape(-1)
            self._tell(held.view(torch.uint8))
            tensor.copy_(held.reshape(tensor.shape))

    def told(self, make: Callable[[], T]) -> T:
        """What the first worker makes, for all: plain values as JSON knows them, lists for tuples.

        An error of its making is raised there, and as WorkersError on the others.
        """
        if self.size == 1:
            return make()
        value, error, text = None, None, ""
        if self.first:
            try:
                value = make()
                text = to_json({"value": value})
            except Exception as raised:
                error, text = raised, json.dumps({"error": " ".join(str(raised).split())})
        answer = json.loads(self._told_text(text))
        if error is not None:
            raise error
        if "error" in answer:
            raise WorkersError(f"worker {self.rank} of {self.size} ends, as the first one failed: {answer['error']}")
        return value if self.first else answer["value"]

    def only_first(self, make: Callable[[], T]) -> T | None:
        """What the first worker makes, for it alone; None on the others, who wait for it, and share its failure."""
        made: list[T] = []
        self.told(lambda: made.append(make()))
        return made[0] if made else None

    def given(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The first worker's tensors by name, for all; what the others pass is not looked at."""
        if self.size == 1:
            return dict(tensors or {})
        mine = {} if tensors is None or not self.first else tensors
        kinds = self.told(lambda: [(n, str(t.dtype).removeprefix("torch."), list(t.shape)) for n, t in mine.items()])
        held = dict(mine) or {name: torch.empty(shape, dtype=getattr(torch, kind)) for name, kind, shape in kinds}
        self.copy_(held.values())
        return held

    def gathered(self, text: str) -> list[str]:
        """Everybody's text, in the order of their ranks."""
        if self.size == 1:
            return [text]
        content = text.encode()
        lengths = self.sum_(torch.eye(self.size, dtype=torch.int64)[self.rank] * len(content)).tolist()
        held = torch.zeros(self.size, max(lengths), dtype=torch.uint8)
        held[self.rank, : len(content)] = torch.frombuffer(bytearray(content or b" "), dtype=torch.uint8)[
            : len(content)
        ]
        rows = self.sum_(held)
        return [bytes(row[:length].tolist()).decode() for row, length in zip(rows, lengths, strict=True)]

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Compare what all were given. Raises WorkersError on all of them, that names the first difference."""
        given = [json.loads(text) for text in self.gathered(json.dumps({k: str(v) for k, v in facts.items()}))]
        for rank, other in enumerate(given):
            odd = [name for name in {**given[0], **other} if given[0].get(name) != other.get(name)]
            if odd:
                mine, its = (_short(facts.get(odd[0])) for facts in (given[0], other))
                raise WorkersError(
                    f"worker {self.rank} of {self.size} ends, as workers 0 and {rank} were not given the same "
                    f"{odd[0]}: {mine}, and {its}; start all with the same data and options"
                )

    def _told_text(self, text: str) -> str:
        length = torch.tensor([len(text.encode())])
        self._tell(length)
        held = torch.zeros(int(length), dtype=torch.uint8)
        if self.first:
            held.copy_(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))
        self._tell(held)
        return bytes(held.tolist()).decode()

    def _tell(self, held: Tensor) -> None:
        """Everybody gets the first worker's numbers, for which there may be work to wait for."""
        if held.numel():
            with self._meeting():
                dist.broadcast(held, src=0, group=_group("gloo", WORK))

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        """Say in one line that a worker is lost."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            atexit.unregister(_leave)  # there is nobody left to take leave of
            reason = " ".join(str(error).split())[:160]
            raise WorkersError(
                f"worker {self.rank} of {self.size} lost another one, which has told why in its own output ({reason})"
            ) from error


def found() -> Workers:
    """The place that torchrun's environment gives this process; nothing is joined."""
    if not all(os.environ.get(name) for name in ENVIRONMENT):
        return Workers()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Workers(rank, size, int(os.environ.get("LOCAL_RANK", rank))) if size > 1 else Workers()


def started_again() -> bool:
    """Whether torchrun has started the workers anew, after one of them had ended."""
    return found().size > 1 and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def digest(tensors: Iterable[Tensor]) -> str:
    """A short name of the content of tensors: types, shapes and bytes."""
    held = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        held.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + bytes(flat.tolist()))
    return held.hexdigest()


@cache
def _group(backend: str, longest: timedelta) -> dist.ProcessGroup:
    return dist.new_group(backend=backend, timeout=longest)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _short(text: str | None) -> str:
    return repr(text if text is None or len(text) <= 60 else f"{text[:57]}...")
