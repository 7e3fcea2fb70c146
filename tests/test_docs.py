"""The pages of the documentation: their links lead somewhere, and their code runs."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import ffjord_kit

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "howto").glob("*.md")])
RUN = [page for page in PAGES if page.parent.name == "howto" or page.name == "start.md"]
# Trainings and data of the pages, made short.
SHORT = (
    (r"max_seconds=\d+", 'schedule=[("flow_matching", 5)]'),
    (r"steps=\d{3,}", "steps=5"),
    (r"epochs=\d{2,}", "epochs=2"),
    (r"rows=\d{3,}", "rows=60"),
    (r"n=\d[\d_]{2,}", "n=20"),
    (r"\.sample\(\d[\d_]{3,}", ".sample(20"),
)

WITHOUT_EXAMPLE = {  # public classes, and why
    "Base": "abstract: see StandardNormal",
    "ColumnType": "abstract: see Positive",
    "Objective": "abstract: see ffjord_kit.training.fit",
    "SolvedObjective": "abstract: see MaximumLikelihood",
    "Solver": "abstract: see AdaptiveSolver",
    "SupervisedLoss": "abstract: see CrossEntropy",
    "TraceEstimator": "abstract: see ExactTrace",
    "WorkersError": "takes two processes",
}


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


def test_every_guide_is_in_the_list():
    listed = re.findall(r"\((\w+)\.md\)", (ROOT / "docs" / "howto" / "index.md").read_text(encoding="utf-8"))
    guides = {page.stem for page in (ROOT / "docs" / "howto").glob("*.md")} - {"index"}
    assert sorted(listed) == sorted(guides)
    assert len(guides) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL))
    for long, short in SHORT:
        code = re.sub(long, short, code)
    exec(compile(code, name(page), "exec"), {})


@pytest.mark.parametrize("word", ffjord_kit.__all__)
def test_what_the_top_of_the_package_offers_has_an_example(word):
    thing = getattr(ffjord_kit, word)
    assert not callable(thing) or ">>>" in (thing.__doc__ or "")


def public_classes(package):
    """Names and classes that the page of a package lists."""
    module = importlib.import_module(f"ffjord_kit.{package}")
    names = getattr(module, "__all__", [name for name, thing in vars(module).items()
                                        if getattr(thing, "__module__", "") == module.__name__])  # fmt: skip
    things = {name: getattr(module, name) for name in names if not name.startswith("_")}
    return {name: thing for name, thing in things.items() if inspect.isclass(thing)}


def test_every_public_class_has_an_example():
    page = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    packages = page.partition(":toctree: generated")[2].partition("```")[0].split()[1:]
    assert {"estimator", "diagnostics", "transforms"} <= set(packages)
    classes = {}
    for package in [*packages, "columns"]:
        classes |= public_classes(package)
    assert {name for name, thing in classes.items() if ">>>" not in (thing.__doc__ or "")} == set(WITHOUT_EXAMPLE)


def test_every_notebook_is_in_the_gallery():
    shown = re.findall(r"\(gallery/(\w+)\.png\)", (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_thumbnails_are_small():
    sizes = {path.name: path.stat().st_size for path in (ROOT / "docs" / "gallery").glob("*.png")}
    assert {name: size for name, size in sizes.items() if size > 60_000} == {}
