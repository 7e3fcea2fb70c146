"""The command line, fit, sample, score, doctor and more; its options are the estimator's fields."""

from __future__ import annotations

import os
import sys
import warnings

import click

from ffjord_kit.cli.commands import INTERRUPTED, data, fit, info, sample
from ffjord_kit.cli.demo import demo
from ffjord_kit.cli.doctor import doctor
from ffjord_kit.cli.pictures import plot
from ffjord_kit.cli.score import score
from ffjord_kit.cli.straighten import straighten
from ffjord_kit.training.workers import found
from ffjord_kit.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """Fit a density to data, sample it, score it, and watch it flow."""


for command in (fit, sample, score, doctor, straighten, plot, info, data, demo):
    cli.add_command(command)


def main() -> None:
    """Run the command line; an error is one line on stderr and exit code 1 (2 for wrong usage, 130 for Ctrl-C)."""
    warnings.showwarning = _show_warning
    try:
        sys.exit(cli(standalone_mode=False))
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if os.environ.get("FFJORD_KIT_DEBUG"):
            raise
        click.echo(f"error: {_one_line(error)}", err=True)
        sys.exit(1)


def _one_line(error: Exception) -> str:
    """The message of an error; of one that nobody foresaw, its kind too and how to see more."""
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, RuntimeError, ImportError, OSError)):
        return text
    return f"{type(error).__name__}: {text} (unforeseen; set FFJORD_KIT_DEBUG=1 for the traceback)"


def _show_warning(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
    if found().first:
        click.echo(f"warning: {' '.join(str(message).split())}", err=True)
