"""Reflow: few steps suffice, the law stays, the old model is untouched, and the new one is a run like any."""

import json

import numpy as np
import pytest
import torch
from commands import call
from oracles import LearntAffine, SmoothMLP, randn
from torch import nn

from ffjord_kit import CNF, FFJORD, FixedSolver, Flow, FlowMatching
from ffjord_kit.data import Batch
from ffjord_kit.estimator.model import STEP_COUNTS, STEP_METHODS
from ffjord_kit.objectives.reflow import stack_pairs
from ffjord_kit.ode import SolveError
from ffjord_kit.run import RunError
from ffjord_kit.training import TrainConfig, TrainingDiverged
from ffjord_kit.training.reflow import GRADINGS, ReflowSettings, best_grading, train_on_pairs
from ffjord_kit.transforms import Affine

QUICK = {"hidden": (32, 32), "learning_rate": 0.01, "random_state": 0, "validate_every": 200, "ema_decay": 0.99}
FEW = {"pairs": 4_000, "steps": 500, "learning_rate": 0.005, "random_state": 0}


def two_moons(n, seed=0):
    rng = np.random.default_rng(seed)
    angle, upper = rng.uniform(0, np.pi, n), rng.random(n) < 0.5
    x = np.stack([np.cos(angle), np.sin(angle)], 1) * np.where(upper, 1, -1)[:, None]
    return x + np.where(upper, 0, 1)[:, None] * [1, 0.5] + 0.08 * rng.normal(size=(n, 2)), upper[:, None].astype(float)


X, UPPER = two_moons(1500)


@pytest.fixture(scope="module")
def model():
    return FFJORD(schedule=[("flow_matching", 400)], **QUICK).fit(X, data={"told": "by hand"})


@pytest.fixture(scope="module")
def straight(model):
    return model.reflow(X, source="here", **FEW)


def transforms(model):
    return [*model.flow_.preprocess.transforms, *model.flow_.transforms]


def weights(model):
    return torch.cat([p.flatten() for p in model.flow_.parameters()])


@pytest.mark.slow
def test_samples_by_a_few_steps_are_several_times_better_and_the_likelihood_hardly_falls(model, straight):
    before, after = model.few_step_sample_errors(n=500), straight.few_step_sample_errors(n=500)
    assert set(after) == {(method, steps) for method in STEP_METHODS for steps in STEP_COUNTS}
    for method, steps in (("euler", 1), ("euler", 2), ("midpoint", 1), ("midpoint", 2)):
        assert after[method, steps] < before[method, steps] / 4
    fresh, _ = two_moons(500, seed=1)
    loss = model.score_samples(fresh) - straight.score_samples(fresh)
    assert loss.mean() < 0.1 + 3 * loss.std() / np.sqrt(len(loss))


@pytest.mark.slow
def test_a_smaller_network_learns_the_pairs_and_is_a_run_like_any(model, tmp_path):
    small = model.reflow(X, hidden=(16, 16), **FEW)
    (block,) = (layer for layer in transforms(small) if isinstance(layer, CNF))
    assert [layer.out_features for layer in block.dynamics.layers] == [16, 16]
    assert float(block.dynamics.time_embedding.frequencies.max()) == pytest.approx(2.0)  # no ripples in time
    assert float(block.dynamics.reach.max()) < 10  # it knows how far the pairs reach
    before, after = model.few_step_sample_errors(n=500), small.few_step_sample_errors(n=500)
    assert after["midpoint", 2] < before["midpoint", 2] / 4
    fresh, _ = two_moons(500, seed=1)
    assert small.score(fresh) > model.score(fresh) - 0.4
    small.save(tmp_path / "run")
    loaded = FFJORD.load(tmp_path / "run")
    assert loaded.get_params()["hidden"] == (16, 16)
    assert "hidden" not in loaded.config_["chosen"]
    assert np.array_equal(loaded.score_samples(X[:9]), small.score_samples(X[:9]))
    assert model.get_params()["hidden"] == (32, 32)
    with pytest.raises(ValueError, match=r"hidden must be one or more positive widths; got \(0,\)"):
        model.reflow(hidden=(0,))


def correlated(n=2000):
    z = np.random.default_rng(0).normal(size=(n, 3))
    return np.tanh(z) @ [[1, 1, 0.3], [0, 0.05, 0], [0, 0, 0.2]]


