"""How workers find each other, also beside what those left that were started before them.

torchrun keeps one store of addresses over its restarts, in which gloo would meet the addresses of the dead. So workers
first agree on a word that is new: the first one's, told only to those whose own new word it has read, and answered by
each. All addresses are then kept under that word.
"""

from __future__ import annotations

import json
import secrets
import time
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

JOINING = timedelta(minutes=10)
PAUSE = 0.02  # seconds between two looks
PLACE = "ffjord_kit"


def join() -> None:
    """Make the process group of all workers that torchrun's environment tells of, over gloo.

    Raises RuntimeError where they do not come together.
    """
    store, rank, size = next(rendezvous("env://", timeout=JOINING))
    word = agreed_word(store, rank, size, JOINING)
    dist.init_process_group("gloo", store=dist.PrefixStore(word, store), rank=rank, world_size=size, timeout=JOINING)


def agreed_word(store: dist.Store, rank: int, size: int, longest: timedelta) -> str:
    """A word that no earlier workers had, the same for all of these. Raises RuntimeError where one does not come."""
    own, until, others = secrets.token_hex(8), time.monotonic() + longest.total_seconds(), range(1, size)
    if rank:
        store.set(f"{PLACE}/own/{rank}", own)
    while time.monotonic() < until:
        if rank == 0:
            store.set(f"{PLACE}/word", json.dumps([own, *(_read(store, f"own/{r}") for r in others)]))
            if all(_read(store, f"answer/{r}") == own for r in others):
                return own
        else:
            word, *read = json.loads(_read(store, "word") or "[null]")
            if read[rank - 1 : rank] == [own]:
                store.set(f"{PLACE}/answer/{rank}", word)
                return word
        time.sleep(PAUSE)
    raise RuntimeError(f"not all {size} came within {longest.total_seconds():.0f} s")


def _read(store: dist.Store, name: str) -> str | None:
    key = f"{PLACE}/{name}"
    return store.get(key).decode() if store.check([key]) else None
