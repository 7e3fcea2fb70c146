"""Splits and random subsets of rows, the same for tables and images: no seed moves a row from test to train."""

from __future__ import annotations

import numpy as np

SPLITS = ("train", "test")
STREAMS = {"train": 1, "test": 2, "noise": 3, "subset": 4}  # of random numbers, so that no purpose shares another's
TRAIN_SHARE = 0.8
PERMUTATION_SEED = 0  # one for all


def random_stream(seed: int, purpose: str) -> np.random.Generator:
    """The random numbers of a seed for one of STREAMS."""
    return np.random.default_rng([seed, STREAMS[purpose]])


def split_rows(count: int, split: str) -> np.ndarray:
    """Which of `count` rows are in a split: 80 or 20 per cent of one fixed permutation."""
    order = np.random.default_rng(PERMUTATION_SEED).permutation(count)
    cut = int(TRAIN_SHARE * count)
    return order[:cut] if split == "train" else order[cut:]


def subset_rows(name: str, count: int, *, rows: int, seed: int) -> np.ndarray:
    """A random subset of `count` rows, in their order. Raises ValueError for more rows than there are."""
    if rows > count:
        raise ValueError(f"{name} has {count} rows; got rows={rows}")
    return np.sort(random_stream(seed, "subset").choice(count, size=rows, replace=False))


def check_numbers(*, rows: int | None, seed: int) -> None:
    """Raise ValueError unless rows >= 1, where given, and seed >= 0."""
    if rows is not None and rows < 1:
        raise ValueError(f"rows must be at least 1; got {rows}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0; got {seed}")
