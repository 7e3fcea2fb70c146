"""The house's rules, read from the source: which room may use which, where each library lives, how long things are."""

import ast
import importlib
import inspect
import sys
from functools import cache
from pathlib import Path

import pytest

import ffjord_kit

ROOT = Path(ffjord_kit.__file__).parent
FILES = {".".join(("ffjord_kit", *p.relative_to(ROOT).with_suffix("").parts)): p for p in sorted(ROOT.rglob("*.py"))}
FLOORS = [  # from top to bottom: a room uses lower floors, and its own floor without a cycle
    {"cli"},
    {"progress", "estimator", "diagnostics", "images"},
    {"training"},
    {"runs", "objectives"},
    {"flow"},
    {"route", "accuracy"},
    {"cnf"},
    {"layers", "solver", "evaluations", "steppers", "trace", "regularizers", "dynamics", "activations", "base"}
    | {"failures", "grids", "potential", "couplings", "discrete", "gaussianize", "scalings", "heavy_tails"},
]
LEAVES = {"datasets", "metrics", "plots"}
GUESTS = {"cli": LEAVES, "diagnostics": {"metrics"}}  # who may use leaves
TOOLS = {"atomic", "portions", "version"}
HOMES = {
    "torchdiffeq": {"solver"},
    "matplotlib": {"plots"},
    "PIL": {"plots", "datasets"},
    "sklearn": {"estimator", "datasets", "metrics"},
    "click": {"cli"},
    "rich": {"cli", "progress"},
    "safetensors": {"runs"},
    "pyarrow": {"datasets"},
    "zuko": {"discrete"},
}
ON_DEMAND = {"matplotlib", "plotly", "pyarrow", "zuko"}
BANNED = {"hasattr", "eval", "exec", "globals"}


@cache
def tree(module):
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def full(name):
    """The name of a package as the name of its file."""
    return f"{name}.__init__" if f"{name}.__init__" in FILES else name


def targets(node):
    """What an import statement loads: modules by name, and packages of which it takes anything else."""
    if isinstance(node, ast.Import):
        return [full(alias.name) for alias in node.names]
    names = [full(f"{node.module}.{alias.name}") for alias in node.names]
    modules = [name for name in names if name in FILES]
    return modules if len(modules) == len(names) else [*modules, full(node.module)]


