"""The two densities of a fit: the continuous flow's, and that of few exact steps, which is kept where it holds."""

import json

import numpy as np
import pytest
import torch
from commands import call

from ffjord_kit import CNF, FFJORD, Flow, ResidualDynamics
from ffjord_kit.data import Batch
from ffjord_kit.diagnostics import Receipt
from ffjord_kit.estimator import discretize, load
from ffjord_kit.estimator.discretize import SteppedNote
from ffjord_kit.precision import double_precision
from ffjord_kit.run import RunError
from ffjord_kit.training.discretize import Candidate, Steps
from ffjord_kit.training.validation import ValidationScore

SCHEDULE = [("flow_matching", 200), ("steps", 20)]


def banana(n, seed):
    z = np.random.default_rng(seed).normal(size=(n, 2))
    return np.stack([z[:, 0], 0.3 * z[:, 1] + z[:, 0] ** 2], 1)


def estimator(**fields):
    options = {"schedule": SCHEDULE, "hidden": (32, 32), "learning_rate": 8e-3, "random_state": 0, "ema_decay": 0.9}
    return FFJORD(**{**options, **fields})


@pytest.mark.parametrize(("columns", "context", "rows", "penalty", "asked"), [
    (2, 0, 8000, 400.0, [(6, ("euler",))]),
    (2, 0, 8000, 600.0, [(6, ("euler",)), (12, ("euler",))]),
    (2, 0, 7999, 600.0, [(16, ("euler", "midpoint")), (32, ("euler", "midpoint"))]),
    (5, 0, 8000, 99.0, [(8, ("euler",))]),
    (5, 0, 8000, 101.0, [(8, ("euler",)), (16, ("euler",))]),
    (5, 0, 7999, 101.0, [(16, ("euler", "midpoint"))]),
    (5, 1, 8000, 101.0, [(16, ("euler",)), (32, ("euler",))]),
    (33, 0, 8000, 99.0, [(16, ("midpoint",))]),
    (33, 0, 1000, 101.0, [(16, ("midpoint",)), (32, ("midpoint",))]),
])  # fmt: skip
def test_few_rows_have_more_schemes_and_steps_that_fold_are_finer(columns, context, rows, penalty, asked, monkeypatch):
    seen = []

    def rank(flow, judges, evaluations, schemes, *, folding):
        seen.append((evaluations, schemes))
        return [Candidate(Steps("euler", evaluations), 1.0, penalty)]

    monkeypatch.setattr(discretize, "rank_steps", rank)
    flow = Flow([CNF(ResidualDynamics((columns,), context_dim=context, hidden=(4,)), (columns,))], context_dim=context)
    judges = Batch(torch.zeros(40, columns), torch.zeros(40, context) if context else None)
    assert discretize._best_scheme(flow, judges, rows).steps == asked[-1][0]
    assert seen == asked


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("few") / "run"


@pytest.fixture(scope="module")
def fitted(run):
    return estimator().fit(banana(1500, 0), run=run)


@pytest.mark.slow
def test_the_steps_report_where_they_hold_and_are_as_good(fitted):
    note = fitted.model_.note
    assert note.receipt.holds
    assert fitted.model_.density == note.density == "steps"
    x = banana(200, 1)
    continuous = fitted.model_.flow.log_prob
    assert np.abs(fitted.score_samples(x) - continuous(_tensor(x)).numpy()).mean() < 0.2
    assert fitted.evaluate(x).nfe == 0  # no solve


def _tensor(x):
    import torch

    return torch.as_tensor(x)


@pytest.mark.slow
def test_the_density_of_the_steps_integrates_to_one(fitted):
    grid = np.linspace(-6, 6, 241), np.linspace(-3, 22, 501)
    places = np.stack(np.meshgrid(*grid, indexing="ij"), -1).reshape(-1, 2)
    cell = (grid[0][1] - grid[0][0]) * (grid[1][1] - grid[1][0])
    assert np.exp(fitted.score_samples(places)).sum() * cell == pytest.approx(1, abs=1e-3)


