"""Corrections of a fitted model, of a classifier, and on the command line."""

import numpy as np
import pandas as pd
import pytest
from commands import call

from ffjord_kit import FFJORD, ImageFFJORD, datasets
from ffjord_kit.models import ODENetClassifier

QUICK = {"schedule": [("flow_matching", 60), ("steps", 5)], "hidden": (8,), "density": "steps", "random_state": 0}
FAR = np.array([[3.0, -2.5], [0.1, 0.2]])


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(400, 2))


@pytest.fixture(scope="module")
def model(x):
    return FFJORD(**QUICK).fit(pd.DataFrame(x, columns=["dose", "age"]))


@pytest.fixture(scope="module")
def files(model, x, tmp_path_factory):
    """A run, and a file with an outlier."""
    folder = tmp_path_factory.mktemp("explain")
    model.save(folder / "run")
    datasets.write(folder / "rows.csv", FAR, ["dose", "age"])
    return folder


def frame(x):
    return pd.DataFrame(x, columns=["dose", "age"])


@pytest.mark.slow
def test_an_outlier_of_a_model_is_mended_and_an_ordinary_row_is_not(model, x):
    found = model.explain(frame(FAR), reference=frame(x))
    assert found.threshold == pytest.approx(np.quantile(model.score_samples(frame(x)), 0.01))
    assert found[0].found and not found[0].passed and found[1].passed
    assert model.score_samples(frame(found.rows))[0] >= found.threshold
    assert "dose" in found[0].in_words() and found.rows[1].tolist() == FAR[1].tolist()


def test_only_an_allowed_column_changes_and_draws_of_the_model_stand_in_for_its_rows(model):
    found = model.explain(frame([[0.0, 3.5]]), allow=["age"], threshold=-5.0, draws=500)
    assert found[0].found and found.rows[0, 0] == 0.0 and found.rows[0, 1] < 3.5


@pytest.mark.slow
def test_a_continuous_flow_is_verified_by_an_adaptive_solve(model, x):
    continuous = model.model_.reporting_by("continuous")
    found = continuous.explain(FAR[:1], reference=x, draws=300)
    assert found[0].found and continuous.score_samples(found.rows)[0] >= np.quantile(continuous.score_samples(x), 0.01)


@pytest.mark.slow
def test_a_row_outside_the_support_is_mended_into_it():
    x = np.random.default_rng(0).exponential(size=(300, 2))
    model = FFJORD(**QUICK, support="positive").fit(x)
    found = model.explain([[-1.0, 1.0], [-1.0, 1.0]], reference=x, draws=300)
    assert found[0].before == -np.inf and found[0].found and (found.rows > 0).all()
    kept = model.explain([[-1.0, 1.0]], allow=["x1"], reference=x, draws=300)
    assert not kept[0].found and kept[0].in_words() == "no change within the bounds leads into the support"


@pytest.mark.slow
def test_the_context_of_a_row_stays_and_counts(x):
    context = np.sign(x[:, :1])
    model = FFJORD(**QUICK).fit(x, context=context)
    with pytest.raises(ValueError, match=r"this model is conditional: pass reference=ROWS"):
        model.explain(FAR, context=[[1.0], [1.0]])
    found = model.explain(
        [[0.0, 4.0]], context=[[1.0]], reference=x, reference_context=context, threshold=-6.0, draws=300
    )
    assert found[0].found and model.score_samples(found.rows, context=[[1.0]])[0] >= -6.0


def test_a_classifier_is_led_from_one_class_to_another():
    rng = np.random.default_rng(0)
    x = np.vstack([rng.normal(size=(100, 2)) - 2, rng.normal(size=(100, 2)) + 2])
    y = np.repeat(["low", "high"], 100)
    model = ODENetClassifier(width=8, epochs=20, random_state=0).fit(x, y)
    found = model.explain(x[:3], "high", reference=x, draws=1000)
    assert [item.found for item in found] == [True] * 3 and model.predict(found.rows).tolist() == ["high"] * 3
    assert "raise" in found[0].in_words()
    with pytest.raises(ValueError, match="no class 'middle'; the classes are high, low"):
        model.explain(x[:3], "middle", reference=x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow": ["weight"]}, "no column 'weight'; the columns are dose, age"),
        ({"stable": -1}, "stable must be a distance of at least 0"),
        ({"quantile": 1.5}, "quantile must lie between 0 and 1; got 1.5"),
        ({"bounds": {"dose": (1.0, 0.0)}}, "bounds of dose must be LOW <= HIGH"),
    ],
)
def test_bad_input_is_refused_in_one_line(model, x, options, message):
    with pytest.raises(ValueError, match=message):
        model.explain(frame(FAR), reference=frame(x), **options)


