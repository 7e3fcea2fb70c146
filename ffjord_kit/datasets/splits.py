"""Train and test splits and random subsets of rows, in the same way for tables and images.

A split is a part of one fixed permutation of the rows, whatever the seed: no seed moves a row from test to train.
"""

from __future__ import annotations

import numpy as np

SPLITS = ("train", "test")
STREAMS = {"train": 1, "test": 2, "noise": 3, "subset": 4}  # one stream of random numbers for each purpose
TRAIN_SHARE = 0.8
PERMUTATION_SEED = 0


def random_stream(seed: int, purpose: str) -> np.random.Generator:
    """Return the random numbers of a seed for one purpose.

    Args:
        seed: Seed, at least 0.
        purpose: A key of STREAMS; different purposes draw independent numbers.

    Returns:
        A new generator.
    """
    return np.random.default_rng([seed, STREAMS[purpose]])


def split_rows(count: int, split: str) -> np.ndarray:
    """Return the rows of a split of a table that has no splits of its own.

    Args:
        count: Number of rows of the table.
        split: "train", 80 per cent of the rows, or "test", the others.

    Returns:
        Indices of the rows, in the order of the fixed permutation.
    """
    order = np.random.default_rng(PERMUTATION_SEED).permutation(count)
    cut = int(TRAIN_SHARE * count)
    return order[:cut] if split == "train" else order[cut:]


def subset_rows(name: str, count: int, *, rows: int, seed: int) -> np.ndarray:
    """Draw a random subset of rows.

    Args:
        name: Name of the data set, for the message.
        count: Number of rows there are.
        rows: Number of rows to draw.
        seed: Seed of the draw.

    Returns:
        Indices of the rows, in increasing order.

    Raises:
        ValueError: If `rows` exceeds `count`.
    """
    if rows > count:
        raise ValueError(f"{name} has {count} rows; got rows={rows}")
    return np.sort(random_stream(seed, "subset").choice(count, size=rows, replace=False))


def check_numbers(*, rows: int | None, seed: int) -> None:
    """Check the numbers that `load` and `load_images` take.

    Args:
        rows: Number of rows, or None for all.
        seed: Seed of what is random.

    Raises:
        ValueError: If `rows` is below 1 or `seed` below 0.
    """
    if rows is not None and rows < 1:
        raise ValueError(f"rows must be at least 1; got {rows}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0; got {seed}")
