"""The benchmarks of what training does: tiny runs of each table."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import condensation  # noqa: E402
import frequencies  # noqa: E402
from clock import least_seconds  # noqa: E402


@pytest.mark.parametrize("name", frequencies.FIRST_LAYERS)
def test_sines_get_their_steps(name, monkeypatch):
    monkeypatch.setattr(frequencies, "SINE_STEPS", 40)
    times = frequencies.learned_at(frequencies.FIRST_LAYERS[name], 0)
    assert times.shape == (3,)
    assert frequencies.count(float("inf")) == "> 40"


def test_a_fit_gets_its_bands(monkeypatch):
    monkeypatch.setattr(frequencies, "ROWS", 200)
    truth = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    row, records = frequencies.measured({"steps": 4, "hidden": (8,)}, 0, truth)
    assert len(row) == len(frequencies.BANDS) + 1
    assert any("spectrum" in record for record in records)


def test_a_two_layer_network_gets_its_row(monkeypatch, tmp_path):
    monkeypatch.setattr(condensation, "STEPS", 20)
    monkeypatch.setattr(condensation, "SHOWN", (0, 20))
    (effective, change, error), seen = condensation.trained(0.1, 0.3, 0)
    assert 1 <= effective <= condensation.WIDTH
    assert min(change, error) > 0
    condensation.draw(dict.fromkeys(("gamma = 0.5", "gamma = 2", "gamma = 0.5, dropout"), seen), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"condensation.png", "similarity.png"}


def test_seconds_are_the_least_of_three_after_a_first_call():
    calls = []
    assert least_seconds(lambda: calls.append(None)) >= 0
    assert len(calls) == 4