def test_draws_are_those_of_the_steps_and_invert_to_rounding(fitted):
    draws = fitted.sample(500, random_state=0)
    steps = double_precision(fitted.model_.steps)
    z, _ = steps.to_base(_tensor(draws))
    assert np.abs(steps.to_data(z)[0].numpy() - draws).max() < 1e-8


def test_scores_are_single_precision_of_what_certify_gives(fitted):
    x = banana(100, 1)
    certified = fitted.certify(x)
    assert (certified.error < 1e-9).all()
    difference = np.abs(fitted.score_samples(x) - certified.log_prob)
    assert 0 < difference.max() < 10 * max(fitted.model_.note.receipt.rounding, 1e-6)


def test_what_certify_states_covers_its_rounding(fitted):
    x = banana(300, 1)
    whole = fitted.certify(x)
    alone = np.concatenate([fitted.certify(x[i : i + 1]).log_prob for i in range(0, 300, 10)])
    assert (np.abs(alone - whole.log_prob[::10]) <= whole.error[::10]).all()
    assert fitted.certify(x, error=1e-10).met.all()
    assert not fitted.certify(x, error=1e-18).met.any()


def test_few_steps_of_the_solver_are_judged_by_the_continuous_flow(fitted):
    errors = fitted.few_step_sample_errors(n=200)
    assert errors["midpoint", 8] < errors["euler", 1]
    converged = fitted.model_.reporting_by("continuous").score_samples(banana(100, 1))
    assert fitted.few_step_score_errors(banana(100, 1), converged)[8] < 1e-2


def test_each_density_has_its_own_validations(fitted):
    history, note = fitted.history_, fitted.model_.note
    assert min(nll for _, nll in history.validations_of("steps")) == note.nll
    assert min(nll for _, nll in history.validations_of("continuous")) == note.continuous_nll
    steps = [step for step, _ in history.validations]
    assert steps == sorted(steps)


def test_the_score_of_steps_that_fold_is_no_likelihood():
    assert "validation_nll" not in ValidationScore(-9.0, 0.1, None, uncertified=0.5).record()
    assert ValidationScore(-9.0, 0.1, None, uncertified=0.0).record()["validation_nll"] == -9.0


def test_without_validation_the_continuous_flow_reports():
    model = estimator(schedule=[("flow_matching", 20), ("steps", 4)], validation_fraction=0.0).fit(banana(200, 0))
    assert (model.model_.density, model.model_.note.nll) == ("continuous", float("inf"))


@pytest.mark.parametrize(("against", "looked_at"), [(0, [100]), (1, [100, 300]), (2, [100, 300]), (3, [100])])
def test_one_or_two_points_against_a_density_are_decided_by_more(monkeypatch, against, looked_at):
    seen = []

    def check(flow, x, context, *, rows, integrate):
        seen.append(rows)
        return Receipt(2 * rows, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, against / 100, 0.0, 0.0, float("nan"), float("inf"))

    monkeypatch.setattr(discretize, "check_steps", check)
    discretize._receipt(None, Batch(torch.zeros(400, 2)), 100)
    assert seen == looked_at


def test_draws_are_like_the_data(fitted):
    draws = fitted.sample(500, random_state=0)
    assert np.abs(draws.mean(0) - banana(20_000, 2).mean(0)).max() < 0.3


@pytest.mark.slow
def test_one_word_chooses_the_density(fitted, run):
    model, x = load(run), banana(50, 1)
    exact = model.score_samples(x)
    assert np.array_equal(exact, fitted.score_samples(x))
    assert (model.set_params(density="continuous").score_samples(x) != exact).all()
    assert np.array_equal(model.set_params(density="steps").score_samples(x), exact)
    plain = estimator(schedule=SCHEDULE[:1]).fit(banana(300, 0))
    with pytest.raises(ValueError, match="discretize it first"):
        plain.set_params(density="steps").score_samples(x)


