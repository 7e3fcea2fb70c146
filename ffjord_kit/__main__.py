"""`python -m ffjord_kit` is the command `ffjord-kit`."""

from ffjord_kit.cli import main

if __name__ == "__main__":
    main()