@pytest.mark.slow
def test_a_new_network_is_relieved_of_what_is_linear(tmp_path):
    x = correlated()
    fitted = FFJORD(schedule=[("flow_matching", 300)], scaling="standardize", **QUICK).fit(x)
    small = fitted.reflow(x, hidden=(16,), **FEW)
    (aligning,) = (layer for layer in transforms(small) if isinstance(layer, Affine))
    (block,) = (layer for layer in transforms(small) if isinstance(layer, CNF))
    z = randn(2000, 3)
    ends, _ = block.to_data(z)
    assert torch.linalg.eigvalsh(torch.cov(ends.T)).sub(1).abs().max() < 0.15
    assert (ends - z).square().mean() < (fitted.flow_.transforms[-1].to_data(z)[0] - z).square().mean() / 2
    assert small.score(x) > fitted.score(x) - 0.3
    small.save(tmp_path / "run")
    assert np.array_equal(FFJORD.load(tmp_path / "run").score_samples(x[:9]), small.score_samples(x[:9]))
    twice = small.reflow(x, hidden=(12,), **FEW)
    assert sum(isinstance(layer, Affine) for layer in transforms(twice)) == 2
    twice.save(tmp_path / "twice")
    assert np.array_equal(FFJORD.load(tmp_path / "twice").score_samples(x[:9]), twice.score_samples(x[:9]))
    few = fitted.reflow(x, hidden=(12,), pairs=20, steps=3)
    assert not any(isinstance(layer, Affine) for layer in transforms(few))


def test_what_aligns_the_ends_stands_beside_the_continuous_layers(tmp_path):
    pytest.importorskip("zuko")
    x = correlated(300)
    fitted = FFJORD(transforms=[("maf", 1)], schedule=[("transforms", 3), ("flow_matching", 3)], **QUICK).fit(x)
    small = fitted.reflow(x, hidden=(6,), pairs=60, steps=3, random_state=0)
    kinds = [type(layer).__name__ for layer in transforms(small)]
    assert kinds[-3:] == ["ZukoTransform", "Affine", "CNF"]
    small.save(tmp_path / "run")
    assert np.array_equal(FFJORD.load(tmp_path / "run").score_samples(x[:9]), small.score_samples(x[:9]))


@pytest.mark.parametrize("notes", [[{"grading": "x"}], [{"grading": 0}], [{"grading": None}], [5], 5, [{"aligned": 1}]])
def test_a_note_that_cannot_be_is_a_damaged_run(straight, tmp_path, notes):
    straight.save(tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps({**config, "reflow": notes}))
    with pytest.raises(RunError, match=r"config.json is damaged|does not fit|do not fit"):
        FFJORD.load(tmp_path / "run")


def test_few_steps_are_placed_where_they_are_best(model, straight):
    (note,) = straight.config_["reflow"]
    chosen = note["grading"]
    assert chosen == straight.model_.grading in GRADINGS
    assert straight.model_.few_step_solver("rk4", 3) == FixedSolver("rk4", 3, grading=chosen)
    assert straight.model_.few_step_solver("explicit_adams", 3).grading == model.model_.grading == 1.0
    measured = {}
    truth = straight.sample(3000, random_state=5)
    for grading in GRADINGS:
        note["grading"] = grading
        measured[grading] = ((straight.sample(3000, random_state=5, steps=4, method="rk4") - truth) ** 2).mean()
    note["grading"] = chosen
    assert measured[chosen] < 4 * min(measured.values())  # of squares


def test_a_place_of_steps_that_cannot_be_solved_is_not_chosen(straight, monkeypatch):
    moved = Flow.to_data

    def leaves(self, z, context, *, options):
        if isinstance(options.solver, FixedSolver) and options.solver.grading < 2:
            raise SolveError("gone")
        return moved(self, z, context, options=options)

    monkeypatch.setattr(Flow, "to_data", leaves)
    assert best_grading(straight.flow_, None, 0) == 2.0


