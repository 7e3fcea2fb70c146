"""Schedule auto: it tries out what is left open on validation data, says what it did, and can be gone on with."""

import json
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from ffjord_kit import FFJORD, Standardize, datasets
from ffjord_kit.estimator import search as auto
from ffjord_kit.estimator.fields import OPEN, PhaseSpec
from ffjord_kit.estimator.tables import settled, table
from ffjord_kit.training import TrainingDiverged, cross_validation
from ffjord_kit.training.runtime import Timer
from ffjord_kit.transforms import SCALINGS, Gaussianize

FIELDS = {"hidden": (16,), "random_state": 0, "batch_size": 64, "validate_every": 20}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(auto, "STEPS", 40)
    monkeypatch.setattr(auto, "TRIAL_STEPS", 10)
    monkeypatch.setattr(auto, "STEPS_IN_STEPS", 2)
    monkeypatch.setattr(auto, "MARGINS", dict.fromkeys(auto.MARGINS, 0.0))
    monkeypatch.setattr(table, "SMALL", 0)  # no cross-validation, but where a test asks for it
    monkeypatch.setattr(settled, "FEW_ROWS", 0)  # no weight decay, but where a test asks for it


def moons(rows=300):
    return datasets.load("moons", rows=rows, seed=0).x


def events(model):
    return [record["event"] for record in model.history_.records if "event" in record]


@pytest.mark.slow
def test_every_word_left_open_is_tried_and_the_best_is_kept_and_told():
    model = FFJORD(**FIELDS).fit(moons())
    tried = [text for text in events(model) if text.startswith("tried")]
    assert len(tried) == 4  # the first words, and one change for each of three fields
    nll = {text.split(":")[0]: float(text.split("NLL ")[1].split()[0]) for text in tried}
    chosen = model.config_["chosen"]
    names = ("time_density", "scaling", "fourier_features", "coupling")
    best = "tried " + ", ".join(f"{name}={chosen[name]}" for name in names)
    assert nll[best] == min(nll.values())
    assert chosen["schedule"] == [("flow_matching", 40), ("steps", 2)]
    assert events(model)[-1].startswith("kept step")


@pytest.mark.slow
def test_a_later_word_must_win_by_a_margin(monkeypatch):
    monkeypatch.setattr(auto, "MARGINS", dict.fromkeys(auto.MARGINS, 1e9))
    chosen = FFJORD(**FIELDS).fit(moons()).config_["chosen"]
    assert (chosen["time_density"], chosen["scaling"], chosen["fourier_features"]) == ("likelihood", "standardize", 2)


@pytest.mark.slow
def test_a_word_that_is_given_is_not_tried():
    given = {"time_density": "uniform", "scaling": "whiten", "fourier_features": 0, "coupling": "independent"}
    model = FFJORD(**FIELDS, **given).fit(moons())
    chosen = model.config_["chosen"]
    assert chosen["schedule"] == [("flow_matching", 40), ("steps", 2)]
    assert not set(given) & set(chosen)
    assert [text for text in events(model) if text.startswith("tried")][0].startswith("tried the only way: validation")


@pytest.mark.parametrize(("columns", "beside", "word"), [
    (2, {}, "optimal_transport"), (settled.COUPLED, {}, "optimal_transport"), (settled.COUPLED + 1, {}, "independent"),
    (settled.COUPLED_FROM, {}, "optimal_transport"),
    (2, {"context": np.linspace(0, 1, 60)[:, None]}, "independent"),
    (2, {"sample_weight": np.linspace(1, 2, 60)}, "independent"),
])  # fmt: skip
def test_few_or_very_many_columns_are_paired_by_optimal_transport(columns, beside, word):
    x = np.random.default_rng(0).normal(size=(60, columns))
    given = {"time_density": "uniform", "scaling": "standardize", "fourier_features": 0}
    assert FFJORD(**FIELDS, **given).fit(x, **beside).config_["chosen"]["coupling"] == word