def test_images_are_refused():
    images = np.random.default_rng(0).integers(0, 256, size=(12, 4, 4), dtype=np.uint8)
    model = ImageFFJORD(schedule=[("flow_matching", 2)], hidden=(8,), random_state=0).fit(images)
    with pytest.raises(ValueError, match="explain"):
        model.model_.explain(images)


@pytest.mark.slow
def test_the_command_prints_writes_and_draws(files, capsys):
    out, picture = files / "mended.csv", files / "mended.png"
    argv = ("explain", files / "run", files / "rows.csv", "--allow", "dose,age", "--out", out, "--picture", picture)
    code, shown, err = call(capsys, *argv)
    assert (code, err) == (0, "")
    assert "1 of 2 rows are below" in shown and "lower dose to" in shown and "99 % confidence" in shown
    table = datasets.load(str(out))
    assert table.columns[:6] == ("row", "before", "after", "missing", "size", "failing_share")
    assert table.x[:, 0].tolist() == [0.0, 1.0] and picture.stat().st_size > 1000
    assert call(capsys, *argv)[2] == f"error: {out} exists: choose another name, or pass --force\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--allow", "weight"], "no column 'weight'; the columns are dose, age"),
        (["--threshold", "50"], "no change of dose, age within the bounds lifts a row to 50 nats"),
        (["--bounds", "dose=1"], "--bounds must read like dose=0..2.5,age=18..90; got 'dose=1'"),
        (["--allow", "dose", "--picture", "one.png"], "--picture is for two columns and a corrected row; got dose"),
    ],
)
def test_the_command_refuses_in_one_line(files, capsys, options, message):
    code, _, err = call(capsys, "explain", files / "run", files / "rows.csv", *options)
    assert code == 1 and message in err and err.count("\n") == 1 and "Traceback" not in err


def test_a_negative_distance_is_wrong_usage(files, capsys):
    code, _, err = call(capsys, "explain", files / "run", files / "rows.csv", "--stable", "-0.1")
    assert code == 2 and "--stable" in err


def test_rows_that_pass_need_nothing(files, capsys):
    out = call(capsys, "explain", files / "run", files / "rows.csv", "--threshold", "-500")[1]
    assert "0 of 2 rows are below: nothing to mend" in out


@pytest.mark.slow
def test_rows_have_the_numbers_that_they_have_in_the_file_and_dates_are_written(tmp_path, capsys):
    """The first row lacks a cell, the second all; the fourth one is the outlier."""
    rng = np.random.default_rng(0)
    born = pd.Timestamp("2000-01-01") + pd.to_timedelta(rng.integers(0, 400, 200), unit="D")
    table = pd.DataFrame({"dose": rng.normal(size=200), "age": rng.normal(size=200), "born": born})
    FFJORD(**QUICK, subsets=True).fit(table).save(tmp_path / "run")
    some = table.head(5).copy()
    some.loc[0, "age"], some.loc[3, "dose"] = np.nan, 9.0
    some.loc[1] = np.nan, np.nan, pd.NaT
    some.to_csv(tmp_path / "some.csv", index=False)
    options = ["--allow", "dose,born", "--out", tmp_path / "why.csv"]
    code, out, err = call(capsys, "explain", tmp_path / "run", tmp_path / "some.csv", *options)
    assert (
        code == 0
        and err == "1 of 5 rows left out, which have no value\n"
        and "number of the row in the data, from 0 on" in out
    )
    written = (tmp_path / "why.csv").read_text().splitlines()
    assert written[1].startswith("3,")  # the least likely one, a whole number
    assert pd.read_csv(tmp_path / "why.csv")["born"].str.fullmatch(r"\d{4}-\d\d-\d\d.*").all()


@pytest.mark.slow
def test_numbers_that_stand_for_something_else_are_written_as_such():
    item = FFJORD(**QUICK).fit(frame(np.random.default_rng(0).normal(size=(200, 2)))).explain(
        frame([[3.0, 0.0]]), allow=["dose"], threshold=-4.0, draws=300
    )[0]  # fmt: skip
    assert "day " in item.in_words(written={"dose": lambda value: f"day {value:.2f}"})
