"""List the versions of a published documentation: versions.json for the menu, and a first page that leads to one.

    python .ci/versions.py SITE

SITE has a folder for each version. The menu lists `latest` first, then the tags, the newest first.
"""

import json
import re
import sys
from pathlib import Path

LATEST = "latest"


def main(site: Path) -> None:
    """Write versions.json, index.html, and the mark that keeps GitHub from hiding folders with an underscore.

    Args:
        site: Folder of the site.
    """
    names = sorted((path.parent.name for path in site.glob("*/index.html")), key=order)
    (site / "versions.json").write_text(json.dumps(names) + "\n", encoding="utf-8")
    (site / "index.html").write_text(
        f'<!doctype html><title>ffjord_kit</title><meta http-equiv="refresh" content="0; url={names[0]}/">\n'
        f'<a href="{names[0]}/">Documentation</a>\n',
        encoding="utf-8",
    )
    (site / ".nojekyll").touch()


def order(name: str) -> tuple[bool, list[int]]:
    """Return the place of a version in the menu: by its numbers, a candidate (v1.0.0rc1) below its release."""
    return name != LATEST, [-int(number) for number in re.findall(r"\d+", name)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
