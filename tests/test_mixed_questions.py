"""Categories alone, with missing cells, in any question, with weights, and as contexts."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from commands import call

from ffjord_kit import FFJORD, datasets
from ffjord_kit.columns.categories import Category, Date
from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.sample_weight import EFFECTIVE
from ffjord_kit.estimator.tables.choice import MissingCellsWarning
from ffjord_kit.estimator.tables.contexts import coded_contexts, coded_names
from ffjord_kit.estimator.tables.probability import fit_asked_factors
from ffjord_kit.nn.masked import QuestionContext
from ffjord_kit.objectives.subsets import ask
from ffjord_kit.run import RunError
from ffjord_kit.transforms import AskedCategorical

SHORT = {"schedule": [("flow_matching", 12)], "hidden": (8,), "random_state": 0, "validation_fraction": 0.0}
CITIES = np.array(["Bern", "Oslo", "Rome"], dtype=object)
JOINT = np.array([[0.18, 0.02], [0.25, 0.25], [0.03, 0.27]])  # of city and ok
EVERY = pd.DataFrame(list(itertools.product(CITIES, [False, True])), columns=["city", "ok"])


def people(rows, seed=0):
    """A frame of two dependent categories, and a number that follows them."""
    rng = np.random.default_rng(seed)
    city, ok = np.divmod(rng.choice(6, rows, p=JOINT.ravel()), 2)
    return pd.DataFrame({"city": CITIES[city], "ok": ok == 1, "x": 2.0 * city + rng.normal(size=rows)})


def with_gaps(frame, share=0.3, seed=1):
    """The frame with cells missing at random; a row without any value goes."""
    missing = np.random.default_rng(seed).random(frame.shape) < share
    return frame.astype(object).mask(missing).dropna(how="all").astype({"x": float} if "x" in frame else {})


@pytest.fixture(scope="module")
def alone():
    return FFJORD(random_state=0).fit(people(2000)[["city", "ok"]])


@pytest.fixture(scope="module")
def fitted():
    with pytest.warns(MissingCellsWarning):
        return FFJORD(**SHORT).fit(with_gaps(people(100)))


# ---- categories alone


def test_categories_alone_have_exact_probabilities_near_the_shares(alone):
    probability = np.exp(alone.score_samples(EVERY))
    assert probability.sum() == pytest.approx(1, abs=1e-6)
    rows = people(2000)
    shares = np.array([((rows.city == city) & (rows.ok == ok)).mean() for city, ok in EVERY.to_numpy()])
    assert (np.abs(probability - shares) < 4 * np.sqrt(shares * (1 - shares) / 2000) + 1 / 2000).all()
    assert (JOINT.ravel() * np.log(JOINT.ravel() / probability)).sum() < 0.01  # nats; 5 parameters of 2,000 rows
    draws = alone.sample(4000, random_state=0)
    drawn = np.array([((draws.city == city) & (draws.ok == ok)).mean() for city, ok in EVERY.to_numpy()])
    assert (np.abs(drawn - probability) < 5 * np.sqrt(probability / 4000)).all()
    assert alone.certify(EVERY).error.max() < 1e-12


def test_categories_alone_are_validated_kept_and_loaded(alone, tmp_path):
    assert alone.history_.step == 0 and 1.4 < alone.history_.validations[0][1] < 1.7  # entropy 1.54 nats
    model = FFJORD(random_state=0).fit(people(60)[["city", "ok"]], run=tmp_path / "run")
    loaded = FFJORD.load(tmp_path / "run")
    assert np.array_equal(loaded.score_samples(EVERY), model.score_samples(EVERY))
    with pytest.raises(RunError, match="use the model as it is"):
        FFJORD(random_state=0).fit(people(60)[["city", "ok"]], run=tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="diagnose is for columns of numbers, and all columns are categories"):
        alone.diagnose(EVERY)
    assert loaded.model_.summary()["density"] == "of categories alone: exact probabilities"


def test_the_doctor_says_why_it_does_not_examine_categories_alone(alone, tmp_path, capsys):
    alone.save(tmp_path / "run")
    EVERY.to_csv(tmp_path / "every.csv", index=False)
    code, out, err = call(capsys, "doctor", tmp_path / "run", tmp_path / "every.csv")
    assert (code, out) == (1, "")
    assert "doctor is for columns of numbers, and all columns are categories" in err
    assert "so score rows instead" in err
    assert err.count("\n") == 1


def test_categories_alone_follow_a_context_and_weights():
    rows, rng = people(400), np.random.default_rng(0)
    u = np.where(rows.ok, 2.0, -2.0) + 2 * rng.normal(size=400)
    model = FFJORD(random_state=0).fit(rows[["ok"]], context=u[:, None])
    given = np.exp(model.score_samples(pd.DataFrame({"ok": [True, True]}), context=[[-1.0], [1.0]]))
    odds = np.exp(np.array([-1.0, 1.0])) * JOINT[:, 1].sum() / JOINT[:, 0].sum()
    assert np.abs(given - odds / (1 + odds)).max() < 0.1
    weighted = FFJORD(random_state=0).fit(rows[["ok"]], sample_weight=np.where(rows.ok, 3.0, 1.0))
    share = 3 * rows.ok.mean() / (1 + 2 * rows.ok.mean())
    assert np.exp(weighted.score_samples(EVERY[["ok"]][1:2]))[0] == pytest.approx(share, abs=0.02)


# ---- questions


@pytest.mark.slow
def test_categories_with_gaps_are_learned_from_what_is_there():
    """Three of ten cells are missing; the KL to the truth keeps the bound of whole rows, 0.01 nats."""
    rows = people(2000)[["city", "ok"]]
    with pytest.warns(MissingCellsWarning, match=r"of \d+ cells are missing .columns city, ok"):
        model = FFJORD(random_state=0).fit(with_gaps(rows))
    probability = np.exp(model.score_samples(EVERY))
    assert probability.sum() == pytest.approx(1, abs=1e-6)
    assert (JOINT.ravel() * np.log(JOINT.ravel() / probability)).sum() < 0.01
    question = model.given(city="Rome")
    assert np.exp(question.log_prob(pd.DataFrame({"ok": [False, True]}))) == pytest.approx([0.1, 0.9], abs=0.06)
    assert model.impute(with_gaps(rows)[:50], draws=2, random_state=0)[0].city.isin(CITIES).all()


def test_answers_are_normalised_over_levels_and_numbers(fitted):
    marginal = fitted.marginal(["city", "ok"])
    assert np.exp(marginal.log_prob(EVERY)).sum() == pytest.approx(1, abs=1e-6)
    grid = np.linspace(-12, 16, 301)
    question = fitted.given(city="Rome")
    rows = [pd.DataFrame({"ok": ok, "x": grid}) for ok in (False, True)]
    density = sum(np.exp(question.log_prob(each)) for each in rows)
    assert density.sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=2e-3)
    assert np.exp(fitted.given(x=4.0).marginal("ok").log_prob([[0.0], [1.0]])).sum() == pytest.approx(1, abs=1e-6)


def test_a_row_with_gaps_has_the_density_of_its_observed_cells(fitted):
    row = pd.DataFrame({"city": ["Oslo"], "ok": [None], "x": [1.0]})
    other = fitted.marginal(["city", "x"]).log_prob(pd.DataFrame({"city": ["Oslo"], "x": [1.0]}))
    assert np.allclose(fitted.score_samples(row), other)
    assert fitted.score_samples(row.assign(city="Paris"))[0] == -np.inf


def test_an_explained_row_has_its_score_and_keeps_its_levels(fitted):
    rows, known = people(3, seed=5), people(60, seed=6)
    scores = fitted.score_samples(rows)
    found = fitted.explain(rows, reference=known, threshold=float(scores.min()) - 1, draws=20)
    assert [each.before + found.threshold for each in found] == pytest.approx(scores, abs=1e-2)
    assert found[0].names == ("x",) and found.rows == pytest.approx(fitted.model_.domain.observed_cells(rows))


def test_frames_come_back_with_their_levels(fitted):
    gaps = with_gaps(people(30, seed=5))
    filled = fitted.impute(gaps, draws=1, random_state=0)[0]
    there = gaps.notna().to_numpy()
    assert (filled.to_numpy()[there] == gaps.to_numpy()[there]).all() and filled.notna().all(axis=None)
    draws = fitted.given(city="Oslo").sample(20, random_state=0)
    assert list(draws.columns) == ["ok", "x"] and draws.ok.isin([False, True]).all()
    assert set(fitted.given(ok=True).sample(50, random_state=0).city) <= set(CITIES)
    for wrong, message in (({"city": "Paris"}, "'Paris', which is no level of it: Bern, Oslo, Rome"), (
        {"x": "far"}, "'x' must be given a number; got 'far'"
    )):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            fitted.given(wrong)


def test_a_run_with_questions_switched_on_is_loaded(fitted, tmp_path):
    fitted.save(tmp_path / "run")
    loaded, rows = FFJORD.load(tmp_path / "run"), with_gaps(people(20, seed=3))
    assert loaded.config_["subsets"] and loaded.config_["estimator"]["subsets"] is None
    assert np.array_equal(loaded.score_samples(rows), fitted.score_samples(rows))


def test_gaps_are_refused_where_they_are_not_wanted():
    rows = with_gaps(people(60))
    with pytest.raises(ValueError, match="NaN or infinity .first in row .*subsets=True"):
        FFJORD(**SHORT, subsets=False).check(rows)
    with pytest.raises(ValueError, match=r"\d+ cells are missing, which subsets=True takes; subsets=True takes base="):
        FFJORD(**SHORT, base="student").check(rows)
    with pytest.raises(ValueError, match="column 'x' has no value"):
        FFJORD(**SHORT).check(rows.assign(x=np.nan))
    with pytest.raises(ValueError, match="1 of 3 rows have no value .first: row 2"):
        FFJORD(**SHORT).check(np.array([[1.0, 2.0], [2.0, np.nan], [np.nan, np.nan]]))


def test_dates_and_whole_numbers_may_be_missing():
    rng = np.random.default_rng(0)
    born = pd.Series(pd.Timestamp("2000-01-01") + pd.to_timedelta(rng.integers(0, 900, 80), unit="D"))
    frame = pd.DataFrame({"born": born.mask(rng.random(80) < 0.2), "kids": rng.integers(0, 4, 80).astype(float)})
    with pytest.warns(MissingCellsWarning):
        model = FFJORD(**SHORT, columns={"kids": "integer"}).fit(frame)
    filled = model.impute(frame, draws=1, random_state=0)[0]
    assert (filled.born[born.notna()] == frame.born[born.notna()])[frame.born.notna()].all()
    assert (filled.born == filled.born.dt.normalize()).all()
    assert np.isfinite(model.given(born="2001-02-03").log_prob([[1.0]])).all()


def test_weights_of_rows_with_gaps_move_the_density():
    """A row of weight w counts as w rows: the steps' likelihood rises where the weight is."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-2, 0.5, (30, 2)), rng.normal(2, 0.5, (30, 2))])
    x[::7, 0] = np.nan
    weight = np.repeat([1.0, 9.0], 30)
    with pytest.warns(MissingCellsWarning):
        model = FFJORD(**{**SHORT, "schedule": [("flow_matching", 100)]}).fit(x, sample_weight=weight)
    assert model.config_[EFFECTIVE] == pytest.approx(30 * 100 / 82)
    low, high = model.score_samples(np.array([[-2.0, -2.0], [2.0, 2.0]]))
    assert high - low > 1.0  # log 9 = 2.2 for the truth


