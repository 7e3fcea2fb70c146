"""The documentation of packages side by side: docstrings with examples, pages, examples that tests run, first programs.

    python benchmarks/documentation.py [. FOLDER ...] [--run]

A FOLDER is an unpacked source package (`pip download --no-deps --no-binary :all: zuko`, then `tar xf`), or the name of
an installed one; "." is this one. Nothing is imported but by --run, so packages need not be installed.

public      classes and functions without a leading underscore, at the top of modules whose path has none either, or
            taken from a private module by an `__init__` that is public
docstring   those with a docstring; example: those whose docstring, or that of their methods, has `>>>` or a block of
            code; doctest: those with `>>>` alone
pages       files of docs/ that end in .md, .rst or .ipynb; guides: those whose folder is a guide's or a tutorial's,
            and notebooks
tested      names of the mechanisms that run examples: doctest, or notebooks, in files of settings and of tests

--run runs the first program of each package that is installed, from data to printed log-densities, in a few steps of
training; lines are those that are neither empty nor comments.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

EXAMPLE = re.compile(r">>>|^\s*```|^\s*\.\. (code|code-block|testcode)::|^(?!\s*\.\. ).*::\s*$", re.MULTILINE)
GUIDES = re.compile(r"howto|how_to|tutorial|guide|example|notebook", re.IGNORECASE)
RUNS = {"doctest": re.compile(r"doctest[-_](modules|glob|namespace)|doctest\.test"),
        "notebooks": re.compile(r"nbclient|ExecutePreprocessor|nbmake|nbval|--nbmake")}  # fmt: skip
OTHER = {"tests", "test", "benchmarks", "build", "dist", "docs", "node_modules", "site-packages"}

DATA = "from sklearn.datasets import make_moons\nx = make_moons(2000, noise=0.05, random_state=0)[0]\n"
PROGRAMS = {
    "ffjord_kit": """
from ffjord_kit import FFJORD
model = FFJORD(max_seconds=5).fit(x)
print(model.score_samples(x))
""",
    "zuko": """
import torch
import zuko
x = torch.as_tensor(x, dtype=torch.float32)
flow = zuko.flows.NSF(2)
optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
for step in range(100):
    loss = -flow().log_prob(x[torch.randint(len(x), (256,))]).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(flow().log_prob(x))
""",
    "sbi": """
import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform
theta = torch.as_tensor(x, dtype=torch.float32)
inference = NPE(BoxUniform(theta.min(0).values - 1, theta.max(0).values + 1))
inference.append_simulations(theta, theta + torch.randn_like(theta)).train(max_num_epochs=2)
posterior = inference.build_posterior()
print(posterior.log_prob(theta, x=theta[0]))
""",
}


class Thing(NamedTuple):
    """A class or function.

    Attributes:
        name: Its name.
        own: Its docstring, or "".
        whole: The docstrings of it and of its public methods, together.
    """

    name: str
    own: str
    whole: str


def main() -> None:
    """Print one line for each package, and run the first programs if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", default=["."])
    parser.add_argument("--run", action="store_true", help="run the first program of each package installed")
    given = parser.parse_args()
    print("| package | public | docstring | example | doctest | pages | guides | tested |\n" + "|---" * 8 + "|")
    for each in given.folders:
        print(line(each), flush=True)
    if given.run:
        for name, program in PROGRAMS.items():
            print(first_program(name, DATA + program))


def line(source: str) -> str:
    """Count one package.

    Args:
        source: Folder of a source package, or the name of an installed one.

    Returns:
        A row of a table.
    """
    folder, package = located(source)
    found = public(package)
    examples = [bool(EXAMPLE.search(each.whole)) for each in found]
    counts = [len(found), sum(bool(each.own) for each in found), sum(examples), sum(">>>" in t.whole for t in found)]
    pages = documents(folder) if folder else []
    guides = [page for page in pages if page.suffix == ".ipynb" or GUIDES.search(str(page.parent.relative_to(folder)))]
    shown = [len(pages), len(guides)] if pages else ["none in it", "none in it"]
    words = ", ".join(tested(folder)) if folder and any(folder.glob("test*/")) else "no tests in it"
    return "| " + " | ".join(map(str, [package.name, *counts, *shown, words or "none in it"])) + " |"