def test_the_command_line_draws_and_scores_by_either_density(tmp_path, capsys):
    model = FFJORD(schedule=[("flow_matching", 40), ("steps", 3)], hidden=(8,), random_state=0).fit(banana(300, 0))
    model.save(tmp_path / "both")
    np.save(tmp_path / "x.npy", banana(20, 1))
    for density, said in (("continuous", "of the continuous flow"), ("steps", "steps of")):
        asked = ["--density", density]
        assert said in call(capsys, "score", tmp_path / "both", tmp_path / "x.npy", *asked)[1]
        drawn = tmp_path / f"{density}.npy"
        assert call(capsys, "sample", tmp_path / "both", "-n", 6, "--seed", 0, "--out", drawn, *asked)[0] == 0
        own = model.model_.reporting_by(density).sample(6, random_state=0)
        assert np.allclose(np.load(drawn), own)
    FFJORD(schedule=[("flow_matching", 3)], hidden=(8,), random_state=0).fit(banana(50, 0)).save(tmp_path / "one")
    both = ["sample", tmp_path / "both", "--out", tmp_path / "n.npy", "--density", "steps", "--steps", "4"]
    assert "--density steps draws exactly: leave one of them out" in call(capsys, *both)[2]
    code, _, err = call(capsys, "sample", tmp_path / "one", "--out", tmp_path / "n.npy", "--density", "steps")
    assert code == 1 and "one has no density of few steps: make one by discretize, or leave --density out" in err


def test_steps_without_a_receipt_do_not_count(fitted, run, tmp_path):
    fitted.save(tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    config["steps"] = {name: config["steps"][name] for name in ("method", "steps", "grading")}  # killed before its end
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    assert load(tmp_path / "copy").model_.density == "continuous"


def test_damaged_steps_are_named(fitted, tmp_path):
    fitted.save(tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["steps"]["receipt"] = {}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="damaged"):
        load(tmp_path / "run")
    fitted.save(tmp_path / "run", force=True)
    (tmp_path / "run" / "steps" / "model.safetensors").unlink()
    with pytest.raises(RunError, match="steps/model.safetensors is missing"):
        load(tmp_path / "run")


@pytest.mark.slow
def test_a_fit_stopped_in_its_steps_is_resumed_to_the_same_end(fitted, tmp_path):
    x, stopped = banana(400, 0), tmp_path / "run"
    short = {"schedule": [("flow_matching", 40), ("steps", 12)], "validate_every": 4}

    def stop(record):
        if record["phase"] == "steps" and record["phase_step"] == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimator(**short).fit(x, run=stopped, on_step=stop)
    resumed = estimator(**short).fit(x, run=stopped, resume=True)
    whole = estimator(**short).fit(x)
    assert np.array_equal(resumed.score_samples(banana(50, 1)), whole.score_samples(banana(50, 1)))


@pytest.mark.slow
def test_a_limit_in_seconds_is_kept_by_a_fit_resumed_in_its_steps(tmp_path):
    fields = {"schedule": "auto", "max_seconds": 6.0, "hidden": (16,), "fourier_features": 0, "scaling": "standardize"}
    x, run = banana(1200, 0), tmp_path / "run"

    def stop(record):
        if record["phase"] == "steps" and record["phase_step"] == 2:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        estimator(**fields).fit(x, run=run, on_step=stop)
    resumed = estimator(**fields).fit(x, run=run, resume=True)
    assert resumed.history_.work_seconds < 7.5  # of the thread's work, so the machine's load does not count
    assert resumed.model_.note is not None


def test_a_worse_or_unsound_density_of_steps_does_not_report():
    receipt = Receipt(100, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1e-12, 1e-5, 1.0, 0.01)
    scheme = Steps("midpoint", 8, 2.0)
    assert SteppedNote(scheme, 1.015, 1.0, receipt).density == "steps"
    assert SteppedNote(scheme, 1.1, 1.0, receipt).density == "continuous"
    folded = Receipt(100, -0.5, 0.5, 0.01, 0.0, 0.0, 0.0, 0.0, 1e-12, 1e-5, 1.0, 0.01)
    assert SteppedNote(scheme, 0.0, 1.0, folded).density == "continuous"
    note = SteppedNote(scheme, float("inf"), 1.0, receipt)
    assert SteppedNote.of_record(json.loads(json.dumps(note.record()))) == note


@pytest.mark.slow
def test_a_fitted_model_is_discretized(tmp_path):
    x = banana(1500, 0)
    plain = estimator(schedule=SCHEDULE[:1]).fit(x)
    new = plain.discretize(x, max_seconds=2)
    assert new.model_.note.receipt.holds
    new.save(tmp_path / "fast")
    assert np.array_equal(load(tmp_path / "fast").score_samples(x[:20]), new.score_samples(x[:20]))
    assert plain.model_.steps is None
    with pytest.raises(ValueError, match="must be the rows of the fit"):
        plain.discretize(x[1:], max_seconds=2)
    with pytest.raises(ValueError, match="max_seconds must be positive; got 0"):
        plain.discretize(x, max_seconds=0)
    with pytest.raises(ValueError, match="method must be one of euler, midpoint.*; got 'dopri5'"):
        plain.discretize(x, method="dopri5")
    with pytest.raises(ValueError, match="steps must be a whole number, at least 1; got 0"):
        plain.discretize(x, steps=0)


@pytest.mark.slow
def test_the_steps_may_be_named(capsys, tmp_path):
    x = banana(1500, 0)
    plain = estimator(schedule=SCHEDULE[:1]).fit(x)
    assert plain.discretize(x, steps=4, max_seconds=0.5).model_.note.scheme.steps == 4
    assert plain.discretize(x, method="heun2", max_seconds=0.5).model_.note.scheme.method == "heun2"
    plain.save(tmp_path / "run")
    np.savetxt(tmp_path / "x.csv", x, delimiter=",")
    options = ["--steps", "5", "--method", "fractal2", "--max-seconds", "0.5"]
    code, out, err = call(
        capsys, "discretize", tmp_path / "run", tmp_path / "x.csv", "--out", tmp_path / "new", *options
    )
    assert code == 0, err
    assert "5 steps of fractal2" in out


@pytest.mark.slow
def test_a_conditional_flow_is_stepped():
    rng = np.random.default_rng(0)
    c = rng.normal(size=(1500, 1))
    x = c + 0.5 * rng.normal(size=(1500, 1))
    model = estimator().fit(x, context=c)
    exact = -0.5 * ((x - c) / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi))
    assert model.model_.note.receipt.holds
    assert model.score_samples(x, context=c).mean() == pytest.approx(exact.mean(), abs=0.1)
    draws = model.sample(2000, context=[[1.0]], random_state=0)
    assert draws.mean() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("schedule", [[("steps", 5)], [("steps", 5), ("flow_matching", 5)]])
