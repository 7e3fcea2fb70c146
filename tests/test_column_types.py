"""Types of columns: texts, names, bounds, whole numbers, closed ends; runs of them."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from commands import call

from ffjord_kit import (
    FFJORD,
    Bounded,
    Circle,
    FlowMatching,
    Integer,
    Positive,
    Real,
    ResidualDynamics,
    Sphere,
    Standardize,
)
from ffjord_kit.cli.parsing import parse_columns
from ffjord_kit.columns.base import ColumnTypeWarning
from ffjord_kit.columns.types import parse_type, read_types, types_as_text, units_of

SHORT = {"schedule": [("flow_matching", 20)], "hidden": (8,), "random_state": 0}
TEXTS = {
    "real": Real(), "positive": Positive(), "bounded:0:1": Bounded(0, 1), "bounded:-1:0.1": Bounded(-1, 0.1),
    "integer": Integer(), "integer:0": Integer(0), "integer:0:10": Integer(0, 10), "circle:360": Circle(360),
    "circle:24:-12": Circle(24, -12), "sphere:deg": Sphere("deg"), "sphere:rad:0": Sphere("rad", 0),
}  # fmt: skip


@pytest.fixture(scope="module")
def table() -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    x = np.stack([rng.poisson(3.0, 300), rng.beta(2, 2, 300), rng.lognormal(size=300), rng.normal(size=300)], axis=1)
    return x, ["kids", "share", "income", "score"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_type_is_written_as_it_is_read(text):
    kind = parse_type(text)
    assert kind == TEXTS[text]
    assert str(kind) == text


def test_a_circle_takes_its_period_in_degrees_or_radians():
    assert parse_type("circle:deg") == Circle(360.0)
    assert parse_type(str(parse_type("circle:rad"))) == Circle(2 * np.pi)


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"a": "wavy"}, "real, positive, bounded"),
        ({"a": "bounded:1:0"}, "LOW < HIGH"),
        ({"a": "bounded:1"}, "bounded:LOW:HIGH"),
        ({"a": "integer:0.5"}, "whole numbers"),
        ({"a": "circle:0"}, "positive period"),
        ({"a": "sphere:deg"}, "a pair of columns"),
        ({"a+b": "sphere:grad"}, "'deg' or 'rad'"),
        ({"a+b": "positive"}, "'a+b' that is not there"),
        ({("a", "b"): Positive()}, "a type of one column"),
        ({"c": Positive()}, "'c' that is not there; there are a, b"),
        ({"a": Positive(), "a+b": "sphere:deg"}, "column 'a' two types"),
        ({"a": 3}, "column 'a'"),
        (["positive"], "types by name"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line_that_names_the_column(columns, part):
    with pytest.raises(ValueError, match="column") as error:
        read_types(columns, ["a", "b"])
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_names_of_a_pair_may_hold_a_plus():
    assert list(read_types({"a+b+c": "sphere:deg"}, ["a+b", "c"])) == [("a+b", "c")]


def test_the_command_line_writes_types_by_name():
    assert parse_columns("z=bounded:0:1, a=b=integer") == {"z": "bounded:0:1", "a=b": "integer"}
    assert parse_columns("") is None
    for wrong in ("z", "z=integer,z=real", "z=funny"):
        with pytest.raises(ValueError, match="z"):
            parse_columns(wrong)


def test_objects_and_texts_are_kept_alike():
    assert types_as_text({("a", "b"): Sphere("deg"), "c": Circle(360)}) == {"a+b": "sphere:deg", "c": "circle:360"}


def test_types_are_supports_and_steps_by_name(table):
    x, names = table
    typed = FFJORD(columns={"kids": Integer(), "share": Bounded(0, 1), "income": "positive"}, **SHORT)
    typed.fit(x, columns=names)
    assert typed.model_.domain.bounds == ((-0.5, np.inf), (0.0, 1.0), (0.0, np.inf), (-np.inf, np.inf))
    assert typed.config_["types"] == {"kids": "integer:0", "share": "bounded:0:1", "income": "positive"}
    draws = typed.sample(200, random_state=0)
    assert np.array_equal(draws[:, 0], np.round(draws[:, 0]))
    assert draws[:, 0].min() >= 0
    assert draws[:, 1].min() > 0 and draws[:, 1].max() < 1
    assert draws[:, 2].min() > 0


def test_a_type_is_another_way_to_say_a_support(table):
    x, names = table
    by_type = FFJORD(columns={"income": Positive(), "share": Bounded(0, 1)}, **SHORT).fit(x, columns=names)
    by_name = FFJORD(support={"income": "positive", "share": ("bounded", 0, 1)}, **SHORT).fit(x, columns=names)
    by_place = FFJORD(support=["real", ("bounded", 0, 1), "positive", "real"], **SHORT).fit(x, columns=names)
    scores = [model.score_samples(x) for model in (by_type, by_name, by_place)]
    assert np.array_equal(scores[0], scores[1])
    assert np.array_equal(scores[0], scores[2])


def test_support_by_name_names_what_is_not_there(table):
    x, names = table
    with pytest.raises(ValueError, match="'wealth' that is not there"):
        FFJORD(support={"wealth": "positive"}, **SHORT).fit(x, columns=names)


def test_a_column_has_one_type(table):
    x, names = table
    with pytest.raises(ValueError, match="'income' has a type in columns and a support"):
        FFJORD(support={"income": "positive"}, columns={"income": Positive()}, **SHORT).fit(x, columns=names)
    with pytest.raises(ValueError, match="'kids' has a type in columns and a step"):
        FFJORD(dequantize=["kids"], columns={"kids": Integer()}, **SHORT).fit(x, columns=names)


def test_fractions_are_no_whole_numbers(table):
    x, names = table
    with pytest.raises(ValueError, match="'score' has 300 of 300 values that are no whole numbers"):
        FFJORD(columns={"score": Integer()}, **SHORT).fit(x, columns=names)


def test_whole_numbers_outside_their_bounds_have_no_density(table):
    x, names = table
    model = FFJORD(columns={"kids": Integer(0, 20)}, **SHORT).fit(x, columns=names)
    rows = np.repeat(x[:1], 3, axis=0)
    rows[:, 0] = [-1, 0, 21]
    assert np.isfinite(model.score_samples(rows)).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="outside its support"):
        FFJORD(columns={"kids": Integer(1)}, **SHORT).fit(x, columns=names)


def test_values_at_closed_ends_are_spread_and_counted(table):
    x, names = table[0].copy(), table[1]
    x[:30, 1], x[30:40, 1] = 0.0, 1.0
    with pytest.warns(ColumnTypeWarning, match=r"'share' has 40 of 300 rows at 0 or 1 itself.*outermost 0\.001"):
        model = FFJORD(columns={"share": Bounded(0, 1)}, **SHORT).fit(x, columns=names)
    data = model.model_.domain.add_noise(x, 3)[:, 1]
    assert data[:30].min() > 0 and data[:30].max() <= 1e-3 and len(np.unique(data[:30])) == 30
    assert np.array_equal(data[40:], x[40:, 1])
    middle = x.copy()
    middle[:30, 1], middle[30:40, 1] = 0.0005, 0.9995
    assert np.array_equal(model.score_samples(x), model.score_samples(middle))
    assert np.isfinite(model.score_samples(x)).all()


def test_a_run_with_types_is_kept_and_goes_on(table, tmp_path):
    x, names = table
    columns = {"kids": Integer(), "share": Bounded(0, 1)}
    model = FFJORD(columns=columns, **SHORT).fit(x, columns=names, run=tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["estimator"]["columns"] == {"kids": "integer", "share": "bounded:0:1"}
    loaded = FFJORD.load(tmp_path / "run")
    assert loaded.columns == {"kids": "integer", "share": "bounded:0:1"}
    assert np.array_equal(loaded.score_samples(x), model.score_samples(x))
    again = FFJORD(columns=columns, **SHORT).fit(x, columns=names, run=tmp_path / "run", resume=True)
    assert np.array_equal(again.score_samples(x), model.score_samples(x))


def test_a_fit_without_types_records_none(table):
    x, names = table
    model = FFJORD(**SHORT).fit(x, columns=names)
    assert "types" not in model.config_
    assert model.config_["estimator"]["columns"] is None


def test_the_command_line_fits_and_shows_types(table, tmp_path, capsys):
    x, names = table
    np.savetxt(tmp_path / "t.csv", x, delimiter=",", header=",".join(names), comments="")
    options = ["--columns", "kids=integer,share=bounded:0:1", "--support", "income=positive"]
    _, shown, _ = call(capsys, "fit", tmp_path / "t.csv", "--dry-run", *options)
    assert json.loads(shown)["estimator"]["columns"] == {"kids": "integer", "share": "bounded:0:1"}
    short = ["--schedule", "flow_matching:5", "--hidden", "8", "--no-verbose"]
    assert call(capsys, "fit", tmp_path / "t.csv", "--out", tmp_path / "run", *short, *options)[0] == 0
    _, told, _ = call(capsys, "info", tmp_path / "run")
    assert "kids=integer:0, share=bounded:0:1" in told
    assert "income=positive" in told
    assert "log-likelihood" in call(capsys, "score", tmp_path / "run", tmp_path / "t.csv")[1]


def test_types_that_suit_the_values_raise_no_warning(table):
    x, names = table
    with warnings.catch_warnings():
        warnings.simplefilter("error", ColumnTypeWarning)
        FFJORD(columns={"kids": Integer(), "share": Bounded(0, 1)}, **SHORT).check(x, columns=names)


def test_a_table_without_circles_is_made_of_what_it_was_made_of(table):
    x, names = table
    plain = FFJORD(**SHORT).fit(x, columns=names)
    real = FFJORD(columns={name: Real() for name in names}, **SHORT).fit(x, columns=names)
    assert isinstance(plain.flow_.transforms[0].dynamics, ResidualDynamics)
    assert type(plain.model_.config.objectives["flow_matching"][0]) is FlowMatching
    assert [type(each) for each in plain.flow_.preprocess.transforms] == [Standardize]
    assert np.array_equal(real.score_samples(x), plain.score_samples(x))


def test_units_name_columns_without_a_type_too():
    types = read_types({"kids": "integer"})
    assert units_of({}, ["a", "b"]) == ""
    assert units_of(types, ["kids", "age"]) == "per whole number of kids, unit of age"
    assert units_of(types, ["kids", *"abcdefg"]) == "per whole number of kids, unit of each of the 7 others"
