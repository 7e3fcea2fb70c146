"""Noise from generators, never from torch's global state."""

from __future__ import annotations

import hashlib
from collections import Counter

import torch
from torch import Tensor


def fresh_generator() -> torch.Generator:
    """Return a generator that the operating system seeds; the global state stays as it is.

    Returns:
        A generator on the CPU.
    """
    generator = torch.Generator()
    generator.seed()
    return generator


def keyed_generator(device: torch.device, *key: int | str) -> torch.Generator:
    """Return a generator whose noise depends on a key alone, e.g. (seed, purpose, step).

    Args:
        device: Device of the noise; anything but CUDA draws on the CPU.
        *key: Parts of the key.

    Returns:
        The seeded generator.

    Example:
        >>> cpu = torch.device("cpu")
        >>> a, b = (torch.rand(2, generator=keyed_generator(cpu, 0, "probes", 7)) for _ in range(2))
        >>> bool((a == b).all())
        True
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    place = device if device.type == "cuda" else "cpu"
    return torch.Generator(place).manual_seed(int.from_bytes(digest, "little") >> 1)


def standard_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal noise on the generator's device.

    Args:
        shape: Shape of the noise.
        like: Tensor whose dtype and device the noise gets.
        generator: Generator; None for a fresh one.

    Returns:
        Noise of the given shape.
    """
    generator = generator or fresh_generator()
    return torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


def per_row_noise(x: Tensor, count: int, key: int | str = "") -> Tensor:
    """Draw uniform noise on [0, 1) that each row seeds by its values.

    A row that occurs again gets other noise each time, so that the errors of means over rows are what they seem.

    Args:
        x: Rows, shape (batch, *event).
        count: Draws for each row.
        key: Further part of the seed.

    Returns:
        Noise in float64 on the CPU, shape (count, batch, *event).
    """
    rows = x.detach().cpu().contiguous()
    flat, times = rows.reshape(len(rows), -1).view(torch.uint8), Counter[bytes]()
    noise = torch.empty(count, *x.shape, dtype=torch.float64)
    for i, row in enumerate(flat):
        digest = hashlib.blake2b(bytes(row.tolist()), digest_size=16).digest()
        name = f"{key}/{times[digest]}".encode() + digest
        times[digest] += 1
        seed = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1
        generator = torch.Generator().manual_seed(seed)
        noise[:, i] = torch.rand(count, *x.shape[1:], generator=generator, dtype=torch.float64)
    return noise
