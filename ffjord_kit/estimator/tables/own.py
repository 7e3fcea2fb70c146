"""Networks and bases of a user's own, passed as objects: what they must be, and how a run names them.

A network is a class or function with the signature of the menu DYNAMICS, (event_shape, *, context_dim, hidden), or a
module f(t, x, context), which is copied. A base is a subclass of `Base`, or an instance of one or of
`torch.distributions`, which is copied too. A run holds the import path alone: nothing in a run folder is ever imported,
so whoever loads it passes the object.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ffjord_kit.distributions import BASES, Base, as_base
from ffjord_kit.estimator.fields import choice

OWN = ("dynamics", "base")  # fields that take objects
PATH, DENSITY = "import_path", "log_prob"  # keys of an entry of config.json that names one


def is_own(value: Any) -> bool:
    """Return whether the value of a field is an object, and no word of a menu.

    Args:
        value: Value of the field `dynamics` or `base`.

    Returns:
        True for an object.
    """
    return not isinstance(value, str) and value is not None


def named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of fields with import paths in the place of objects, as config.json holds them.

    Args:
        values: Values by name.

    Returns:
        The values.
    """
    return {**values, **{name: _entry(value) for name, value in own_of(values).items()}}


def with_objects(fields: Any, given: Mapping[str, Any], source: str) -> Any:
    """Return fields of a run with objects in the place of their import paths.

    Args:
        fields: Fields as a run holds them.
        given: Objects by field.
        source: The run, for messages.

    Returns:
        The fields.

    Raises:
        ValueError: If an object is lacking, or the run needs none of it.
    """
    entries = {name: getattr(fields, name) for name in OWN if _is_entry(getattr(fields, name, None))}
    given = {name: value for name, value in given.items() if value is not None}
    for name in (name for name in given if name not in entries):
        raise ValueError(f"{source} was not fitted with {name} of your own: leave {name}= out")
    for name, entry in entries.items():
        if name not in given:
            raise ValueError(
                f"{source} was fitted with {name} of your own, {entry[PATH]}, and loading never imports code: pass it "
                f"in Python, FFJORD.load(RUN, {name}=...)"
            )
        if not _alike(_entry(given[name]), entry):
            raise ValueError(f"{source} was fitted with {name} {_told(entry)}; got {_told(_entry(given[name]))}")
    return replace(fields, **given)


def network_maker(dynamics: Any) -> Callable[..., nn.Module]:
    """Return a maker of networks from a user's own.

    Args:
        dynamics: A class, a function or a module.

    Returns:
        Function of an event's shape, `context_dim` and `hidden`.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(dynamics, nn.Module):
        return lambda event_shape, **_: copy.deepcopy(dynamics).float().requires_grad_(True)
    if not callable(dynamics):
        raise ValueError(f"dynamics must be a word of the menu, a class, a function or a module; got {dynamics!r}")

    def make(event_shape: Sequence[int], **options: Any) -> nn.Module:
        try:
            inspect.signature(dynamics).bind(event_shape, **options)
        except TypeError as error:
            names = "".join(f", {name}=" for name in options)
            raise ValueError(f"dynamics must take (event_shape{names}); {_path(dynamics)} does not: {error}") from error
        network = dynamics(event_shape, **options)
        if not isinstance(network, nn.Module):
            raise ValueError(f"dynamics must make a torch module; {_path(dynamics)} made {type(network).__name__}")
        return network

    return make


def base_makers(base: Any) -> tuple[Callable[..., Base], Callable[[Sequence[int]], Base]]:
    """Return the two makers of a base, fitted to rows and blank, from a word of BASES or a user's own.

    Args:
        base: Word, subclass or instance of `Base`, or a distribution.

    Returns:
        The makers, as BASES has them.

    Raises:
        ValueError: If it is none of these.
    """
    if not is_own(base):
        return choice("base", base, BASES)
    if isinstance(base, type) and issubclass(base, Base):
        fitted = getattr(base, "of", None) or (lambda z, weight=None: base(z.shape[1:]))
        return fitted, base
    if not isinstance(base, Base | Distribution):
        raise ValueError(f"base must be a word of the menu, a Base or a torch distribution; got {base!r}")
    own = as_base(copy.deepcopy(base))

    def blank(event_shape: Sequence[int]) -> Base:
        if own.event_shape != tuple(event_shape):
            raise ValueError(f"base must have events of shape {tuple(event_shape)}; got {own.event_shape}")
        return copy.deepcopy(own)

    def fitted_to(z: Tensor, weight: Tensor | None = None) -> Base:
        return blank(z.shape[1:])

    return fitted_to, blank


def own_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the objects among the values of fields.

    Args:
        values: Values by name.

    Returns:
        Objects by field.
    """
    own = {name: values[name] for name in OWN if name in values}
    return {name: value for name, value in own.items() if is_own(value) and not isinstance(value, Mapping)}


def _is_entry(value: Any) -> bool:
    """Return whether a value of config.json names an object."""
    return isinstance(value, Mapping) and isinstance(value.get(PATH), str)


def _entry(value: Any) -> dict[str, Any]:
    """Return what config.json says of an object; of a distribution also a density, as no weights hold it."""
    if not isinstance(value, Distribution):
        return {PATH: _path(value)}
    base = as_base(value)
    at = base.log_prob(torch.full((1, *base.event_shape), 0.5))
    return {PATH: _path(value), DENSITY: round(float(at), 5)}


def _alike(entry: Mapping[str, Any], recorded: Mapping[str, Any]) -> bool:
    """Say whether an object may be the recorded one: of the same name, in any module, and of the same density."""
    names = [each[PATH].rpartition(".")[2] for each in (entry, recorded)]
    return names[0] == names[1] and entry.get(DENSITY) == recorded.get(DENSITY)


def _told(entry: Mapping[str, Any]) -> str:
    """Return an entry in words."""
    density = f" (log-density {entry[DENSITY]:g} where all elements are 1/2)" if DENSITY in entry else ""
    return f"{entry[PATH]}{density}"


def _path(value: Any) -> str:
    """Return where an object's class, or a class or function itself, can be imported from."""
    kind = value if isinstance(value, type) or inspect.isroutine(value) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
