"""Options made from the estimator's fields, so that a field is written once, and what commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ffjord_kit.estimator import FFJORD

Command = Callable[..., Any]
PLAIN = Console(markup=False, highlight=False)  # a column's name may look like markup


class Widths(click.ParamType):
    """Comma-separated whole numbers."""

    name = "widths"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers like 128,128", param, ctx)


KINDS: dict[str, Any] = {"str": click.STRING, "int": click.INT, "float": click.FLOAT, "tuple[int, ...]": Widths()}
ON_A_TERMINAL = {"verbose": True}


def field_options(command: Command) -> Command:
    """Give a command an option for each field of FFJORD."""
    for f in reversed(fields(FFJORD)):
        command = _option(f)(command)
    return command


def chosen_fields(values: dict[str, Any]) -> dict[str, Any]:
    """The part of a command's parameters that are fields of FFJORD."""
    return {f.name: values[f.name] for f in fields(FFJORD)}


def was_given(context: click.Context) -> list[str]:
    """The names of the command's parameters that were given on the command line."""
    source = click.core.ParameterSource.COMMANDLINE
    return [name for name in context.params if context.get_parameter_source(name) is source]


def check_free(path: str, force: bool) -> None:
    """Raise ValueError for a file that is there and may not be replaced."""
    if Path(path).exists() and not force:
        raise ValueError(f"{path} exists: choose another name, or pass --force")


def _option(f: Field) -> Callable[[Command], Command]:
    flag = "--" + f.name.replace("_", "-")
    default = ON_A_TERMINAL.get(f.name, None if f.default is MISSING else f.default)
    shown = {"default": default, "show_default": default not in (None, ""), "help": f.metadata["help"]}
    if f.type == "bool":
        return click.option(f"{flag}/--no-{flag[2:]}", f.name, **shown)
    kind = KINDS[f.type.removesuffix(" | None")]
    if f.metadata["choices"]:
        kind = click.Choice(f.metadata["choices"])
    names = (flag, "--seed") if f.name == "random_state" else (flag,)
    return click.option(*names, f.name, type=kind, metavar=_metavar(f), **shown)


def _metavar(f: Field) -> str | None:
    return None if f.metadata["choices"] else f.type.removesuffix(" | None").split("[")[0].upper()
