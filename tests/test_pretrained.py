"""Runs that come with the package: each loads, draws and scores; none can be written to; unknown words are told."""

import json
import re
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from commands import call

from ffjord_kit import FFJORD, DensityModel, ImageFFJORD, datasets, metrics
from ffjord_kit.cli.commands import cli
from ffjord_kit.estimator.ffjord import load
from ffjord_kit.run import Run
from ffjord_kit.run_folder import MODELS, PRETRAINED, RunError, locate_run, pretrained_runs

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "howto" / "pretrained.md"
sys.path.insert(0, str(ROOT / "benchmarks"))

import pretrained  # noqa: E402

RUNS = pretrained_runs()


def test_the_runs_are_those_of_the_recipes_and_of_the_table_of_the_page():
    names = {word.removeprefix(PRETRAINED) for word in RUNS}
    assert names == set(pretrained.RECIPES)
    assert names == set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.mark.parametrize("word", RUNS)
def test_a_run_of_the_package_is_small_and_names_no_place(word):
    folder = locate_run(word)
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= pretrained.LIMIT
    texts = [path.read_text(encoding="utf-8") for path in folder.rglob("*.json*")]
    assert sum(map(len, texts)) < 100_000
    assert not re.search(r'"/|[A-Z]:\\\\', "".join(texts))  # a path of some machine


@pytest.mark.parametrize("word", RUNS)
def test_a_run_of_the_package_draws_what_it_can_score(word):
    model = load(word)
    few = {"steps": 2} if isinstance(model, ImageFFJORD) else {}
    draws = model.sample(2, random_state=0, **few)
    assert len(draws) == 2
    scores = model.draft(draws) if few else model.score_samples(draws)
    assert np.isfinite(scores).all()


def test_moons_are_as_near_to_the_truth_as_the_page_says():
    test = datasets.load("moons:test", rows=2000)
    divergence, error = metrics.kl_divergence(test.log_prob(test.x), FFJORD.pretrained("moons").score_samples(test.x))
    assert abs(divergence - 0.005) < 4 * error


def test_the_estimators_find_their_runs_by_name():
    assert DensityModel.load("pretrained:moons").record["columns"] == ["x0", "x1"]
    with pytest.raises(ValueError, match=r"pretrained:mnist14 is a run of ImageFFJORD"):
        FFJORD.pretrained("mnist14")
    with pytest.raises(RunError, match=r"pretrained:moon is no run of the package: it has pretrained:\w+, "):
        FFJORD.pretrained("moon")


def test_nothing_is_written_to_a_run_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, x = FFJORD.pretrained("moons"), np.random.default_rng(0).normal(size=(9, 2))
    before = {path: path.stat().st_mtime_ns for path in MODELS.rglob("*")}
    for write in (
        lambda: model.save("pretrained:moons", force=True),
        lambda: FFJORD().fit(x, run="pretrained:mine"),
        lambda: Run.create("pretrained:mine", {}),
    ):
        with pytest.raises(RunError, match="is a run of the package, to read alone: choose a folder of your own"):
            write()
    assert {path: path.stat().st_mtime_ns for path in MODELS.rglob("*")} == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("info pretrained:moon", "pretrained:moon is no run of the package: it has "),
        ("fit --resume pretrained:moons", "pretrained:moons is a run of the package, to read alone"),
        ("fit moons --out pretrained:moons --force", "pretrained:moons is a run of the package, to read alone"),
        ("reflow pretrained:moons --out pretrained:moons", "pretrained:moons is a run of the package, to read alone"),
        ("plot pretrained:power_plant --out p", "comes without its data: "),
    ],
)
def test_a_command_says_in_a_line_what_it_cannot_do_with_one(argv, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *argv.split())
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert told in err
    assert list(tmp_path.iterdir()) == []


def test_commands_read_one_in_the_place_of_a_folder(capsys, tmp_path):
    code, _, err = call(capsys, "sample", "pretrained:moons", "-n", 5, "--out", tmp_path / "new.csv")
    assert (code, err) == (0, "")
    assert len((tmp_path / "new.csv").read_text().splitlines()) == 6
    code, out, _ = call(capsys, "info", "pretrained:power_plant")
    assert code == 0
    assert "CC BY 4.0" in " ".join(out.split())


def test_a_shell_completes_their_words_and_folders():
    (run,) = (each for each in cli.commands["sample"].params if each.name == "run")
    context = click.Context(cli.commands["sample"])
    assert [each.value for each in run.shell_complete(context, "pre")] == RUNS
    assert [each.type for each in run.shell_complete(context, "")] == ["file"]


def test_what_is_kept_of_a_run_loads_and_scores_as_before(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 2))
    fitted = FFJORD(schedule=[("flow_matching", 130)], hidden=(8,), random_state=0).fit(
        x, run=tmp_path / "run", data={"source": "/home/me/x.csv"}
    )
    pretrained.keep(Run.open(tmp_path / "run"), tmp_path / "kept", about="rows of a test")
    kept = FFJORD.load(tmp_path / "kept")
    np.testing.assert_array_equal(kept.score_samples(x), fitted.score_samples(x))
    assert not (tmp_path / "kept" / "checkpoint").exists()
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["data"]["about"] == "rows of a test"
    assert len(kept.history_.records) < len(fitted.history_.records)
    assert kept.history_.records[-1] == fitted.history_.records[-1]
