"""Rows of results in a JSON file, merged one by one: a long benchmark is done in pieces, stopped and resumed."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ffjord_kit import atomic

KEY = ("benchmark", "set", "method", "budget", "seed", "device", "quantity", "setting")
Row = dict[str, Any]


class Store:
    """The rows of one file, or of none (they are then kept for the table alone); a row replaces one of its key."""

    def __init__(self, path: str | None) -> None:
        self.path = None if path is None else Path(path)
        self.here: list[Row] = []
        if self.path is not None and not self.path.parent.is_dir():
            raise ValueError(f"{self.path.parent}: no such folder to write {self.path.name} to; make it first")

    def rows(self) -> list[Row]:
        """Every row, in the order in which the keys first came."""
        return self.here if self.path is None else read(self.path)

    def has(self, **key: Any) -> bool:
        """Whether a row of that key is there."""
        return _key(key) in map(_key, self.rows())

    def add(self, row: Row) -> None:
        """Merge a row into the file, whatever another process has added meanwhile."""
        if self.path is None:
            self.here = _merged(self.here, row)
            return
        with _alone(self.path.parent):
            lines = ",\n".join(json.dumps(kept, allow_nan=False) for kept in _merged(read(self.path), row))
            atomic.write_text(self.path, f"[\n{lines}\n]\n")


def read(path: str | Path) -> list[Row]:
    """The rows of a file; none, where there is no file."""
    path = Path(path)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def _merged(rows: list[Row], row: Row) -> list[Row]:
    keys = [_key(old) for old in rows]
    if _key(row) not in keys:
        return [*rows, row]
    place = keys.index(_key(row))
    return [*rows[:place], row, *rows[place + 1 :]]


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in KEY)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
