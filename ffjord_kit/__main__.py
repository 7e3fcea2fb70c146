"""The command `ffjord-kit`, also as `python -m ffjord_kit`: Ctrl-C is one line from the first import to the end."""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130


def main() -> None:
    """Run the command line, and end the process; see `ffjord_kit.cli.main`.

    Raises:
        SystemExit: Always, with the exit code.
    """
    handler = signal.getsignal(signal.SIGINT)
    heard = handler is signal.default_int_handler  # a job in the background ignores Ctrl-C
    try:
        signal.signal(signal.SIGINT, _end if heard else handler)
        from ffjord_kit.cli import main as run  # the first slow import

        signal.signal(signal.SIGINT, handler)
        run()
    except KeyboardInterrupt:
        _end()
    finally:
        signal.signal(signal.SIGINT, _end if heard else handler)


def _end(*_: object) -> None:
    """End the process at once, in one line."""
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
