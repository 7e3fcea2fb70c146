"""The command line `ffjord-kit`: fit, sample, score, examine, draw and describe flows.

`commands` declares every command and its options with click alone; the code behind a command is imported when the
command runs, so that help and usage errors come at once.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
import warnings

import click

from ffjord_kit.cli.commands import cli
from ffjord_kit.memory import readable

INTERRUPTED = 130
PLAINLY = "ffjord_kit_plainly"  # name of the handler of characters that cannot be encoded

__all__ = ["INTERRUPTED", "cli", "main"]


def main() -> None:
    """Run the command line, and end the process.

    An error is one line on stderr. The exit code is 0 for success, 1 for an error, 2 for wrong usage, and 130 after
    Ctrl-C. The environment variable FFJORD_KIT_DEBUG=1 shows the traceback of an unexpected error.

    Raises:
        SystemExit: Always, with the exit code.
    """
    warnings.showwarning = _show_warning
    _write_plainly()
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
    """Return the message of an error; for an unexpected kind of error, also the kind and how to see more."""
    text = " ".join(str(error).split())
    wanted = re.search(r"tried to allocate (\d+) bytes", text)  # in the error of PyTorch, which says where it is raised
    if isinstance(error, MemoryError) or wanted:
        detail = f"for {readable(int(wanted[1]))} at once" if wanted else f"({text})"
        return f"not enough memory {detail}: ask for fewer or smaller things"
    if isinstance(error, (ValueError, RuntimeError, ImportError, OSError)):
        return text
    return f"{type(error).__name__}: {text} (unexpected; set FFJORD_KIT_DEBUG=1 for the traceback)"


def _write_plainly() -> None:
    """Let output that a terminal or file has no characters for be written in others, e.g. +- for ±."""
    codecs.register_error(PLAINLY, _in_plain_characters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PLAINLY)


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    """Return ASCII for the characters that could not be encoded, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].replace("±", "+-")
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


def _show_warning(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
    """Print a warning as one line; of several workers only the first one prints."""
    if "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0":
        click.echo(f"warning: {' '.join(str(message).split())}", err=True)