@cache
def imports(module, at_load=False):
    """Every module that `module` names in an import, or only those that loading it loads."""
    found = []
    stack = list(tree(module).body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += targets(node)
        elif not (at_load and (isinstance(node, ast.FunctionDef) or is_type_checking(node))):
            stack += list(ast.iter_child_nodes(node))
    return sorted(set(found))


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def room(module):
    return module.split(".")[1]


def floor(name):
    return next(level for level, names in enumerate(FLOORS) if name in names)


ROOMS = sorted({room(m) for m in FILES} - {"__init__", "__main__"})


def uses(name):
    """The other rooms that a room uses."""
    inside = [m for m in FILES if room(m) == name]
    return {room(t) for m in inside for t in imports(m) if t in FILES} - {name, "__init__"}


def lines_where(condition):
    """'file:line' of every node of the package for which the condition holds."""
    return [f"{m}:{n.lineno}" for m in FILES for n in ast.walk(tree(m)) if condition(n)]


def test_every_room_has_its_place():
    assert set(ROOMS) == set().union(*FLOORS) | LEAVES | TOOLS


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_uses_only_those_below_it(name):
    if name in TOOLS:
        assert uses(name) == set()
    elif name in LEAVES:
        assert uses(name) <= TOOLS
    else:
        below = set().union(*FLOORS[floor(name) :]) | TOOLS | GUESTS.get(name, set())
        assert uses(name) <= below


def test_the_front_door_shows_no_picture_and_no_command_line():
    assert not {"cli", "metrics", "plots"} & {room(t) for t in imports("ffjord_kit.__init__") if t in FILES}
    assert {room(t) for t in imports("ffjord_kit.__main__") if t in FILES} == {"cli"}


def test_modules_load_each_other_without_a_cycle():
    done, path = set(), []

    def visit(module):
        assert module not in path, f"a cycle: {' -> '.join([*path[path.index(module) :], module])}"
        if module in done:
            return
        path.append(module)
        for target in imports(module, at_load=True):
            if target in FILES and target != "ffjord_kit.__init__":
                visit(target)
        done.add(path.pop())

    for module in FILES:
        visit(module)


@pytest.mark.parametrize("library", HOMES)
def test_a_library_has_one_home(library):
    homes = {room(m) for m in FILES if any(t.split(".")[0] == library for t in imports(m))}
    assert homes <= HOMES[library]


def test_heavy_and_optional_libraries_are_loaded_only_when_they_are_needed():
    reached, stack = set(), [m for m in FILES if m.count(".") == 1 or m.endswith(".__init__")]
    while stack:
        module = stack.pop()
        if module not in reached:
            reached.add(module)
            stack += [t for t in imports(module, at_load=True) if t in FILES]
    loaded = {m: {t.split(".")[0] for t in imports(m, at_load=True)} & ON_DEMAND for m in reached}
    assert {m: found for m, found in loaded.items() if found} == {}


def test_arrays_become_tensors_in_the_estimator_alone():
    libraries = {m: {t.split(".")[0] for t in imports(m)} for m in FILES}
    assert {room(m) for m, found in libraries.items() if {"numpy", "torch"} <= found} <= {"estimator"}


def test_no_other_library_is_used():
    known = {"torch", "torchdiffeq", "numpy", "scipy", "sklearn", "matplotlib", "PIL", "safetensors", "click", "rich"}
    known |= {"pyarrow", "plotly", "zuko", "ffjord_kit"} | set(sys.stdlib_module_names)
    assert {t.split(".")[0] for m in FILES for t in imports(m)} <= known


def test_there_is_no_star_import():
    assert lines_where(lambda n: isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names)) == []


def test_there_is_no_assert_in_the_package():
    assert lines_where(lambda n: isinstance(n, ast.Assert)) == []


def test_there_is_no_guessing_at_attributes_and_no_evaluation_of_text():
    assert lines_where(lambda n: isinstance(n, ast.Call) and ast.unparse(n.func) in BANNED) == []


@pytest.mark.parametrize("module", FILES)
def test_a_file_has_at_most_300_lines_and_a_function_45(module):
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= 300
    functions = [n for n in ast.walk(tree(module)) if isinstance(n, ast.FunctionDef)]
    assert [n.name for n in functions if n.end_lineno - n.lineno + 1 > 45] == []


def public(module):
    """(owner or None, node) of every public class, function and method."""
    for node in tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield None, node
            if isinstance(node, ast.ClassDef):
                methods = (n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_"))
                yield from ((node, n) for n in methods)


def says(module, owner, node):
    """Whether it has a docstring, a method perhaps that of what it overrides."""
    if ast.get_docstring(node) or owner is None:
        return bool(ast.get_docstring(node))
    kind = getattr(importlib.import_module(module.removesuffix(".__init__")), owner.name)
    return any(inspect.getdoc(vars(base)[node.name]) for base in kind.__mro__ if node.name in vars(base))


@pytest.mark.parametrize("module", FILES)
def test_everything_public_says_what_it_is(module):
    assert ast.get_docstring(tree(module)) or not tree(module).body
    silent = [
        node.name if owner is None else f"{owner.name}.{node.name}"
        for owner, node in public(module)
        if not says(module, owner, node)
    ]
    assert silent == []


@pytest.mark.parametrize("module", FILES)
def test_every_public_signature_is_annotated(module):
    bare = []
    for owner, node in public(module):
        if isinstance(node, ast.FunctionDef):
            given = node.args
            named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
            named = [a for a in named[owner is not None and not static :] if a is not None]
            missing = [a.arg for a in named if a.annotation is None] + (["return"] if node.returns is None else [])
            bare += [f"{node.name}: {', '.join(missing)}"] * bool(missing)
    assert bare == []
