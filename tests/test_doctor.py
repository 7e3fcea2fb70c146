"""A diagnosis finds the well-trained well, and each of the broken broken where it is."""

import copy

import numpy as np
import pytest
import torch
from oracles import randn
from test_cli import call

from ffjord_kit import CNF, FFJORD, Flow, Layer, Solver, Standardize, datasets
from ffjord_kit.datasets import load
from ffjord_kit.diagnostics import VERDICTS, diagnose, integral
from ffjord_kit.dynamics import ResidualDynamics
from ffjord_kit.estimator import examine

SMALL = {"hidden": (32, 32), "batch_size": 256, "scaling": "standardize", "time_density": "uniform", "random_state": 0}
TELLTALES = ("base, each coordinate", "samples, MMD", "coverage")
SOUND = ("integral", "determinant", "round trip", "cheapest solve")


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Grids and importance samples of fewer points: enough for flows as smooth as these."""
    monkeypatch.setattr(integral, "GRIDS", {1: 400, 2: 60, 3: 24})
    monkeypatch.setattr(integral, "DRAWN", 1500)
    monkeypatch.setattr(integral, "COMPONENTS", (1, 4))


@pytest.fixture(scope="module")
def trained():
    return FFJORD(schedule="flow_matching:800", **SMALL).fit(load("moons:train", rows=3000, seed=0).x)


@pytest.fixture(scope="module")
def held_out():
    return load("moons:test", rows=400, seed=0).x


def verdicts(diagnosis, names):
    return [diagnosis[name].verdict for name in names]


def test_a_well_trained_model_is_well(trained, held_out):
    heard = []
    found = examine(trained, held_out, tell=heard.append)
    assert verdicts(found, SOUND) == ["good"] * 4
    assert "bad" not in {finding.verdict for finding in found.findings}
    assert found["solver, of reports"].verdict == "good"
    assert found.verdict in ("good", "fair")
    assert heard[0] == "rows"
    assert len(str(found).splitlines()) >= len(found.findings) == 14
    assert {f.verdict for f in found.findings} <= set(VERDICTS)


def test_an_undertrained_model_is_a_density_but_not_the_datas(held_out):
    model = FFJORD(schedule="flow_matching:20", **SMALL).fit(load("moons:train", rows=3000, seed=0).x)
    found = examine(model, held_out)
    assert verdicts(found, SOUND) == ["good"] * 4
    assert verdicts(found, ("samples, classifier", "coverage")) == ["bad"] * 2
    assert "-> train longer" in str(found)


def test_too_few_steps_in_training_are_found_out(held_out):
    few = {"solver": "euler", "steps": 2, "guard": 0.0}
    model = FFJORD(schedule="mle:80", **few, **SMALL).fit(load("moons:train", rows=3000, seed=0).x)
    found = examine(model, held_out)
    assert found["solver, in training"].verdict == "bad"
    assert "2 euler steps" in found["solver, in training"].measured
    assert found["solver, of reports"].verdict == "good"
    assert verdicts(found, SOUND) == ["good"] * 4


def test_data_in_other_units_are_found_out(trained, held_out):
    flow = copy.deepcopy(trained.flow_)
    (units,) = (layer for layer in flow.layers if isinstance(layer, Standardize))
    units.scale.mul_(1.5)
    found = diagnose(flow, torch.as_tensor(held_out), rows=300)
    assert verdicts(found, SOUND) == ["good"] * 4
    assert verdicts(found, TELLTALES) == ["bad"] * 3
    assert "same units" in found["coverage"].advice


def test_draws_that_do_not_heed_their_context_are_found_out():
    context, noise = randn(600, 2).split(1, dim=1)
    blind = Flow([Standardize(torch.zeros(1).double(), torch.full((1,), 2**0.5).double())], context_dim=1)
    found = diagnose(blind, context + noise, context)
    assert verdicts(found, ("base, each coordinate", "coverage")) == ["good"] * 2
    assert found["samples, energy distance"].verdict != "good"
    assert found["samples, classifier"].verdict == "bad"


class Stretched(Layer):
    """A layer that doubles, and says that it leaves volumes as they are."""

    event_shape = (2,)

    def to_base(self, x, context=None):
        return 2 * x, torch.zeros(len(x), dtype=x.dtype)

    def to_data(self, z, context=None):
        return z / 2, torch.zeros(len(z), dtype=z.dtype)


def test_a_wrong_log_determinant_is_found_out_twice():
    found = diagnose(Flow([Stretched()]), 0.5 * randn(100, 2))
    assert found["integral"].verdict == found["determinant"].verdict == "bad"
    assert float(found["integral"].measured.split()[0]) == pytest.approx(0.25, abs=5e-3)
    assert found["stiffness"].measured == "no continuous layer"
    assert found.verdict == "bad"


@pytest.mark.parametrize("columns", [1, 3, 5])
def test_a_flow_and_its_own_draws_agree_in_any_dimension(columns):
    torch.manual_seed(0)
    flow = Flow([CNF(ResidualDynamics((columns,), context_dim=1, hidden=(8,)), (columns,))], context_dim=1)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    flow, context = flow.double(), randn(300, 1)
    x = flow.sample(300, context, solver=Solver("dopri5_by_row"), generator=torch.Generator().manual_seed(3)).detach()
    before = copy.deepcopy(flow.state_dict())
    found = diagnose(flow, x, context, rows=200)
    assert "bad" not in {finding.verdict for finding in found.findings}
    assert found["integral"].verdict == "good"
    assert ("importance" in found["integral"].measured) == (columns > 3)
    assert ("standard error" in found["probes"].measured) == (columns > 2)
    assert found.at_base.shape == (200, columns)
    assert all(torch.equal(before[name], value) for name, value in flow.state_dict().items())


def test_what_too_few_rows_cannot_tell_is_said(held_out):
    found = diagnose(Flow([Standardize.of(torch.as_tensor(held_out))]), torch.as_tensor(held_out), rows=20)
    assert found["base"].verdict == found["samples"].verdict == found["coverage"].verdict == "unsure"
    with pytest.raises(KeyError, match="no finding 'health'; there are integral"):
        found["health"]


class Wall(torch.nn.Module):
    """Dynamics that are not a number beyond a wall."""

    def forward(self, t, x, context=None):
        return torch.where(x.abs().sum(1, keepdim=True) < 3, 0.1 * x, torch.nan)


def test_rows_that_cannot_be_solved_are_counted_and_the_others_examined():
    x = torch.cat([0.3 * randn(60, 2), torch.full((2, 2), 9.0, dtype=torch.float64)])
    found = diagnose(Flow([CNF(Wall(), (2,))]), x[2:])
    assert found["rows"].verdict == found["draws"].verdict == "bad"
    assert "2 of 60 rows cannot be solved" in found["rows"].measured
    assert len(found.at_base) < 58
    with pytest.raises(ValueError, match="none of 2 rows, or of as many draws, can be solved"):
        diagnose(Flow([CNF(Wall(), (2,))]), x[60:])


def test_rows_outside_the_support_are_refused():
    x = np.abs(np.random.default_rng(0).normal(size=(60, 1)))
    model = FFJORD(schedule="flow_matching:2", support="positive", **SMALL).fit(x)
    with pytest.raises(ValueError, match=r"1 of 2 rows lie outside the support 'positive'.*first: row 1"):
        examine(model, [[1.0], [-1.0]])


def test_the_command_prints_a_page_and_draws(trained, held_out, tmp_path, capsys):
    trained.save(tmp_path / "run")
    datasets.write(tmp_path / "held_out.csv", held_out, ("x0", "x1"))
    asked = ["doctor", tmp_path / "run", tmp_path / "held_out.csv", "--out", tmp_path / "pictures", "--rows", 100]
    code, out, err = call(capsys, *asked)
    assert code == 0, err
    assert "on the whole: " in out
    assert "samples, classifier" in out
    assert (tmp_path / "pictures/diagnosis.png").stat().st_size > 20_000
    code, out, err = call(capsys, *asked)
    assert (code, out) == (1, "")
    assert "--force" in err
    code, out, err = call(capsys, "doctor", tmp_path / "run")
    assert (code, out) == (1, "")
    assert "does not name its data" in err