def test_log_densities_by_fixed_steps_converge_and_a_straight_flow_needs_fewer(model, straight):
    rows = X[:200]
    errors = [m.few_step_score_errors(rows, m.score_samples(rows)) for m in (model, straight)]
    assert errors[1][8] < errors[1][4] < errors[1][2] < errors[1][1]
    assert errors[1][4] < errors[0][4] / 1.5
    gap = np.abs(straight.draft(rows, steps=64) - straight.score_samples(rows))
    assert gap.mean() < 1e-3  # what float32 leaves
    whole, half = (straight.draft(rows, steps=8, method=method) for method in ("rk4", "midpoint"))
    assert not np.array_equal(whole, half)


def test_the_straightened_model_carries_a_base_point_where_the_old_one_did(model, straight):
    a, b = (m.sample(300, random_state=3) for m in (model, straight))
    assert np.sqrt(((a - b) ** 2).mean()) < 0.15 * a.std()


@pytest.mark.slow
def test_the_old_model_stays_as_it_was():
    model = FFJORD(schedule=[("flow_matching", 20)], **QUICK).fit(X)
    kept, config, rows = weights(model).clone(), dict(model.config_), model.sample(5, random_state=0)
    model.reflow(pairs=50, steps=3, random_state=0)
    assert torch.equal(weights(model), kept)
    assert not any(p.requires_grad for p in model.flow_.parameters())
    assert model.config_ == config
    assert np.array_equal(model.sample(5, random_state=0), rows)