def test_asked_rows_know_the_levels_of_given_and_asked_categories(generator):
    codes = torch.eye(3)[torch.arange(300) % 3]
    ones = torch.ones(300, 2)
    context = QuestionContext(0 * ones, 0 * ones, ones, torch.cat([codes, torch.ones(300, 1)], 1)).context
    asked = ask(Batch(torch.randn(300, 2), context, torch.ones(300)), generator, [3])
    known, modelled = asked.context[:, 6:9], asked.context[:, 9]
    assert ((known == codes).all(1) | (known == 0).all(1)).all() and not (modelled > known.sum(1)).any()
    given = (known.sum(1) > 0) & (modelled == 0)
    assert given.any() and (known.sum(1) == 0).any() and asked.weight is not None


def test_probabilities_of_asked_categories_sum_to_one_for_any_question(generator):
    rows = people(120)
    values = torch.tensor(rows.x.to_numpy())[:, None]
    city = torch.eye(3)[torch.from_numpy(np.searchsorted(CITIES.astype(str), rows.city.astype(str)))].double()
    codes = torch.cat([city, torch.eye(2)[torch.from_numpy(rows.ok.to_numpy().astype(int))].double()], 1)
    ones = torch.ones(120, 1).double()
    asked = AskedCategorical(fit_asked_factors(values, ones, codes, ones.repeat(1, 2), [3, 2]), 1)
    every = torch.cat([torch.eye(3).repeat_interleave(2, 0), torch.eye(2).repeat(3, 1)], 1).double()
    for given in (0.0, 1.0):
        numbers = torch.tensor([[given, 3.0 * given, 1 - given]]).double().repeat(6, 1)
        context = torch.cat([numbers, every, torch.ones(6, 2).double()], 1)
        assert float(asked.log_prob(context).exp().sum()) == pytest.approx(1, abs=1e-9)
        drawn = asked.sample(context[:1].repeat(3000, 1), generator)
        shares = torch.stack([(drawn == row).all(1).double().mean() for row in every])
        assert float((shares - asked.log_prob(context).exp()).abs().max()) < 0.04


