"""The floats of the network while it is trained; state, log-determinants, weights and reports stay what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ffjord_kit.cnf import CNF
from ffjord_kit.flow import Flow
from ffjord_kit.trace import ways_in

# tf32: products of 10 bits of fraction on a GPU's tensor cores; bf16: all of the network in numbers of 7 bits.
PRECISIONS = ("float32", "tf32", "bf16")


def check_precision(word: str) -> None:
    """Raise ValueError for an unknown word."""
    if word not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {word!r}")


@contextmanager
def precise(flow: Flow, word: str) -> Iterator[None]:
    """Compute the dynamics of all continuous layers in other floats for a while, and leave nothing behind.

    What they give has the type of the state that they are given. Raises ValueError for an unknown word.
    """
    check_precision(word)
    if word == "bf16":
        with _autocast(flow):
            yield
        return
    with _products(short=word == "tf32"):
        yield


def all_digits() -> AbstractContextManager[None]:
    """Compute products of float32 with all their digits for a while, which convolutions on a GPU else do not.

    Validations and reports are made so: no error that is stated would tell of it.
    """
    return _products(short=False)


@contextmanager
def _products(*, short: bool) -> Iterator[None]:
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if short else "highest")
    torch.backends.cudnn.allow_tf32 = short
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def _autocast(flow: Flow) -> Iterator[None]:
    fields = {id(layer.dynamics): layer.dynamics for layer in flow.layers if isinstance(layer, CNF)}.values()
    before = [(field, {name: vars(field)[name] for name in ways_in(field) if name in vars(field)}) for field in fields]
    try:
        for field in fields:
            for name in ways_in(field):
                setattr(field, name, _in_bf16(getattr(field, name)))
        yield
    finally:
        for field, own in before:  # of the instance: what compilation put there
            for name in ways_in(field):
                vars(field).pop(name, None)
            vars(field).update(own)


def _in_bf16(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function (t, x, ...) in bf16, its outputs in the type of x."""

    @wraps(function)
    def cast(t: Tensor, x: Tensor, *more: Tensor | None, **named: Tensor | None) -> Any:
        with torch.autocast(x.device.type, torch.bfloat16):
            found = function(t, x, *more, **named)
        return found.to(x.dtype) if isinstance(found, Tensor) else tuple(part.to(x.dtype) for part in found)

    return cast
