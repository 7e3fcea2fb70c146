"""The command line as tests run it, in their own process."""

import sys

import pytest

from ffjord_kit.cli import main


def call(capsys, *argv):
    """Run a command as main() does: (exit code, what it printed, what it complained of)."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["ffjord-kit", *map(str, argv)])
        main()
    shown = capsys.readouterr()
    return ended.value.code or 0, shown.out, shown.err