@pytest.mark.parametrize(("columns", "rows", "seconds", "width"), [
    (settled.WIDE_FROM, 60, None, 256), (settled.WIDE_FROM - 1, 60, None, 128), (settled.WIDE_FROM, 40, None, 128),
    (settled.WIDE_FROM, 60, 1.0, 128),
])  # fmt: skip
def test_networks_are_wide_where_columns_rows_and_seconds_are_many(monkeypatch, columns, rows, seconds, width):
    monkeypatch.setattr(settled, "ROWS_OF_WIDTH", 50)
    x = np.random.default_rng(0).normal(size=(rows, columns))
    given = {"time_density": "uniform", "scaling": "standardize", "validation_fraction": 0.1}
    fields = {**FIELDS, **given, "max_seconds": seconds}
    fields.pop("hidden", None)
    assert FFJORD(**fields).fit(x).model_.config.fields.hidden == 3 * (width,)


def test_a_short_fit_judges_its_trials_by_fewer_rows(monkeypatch):
    seen = []
    judges = auto.Search._judges
    monkeypatch.setattr(auto.Search, "_judges", lambda self: seen.append(judges(self)) or seen[-1])
    FFJORD(**FIELDS, max_seconds=4).fit(moons(3000))
    assert {len(rows) for rows in seen} == {int(4 * auto.TRIAL_SHARE * auto.TRIAL_ELEMENTS_A_SECOND) // 2}


@pytest.mark.parametrize(("columns", "seconds", "share"), [
    (2, None, auto.TRIAL_SHARE), (2, auto.LONG, auto.TRIAL_SHARE), (2, 4 * auto.LONG, auto.TRIAL_SHARE / 2),
    (5, 4 * auto.LONG, auto.TRIAL_SHARE_OF_MANY),
])  # fmt: skip
def test_trials_of_few_columns_grow_as_the_root_of_long_fits(columns, seconds, share):
    search = auto.Search.__new__(auto.Search)
    search.domain, search.fields = SimpleNamespace(few_columns=columns <= 3), SimpleNamespace(max_seconds=seconds)
    assert search._share == share


def test_rows_of_a_few_columns_alone_are_tried_with_fourier_features_and_few_rows_without_quantiles(monkeypatch):
    monkeypatch.setattr(auto, "MARGINS", {**auto.MARGINS, "scaling": 0.02})
    x = np.random.default_rng(0).normal(size=(150, 4))
    tried = [text for text in events(FFJORD(**FIELDS).fit(x)) if text.startswith("tried")]
    assert len(tried) == 2
    assert not any("gaussianize" in text or "whiten" in text or "fourier_features=2" in text for text in tried)


@pytest.mark.slow
def test_correlated_columns_are_tried_without_their_correlations_unless_they_are_collinear():
    z = np.random.default_rng(0).normal(size=(150, 4))
    x = z @ [[1, 1, 0, 0], [0, 0.1, 0, 0], [0, 0, 1, -1], [0, 0, 0, 0.05]]
    model = FFJORD(**FIELDS).fit(x)
    assert [text for text in events(model) if "scaling=half_whiten" in text and text.startswith("tried")]
    assert model.config_["chosen"]["scaling"] == "half_whiten"
    model = FFJORD(**FIELDS).fit(np.c_[x, x[:, :2].sum(1)])
    assert model.config_["chosen"]["scaling"] == "standardize"
    assert not any("whiten" in text for text in events(model))


def test_without_validation_rows_nothing_is_tried():
    model = FFJORD(**FIELDS, validation_fraction=0.0).fit(moons())
    assert events(model)[0] == "nothing tried out (no validation rows)"
    words = {name: word for name, word in model.model_.domain.defaults().items() if getattr(model, name) in OPEN}
    assert model.config_["chosen"] == {**words, "schedule": [("flow_matching", 40)]}


@pytest.mark.slow
def test_a_loaded_run_is_made_of_what_was_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(auto.Search, "options", lambda _: [("scaling", ("gaussianize",)), ("fourier_features", (3,))])
    model = FFJORD(**FIELDS).fit(moons(), run=tmp_path / "run")
    loaded = FFJORD.load(tmp_path / "run")
    assert isinstance(loaded.flow_.preprocess.transforms[0], Gaussianize)
    assert len(loaded.flow_.transforms[0].dynamics.fourier_frequencies) == 3
    assert loaded.get_params()["scaling"] == "auto"
    assert np.array_equal(loaded.score_samples(moons(20)), model.score_samples(moons(20)))
    assert json.loads((tmp_path / "run/config.json").read_text())["chosen"]["fourier_features"] == 3


@pytest.mark.parametrize("at", [3, pytest.param(33, marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path, at):
    whole = FFJORD(**FIELDS).fit(moons(), run=tmp_path / "whole")

    def stop(record):
        if record["step"] == at:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        FFJORD(**FIELDS).fit(moons(), run=tmp_path / "cut", on_step=stop)
    again = FFJORD(**FIELDS).fit(moons(), run=tmp_path / "cut", resume=True)
    assert np.array_equal(whole.score_samples(moons(20)), again.score_samples(moons(20)))
    logs = [[r for r in m.history_.records if "validation_nll" in r] for m in (whole, again)]
    assert [r["validation_nll"] for r in logs[0]] == [r["validation_nll"] for r in logs[1]]
    assert [text for text in events(again) if text.startswith("chosen")]


@pytest.mark.slow
def test_a_small_set_has_so_many_epochs_and_no_more(monkeypatch):
    monkeypatch.setattr(auto, "MOST_EPOCHS", 3)
    chosen = FFJORD(**FIELDS).fit(moons()).config_["chosen"]  # 270 rows to train on, in batches of 64
    assert chosen["schedule"] == [("flow_matching", 12), ("steps", 2)]


FINISH = PhaseSpec("mle", steps=4)


@pytest.fixture
def without_steps(monkeypatch):
    """Tables of as many columns as few explicit steps do not pay for."""
    monkeypatch.setattr(auto.Search, "in_steps", lambda *_: None)


@pytest.mark.slow
def test_a_finish_by_likelihood_ends_where_it_does_not_help_and_the_better_weights_are_kept(monkeypatch, without_steps):
    monkeypatch.setattr(auto.Search, "finish", lambda *_: FINISH)
    model = FFJORD(**FIELDS, mle_learning_rate=0.2).fit(moons())
    assert model.config_["chosen"]["schedule"] == [("flow_matching", 40), ("mle", 4)]
    ended = [text for text in events(model) if text.startswith("mle ended")]
    assert ended == ["mle ended (early: no better validation NLL)"]
    finish = [r["validation_nll"] for r in model.history_.records if "validation_nll" in r and r["phase"] == "mle"]
    assert model.history_.best_nll < min(finish)


@pytest.mark.slow
def test_weights_decay_where_rows_are_few_and_flow_matching_then_goes_on_to_its_end(monkeypatch):
    x = moons()  # 270 rows are trained on
    given = {"time_density": "uniform", "scaling": "standardize", "fourier_features": 0, "patience": 1}
    ends = []
    for rows, decay in ((270, 1.0), (135, 0.25), (10, 0.0)):
        monkeypatch.setattr(settled, "FEW_ROWS", rows)
        model = FFJORD(**{**FIELDS, "validate_every": 2}, **given, learning_rate=1.0).fit(x)
        assert model.config_["chosen"]["weight_decay"] == pytest.approx(decay)
        ends += [text for text in events(model) if text.startswith("flow_matching ended")]
    assert ["all its steps made" in text for text in ends] == [True, True, False]


@pytest.mark.slow
def test_weight_decay_is_chosen_where_there_are_contexts_and_less_of_it_for_more_rows(monkeypatch):
    monkeypatch.setattr(auto, "STEPS", 2)
    x = moons()
    assert FFJORD(**FIELDS).fit(x).config_["chosen"]["weight_decay"] == 0.0
    for rows, decay in ((270, 0.3), (135, 0.15)):  # 270 of the 300 rows are trained on
        monkeypatch.setattr(settled, "ROWS_WITH_CONTEXTS", rows)
        model = FFJORD(**FIELDS).fit(x[:, :1], context=x[:, 1:])
        assert model.config_["chosen"]["weight_decay"] == pytest.approx(decay)
        assert model.model_.config.train.weight_decay == pytest.approx(decay)


@pytest.mark.slow
def test_many_rows_of_more_than_three_columns_without_contexts_are_trained_by_muon(monkeypatch):
    monkeypatch.setattr(auto, "STEPS", 2)
    monkeypatch.setattr(settled, "ROWS_OF_MUON", 2000)
    x = np.random.default_rng(0).normal(size=(3000, 4))
    fits = [FFJORD(**FIELDS).fit(part) for part in (x, x[:, :3], x[:2000])]
    fits.append(FFJORD(**FIELDS).fit(x, context=x[:, :1] ** 2))
    assert [each.model_.config.train.optimizer for each in fits] == ["muon", "adamw", "adamw", "adamw"]
    given = FFJORD(**FIELDS, optimizer="adamw").fit(x)
    assert given.model_.config.train.optimizer == "adamw"


@pytest.mark.slow
def test_a_weight_decay_that_is_given_stays(monkeypatch):
    monkeypatch.setattr(auto, "STEPS", 2)
    x = moons()
    model = FFJORD(**FIELDS, weight_decay=0.05).fit(x[:, :1], context=x[:, 1:])
    assert "weight_decay" not in model.config_["chosen"]
    assert model.model_.config.train.weight_decay == 0.05


@pytest.mark.slow
def test_the_finished_model_is_no_worse_than_the_trial_that_it_began_with(monkeypatch):
    monkeypatch.setattr(auto.Search, "schedule", lambda *_: [PhaseSpec("mle", steps=8)])
    monkeypatch.setattr(auto, "TRIAL_ELEMENTS", 0)
    monkeypatch.setattr(auto, "TRIAL_ROWS", 20)  # of 30 held out: the trial is scored again, on all of them
    scores, score = [], auto.Search.score
    monkeypatch.setattr(auto.Search, "score", lambda *given: scores.append(score(*given)) or scores[-1])
    model = FFJORD(**{**FIELDS, "validate_every": 1}, mle_learning_rate=0.5).fit(moons())
    assert model.history_.best_nll == scores[0]
    held_out = model.model_.domain.split(moons(), model.validation_fraction, 0)[1]
    assert -model.score(moons()[held_out]) == pytest.approx(scores[0], abs=0.01)


@pytest.mark.slow
def test_a_finish_that_diverges_leaves_what_was_there(monkeypatch, without_steps):
    monkeypatch.setattr(auto.Search, "finish", lambda *_: FINISH)
    model = FFJORD(**FIELDS, mle_learning_rate=1e6).fit(moons())
    ended = [text for text in events(model) if text.startswith("mle ended")]
    assert ended[0].startswith("mle ended (early: training diverged at step")
    assert np.isfinite(model.score(moons(20)))


@pytest.mark.slow
def test_a_finish_is_tried_where_the_seconds_buy_enough_of_it_and_left_out_with_a_reason(monkeypatch, without_steps):
    told = {}
    monkeypatch.setattr(auto.Search, "_seconds_of_a_loss", lambda *_: 1e-6)  # on any machine
    for least in (1, 10**9):
        monkeypatch.setattr(auto, "FINISH_STEPS", least)
        told[least] = FFJORD(**FIELDS, max_seconds=2.0).fit(moons())
    phases = {least: [word for word, _ in model.config_["chosen"]["schedule"]] for least, model in told.items()}
    assert phases == {1: ["flow_matching", "mle"], 10**9: ["flow_matching"]}
    assert any(text.startswith("mle ended") for text in events(told[1]))
    reason = next(text for text in events(told[10**9]) if text.startswith("no finish"))
    assert "20% of the time left would buy" in reason


@pytest.mark.slow
def test_a_trial_that_diverges_is_told_and_passed_over(monkeypatch):
    monkeypatch.setitem(SCALINGS, "gaussianize", (lambda x: Standardize(x.mean(0), 0 * x[0]), None))
    model = FFJORD(**FIELDS).fit(moons())
    assert any("scaling=gaussianize" in text and text.endswith("diverged") for text in events(model))
    assert model.config_["chosen"]["scaling"] == "standardize"


def test_where_every_trial_diverges_the_fit_does():
    with pytest.raises(TrainingDiverged):
        FFJORD(**FIELDS, max_nfe=7).fit(moons())


@pytest.mark.slow
def test_a_limit_in_seconds_is_kept_and_ends_with_a_validation():
    model = FFJORD(**FIELDS, max_seconds=6).fit(moons(2000))
    assert 1.0 < model.history_.work_seconds < 9.0  # of the thread's work, so the machine's load does not count
    assert model.config_["chosen"]["schedule"][-1][1].endswith("s")
    last = [record for record in model.history_.records if "event" not in record][-1]
    assert "validation_nll" in last
    assert last["validation_uncertified"] < 0.01


@pytest.mark.parametrize("clock", ["cpu", "wall"])
def test_a_limit_is_kept_where_one_solve_would_take_longer(monkeypatch, clock):
    """A clock that a solve's evaluations advance: a tenth of a second each."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(Timer, "read", lambda self: (0.1 * next(ticks),) * 2)
    x = moons()
    model = FFJORD(**{**FIELDS, "schedule": [("flow_matching", "3s"), ("mle", "5s")]}, clock=clock).fit(x)
    cut = [text for text in events(model) if text == "the time was up before the end of a step or validation"]
    assert cut
    assert model.history_.work_seconds < 9
    assert np.isfinite(model.score(x))


def test_clock_counts_wall_time_on_request():
    cpu, wall = Timer(torch.device("cpu")), Timer(torch.device("cpu"), clock="wall")
    time.sleep(0.05)
    assert wall.read()[1] >= 0.05 > cpu.read()[1]


def test_phases_may_be_given_in_seconds():
    model = FFJORD(**FIELDS, schedule=[("flow_matching", "0.5s"), ("mle", 2)]).fit(moons())
    ended = [text for text in events(model) if "ended" in text]
    assert ended == ["flow_matching ended (its time was up)", "mle ended (all its steps made)"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_seconds": 3.0, "schedule": [("mle", 5)]}, r"give the seconds in the schedule, e.g. mle:3s"),
        ({"max_seconds": float("inf")}, "max_seconds must be positive and finite; got inf"),
        ({"max_seconds": -1.0}, "max_seconds must be positive and finite; got -1.0"),
        ({"schedule": [("mle", "0s")]}, "schedule must be 'auto', or a list such as"),
        (
            {"fourier_features": 2, "dynamics": "concat"},
            "fourier_features are inputs of dynamics='residual'; got dynamics='concat'",
        ),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FFJORD(**{**FIELDS, **fields}).fit(moons())


def two_clusters(rows=60):
    x = np.random.default_rng(0).normal(size=(rows, 2))
    x[::2] += 6
    return x


@pytest.mark.slow
@pytest.mark.parametrize("context", [None, np.linspace(-1, 1, 60)[:, None]])
def test_few_rows_are_cross_validated_from_one_step_on(monkeypatch, context):
    monkeypatch.setattr(table, "SMALL", 1000)
    monkeypatch.setattr(cross_validation, "LENGTHS", (1, 5))
    model = FFJORD(random_state=0, hidden=(8,)).fit(two_clusters(), context=context)
    tried = [text for text in events(model) if text.startswith("tried")]
    assert all(text.endswith("4 folds") for text in tried)
    assert any("base=mixture" in text and "after 1 steps" in text for text in tried)
    nlls = [float(text.split("NLL ")[1].split()[0]) for text in tried]
    chosen = model.config_["chosen"]
    ((word, steps),) = chosen["schedule"]
    best = tried[int(np.argmin(nlls))]
    assert (word, chosen["base"]) == ("flow_matching", "mixture")
    assert f"after {steps} steps" in best
    assert "base=mixture" in best
    assert model.history_.step == steps
    assert any("so the density is that of the base alone: mixture" in text for text in events(model)) == (steps == 1)


@pytest.mark.slow
def test_held_out_rows_do_not_shorten_a_length_that_all_rows_have_chosen(monkeypatch):
    monkeypatch.setattr(table, "SMALL", 1000)
    monkeypatch.setattr(cross_validation, "LENGTHS", (40,))
    model = FFJORD(random_state=0, hidden=(8,)).fit(two_clusters(100))
    steps = model.config_["chosen"]["schedule"][0][1]
    assert [step for step, _ in model.history_.validations] == [steps]


@pytest.mark.slow
def test_few_rows_are_no_worse_than_a_mixture_of_theirs(monkeypatch, tmp_path):
    monkeypatch.setattr(table, "SMALL", 1000)
    monkeypatch.setattr(cross_validation, "LENGTHS", (1, 20))
    x, new = two_clusters(100), two_clusters(400) + 1e-9
    model = FFJORD(random_state=0, hidden=(8,)).fit(x)
    rival = GaussianMixture(2, random_state=0).fit(x)
    assert model.score(new) > rival.score(new) - 0.1
    model.save(tmp_path / "run")
    assert np.array_equal(FFJORD.load(tmp_path / "run").score_samples(new[:9]), model.score_samples(new[:9]))


def test_a_race_drops_what_rises_or_is_clearly_worse_and_keeps_to_its_time():
    made, left = [], [100.0]

    def score(settings, fold, steps):
        made.append((settings["name"], steps))
        left[0] -= steps / 1000
        return {"good": 1000 / steps, "rises": steps, "worse": 50 + 1000 / steps}[settings["name"]] + fold / 100

    race = cross_validation.Race(score, lambda: left[0], 3000, folds=3)
    race.run([{"name": name} for name in ("good", "rises", "worse")])
    lengths = {name: sorted({steps for each, steps in made if each == name}) for name in ("good", "rises", "worse")}
    assert lengths == {"good": [1, 100, 300, 1000, 3000], "rises": [1, 100], "worse": [1, 100]}
    race.refine()
    assert race.best() == ({"name": "good"}, 3000)
    left[0] = 1.0
    assert not race.add({"name": "good"}, 1000)


def test_a_signal_during_the_trials_is_what_the_script_hears(monkeypatch):
    fit_flow = auto.fit_flow

    def interrupted(*args, on_step, **options):
        return fit_flow(*args, on_step=lambda record: signal.raise_signal(signal.SIGTERM), **options)

    monkeypatch.setattr(auto, "fit_flow", interrupted)
    with pytest.raises(SystemExit):
        FFJORD(**FIELDS).fit(moons())


def test_all_that_is_fitted_is_fitted_to_a_folds_own_rows():
    c = np.random.default_rng(0).uniform(-2, 1, (300, 1))
    arrays, domain = FFJORD()._read(c + 10**c * np.random.default_rng(1).normal(size=(300, 1)), c, None, None)
    data = domain.training_data(arrays, 0.1, 0)
    rows, judges = cross_validation.split_folds(len(data.x), 4, 0)[0]
    fold = domain.fold(data, rows, judges)
    assert torch.equal(fold.held_out.x, data.x[judges])
    assert not fold.conditional.is_identity
    assert not torch.equal(fold.conditional.centre, data.conditional.centre)
    assert not torch.equal(fold.scaled_context, data.scaled_context[rows])