# ---- contexts


def test_texts_as_contexts_are_coded_by_their_levels():
    types = {("city",): Category(["Oslo", "Rome"])}
    frame = pd.DataFrame({"u": [1.5, 2.5], "city": ["Rome", "Oslo"]})
    assert coded_contexts(frame, ["city", "u"], types).tolist() == [[1.5, 0, 1], [2.5, 1, 0]]
    assert coded_contexts([1.0, 2.5], ["city", "u"], types).tolist() == [[2.5, 0, 1]]
    assert coded_names(["city", "u"], types) == ["u", "city=Oslo", "city=Rome"]
    with pytest.raises(ValueError, match="'city' has 1 of 2 values that are missing or no level .*Oslo, Rome"):
        coded_contexts(frame.replace("Rome", "Paris"), ["city", "u"], types)


def test_a_density_follows_a_context_of_texts(tmp_path):
    rows = people(120)
    model = FFJORD(**{**SHORT, "schedule": [("flow_matching", 100)]}).fit(rows[["x"]], context=rows[["city", "ok"]])
    assert model.config_["context_dim"] == 4 and model.config_["context_types"] == {
        "city": 'category:["Bern", "Oslo", "Rome"]'
    }
    means = [
        model.sample(50, context=pd.DataFrame({"city": [city], "ok": [True]}), random_state=0).mean()
        for city in ("Bern", "Rome")
    ]
    assert means[1] - means[0] > 1  # 4 for the truth
    model.save(tmp_path / "run")
    loaded = FFJORD.load(tmp_path / "run")
    some = rows[:5]
    score = model.score_samples(some[["x"]], context=some[["city", "ok"]])
    assert np.array_equal(loaded.score_samples(some[["x"]], context=some[["ok", "city"]]), score)