def test_it_is_a_run_that_says_what_it_was_made_from_and_comes_back_the_same(straight, model, tmp_path):
    straight.save(tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    (note,) = config["reflow"]
    assert {name: note[name] for name in ("source", "pairs", "steps", "seed")} == {
        "source": "here", "pairs": 4_000, "steps": 500, "seed": 0
    }  # fmt: skip
    assert config["data"] == {"told": "by hand"}
    loaded = FFJORD.load(tmp_path / "run")
    assert np.array_equal(loaded.score_samples(X[:9]), straight.score_samples(X[:9]))
    assert np.array_equal(loaded.sample(9, random_state=0, steps=2), straight.sample(9, random_state=0, steps=2))
    assert "reflow" not in model.config_
    again = loaded.reflow(pairs=50, steps=3, random_state=0)
    assert len(again.config_["reflow"]) == 2
    with pytest.raises(RunError, match="was made by reflow, not fitted"):
        FFJORD(schedule=[("flow_matching", 400)], **QUICK).fit(X, run=tmp_path / "run", resume=True)


def test_the_rows_that_the_fit_held_out_validate_it(model, straight):
    _, held_out = model.split(X)
    assert straight.history_.best_nll == pytest.approx(-straight.score(held_out), abs=1e-9)
    assert straight.history_.records[-1]["validation_nll"] == straight.history_.best_nll
    assert 0 <= straight.history_.records[-1]["validation_solver_error"] < 0.01
    assert {record["phase"] for record in straight.history_.records} == {"reflow"}


@pytest.mark.slow
def test_the_seed_gives_the_same_weights_again():
    model = FFJORD(schedule=[("flow_matching", 5)], **QUICK).fit(X)
    a, b, other = (model.reflow(pairs=50, steps=3, random_state=seed) for seed in (0, 0, 1))
    assert torch.equal(weights(a), weights(b))
    assert not torch.equal(weights(a), weights(other))


@pytest.mark.slow
def test_a_conditional_model_takes_the_contexts_of_its_pairs_from_the_rows():
    model = FFJORD(schedule=[("flow_matching", 200)], **QUICK).fit(X, context=UPPER)
    straight = model.reflow(X, context=UPPER, **{**FEW, "steps": 200})
    before, after = (m.few_step_sample_errors(n=200, context=UPPER[:200]) for m in (model, straight))
    assert after["euler", 2] < before["euler", 2] / 2
    assert model.reflow(context=UPPER[:7], pairs=20, steps=1).sample(2, context=[1.0]).shape == (2, 2)
    with pytest.raises(ValueError, match=r"conditional, so its pairs need contexts: pass context=, rows \(n, 1\)"):
        model.reflow(X)
    with pytest.raises(ValueError, match=r"context must have shape \(rows, 1\)"):
        model.reflow(context=X)


def test_bad_requests_for_a_reflow_are_refused(model):
    with pytest.raises(ValueError, match="takes no context"):
        model.reflow(context=UPPER)
    with pytest.raises(ValueError, match="must be the rows of the fit"):
        model.reflow(X[1:])
    with pytest.raises(ValueError, match="steps must be positive; got 0"):
        model.reflow(steps=0)
    with pytest.raises(ValueError, match="not fitted yet"):
        FFJORD().reflow()


def test_pairs_train_the_continuous_layers_alone_and_leave_their_average():
    flow = Flow([LearntAffine(2), CNF(SmoothMLP(2), (2,)), CNF(SmoothMLP(2, seed=4), (2,))])
    before = [p.detach().clone() for p in flow.parameters()]
    pairs = Batch(stack_pairs(randn(50, 2), randn(50, 2) + 3))
    history = train_on_pairs(flow, pairs, ReflowSettings(50, 40, 0.01), TrainConfig(batch_size=10))
    moved = [not torch.equal(p, old) for p, old in zip(flow.parameters(), before, strict=True)]
    assert moved == [False, False] + [True] * 6
    assert history.records[-2]["loss"] < history.records[0]["loss"]
    assert history.step == 40


def test_a_field_that_is_no_number_stops_the_training_of_pairs():
    flow = Flow([CNF(SmoothMLP(2), (2,))])
    nn.init.constant_(flow.transforms[0].dynamics.bias, float("nan"))
    with pytest.raises(TrainingDiverged, match="diverged at step 2, .* the loss is nan"):
        train_on_pairs(flow, Batch(stack_pairs(randn(9, 2), randn(9, 2))), ReflowSettings(9, 2), TrainConfig())


def test_matched_pairs_of_one_shift_have_no_loss_at_all():
    class Shift(nn.Module):
        def forward(self, t, x, context=None):
            return torch.full_like(x, 3.0)

    cnf, start = CNF(Shift(), (2,)), randn(9, 2)
    generator = torch.Generator().manual_seed(0)
    assert float(FlowMatching().match([cnf], start, Batch(start + 3), generator).value) < 1e-28


def test_sampling_by_fixed_steps_converges_to_the_solve_by_tolerance(model):
    truth = model.sample(200, random_state=0)
    errors = [((model.sample(200, random_state=0, steps=n) - truth) ** 2).mean() ** 0.5 for n in (10, 20)]
    assert errors[1] < errors[0] / 3  # of second order
    fourth = model.sample(200, random_state=0, steps=64, method="rk4")
    assert np.abs(fourth - truth).max() < 1e-2
    with pytest.raises(ValueError, match="steps >= 1; got 0"):
        model.sample(3, steps=0)


@pytest.mark.slow
def test_the_command_compares_both_and_leaves_a_run(capsys, tmp_path):
    run, out = tmp_path / "run", tmp_path / "straight"
    tiny = ["--schedule", "flow_matching:8", "--hidden", "8", "--seed", "0", "--no-verbose"]
    assert call(capsys, "fit", "moons", "--rows", "90", *tiny, "--out", run)[0] == 0
    few = ["--pairs", "40", "--steps", "4", "--seed", "0"]
    code, shown, _ = call(capsys, "reflow", run, "--out", out, *few)
    assert code == 0
    for line in (
        "log-likelihood of 9 rows",
        "solver's error",
        "evaluations at 1e-05",
        "log-likelihoods, 2 rk4 steps",
        "samples, 4 midpoint steps",
        f"run: {out}",
    ):
        assert line in shown
    assert "reflow" in call(capsys, "info", out)[1]
    assert json.loads((out / "config.json").read_text())["reflow"][0]["source"] == str(run)
    assert call(capsys, "sample", out, "-n", "7", "--steps", "4", "--out", tmp_path / "x.npy")[0] == 0
    assert np.load(tmp_path / "x.npy").shape == (7, 2)
    for argv, message in (
        ((run, "--out", run), "is the run to begin with, which stays as it is"),
        ((run, "--out", out), "is not empty: choose another folder, or pass --force"),
        ((run, "--out", tmp_path, "--force"), "is not empty: choose another folder"),
    ):
        code, _, err = call(capsys, "reflow", *argv, *few)
        assert (code, len(err.splitlines())) == (1, 1)
        assert message in err
    assert call(capsys, "reflow", run, "moons:test", "--out", out, "--force", *few)[0] == 0
