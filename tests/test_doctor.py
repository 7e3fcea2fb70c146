"""A fitted model is examined on rows that it has not seen, from Python and by the command."""

import numpy as np
import pytest
from commands import call

from ffjord_kit import FFJORD, datasets
from ffjord_kit.datasets import load
from ffjord_kit.diagnostics import integral

FIELDS = {"hidden": (32, 32), "batch_size": 256, "scaling": "standardize", "time_density": "uniform", "random_state": 0}


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Take grids of fewer points: enough for flows as smooth as these."""
    monkeypatch.setattr(integral, "GRIDS", {1: 400, 2: 60, 3: 24})


@pytest.fixture(scope="module")
def trained():
    return FFJORD(schedule=[("flow_matching", 400)], **FIELDS).fit(load("moons:train", rows=3000, seed=0).x)


@pytest.fixture(scope="module")
def held_out():
    return load("moons:test", rows=400, seed=0).x


@pytest.mark.slow
def test_the_solver_of_reports_is_judged(trained, held_out):
    names = []
    diagnosis = trained.diagnose(held_out, rows=200, on_progress=names.append)
    assert diagnosis["integral"].verdict == diagnosis["determinant"].verdict == "good"
    assert diagnosis["solver, of reports"].verdict == "good"
    assert names[0] == "rows"


@pytest.mark.slow
def test_the_solver_of_a_training_without_guard_is_judged_too(held_out):
    fields = {"solver": "euler", "solver_steps": 2, "guard": 0.0, **FIELDS}
    model = FFJORD(schedule=[("mle", 80)], **fields).fit(load("moons:train", rows=3000, seed=0).x)
    diagnosis = model.diagnose(held_out, rows=200)
    assert diagnosis["solver, in training"].verdict == "bad"
    assert "2 euler steps" in diagnosis["solver, in training"].measured
    assert diagnosis["solver, of reports"].verdict == "good"


def test_rows_outside_the_support_are_refused():
    x = np.abs(np.random.default_rng(0).normal(size=(60, 1)))
    model = FFJORD(schedule=[("flow_matching", 2)], support="positive", **FIELDS).fit(x)
    with pytest.raises(ValueError, match=r"rows within the support.*; 1 of 2 lie outside \(first: row 1\)"):
        model.diagnose([[1.0], [-1.0]])


@pytest.mark.slow
@pytest.mark.parametrize("columns", [{"a": "positive"}, {"a": "positive", "b": "bounded:0:1"}], ids=len)
def test_columns_with_bounds_are_examined_within_them(columns):
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.exponential(size=200) * 1e-3, rng.uniform(size=200)])[:, : len(columns)]
    model = FFJORD(columns=columns, schedule=[("flow_matching", 20)], **FIELDS).fit(x, columns=list(columns))
    diagnosis = model.diagnose(x[:60])
    assert diagnosis["integral"].verdict == diagnosis["determinant"].verdict == "good"


@pytest.mark.slow
def test_the_command_prints_a_page_and_draws(trained, held_out, tmp_path, capsys):
    trained.save(tmp_path / "run")
    datasets.write(tmp_path / "held_out.csv", held_out, ("x0", "x1"))
    arguments = ["doctor", tmp_path / "run", tmp_path / "held_out.csv", "--out", tmp_path / "pictures", "--rows", 100]
    code, out, err = call(capsys, *arguments)
    assert code == 0, err
    assert "on the whole: " in out
    assert "samples, classifier" in out
    assert (tmp_path / "pictures/diagnosis.png").stat().st_size > 20_000
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (1, "")
    assert "--force" in err
    code, out, err = call(capsys, "doctor", tmp_path / "run")
    assert (code, out) == (1, "")
    assert "does not name its data" in err
