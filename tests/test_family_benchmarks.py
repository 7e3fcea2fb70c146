"""The benchmarks of ODE-Nets and planar flows: closed forms, and tiny runs of each row."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import cost_curve  # noqa: E402
import odenet  # noqa: E402
import planar  # noqa: E402
import sets  # noqa: E402

from ffjord_kit import plots  # noqa: E402
from ffjord_kit.ode import FixedSolver  # noqa: E402


@pytest.fixture
def images():
    """Images whose class is the half that is bright."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 90)
    x = rng.integers(0, 50, (90, 1, 8, 8))
    x[labels == 1, :, :4] += 200
    return (x[:60].astype(np.uint8), labels[:60]), (x[60:].astype(np.uint8), labels[60:])


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_each_network_gets_its_row(images, monkeypatch, tmp_path):
    monkeypatch.setattr(odenet, "COMMON", {**odenet.COMMON, "width": 4, "layers": 2, "batch_size": 30})
    monkeypatch.setattr(odenet, "SOLVERS", {"rk4": [FixedSolver("rk4", 1), FixedSolver("rk4", 2)]})
    rows = [{"method": method, "seed": 0, **odenet.measured(method, *images, 4, 0)} for method in odenet.NAMES]
    assert all(row["low"] <= row["error"] <= row["high"] and row["weights"] > 0 for row in rows)
    nfe = {row["method"]: row.get("nfe_forward") for row in rows}
    assert (nfe["mlp"], nfe["resnet"], nfe["rk"], nfe["lm"]) == (None, [2] * 4, [8] * 4, [2] * 4)
    assert [row["method"] for row in rows if np.any(row.get("nfe_backward"))] == ["ode"]
    assert odenet.passes_table(rows).splitlines()[0] == "| pass | 1 | 2 | 3 | 4 |"
    assert len(odenet.table(rows).splitlines()) == 2 + len(rows)
    assert len(odenet.curves_table(rows).splitlines()) == 2 + 4
    figure = plots.error_against_cost(odenet.drawn(rows))
    assert plots.save(figure, tmp_path / "curve.png").stat().st_size > 5000


def test_errors_are_compared_seed_by_seed():
    """Errors of 3 and 4 % against 2 and 2.5 %: the differences are 1 and 1.5, with Student's t of 12.71 for two."""
    common = {"weights": 5, "seconds": 1.0}
    rows = [{"method": method, "seed": seed, "error": error, **common} for method, seed, error in
            [("resnet", 0, 0.02), ("ode", 1, 0.04), ("resnet", 1, 0.025), ("ode", 0, 0.03)]]  # fmt: skip
    resnet, ode = odenet.table(rows).splitlines()[2:]
    assert resnet.startswith("| ResNet | 2.25 (-0.93 to 5.43) | - | 5 | 1 | - |")
    assert ode.startswith("| ODE-Net | 3.50 (-2.85 to 9.85) | +1.25 (-1.93 to +4.43) |")


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own_whatever_the_one_that_asks_has_had():
    assert np.ones(10**8).sum() == 10**8  # 800 MB, free again
    assert odenet.memory("mlp", "cpu") == {}
    assert odenet.memory("rk", "cpu")["peak_mb"] > odenet.memory("resnet", "cpu")["peak_mb"] > 0


def test_the_interval_of_an_error_is_wilsons():
    row = odenet.error(1.0, 100)
    assert (row["error"], row["low"]) == (0, 0)
    assert row["high"] == pytest.approx(1.96**2 / (100 + 1.96**2), rel=1e-3)


def test_the_evidence_of_a_wave_is_its_closed_form():
    """The wall adds half a normal distribution on each side of the eight units."""
    normal = math.sqrt(2 * math.pi)
    exact = math.log(0.4 * normal) + math.log(8 + planar.STEEPNESS * normal)
    assert planar.log_evidence(planar.wave) == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize(("name", "method"), [("ring", "K=2"), ("step", "M=2"), ("moons", "K=2")])
def test_each_planar_flow_gets_its_row(name, method, monkeypatch):
    monkeypatch.setattr(planar, "DRAWS", 500)
    monkeypatch.setattr(planar, "FINE", 300)
    flow, row = planar.measured(name, method, 0.3, 0)
    row = {"set": name, "method": method, **row}
    assert row["kl"] > -4 * row["error"]
    assert row["weights"] == sum(p.numel() for p in flow.transforms.parameters())
    assert f"| {name} |" in planar.table([row])
    drawn = planar.panels([row], (name,), {(name, method): flow})
    assert len(drawn) == 1 + len(planar.METHODS)
    cell = np.prod([high - low for low, high in planar.BOUNDS]) / planar.SIZE**2
    assert 0.5 < drawn[0][1].sum() * cell < 1.1  # the truth, most of it within the picture


def test_the_table_of_planar_flows_has_the_range_over_seeds():
    rows = [{"kl": kl, "error": 0.01, "ess": share} for kl, share in [(0.2, 0.5), (0.4, 0.7)]]
    assert planar.cell(rows) == "0.300, 0.200 to 0.400 (60 %)"
    assert planar.cell(rows[:1]) == "0.200 ± 0.010 (50 %)"
    assert planar.cell([]) == "-"


@pytest.mark.slow
def test_a_trained_flow_is_scored_by_fewer_steps_integrated_and_exact(monkeypatch, tmp_path):
    monkeypatch.setattr(cost_curve, "TOLERANCES", [1e-1, 1e-5])
    monkeypatch.setattr(cost_curve, "STEPS", {"rk4": (1, 8)})
    rng = np.random.default_rng(0)
    split = sets.Split(rng.standard_normal((400, 2)), rng.standard_normal((9, 2)), rng.standard_normal((50, 2)))
    rows = cost_curve.measured(split, ["dopri5", "rk4", "exact rk4"], 1.0, 0)
    dopri5, rk4, exact = (row["points"] for row in rows)
    assert [p["nfe"] for p in rk4] == [p["nfe"] for p in exact] == [4, 32]
    assert [p.get("holds") for p in (*dopri5, *rk4)] == [None] * 4
    assert abs(dopri5[1]["gap"]) < 1e-3
    assert all(abs(fine["gap"]) < abs(coarse["gap"]) + 1e-4 for coarse, fine in (rk4, exact))  # seconds end a fit
    assert all(p["nll"] == pytest.approx(rows[0]["fine"] + p["gap"], abs=1e-9) for p in (*dopri5, *rk4, *exact))
    rows = [{**row, "set": "plane"} for row in rows]
    lines = cost_curve.table(rows, "plane").splitlines()
    assert [line.split(" | ")[0] for line in lines[4:6]] == ["| 4", "| 32"]
    assert len(lines) == 7 + 2
    figure = plots.error_against_cost(cost_curve.drawn(rows, "plane"), error="NLL, nats", scale="linear")
    assert plots.save(figure, tmp_path / "curve.png").stat().st_size > 5000
