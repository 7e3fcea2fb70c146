"""Precision and compilation of the dynamics in training; states, log-determinants and weights keep their floats."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ffjord_kit.nn.base import evaluation_methods
from ffjord_kit.transforms.cnf import CNF
from ffjord_kit.words import COMPILE_MODES, PRECISIONS

Module = TypeVar("Module", bound=nn.Module)
Method = Callable[..., Any]


def check_precision(precision: str) -> None:
    """Check the word for a precision.

    Args:
        precision: Word of PRECISIONS.

    Raises:
        ValueError: If it is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")


def check_compile_mode(mode: str | None) -> None:
    """Check the mode of compilation.

    Args:
        mode: Word of COMPILE_MODES, or None.

    Raises:
        ValueError: If it is unknown.
    """
    if mode is not None and mode not in COMPILE_MODES:
        raise ValueError(f"compile must be one of {', '.join(COMPILE_MODES)}, or None; got {mode!r}")


def full_precision() -> AbstractContextManager[None]:
    """Compute float32 products with all their digits for a while.

    Convolutions on a GPU otherwise do not, and no stated error of a validation or a report would show the loss.

    Returns:
        A context manager.
    """
    return _matmul_precision(short=False)


@contextmanager
def reduced_precision(model: nn.Module, precision: str) -> Iterator[None]:
    """Compute the dynamics of all continuous transforms in other floats for a while.

    Their outputs keep the type of the state.

    Args:
        model: Flow, or any module that holds continuous transforms.
        precision: Word of PRECISIONS.

    Yields:
        Nothing.

    Raises:
        ValueError: If the word is unknown.
    """
    check_precision(precision)
    with _autocast(model) if precision == "bf16" else _matmul_precision(short=precision == "tf32"):
        yield


@contextmanager
def compiled(model: nn.Module, mode: str | None) -> Iterator[None]:
    """Compile the dynamics of all continuous transforms for a while; names of weights stay as they are.

    Args:
        model: Flow, or any module that holds continuous transforms.
        mode: Word of COMPILE_MODES; None to compile nothing.

    Yields:
        Nothing.

    Raises:
        ValueError: If the mode is unknown.
    """
    check_compile_mode(mode)
    fields = [] if mode is None else _fields(model)
    with _replaced_methods(fields, lambda method: torch.compile(method, mode=mode)):
        yield


def _fields(model: nn.Module) -> list[nn.Module]:
    """Return the dynamics of all continuous transforms, each once."""
    return list({id(m.dynamics): m.dynamics for m in model.modules() if isinstance(m, CNF)}.values())


@contextmanager
def _replaced_methods(fields: list[nn.Module], wrap: Callable[[Method], Method]) -> Iterator[None]:
    """Wrap the methods that evaluate fields for a while; methods that an instance had of its own come back."""
    before = [
        (field, {name: vars(field)[name] for name in evaluation_methods(field) if name in vars(field)})
        for field in fields
    ]
    try:
        for field in fields:
            for name in evaluation_methods(field):
                setattr(field, name, wrap(getattr(field, name)))
        yield
    finally:
        for field, own in before:
            for name in evaluation_methods(field):
                vars(field).pop(name, None)
            vars(field).update(own)


@contextmanager
def _matmul_precision(*, short: bool) -> Iterator[None]:
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if short else "highest")
    torch.backends.cudnn.allow_tf32 = short
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def _autocast(model: nn.Module) -> Iterator[None]:
    with _replaced_methods(_fields(model), _in_bf16):
        yield


def _in_bf16(function: Method) -> Method:
    """Evaluate a function (t, x, ...) in bf16, and give its outputs the type of x."""

    @wraps(function)
    def cast(t: Tensor, x: Tensor, *more: Tensor | None, **named: Tensor | None) -> Any:
        with torch.autocast(x.device.type, torch.bfloat16):
            result = function(t, x, *more, **named)
        return result.to(x.dtype) if isinstance(result, Tensor) else tuple(part.to(x.dtype) for part in result)

    return cast


def single_precision(module: Module) -> Module:
    """Return a copy of a module in float32; a flow's preprocessing stays in float64.

    Args:
        module: Module.

    Returns:
        The copy.
    """
    return copy.deepcopy(module).float()


def double_precision(module: Module) -> Module:
    """Return a copy of a module in float64 if its parameters are float32, or the module itself.

    Args:
        module: Module.

    Returns:
        The module.
    """
    single = any(value.dtype == torch.float32 for value in module.parameters())
    return copy.deepcopy(module).double() if single else module
