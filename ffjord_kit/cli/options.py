"""Options of the command line, made from the estimators' fields so that every field is written once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, NamedTuple, TypeVar

import click
from click.shell_completion import CompletionItem

from ffjord_kit.estimator.fields import HEADINGS, ImageFields, TableFields
from ffjord_kit.models.fields import LatentODEFields
from ffjord_kit.run_folder import pretrained_runs
from ffjord_kit.words import PRIORS, RECOGNITIONS

C = TypeVar("C", bound=Callable[..., Any])

OUTPUT, IMAGES = "Output", "Image"
HELP_ORDER = (*HEADINGS[:1], IMAGES, *HEADINGS[1:], OUTPUT)
SHOWN_ON_TERMINALS = {"verbose": True}  # defaults that differ from Python's
# Forms and examples of fields whose values in Python are lists and mappings; `parsing` reads them.
TEXT_FORMS = {
    "schedule": ("PHASE:LENGTH,...", "flow_matching:4000,mle:60s"),
    "transforms": ("WORD:COUNT,...", "maf:3 or nsf:2,maf:2"),
    "regularizers": ("WORD:WEIGHT,...", "kinetic:0.01,jacobian:0.01"),
    "dequantize": ("auto|NAME,...", "age,score:0.5"),
    "support": ("WORD,...", "positive or real,bounded:0:1 or income=positive"),
    "columns": ("NAME=TYPE,...", "z=bounded:0:1,kids=integer,phi=circle:360,ra+dec=sphere:deg"),
    "missing": ("MARK,...", "-999,unknown"),
}


class RunPath(click.Path):
    """A run folder, or the word of a run that comes with the package; a shell completes both."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        words = [CompletionItem(word) for word in pretrained_runs() if incomplete and word.startswith(incomplete)]
        return words or super().shell_complete(ctx, param, incomplete)


class Widths(click.ParamType):
    """Comma-separated whole numbers."""

    name = "widths"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 128,128", param, ctx)


class Numbers(click.ParamType):
    """Comma-separated numbers."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 30,31.5", param, ctx)


class Count(click.IntRange):
    """A whole number in a range, which may be written as 1e6."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = float(value)
            exact = "e" in str(value).lower() and number.is_integer()
        except ValueError:
            exact = False
        return super().convert(int(number) if exact else value, param, ctx)


TYPES: dict[str, tuple[click.ParamType, str]] = {
    "int": (click.INT, "INT"),
    "float": (click.FLOAT, "FLOAT"),
    "tuple[int, ...]": (Widths(), "INT,..."),
}


class HeadedOption(click.Option):
    """An option that the help lists under a heading.

    Args:
        param_decls: Names of the option.
        heading: Heading in HELP_ORDER.
        attrs: Further arguments of `click.Option`.
    """

    def __init__(self, param_decls: list[str], *, heading: str, **attrs: Any) -> None:
        super().__init__(param_decls, **attrs)
        self.heading = heading


class HeadedCommand(click.Command):
    """A command whose help groups the options under headings, the main ones first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HELP_ORDER}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                groups[param.heading if isinstance(param, HeadedOption) else OUTPUT].append(record)
        for heading, records in groups.items():
            if records:
                with formatter.section(f"{heading} options"):
                    formatter.write_dl(records)


class FitField(NamedTuple):
    """A field of the estimators as an option of `fit`.

    Attributes:
        name: Name of the field.
        kind: Its annotation without None.
        default: Default value.
        text: Help.
        choices: Words that the value may be; none for any value.
        heading: Heading in HELP_ORDER.
    """

    name: str
    kind: str
    default: Any
    text: str
    choices: tuple[str, ...]
    heading: str


def fit_fields() -> list[FitField]:
    """Return the fields of both estimators; a field of both has the words of both.

    Returns:
        The fields: those of tables in their order, then those that only images have.
    """
    tables, images = ({field.name: field for field in fields(kind)} for kind in (TableFields, ImageFields))
    names = [*tables, *(name for name in images if name not in tables)]
    return [_merged(tables.get(name), images.get(name)) for name in names]


def field_options(function: C) -> C:
    """Declare an option for each field of the estimators.

    Args:
        function: The function of a `HeadedCommand`.

    Returns:
        The same function, with the options after those of the decorators above.
    """
    for field in reversed(fit_fields()):
        function = _option(field)(function)
    return function


SERIES_WORDS = {"recognition": RECOGNITIONS, "prior": PRIORS}


def series_field_options(function: C) -> C:
    """Declare an option for each field of a latent ODE.

    Args:
        function: The function of a command.

    Returns:
        The same function, with the options after those of the decorators above.
    """
    for each in reversed(fields(LatentODEFields)):
        kind = str(each.type).removesuffix(" | None")
        default = SHOWN_ON_TERMINALS.get(each.name, each.default)
        names = [flag(each.name), *(["--seed"] if each.name == "random_state" else []), each.name]
        text = f"{each.metadata['help'][0].upper()}{each.metadata['help'][1:]}."
        options: dict[str, Any] = {"default": default, "show_default": default is not None, "help": text}
        if kind == "bool":
            names = [f"{flag(each.name)}/--no-{flag(each.name)[2:]}", each.name]
        elif each.name in SERIES_WORDS:
            options["type"] = click.Choice(SERIES_WORDS[each.name])
        else:
            options["type"], options["metavar"] = TYPES[kind]
        function = click.option(*names, **options)(function)
    return function


def field_values(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those parameters of a command that are fields of an estimator.

    Args:
        kind: Estimator, or its class of fields.
        options: Parameters of the command by name.

    Returns:
        Values by field, as the command line gave them.
    """
    return {field.name: options[field.name] for field in fields(kind)}


