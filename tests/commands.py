"""Run the command line in the process of a test."""

import sys

import pytest

from ffjord_kit.cli import main


def call(capsys, *argv):
    """Run a command as main() does; its exit code, its output, and its errors without what was found in files."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["ffjord-kit", *map(str, argv)])
        main()
    shown = capsys.readouterr()
    return ended.value.code or 0, shown.out, "".join(complaints(shown.err))


def complaints(errors):
    """Return the lines of errors that do not tell what was found in a file."""
    return [line for line in errors.splitlines(keepends=True) if not line.startswith("read ")]