def located(source: str) -> tuple[Path | None, Path]:
    """Find a package.

    Args:
        source: Folder of a source package, or the name of an installed one.

    Returns:
        The folder of the sources, or None for an installed package, and that of the package's modules.

    Raises:
        ValueError: If there is no such package.
    """
    folder = Path(source).resolve()
    if folder.is_dir():
        for parent in (folder, folder / "src"):
            for module in sorted(parent.glob("*/__init__.py")):
                if module.parent.name not in OTHER:
                    return folder, module.parent
    spec = None if folder.is_dir() else importlib.util.find_spec(source)
    if spec is None or spec.origin is None:
        raise ValueError(f"{source} is neither a folder with a package nor an installed package")
    return None, Path(spec.origin).parent


def public(package: Path) -> list[Thing]:
    """Return the public classes and functions of a package.

    Args:
        package: Folder of its modules.

    Returns:
        The classes and functions, each once.
    """
    paths = sorted(path for path in package.rglob("*.py") if not set(path.parts[len(package.parts) :]) & OTHER)
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths if path.name != "conftest.py"}
    chosen: dict[tuple[Path, str], Thing] = {}
    for path, tree in trees.items():
        private = any(part.startswith("_") for part in module_parts(path, package))
        shown = exported(trees, package) if private else None
        later = assigned(tree)
        for node in tree.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name[0] == "_":
                continue
            if shown is None or node.name in shown:
                chosen[path, node.name] = thing(node, later.get(node.name, ""))
    return list(chosen.values())


def module_parts(path: Path, package: Path) -> tuple[str, ...]:
    """Return the names of the packages and the module that a file is in; that of an `__init__` is its folder's."""
    parts = path.relative_to(package).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def exported(trees: dict[Path, ast.Module], package: Path) -> set[str]:
    """Return the names that public `__init__` files take from other modules."""
    return {
        alias.asname or alias.name
        for path, tree in trees.items()
        if path.name == "__init__.py" and not any(part.startswith("_") for part in module_parts(path, package))
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def assigned(tree: ast.Module) -> dict[str, str]:
    """Return docstrings that a module assigns, as in `Name.__init__.__doc__ = "..."`, by name."""
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for target in map(ast.unparse, node.targets):
                if target.endswith(".__doc__"):
                    name = target.split(".")[0]
                    found[name] = found.get(name, "") + "\n" + node.value.value
    return found


def thing(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, later: str = "") -> Thing:
    """Read the docstrings of a class or function; `later` are those that its module assigns."""
    own = ast.get_docstring(node) or later
    methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    kept = [each for each in methods if each.name == "__init__" or each.name[0] != "_"]
    parts = [own, later, *(ast.get_docstring(each) or "" for each in kept)] if isinstance(node, ast.ClassDef) else [own]
    if isinstance(node, ast.ClassDef) and not own:
        own = next((ast.get_docstring(each) or "" for each in methods if each.name == "__init__"), "")
    return Thing(node.name, own, "\n".join(parts))


def documents(folder: Path) -> list[Path]:
    """Return the pages and notebooks of a source package's documentation."""
    places = [place for name in ("docs", "doc", "notebooks", "examples") if (place := folder / name).is_dir()]
    files = (path for place in places for path in place.rglob("*") if path.suffix in (".md", ".rst", ".ipynb"))
    return sorted(path for path in files if not {"_build", "_templates", ".ipynb_checkpoints"} & set(path.parts))


def tested(folder: Path) -> Iterator[str]:
    """Yield the mechanisms by which a source package's examples are run."""
    names = ("pyproject.toml", "setup.cfg", "tox.ini", "pytest.ini", "Makefile", "conftest.py")
    files = [path for name in names for path in [folder / name, *folder.glob(f"*/{name}")] if path.is_file()]
    files += [path for path in folder.glob("test*/*.py") if path.is_file()]
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    for name, pattern in RUNS.items():
        if pattern.search(text):
            yield name


def first_program(name: str, program: str) -> str:
    """Run a first program, and say how long it is and how it ended."""
    lines = [each for each in program.splitlines() if each.strip() and not each.lstrip().startswith("#")]
    if importlib.util.find_spec(name) is None:
        return f"{name}: {len(lines)} lines; not installed"
    with tempfile.TemporaryDirectory() as folder:  # some leave logs where they run
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder)
    last = (ended.stdout if ended.returncode == 0 else ended.stderr).strip().splitlines()[-1:]
    return f"{name}: {len(lines)} lines; {'ran' if ended.returncode == 0 else 'FAILED'}: {' '.join(last)[:80]}"


if __name__ == "__main__":
    main()