def command_line_options(context: click.Context) -> list[str]:
    """Return the parameters that the command line names; all others have their defaults.

    Args:
        context: Context of the running command.

    Returns:
        Names of parameters.
    """
    source = click.core.ParameterSource.COMMANDLINE
    return [name for name in context.params if context.get_parameter_source(name) is source]


def flag(name: str) -> str:
    """Return the option of a parameter.

    Args:
        name: Name of the parameter.

    Returns:
        The option, e.g. "--batch-size".

    Example:
        >>> flag("batch_size")
        '--batch-size'
    """
    return "--" + name.replace("_", "-")


def headed(*names: str, heading: str, **options: Any) -> Callable[[C], C]:
    """Declare an option of a `HeadedCommand`.

    Args:
        names: Names of the option.
        heading: Heading in HELP_ORDER.
        options: Further arguments of `click.option`.

    Returns:
        The decorator.
    """
    return click.option(*names, cls=HeadedOption, heading=heading, **options)


def _merged(table: Field[Any] | None, image: Field[Any] | None) -> FitField:
    """Return the option for a field that one of the estimators has, or both."""
    both = [field for field in (table, image) if field is not None]
    first = both[0]
    choices = dict.fromkeys(word for field in both for word in field.metadata["choices"])
    heading = IMAGES if table is None else first.metadata["heading"]
    kind = str(first.type).removesuffix(" | None")
    return FitField(first.name, kind, _default(first), _help(table, image), tuple(choices), heading)


def _help(table: Field[Any] | None, image: Field[Any] | None) -> str:
    """Return the help of a field as a sentence, with an example of values that are written in a form of their own."""
    both = [field for field in (table, image) if field is not None]
    text = "; images: ".join(dict.fromkeys(field.metadata["help"] for field in both))
    if both[0].name in TEXT_FORMS:
        text = text.partition(", e.g.")[0]  # the example is written as the command line takes it
    example = f", e.g. {TEXT_FORMS[both[0].name][1]}" if both[0].name in TEXT_FORMS else ""
    first = text[0] if text.startswith("auto") else text[0].upper()  # a value is written as it is typed
    return f"{first}{text[1:]}{example}{' (tables)' if image is None else ''}."


def _default(field: Field[Any]) -> Any:
    default = None if field.default is MISSING else field.default
    return SHOWN_ON_TERMINALS.get(field.name, default)


def _option(field: FitField) -> Callable[[C], C]:
    """Declare the option of a field."""
    shown = field.default not in (None, "")
    options: dict[str, Any] = {"default": field.default, "show_default": shown, "help": field.text}
    if field.kind == "bool":
        names = [f"{flag(field.name)}/--no-{flag(field.name)[2:]}", field.name]
    else:
        names = [flag(field.name), *(["--seed"] if field.name == "random_state" else []), field.name]
        options.update(_value_options(field))
    return headed(*names, heading=field.heading, **options)


def _value_options(field: FitField) -> dict[str, Any]:
    """Return the type and the placeholder of an option that takes a value."""
    if field.choices:
        return {"type": click.Choice(field.choices)}
    if field.name in TEXT_FORMS:
        return {"type": click.STRING, "metavar": TEXT_FORMS[field.name][0]}
    kind, metavar = TYPES.get(field.kind, (click.STRING, "TEXT"))
    return {"type": kind, "metavar": metavar}