def test_steps_come_after_the_others(schedule):
    with pytest.raises(ValueError, match="it comes once, after the others"):
        estimator(schedule=schedule).fit(banana(50, 0))


def test_many_columns_are_refused():
    with pytest.raises(ValueError, match="up to 64 columns"):
        estimator().fit(np.random.default_rng(0).normal(size=(50, 65)))


@pytest.mark.slow
def test_the_command_gives_a_run_a_density_in_few_steps(capsys, tmp_path):
    run, fast = tmp_path / "run", tmp_path / "fast"
    tiny = ["--schedule", "flow_matching:60", "--hidden", "16", "--seed", "0", "--no-verbose"]
    assert call(capsys, "fit", "moons", "--rows", "300", *tiny, "--out", run)[0] == 0
    code, out, err = call(capsys, "discretize", run, "--out", fast, "--max-seconds", "1")
    assert code == 0, err
    for part in ("few steps", "change, row by row", "s for 10,000 rows", "receipt", "reports by default"):
        assert part in out
    out = call(capsys, "score", fast, "moons:test", "--rows", 50)[1]
    assert ("steps of" in out) == (load(fast).model_.density == "steps")
    assert "receipt" in call(capsys, "info", fast)[1]
    code, _, err = call(capsys, "discretize", run, "--out", run)
    assert code == 1 and "is the run to begin with, which stays as it is" in err
    code, _, err = call(capsys, "discretize", run, "circles", "--out", tmp_path / "other")
    assert code == 1 and "must be the rows of the fit" in err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_the_doctor_examines_the_steps_anew(fitted):
    found = {finding.name: finding for finding in fitted.diagnose(banana(300, 1), rows=100).findings}
    assert found["explicit steps"].verdict == "good"
    assert float(found["explicit steps"].measured.split("integral ")[1].split()[0]) == pytest.approx(1, abs=3e-3)
