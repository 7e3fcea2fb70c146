"""Watching a fit: its log holds what was asked for, the fit stays what it was, and looks keep to their time."""

import math

import numpy as np
import pytest
import torch

from ffjord_kit import CNF, FFJORD, ConcatDynamics, Flow
from ffjord_kit.data import Batch
from ffjord_kit.diagnostics import watch as module
from ffjord_kit.diagnostics.watch import Watch
from ffjord_kit.run import Run

ROWS = np.random.default_rng(0).normal(size=(120, 2))
FIELDS = {"schedule": [("flow_matching", 8)], "hidden": (8, 8), "base": "normal", "scaling": "standardize"}


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(module, "SAMPLES", 100)


def test_a_watched_fit_is_the_same_fit_and_its_log_tells_more(tmp_path):
    watched = FFJORD(**FIELDS, watch="spectrum,condensation", random_state=0).fit(ROWS, run=tmp_path / "run")
    plain = FFJORD(**FIELDS, random_state=0).fit(ROWS)
    np.testing.assert_array_equal(watched.score_samples(ROWS[:5]), plain.score_samples(ROWS[:5]))
    seen = [record for record in Run.open(tmp_path / "run").records() if "spectrum" in record]
    assert seen
    assert len(seen[0]["spectrum"]["frequencies"]) == len(seen[0]["spectrum"]["errors"])
    assert seen[0]["condensation"] == {"transforms.0.dynamics.input_layer": [8, 8]}
    assert "validation_nll" in seen[0]


def test_the_curvature_of_each_phases_loss_is_watched(monkeypatch):
    monkeypatch.setattr(module, "LIKELIHOOD_ROWS", 10)
    monkeypatch.setattr(module, "SHARE", math.inf)
    schedule = [("flow_matching", 4), ("mle", 2)]
    model = FFJORD(**{**FIELDS, "schedule": schedule}, solver="rk4", solver_steps=2, watch="hessian", random_state=0)
    seen = [record["hessian"] for record in model.fit(ROWS).history_.records if "hessian" in record]
    assert seen[0]["loss"] == "flow_matching"
    assert seen[0]["top"] > seen[0]["error"] >= 0
    flow = Flow([CNF(ConcatDynamics((2,), hidden=(4,)), (2,))])
    assert Watch(flow, Batch(torch.as_tensor(ROWS)), "hessian")({"phase": "mle"})["hessian"]["loss"] == "mle"


def test_samples_are_shown_beside_the_watch():
    shown = []
    model = FFJORD(**FIELDS, watch="condensation", random_state=0)
    model.fit(ROWS, on_samples=lambda record, samples: shown.append(samples.shape))
    assert shown
    assert any("condensation" in record for record in model.history_.records)


def test_looks_keep_to_their_share_of_the_time(monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    flow = Flow([CNF(ConcatDynamics((2,), hidden=(4,)), (2,))])
    watch = Watch(flow, Batch(torch.as_tensor(ROWS)), "condensation", share=0.25)
    watch.begun = 0.0
    looks = [bool(watch({})) for _ in range(6)]  # each look takes 10, a skipped one none
    assert looks == [True, False, False, True, False, False]
