"""The count of docstrings and pages: what is public, what is an example, and which mechanisms run them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import documentation  # noqa: E402

HIDDEN = '''
class Shown:
    def __init__(self):
        pass

    def go(self):
        """Go.

        >>> 1
        1
        """

class Unseen:
    pass

Shown.__init__.__doc__ = "Later."
'''
OPEN = '''
def fenced():
    """Do.

    ```python
    fenced()
    ```
    """

def _own():
    pass

def block():
    """Do::

        block()
    """

def formula():
    """Do.

    .. math::
        x
    """

def bare():
    pass
'''
FILES = {
    "pack/__init__.py": "from pack._hidden import Shown as Shown\n", "pack/_hidden.py": HIDDEN, "pack/open.py": OPEN,
    "docs/index.md": "", "docs/howto/a.md": "", "docs/b.ipynb": "{}",
    "tests/test_pack.py": "from nbclient import NotebookClient\n",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_what_users_see_is_counted(folder):
    found = {each.name: each for each in documentation.public(folder / "pack")}
    assert sorted(found) == ["Shown", "bare", "block", "fenced", "formula"]
    assert found["Shown"].own.strip() == "Later."
    examples = {name for name, each in found.items() if documentation.EXAMPLE.search(each.whole)}
    assert examples == {"Shown", "block", "fenced"}


def test_a_package_is_one_line(folder):
    assert documentation.line(str(folder)) == "| pack | 5 | 4 | 3 | 1 | 3 | 2 | notebooks |"


def test_an_installed_package_has_no_pages():
    assert documentation.line("numpy").endswith("| none in it | none in it | no tests in it |")


def test_a_word_that_is_no_package_is_told(tmp_path):
    with pytest.raises(ValueError, match="neither a folder with a package"):
        documentation.located(str(tmp_path))


@pytest.mark.parametrize(("values", "asked"), [({}, False), ({"versions": "1"}, True)])
def test_the_menu_of_versions_is_hidden_until_it_is_filled(values, asked):
    template = (ROOT / "docs" / "_templates" / "versions.html").read_text(encoding="utf-8")
    menu = jinja2.Template(template).render(content_root="../", **values)
    opening = re.search(r'<div id="versions"[^>]*>', menu)[0]
    assert opening.endswith(" hidden>")
    assert ('data-list="../../versions.json"' in opening) == asked
    assert '"versions.html"' in (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")


def test_versions_are_listed_from_the_newest(tmp_path):
    for name in ("v0.9.0", "v0.10.0", "latest", "v0.2.0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").touch()
    subprocess.run([sys.executable, ROOT / ".ci" / "versions.py", tmp_path], check=True)
    assert json.loads((tmp_path / "versions.json").read_text()) == ["latest", "v0.10.0", "v0.9.0", "v0.2.0"]
    assert "url=latest/" in (tmp_path / "index.html").read_text()