# ---- files and commands

TINY = ["--schedule", "flow_matching:8", "--hidden", "8", "--seed", "0", "--no-verbose", "--validation-fraction", "0"]


def test_missing_cells_of_texts_and_dates_are_none():
    assert Category(["a", "b"]).cells(np.array([1.0, np.nan])).tolist() == ["b", None]
    assert np.isnat(Date().cells(np.array([1.0, np.nan]))).tolist() == [False, True]


def test_marks_are_missing_in_columns_of_texts_too(tmp_path):
    (tmp_path / "t.csv").write_text("city,x\n" + "Oslo,1\nRome,unknown\n-999,3\n,-999\nOslo,5\nRome,6\n")
    read = datasets.load(tmp_path / "t.csv", types={}, missing=(-999.0, "unknown"))
    assert np.array_equal(np.isnan(read.x), [[0, 0], [0, 1], [1, 0], [1, 1], [0, 0], [0, 0]])
    assert str(read.types["city"]) == 'category:["Oslo", "Rome"]' and "4 missing cells" in read.found


def test_the_command_line_fits_a_file_with_gaps_and_answers(capsys, tmp_path):
    path, run = tmp_path / "people.csv", tmp_path / "run"
    with_gaps(people(40)).to_csv(path, index=False)
    code, _, err = call(capsys, "fit", path, "--out", run, *TINY)
    assert code == 0 and "the fit learns every question" in err, err
    assert json.loads((run / "config.json").read_text())["subsets"] is True
    assert "of the cells; each row's density" in call(capsys, "score", run, path)[1]
    code, _, err = call(capsys, "sample", run, "--given", "city=Oslo", "-n", 5, "--out", tmp_path / "new.csv")
    assert code == 0 and list(pd.read_csv(tmp_path / "new.csv").columns) == ["ok", "x"], err
    code, _, err = call(capsys, "impute", run, path, "--draws", 1, "--out", tmp_path / "filled.csv")
    assert code == 0 and pd.read_csv(tmp_path / "filled.csv").notna().all(axis=None), err


def test_the_command_line_takes_contexts_of_texts(capsys, tmp_path):
    path, run = tmp_path / "people.csv", tmp_path / "run"
    people(40).to_csv(path, index=False)
    assert call(capsys, "fit", path, "--context", "city,ok", "--out", run, *TINY)[0] == 0
    assert call(capsys, "sample", run, "--context", "Oslo,true", "-n", 5, "--out", tmp_path / "new.csv")[0] == 0
    assert "log-likelihood" in call(capsys, "score", run, path)[1]
    code, _, err = call(capsys, "sample", run, "--context", "Paris,1", "-n", 5, "--out", tmp_path / "no.csv")
    assert code == 1 and "--context gives 'Paris', and the levels of the fit are Bern, Oslo, Rome" in err
