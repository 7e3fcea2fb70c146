"""The house's measures, read from the source. Which room may use which is held by import-linter, style by ruff."""

import ast
import importlib
import re
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import ffjord_kit
from ffjord_kit import words

ROOT = Path(ffjord_kit.__file__).parent
COMMANDS = ROOT / "cli" / "commands.py"  # its docstrings are the help of the command line
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path.name not in ("__init__.py", "__main__.py", "version.py")]
HEAVY = {"torch", "numpy", "sklearn", "pandas", "matplotlib", "scipy", "torchdiffeq"}
RIDDLE = re.compile(r"(What|How|The same|That of|Those|Told|Asked)\b")


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path):
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)]


def body_lines(function):
    """Lines of a function's body, its docstring left out."""
    first = function.body[1] if ast.get_docstring(function) and len(function.body) > 1 else function.body[0]
    return function.end_lineno - first.lineno + 1


def public(path):
    """(qualified name, node, is an override) of public classes, functions and methods."""
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node, False
            if isinstance(node, ast.ClassDef):
                bases = bool(node.bases)
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        yield f"{node.name}.{method.name}", method, bases


def is_property(node):
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def missing_sections(node, override):
    """Sections that a docstring lacks: Args where it takes anything, Returns where it gives anything."""
    text = ast.get_docstring(node)
    if text is None:
        return [] if override else ["docstring"]
    if isinstance(node, ast.ClassDef) or is_property(node) or override:
        return []
    arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    takes = [name for name in arguments if name not in ("self", "cls")]
    gives = node.returns is not None and ast.unparse(node.returns) not in ("None", "NoReturn")
    wanted = ["Args:"] * bool(takes) + ["Returns:"] * gives
    found = text.replace("Yields:", "Returns:")
    return [section for section in wanted if section not in found]


def test_files_and_functions_keep_their_measure():
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    lengths = [body_lines(node) for path in FILES for node in functions(path)]
    assert [str(path) for path, size in sizes.items() if size > 600] == []
    assert 80 <= statistics.median(sizes.values()) <= 250
    assert len([path for path, size in sizes.items() if size < 40]) <= 10
    assert len(list((ROOT / "estimator").glob("*.py"))) <= 14  # thirteen, and __init__.py
    assert statistics.median(lengths) <= 5
    assert max(lengths) <= 50


def test_everything_public_says_what_it_takes_and_gives():
    found = {
        f"{path.relative_to(ROOT)}: {name}": missing
        for path in FILES
        for name, node, override in public(path)
        if path != COMMANDS and (missing := missing_sections(node, override))
    }
    assert found == {}


def test_no_docstring_is_a_riddle():
    nodes = [(path, node) for path in FILES for node in (tree(path), *functions(path))]
    classes = [(path, node) for path in FILES for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
    texts = [(str(path.relative_to(ROOT)), ast.get_docstring(node) or "") for path, node in (*nodes, *classes)]
    assert [(path, text.splitlines()[0]) for path, text in texts if RIDDLE.match(text)] == []


def test_the_map_names_every_room():
    page = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    assert {room for room in rooms if not re.search(rf"\b{room}(/|\.py|\b)", page)} == set()
    modules = {path.stem for path in FILES if path.parent.name in ("nn", "ode", "transforms", "training", "estimator")}
    assert {module for module in modules if not re.search(rf"\b{module}\b", page)} == set()


MENUS = {
    "ACTIVATIONS": "nn", "DYNAMICS": "nn", "IMAGE_DYNAMICS": "nn", "METHODS": "ode", "TRACE_ESTIMATORS": "trace",
    "REGULARIZERS": "regularizers", "BASES": "distributions", "SCALINGS": "transforms", "IMAGE_SCALINGS": "transforms",
    "ZUKO_TRANSFORMS": "transforms.zuko", "OBJECTIVES": "objectives", "COUPLINGS": "objectives",
    "TIME_DENSITIES": "objectives", "RECOGNITIONS": "models.latent_network", "WATCHES": "diagnostics.watch",
}  # fmt: skip


@pytest.mark.parametrize("menu", MENUS)
def test_words_lists_the_words_of_every_menu(menu):
    """The command line has them from `words`: a word in a menu needs its place there too."""
    entries = getattr(importlib.import_module(f"ffjord_kit.{MENUS[menu]}"), menu)
    assert getattr(words, menu) == tuple(entries)


@pytest.mark.parametrize("statement", ["import ffjord_kit", "import ffjord_kit.cli"])
def test_the_front_doors_load_nothing_heavy(statement):
    code = f"import sys; {statement}; print(sorted({HEAVY!r} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
