"""Rows with measurement errors of known size: the density of true values, whose likelihood is that of what was seen."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from commands import call
from oracles import F64, randn

from ffjord_kit import FFJORD, Flow, ImageFFJORD, ResidualDynamics, Standardize
from ffjord_kit.data import Batch
from ffjord_kit.objectives import FlowMatching, SteppedLikelihood
from ffjord_kit.objectives.deconvolution import mean_over_draws, noise_removed, normal_draws
from ffjord_kit.ode import FixedSolver
from ffjord_kit.run import RunError
from ffjord_kit.training import Workers
from ffjord_kit.training.data import preprocessed
from ffjord_kit.training.validation import SteppedValidation
from ffjord_kit.transforms import CNF, Stepped
from ffjord_kit.transforms.cnf import SolveOptions

QUICK = {"schedule": [("flow_matching", 10), ("steps", 2)], "hidden": (8,), "random_state": 0, "batch_size": 64}
NOISE = torch.full((6, 2), 0.5, dtype=F64)


def table(n=120):
    return np.random.default_rng(0).normal(size=(n, 2)) * [1.0, 3.0]


def standard_normal_in_steps():
    return Flow([Stepped(ResidualDynamics((2,), hidden=(4,)), (2,), steps=2)]).double()  # untrained: the identity


def observed(x, noise):
    """The log-density of rows x + noise where x is standard normal."""
    variance = 1 + noise.square()
    return -0.5 * (x.square() / variance + (2 * math.pi * variance).log()).sum(1)


def test_draws_are_antithetic_and_standard_normal(generator):
    draws = normal_draws(500, 3, 16, generator)
    assert torch.equal(draws[:8], -draws[8:])
    assert float(draws.mean(0).abs().max()) < 1e-12
    assert float(draws.var()) == pytest.approx(1, abs=0.02)
    assert not torch.equal(normal_draws(500, 3, 16, generator), draws)


def test_rows_without_errors_stay_as_they_are(generator):
    batch = Batch(randn(6, 2))
    assert noise_removed(batch, 16, generator) is batch
    assert mean_over_draws(batch.x[:, 0], 6) is not None


def test_the_mean_over_draws_is_the_density_of_what_was_seen(generator):
    x = randn(6, 2)
    many = noise_removed(Batch(x, None, None, NOISE), 4096, generator)
    log_prob = -0.5 * (many.x.square() + math.log(2 * math.pi)).sum(1)
    assert torch.allclose(mean_over_draws(log_prob, 6), observed(x, NOISE), atol=5e-3)


def test_steps_and_their_validation_take_the_likelihood_of_what_was_seen(generator):
    x, flow = randn(200, 2), standard_normal_in_steps()
    noise = torch.full((200, 2), 0.5, dtype=F64)
    batch, expected = Batch(x, None, None, noise), -observed(x, noise).mean().item()
    loss = SteppedLikelihood(draws=64).loss(flow, batch, generator)
    assert loss.terms["nll"].item() == pytest.approx(expected, abs=0.01)
    score = SteppedValidation(flow, preprocessed(flow, batch), SolveOptions())(Workers(), 1)
    assert score.mean == pytest.approx(expected, abs=0.01)


def test_errors_come_with_weights(generator):
    x, flow = randn(6, 2), standard_normal_in_steps()
    weight = torch.tensor([2.0, 0.0, 1.0, 1.0, 1.0, 1.0], dtype=F64)
    loss = SteppedLikelihood(draws=512).loss(flow, Batch(x, None, weight, NOISE), generator)
    assert loss.terms["nll"].item() == pytest.approx(-(weight * observed(x, NOISE)).mean().item(), abs=0.02)


def test_errors_are_scaled_with_their_columns():
    scaling = Standardize(torch.tensor([5.0, 0.0]), torch.tensor([2.0, 0.1]))
    flow = Flow([CNF(ResidualDynamics((2,)), (2,), solver=FixedSolver("euler", 2))], preprocess=[scaling]).double()
    scaled = preprocessed(flow, Batch(randn(6, 2), None, None, NOISE)).batch
    assert torch.allclose(scaled.noise, torch.tensor([0.25, 5.0], dtype=F64).expand(6, 2))
    assert scaled[:2].noise.shape == (2, 2)
    FlowMatching().loss(flow.inner, scaled, torch.Generator())  # which sees the rows with their errors


@pytest.mark.parametrize("noise", [0.3, [0.3, 0.0], np.full((120, 2), 0.3)], ids=["one", "columns", "cells"])
def test_errors_are_one_or_by_column_or_by_cell(noise):
    FFJORD(**QUICK).check(table(), noise_std=noise)


@pytest.mark.slow
def test_a_fit_with_errors_keeps_both_densities_of_true_values(tmp_path):
    x, test = table(), table(20)
    model = FFJORD(**QUICK).fit(x, noise_std=[0.5, 0.0], run=tmp_path / "run")
    loaded = FFJORD.load(tmp_path / "run")
    assert loaded.config_["noise_std"] == [0.5, 0.0]
    assert np.array_equal(loaded.score_samples(test), model.score_samples(test))
    both = [model.model_.reporting_by(word).score(test) for word in ("steps", "continuous")]
    assert both[0] == pytest.approx(both[1], abs=0.2)
    with pytest.raises(ValueError, match="no draws of it"):
        model.discretize(x)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config.pop("noise_removed")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="interrupted before the measurement errors were removed"):
        FFJORD.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (-0.1, "must not be negative, NaN or infinite; got -0.1 in row 0, column 'x0'"),
        ([0.1, np.nan], "got nan in row 0, column 'x1'"),
        ([0.1, 0.2, 0.3], r"noise_std must be a number, 2 of them, .* of the shape \(120, 2\), .* got \(3,\)"),
        (np.ones((119, 2)), r"got \(119, 2\)"),
        (0.0, "0 in every cell"),
        ("much", "must be numbers; got .'much'."),
    ],
)
def test_errors_that_make_no_sense_are_refused_in_one_line(noise, message):
    with pytest.raises(ValueError, match=message) as error:
        FFJORD(**QUICK).fit(table(), noise_std=noise)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": [("flow_matching", 10)]}, "needs few explicit steps"),
        ({"scaling": "whiten"}, "takes scaling standardize or robust"),
        ({"support": ("bounded", -99, 99)}, "columns on the whole line"),
        ({"base": "student"}, "columns on the whole line"),
        ({"subsets": True}, "noise_std is for real columns"),
        ({"columns": {"x0": "circle:60"}}, "noise_std is for real columns"),
    ],
)
def test_what_does_not_go_with_errors_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FFJORD(**{**QUICK, **fields}).check(table(), noise_std=0.1)


def test_a_table_with_categories_takes_no_errors():
    rows = pd.DataFrame(table(), columns=["a", "b"])
    rows["city"] = np.resize(["Oslo", "Bergen"], len(rows))
    with pytest.raises(ValueError, match="noise_std is for real columns"):
        FFJORD(**QUICK).check(rows, noise_std=0.1)


def test_images_and_resumed_fits_take_no_errors(tmp_path):
    with pytest.raises(ValueError, match="noise_std is for tables"):
        ImageFFJORD(schedule=[("flow_matching", 2)]).fit(np.zeros((4, 4, 4), np.uint8), noise_std=0.1)
    with pytest.raises(ValueError, match="cannot be resumed"):
        FFJORD(**QUICK).fit(table(), noise_std=0.1, run=tmp_path / "run", resume=True)


def test_columns_of_errors_are_named_on_the_command_line(tmp_path, capsys):
    rows = np.column_stack([table(), np.full(120, 0.2)])
    np.savetxt(tmp_path / "t.csv", rows, delimiter=",", header="a,b,a_err", comments="")
    fit = ["fit", tmp_path / "t.csv", "--schedule", "flow_matching:10,steps:2", "--hidden", "8", "--dry-run"]
    code, out, _ = call(capsys, *fit, "--noise-columns", "a=a_err")
    assert (code, json.loads(out)["data"]["columns"]) == (0, ["a", "b"])
    for text, message in (("a", "must read like a=a_err"), ("c=a_err", "names 'c'"), ("a=c_err", "no column 'c_err'")):
        code, _, err = call(capsys, *fit, "--noise-columns", text)
        assert (code, err.count("\n")) == (1, 1)
        assert message in err


@pytest.mark.slow
def test_removing_errors_halves_the_divergence_from_the_truth():
    rng, places = np.random.default_rng(0), np.array([-1.5, 1.5])

    def draw(n):
        return np.column_stack([rng.choice(places, n) + 0.4 * rng.normal(size=n), rng.normal(size=n)])

    def truth(x):
        parts = -0.5 * ((x[:, :1] - places) / 0.4) ** 2 - math.log(0.4)
        return np.logaddexp(*parts.T) - math.log(2) - 0.5 * x[:, 1] ** 2 - math.log(2 * math.pi)

    x, test = draw(2000), draw(2000)
    noise = 0.3 * x.std(0)
    y = x + noise * rng.normal(size=x.shape)
    options = {"schedule": [("flow_matching", 400), ("steps", 80)], "hidden": (32, 32), "random_state": 0}
    kl = [(truth(test) - FFJORD(**options).fit(y, noise_std=s).score_samples(test)).mean() for s in (None, noise)]
    assert 0 < kl[1] < kl[0] / 2
