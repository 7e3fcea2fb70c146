"""Categories and dates: what a table's columns are taken for, the density of both, and runs of them."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from commands import call

from ffjord_kit import FFJORD, Category, Date
from ffjord_kit.columns.base import ColumnTypeWarning
from ffjord_kit.columns.frames import code_frame, look_at_frame
from ffjord_kit.columns.mixed import look
from ffjord_kit.columns.types import parse_type
from ffjord_kit.datasets import load, write_chunks
from ffjord_kit.estimator.tables.probability import fit_categories
from ffjord_kit.transforms import Categorical, ContextScaling
from ffjord_kit.transforms.categorical import SHARE, Factor, categorical_of

SHORT = {"schedule": [("flow_matching", 20)], "hidden": (8,), "random_state": 0}
LEVELS = ["Bern, CH", "Oslo", "Rome"]
MEANS = np.array([3.0, -2.0, 0.0])


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    places = rng.choice(3, 300, p=[0.2, 0.5, 0.3])
    days = pd.Timestamp("2000-01-01") + pd.to_timedelta(rng.integers(0, 3000, 300), unit="D")
    return pd.DataFrame({
        "city": np.array(LEVELS, dtype=object)[places], "x": MEANS[places] + 0.3 * rng.normal(size=300),
        "ok": rng.random(300) < 0.3, "born": days, "kids": rng.integers(0, 3, 300),
    })  # fmt: skip


@pytest.fixture(scope="module")
def fitted(table, tmp_path_factory) -> FFJORD:
    run = tmp_path_factory.mktemp("mixed") / "run"
    return FFJORD(columns={"kids": "category"}, **SHORT).fit(table, run=run)


def words(values) -> np.ndarray:
    return np.array(values, dtype=object)


def one_hot(places, size: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.as_tensor(places), size).double()


@pytest.mark.parametrize("text", ["category", 'category:["a", "b: c"]', "category:[false, true]", "date"])
def test_a_type_is_written_as_it_is_read(text):
    assert str(parse_type(text)) == text


@pytest.mark.parametrize("levels", [["a"], ["a", "a"], ["a", 1], [None, "a"], [str(i) for i in range(101)]])
def test_levels_are_different_of_one_kind_and_not_too_many(levels):
    with pytest.raises(ValueError, match="level"):
        Category(levels)


def test_levels_have_places_and_come_back():
    for levels, cells in ((["a", "b"], words(["b", "a", None])), ([False, True], words(["TRUE", False, np.nan]))):
        codes = Category(levels).codes(cells)
        assert codes[:2].tolist() == [1.0, 0.0]
        assert np.isnan(codes[2])
        assert Category(levels).cells(codes[:2]).tolist() == [levels[1], levels[0]]
    assert Category(["1", "a"]).codes(words([1, "a", 2])).tolist() == [0.0, 1.0, -1.0]
    assert Category([2.5, 4]).cells(np.array([4.0, 2.5])).tolist() == [4.0, 2.5]


def test_dates_are_days_and_come_back():
    cells = words(["2020-02-29", "1969-12-31T06:00:00Z", pd.Timestamp("1970-01-02T02:00", tz="Etc/GMT-2"), pd.NaT])
    days = Date().numbers(cells)
    assert days[:3].tolist() == [18321.0, -0.75, 1.0]
    assert np.isnan(days[3])
    assert Date().cells(days[:3]).astype(str).tolist() == [
        "2020-02-29T00:00:00", "1969-12-31T06:00:00", "1970-01-02T00:00:00",
    ]  # fmt: skip
    assert Date().numbers(np.array(["2020-02-29"], "datetime64[D]")).tolist() == [18321.0]


FOUND = {
    "texts": (["b", "a"] * 5, 'category:["a", "b"]'),
    "truth values": ([True, False, None], "category:[false, true]"),
    "words for them": (["True", "false"], "category:[false, true]"),
    "dates": ([pd.Timestamp("2020-01-01"), None], "date"),
    "dates in texts": (["2020-01-01", "2020-01-02T10:30"], "date"),
    "numbers with a word of its own": ([0, 1, 2, "3+"] * 5, 'category:["0", "1", "2", "3+"]'),
    "a typo among numbers": ([*range(30), "x12"], None),
    "names": ([f"name {i}" for i in range(10)], None),
    "numbers": ([1, 2, 3.5], None),
}


@pytest.mark.parametrize(("cells", "kind"), FOUND.values(), ids=FOUND)
def test_what_a_column_is_is_found_by_looking(cells, kind):
    numbers = [np.nan if isinstance(cell, (str, bool)) or cell is None else float(cell == cell) for cell in cells]
    if isinstance(cells[0], pd.Timestamp):
        numbers = [np.nan] * len(cells)
    found = look("a", words(cells), np.array(numbers))
    assert (None if found is None else str(found.kind)) == kind


def test_columns_of_a_frame_that_are_categories_are_found(table):
    found = look_at_frame(table.assign(kids=table.kids.astype("category")), {})
    assert {own[0]: str(kind) for own, kind in found.items()} == {
        "city": 'category:["Bern, CH", "Oslo", "Rome"]', "ok": "category:[false, true]", "born": "date",
        "kids": "category:[0.0, 1.0, 2.0]",
    }  # fmt: skip


def test_a_frame_of_polars_is_read_as_one_of_pandas(table):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({name: table[name].to_list() for name in table})
    found = look_at_frame(table, {})
    assert look_at_frame(frame, {}) == found
    np.testing.assert_array_equal(code_frame(frame, found).to_numpy(), code_frame(table, found).to_numpy())


def test_one_category_without_contexts_has_frequencies_by_laplaces_rule():
    codes = one_hot([0] * 6 + [1] * 2 + [2], 3)
    flow = fit_categories(codes[:, :0], codes, [3])
    _, log_prob = flow.to_base(torch.zeros(3, 1), torch.eye(3).double())
    torch.testing.assert_close(log_prob.exp(), torch.tensor([7, 3, 2]).double() / 12)


def test_probabilities_of_categories_sum_to_one_and_draws_follow_them():
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    first = rng.integers(0, 2, 2000)
    second = np.where(rng.random(2000) < 0.9, first, 2)
    flow = fit_categories(torch.zeros(2000, 0).double(), torch.cat([one_hot(first, 2), one_hot(second, 3)], 1), [2, 3])
    every = torch.cat([one_hot(np.repeat([0, 1], 3), 2), one_hot(np.tile([0, 1, 2], 2), 3)], 1)
    probability = flow.log_prob(every).exp()
    truth = torch.tensor([0.45, 0, 0.05, 0, 0.45, 0.05]).double()
    assert float(probability.sum()) == pytest.approx(1)
    assert bool(((probability - truth).abs() < 0.03).all())
    assert float(probability.min()) > 0.4 * SHARE * 0.3
    drawn = flow.sample(torch.zeros(4000, 0), generator)
    shares = torch.stack([(drawn == row).all(1).double().mean() for row in every])
    assert bool(((shares - probability).abs() < 0.03).all())


def test_a_category_follows_contexts():
    rng = np.random.default_rng(0)
    u = rng.normal(size=(1500, 1))
    codes = one_hot((rng.random(1500) < 1 / (1 + np.exp(-3 * u[:, 0]))).astype(int), 2)
    flow = fit_categories(torch.from_numpy(u), codes, [2])
    given = torch.tensor([[-1.0, 0, 1], [0.0, 0, 1], [1.0, 0, 1]]).double()
    expected = 1 / (1 + np.exp(-3 * np.array([-1.0, 0.0, 1.0])))
    assert np.abs(flow.log_prob(given).exp().numpy() - expected).max() < 0.1


def test_a_level_without_rows_to_train_on_keeps_its_share():
    counts = torch.tensor([50.0, 50.0, 0.0])
    factor = Factor.of_counts(counts, 1)._replace(bias=torch.tensor([0.0, 0.0, -50.0]).double())
    share = factor.log_prob(torch.zeros(1, 1).double()).exp()[0, 2]
    assert float(share) == pytest.approx(SHARE / 103)
    assert Categorical([factor]).flaw() == ""
    assert "no probabilities" in Categorical([factor._replace(frequency=torch.zeros(3))]).flaw()


def test_codes_reach_the_flow_as_they_are():
    context = torch.cat([torch.randn(50, 1).double() * 9 + 4, one_hot(np.arange(50) % 3, 3)], dim=1)
    scaled = ContextScaling.of(context, plain=3)(context)
    assert torch.equal(scaled[:, 1:], context[:, 1:])
    assert torch.equal(scaled[:, :1], ContextScaling.of(context[:, :1])(context[:, :1]))


def test_the_density_of_a_real_column_and_a_category_sums_to_one(table):
    model = FFJORD(schedule=[("flow_matching", 60)], hidden=(8,), random_state=0).fit(table[["city", "x"]])
    grid = np.linspace(-9, 9, 250)
    density = [np.exp(model.score_samples(pd.DataFrame({"city": level, "x": grid}))) for level in LEVELS]
    mass = np.sum(density, axis=1) * (grid[1] - grid[0])
    assert mass.sum() == pytest.approx(1, abs=2e-3)
    counts = table.city.to_numpy()[model.model_.domain.split(table, 0.1, 0)[0]]
    expected = [(np.sum(counts == level) + 1) / (len(counts) + 3) for level in LEVELS]
    assert np.abs(mass - expected).max() < 2e-3


def test_a_frame_goes_in_and_comes_out(fitted, table):
    draws = fitted.sample(200, random_state=0)
    assert draws.columns.tolist() == table.columns.tolist()
    assert set(draws.city) == set(LEVELS)
    assert draws.ok.dtype == bool
    assert np.issubdtype(draws.born.dtype, np.datetime64)
    assert bool((draws.born == draws.born.dt.normalize()).all())
    assert set(draws.kids) <= {0.0, 1.0, 2.0}
    assert np.isfinite(fitted.score_samples(draws)).all()
    assert draws.equals(fitted.sample(200, random_state=0))


def test_draws_without_texts_and_dates_are_an_array(table):
    draws = FFJORD(**SHORT).fit(table[["x", "ok"]]).sample(50, random_state=0)
    assert isinstance(draws, np.ndarray)
    assert set(draws[:, 1]) <= {0.0, 1.0}


def test_a_run_is_kept_and_goes_on(fitted, table, tmp_path):
    fitted.save(tmp_path / "run")
    loaded = FFJORD.load(tmp_path / "run")
    assert loaded.config_["types"]["city"] == 'category:["Bern, CH", "Oslo", "Rome"]'
    assert loaded.columns == {"kids": "category"}
    score = fitted.score_samples(table)
    assert np.array_equal(loaded.score_samples(table), score)
    assert np.array_equal(loaded.model_.score_samples(table[table.columns[::-1]]), score)
    assert loaded.sample(20, random_state=1).equals(fitted.sample(20, random_state=1))
    run = tmp_path / "again"
    FFJORD(columns={"kids": "category"}, **SHORT).fit(table, run=run)
    again = FFJORD(columns={"kids": "category"}, **SHORT).fit(table, run=run, resume=True)
    assert np.array_equal(again.score_samples(table), score)


def test_probabilities_that_are_none_are_a_damaged_file(fitted, tmp_path):
    from ffjord_kit.run import Run, RunError

    fitted.save(tmp_path / "run")
    run = Run.open(tmp_path / "run")
    flow = FFJORD.load(tmp_path / "run").flow_
    for name, value in flow.state_dict().items():
        if "frequency_0" in name:
            value.fill_(0.0)
    run.save_model(flow)
    with pytest.raises(RunError, match="no probabilities"):
        FFJORD.load(tmp_path / "run")


def test_figures_are_those_of_both_factors(fitted, table):
    model = fitted.model_
    batch, inside = model._batch(table, None)
    given = model.domain.given_categories(model.flow)
    probability = categorical_of(model.flow).log_prob(
        model.flow.preprocess.scale_context(batch.context, batch.x.double())
    )
    rest = model.evaluate_batch(batch, flow=given).log_prob
    assert inside.all()
    score = model.score_samples(table)
    np.testing.assert_allclose(score, rest + probability.numpy(), rtol=0, atol=1e-9)
    certified = fitted.certify(table[:20])
    np.testing.assert_allclose(certified.log_prob, score[:20], rtol=0, atol=0.02)


def test_an_unseen_level_has_no_density_and_is_told(fitted, table):
    other = table.copy()
    other.loc[3, "city"], other.loc[5, "kids"] = "Paris", 7
    with pytest.warns(ColumnTypeWarning) as told:
        score = fitted.score_samples(other)
    assert np.flatnonzero(np.isinf(score)).tolist() == [3, 5]
    assert np.array_equal(np.delete(score, [3, 5]), np.delete(fitted.score_samples(table), [3, 5]))
    texts = [str(each.message).partition(": their")[0] for each in told if each.category is ColumnTypeWarning]
    assert sorted(texts) == [
        "column 'city' has 1 rows with a level that the fit has not seen (first: 'Paris')",
        "column 'kids' has 1 rows with a level that the fit has not seen (first: 7)",
    ]


def test_user_contexts_stand_before_the_categories(table):
    context = table[["x"]].to_numpy() + 1
    frame = pd.DataFrame({"y": table.x**2 + np.random.default_rng(0).normal(size=300), "city": table.city})
    model = FFJORD(**SHORT).fit(frame, context=context, context_columns=["u"])
    assert model.config_["context_dim"] == 1
    assert np.isfinite(model.score_samples(frame, context=context)).all()
    assert model.sample(5, context=[2.0], random_state=0).shape == (5, 2)
    assert set(model.sample(100, context=[-1.0], random_state=0).city) <= set(LEVELS)
    assert model.model_.domain.context_names(4) == ["u", "city=Bern, CH", "city=Oslo", "city=Rome"]
    with pytest.raises(ValueError, match="context"):
        model.score_samples(frame)
    with pytest.raises(ValueError, match="context"):
        model.sample(5)


REFUSED = {
    "one level": (lambda t: t.assign(ok=True), "'ok' is a category with one level in all rows: drop it"),
    "many levels": (lambda t: t.assign(a=[f"a{i % 120}" for i in range(300)]), "'a' is a category of 120 levels"),
    "many in all": (
        lambda t: t.assign(a=[f"a{i % 60}" for i in range(300)], b=[f"b{i % 60}" for i in range(300)]),
        r"the categories have 125 levels in all, more than 100 \(a 60, b 60",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_density_is_refused_in_one_line(table, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        FFJORD(**SHORT).check(change(table))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column, cell", [("city", None), ("born", pd.NaT)])
def test_a_missing_cell_is_named_where_none_may_be_missing(table, column, cell):
    with pytest.raises(ValueError, match=f"first in row 0, column '{column}'"):
        FFJORD(**SHORT, subsets=False).check(table.assign(**{column: [cell, *table[column][1:]]}))


def test_levels_of_a_user_are_kept_and_must_hold_all_rows(table):
    model = FFJORD(columns={"city": Category([*LEVELS, "Paris"])}, **SHORT).fit(table[["city", "x"]])
    assert model.model_.domain.categories["city"].size == 4
    assert np.isfinite(model.score_samples(pd.DataFrame({"city": ["Paris"], "x": [0.0]}))).all()
    with pytest.raises(ValueError, match="'city' has .* values that are not among its levels, 'Oslo', 'Rome'"):
        FFJORD(columns={"city": Category(["Oslo", "Rome"])}, **SHORT).check(table[["city", "x"]])


def test_a_level_of_a_single_row_is_warned_of(table):
    frame = table[["city", "x"]].copy()
    frame.loc[0, "city"] = "Nice"
    with pytest.warns(ColumnTypeWarning, match=r"'city' has levels with a single row \('Nice'\)"):
        FFJORD(**SHORT).check(frame)


def test_circles_and_categories_stand_side_by_side(table):
    phi = np.where(table.city == "Rome", 350.0, 90.0) + 5 * np.random.default_rng(0).normal(size=300)
    frame = table[["city", "x"]].assign(phi=phi % 360)
    model = FFJORD(columns={"phi": "circle:360"}, **SHORT).fit(frame)
    shifted = frame.assign(phi=frame.phi + 360)
    np.testing.assert_allclose(model.score_samples(frame), model.score_samples(shifted), rtol=0, atol=1e-6)
    assert model.sample(50, random_state=0).phi.between(0, 360).all()


def test_what_is_made_for_numbers_is_refused(fitted, table):
    for verb, use in {
        "attack": lambda: fitted.attack(table, 0.1),
        "velocity": lambda: fitted.velocity(table, 0.5), "reflow": fitted.reflow,
        "condense": lambda: fitted.condense(table),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"{verb} .* a category"):
            use()


def test_trajectories_are_those_of_the_other_columns(fitted):
    assert fitted.trajectory(6, frames=3, random_state=0).x.shape == (3, 6, 2)
    assert fitted.states(6, [0.0, 1.0], random_state=0).shape == (2, 6, 2)


def test_a_table_of_numbers_has_no_categories():
    x = np.random.default_rng(0).normal(size=(50, 2))
    record = FFJORD(**SHORT).fit(x).config_
    assert "types" not in record
    with warnings.catch_warnings():
        warnings.simplefilter("error", ColumnTypeWarning)
        assert isinstance(FFJORD(**SHORT).fit(pd.DataFrame(x, columns=["a", "b"])).sample(3), np.ndarray)


# ---- files and the command line


@pytest.fixture(scope="module")
def csv(table, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "people.csv"
    table.assign(id=[f"p{i}" for i in range(300)]).to_csv(path, index=False)
    return path


def test_files_are_read_with_the_types_that_their_columns_show(table, csv, tmp_path):
    frame = table.drop(columns="kids")
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_excel(tmp_path / "t.xlsx", index=False)
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True, date_format="iso", double_precision=15)
    plain = load(csv, types={}, drop=["id", "kids"])
    assert plain.dropped == ("kids", "id")
    assert plain.found.endswith("city: category of 3 levels; ok: category of 2 levels; born: date")
    assert plain.x[:, 2].tolist() == table.ok.astype(float).tolist()
    for name in ("t.parquet", "t.xlsx", "t.jsonl"):
        other = load(tmp_path / name, types={})
        assert {each: str(kind) for each, kind in other.types.items()} == {
            each: str(kind) for each, kind in plain.types.items()
        }
        np.testing.assert_allclose(other.x, plain.x, rtol=1e-12)


def test_text_that_is_no_category_is_told_in_one_line(csv, tmp_path):
    with pytest.raises(
        ValueError, match=r"text in 'id' .300 of 300 rows, first 'p0' on line 2.*drop those columns \(--"
    ):
        load(csv, types={})
    (tmp_path / "t.csv").write_text("a,b\n" + "1,2\n" * 30 + "x12,3\n")
    with pytest.raises(ValueError, match=r"text in 'a' \(1 of 31 rows, first 'x12' on line 32\)"):
        load(tmp_path / "t.csv", types={})
    (tmp_path / "t.csv").write_text("a,b\nu,2\nu,3\n,4\nv,5\nv,6\n")
    with pytest.raises(ValueError, match=r"missing values in 'a' \(1 of 5 rows, first on line 4\)"):
        load(tmp_path / "t.csv", types={})


def test_columns_are_dropped_by_name_or_number(csv):
    assert load(csv, types={}, drop=["id", "0"]).columns == ("x", "ok", "born", "kids")
    with pytest.raises(ValueError, match="no column 'idd' .did you mean 'id'"):
        load(csv, types={}, drop=["idd"])
    assert load(csv, types={}, drop=["idd", "id"], missing_ok=True).columns[0] == "city"


def test_numbers_alone_cannot_hold_texts(tmp_path):
    cells = {"a": Category(["u", "v"]).cells}
    with pytest.raises(ValueError, match=r"t.npy: holds numbers alone, and column 'a' has others: write .csv"):
        write_chunks(tmp_path / "t.npy", [np.zeros((2, 1))], ["a"], rows=2, cells=cells)
    write_chunks(tmp_path / "t.csv", [np.zeros((2, 1)), np.ones((1, 1))], ["a"], rows=3, cells=cells)
    assert (tmp_path / "t.csv").read_text() == "a\nu\nu\nv\n"


@pytest.mark.slow
def test_the_command_line_fits_scores_and_samples_a_mixed_table(csv, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "new.csv"
    short = ["--schedule", "flow_matching:20", "--hidden", "8", "--no-verbose", "--seed", "0"]
    options = [*short, "--drop", "id", "--columns", "kids=category"]
    assert call(capsys, "fit", csv, "--out", run, *options)[0] == 0
    note = json.loads((run / "config.json").read_text())
    assert note["data"]["drop"] == ["id"]
    assert note["columns"] == ["city", "x", "ok", "born", "kids"]
    scored = call(capsys, "score", run, csv)[1]
    assert "-inf" not in scored
    assert "level of city" in scored
    assert call(capsys, "sample", run, "-n", 30, "--out", out, "--seed", 1)[0] == 0
    drawn = pd.read_csv(out)
    assert set(drawn.city) <= set(LEVELS)
    assert drawn.born.str.fullmatch(r"\d{4}-\d\d-\d\d").all()
    assert drawn.kids.dtype == np.int64
    assert "log-likelihood" in call(capsys, "score", run, out)[1]
    assert "category" in call(capsys, "info", run)[1]
    other = pd.read_csv(csv)
    other.loc[0, "city"] = "Paris"
    other.to_csv(out, index=False)
    scored = call(capsys, "score", run, out)[1]
    assert "density 0" in scored
    assert "nan" not in scored
    assert call(capsys, "fit", "--resume", run)[0] == 0


def test_a_weight_of_text_is_refused_on_the_command_line(csv, tmp_path, capsys):
    code, _, told = call(capsys, "fit", csv, "--out", tmp_path / "run", "--drop", "id", "--weight", "city")
    assert code == 1
    assert "column 'city' holds text, and a weight or an error must be numbers" in told


def test_a_table_of_few_rows_is_scored_with_the_levels_of_the_run(fitted, table, tmp_path, capsys):
    rows = table[:2].copy()
    rows.to_csv(tmp_path / "few.csv", index=False)
    fitted.save(tmp_path / "run")
    code, shown, _ = call(capsys, "score", tmp_path / "run", tmp_path / "few.csv")
    assert code == 0
    assert f"{fitted.score(rows):.4f}" in shown
    assert math.isfinite(fitted.score(rows))
