"""The season of dates: their place in the year, week or day, on a circle."""

import numpy as np
import pandas as pd
import pytest
from commands import call

from ffjord_kit import FFJORD, Season
from ffjord_kit.columns.types import parse_type, read_types

TINY = {"schedule": [("flow_matching", 40)], "hidden": (16,), "random_state": 0}
DAYS = pd.date_range("2019-12-30", "2024-03-02", freq="D").to_numpy()
HOURS = pd.date_range("2023-02-27 00:30", "2024-03-02", freq="7h").to_numpy()


def weather(rows=200, seed=0):
    """Dates, more of them in winter, and temperatures that follow the season."""
    rng = np.random.default_rng(seed)
    day = np.mod(rng.vonmises(0, 1.0, rows) / (2 * np.pi), 1) * 365
    date = np.array([f"{year}-01-01" for year in rng.integers(2015, 2024, rows)], "datetime64[D]") + day.astype(int)
    return pd.DataFrame({"date": date, "temp": 10 - 8 * np.cos(2 * np.pi * day / 365) + rng.normal(size=rows)})


@pytest.mark.parametrize("cycle", ["year", "week", "day"])
@pytest.mark.parametrize("dates", [DAYS, HOURS], ids=["days", "hours"])
def test_a_place_in_a_cycle_is_written_and_read_back(cycle, dates):
    season = Season(cycle)
    places = season.numbers(dates)
    assert (places >= 0).all() and (places < season.period).all()
    assert np.allclose(season.numbers(season.cells(places)), places, atol=1e-6)
    texts = np.array([str(date) for date in dates.astype("datetime64[s]")], dtype=object)
    assert np.allclose(season.numbers(texts), places)


def test_a_day_of_the_year_has_one_place_in_all_years():
    season = Season("year")
    first = np.array(["2023-03-01", "2024-03-01", "1900-03-01", "2000-03-01"], dtype="datetime64[D]")
    assert season.numbers(first).tolist() == [60.0] * 4
    assert season.numbers(first - 1).tolist() == [58.0, 59.0, 58.0, 59.0]  # February 28 or 29
    assert season.cells(np.array([365.0, np.nan, 0.0])).tolist() == ["12-31", None, "01-01"]


def test_weeks_begin_on_monday_and_days_at_midnight():
    monday = np.array(["2024-01-01T06:00"], dtype="datetime64[m]")
    assert Season("week").numbers(monday).tolist() == [0.25] and Season("day").numbers(monday).tolist() == [6.0]
    assert Season("week").cells(np.array([0.25])).tolist() == ["Mon 06:00:00"]


def test_types_are_written_and_read():
    assert str(parse_type("season:week")) == "season:week" and read_types({"t": "season:day"})["t",] == Season("day")
    for text in ("season:month", "season:1"):
        with pytest.raises(ValueError, match="a season is that of a year, a week or a day, e.g. season:year"):
            parse_type(text)


@pytest.mark.parametrize("text", ["13-45", "2023-02-30", "Mon", "03-14 25:00", "soon"])
def test_what_is_no_date_is_refused(text):
    with pytest.raises(ValueError):
        Season("year").numbers(np.array(["03-14", text], dtype=object))


def test_numbers_of_another_kind_are_refused():
    days = np.random.default_rng(0).uniform(18_000, 19_000, 50)  # since 1970
    with pytest.raises(
        ValueError, match=r"'t' has 50 of 50 numbers that are no day of a year, from 0 to below 366 .*pass"
    ):
        FFJORD(columns={"t": Season("year")}, **TINY).fit(pd.DataFrame({"t": days, "x": days % 7}))


def test_a_fit_draws_dates_and_has_no_edge_at_new_year():
    frame = weather()
    model = FFJORD(columns={"date": Season("year")}, **TINY).fit(frame)
    draws = model.sample(200, random_state=0)
    assert draws["date"].str.fullmatch(r"\d\d-\d\d").all() and draws["temp"].dtype == float
    assert np.isfinite(model.score_samples(draws)).all()
    other = frame.assign(date=frame["date"] + np.timedelta64(4 * 365 + 1, "D"))  # four years later
    assert np.allclose(model.score_samples(frame), model.score_samples(other))
    around = model.score_samples(pd.DataFrame({"date": ["12-31", "01-01"], "temp": [2.0, 2.0]}))
    assert abs(np.diff(around)) < 0.2
    every = pd.DataFrame({"date": Season("year").cells(np.arange(366.0)), "temp": 2.0})
    assert np.isfinite(model.score_samples(every)).all()


@pytest.mark.slow
def test_a_season_is_given_and_asked_for():
    frame = weather()
    frame.loc[::4, "temp"] = np.nan
    model = FFJORD(columns={"date": "season:year"}, **TINY).fit(frame)
    by = [model.given(date=day).log_prob([[3.0]]) for day in ("01-10", "2021-01-10", 9.0, 375.0)]
    assert np.allclose(by, by[0])
    days = model.given(temp=3.0).log_prob(np.arange(366.0))
    assert abs(np.exp(days).sum() - 1) < 2e-2  # days are 366 steps of a density
    with pytest.raises(ValueError, match="'date' must be given a date, e.g. 2020-01-31; got 'soon'"):
        model.given(date="soon")


@pytest.mark.parametrize("kind", ["season:year", "date"])
def test_a_cell_that_is_no_date_is_named(tmp_path, capsys, kind):
    frame = weather(60).astype({"date": str})
    frame.loc[5, "date"] = "soon"
    frame.to_csv(tmp_path / "w.csv", index=False)
    said = "column 'date' must hold dates, e.g. 2020-01-31; got 'soon' in row 5 (counted from 0)"
    code, _, err = call(capsys, "fit", tmp_path / "w.csv", "--columns", f"date={kind}", "--out", tmp_path / "run")
    assert code == 1 and said in err and len(err.splitlines()) == 1
    with pytest.raises(ValueError, match=r"got 'soon' in row 5 \(counted from 0\)"):
        FFJORD(columns={"date": kind}, **TINY).fit(frame)


def test_seasons_on_the_command_line(tmp_path, capsys):
    weather(80).to_csv(tmp_path / "w.csv", index=False)
    fit = ["fit", tmp_path / "w.csv", "--columns", "date=season:year", "--schedule", "flow_matching:8", "--hidden", "8"]
    assert call(capsys, *fit, "--out", tmp_path / "run")[0] == 0
    assert "per day of date, unit of temp" in call(capsys, "info", tmp_path / "run")[1]
    assert call(capsys, "sample", tmp_path / "run", "-n", 5, "--out", tmp_path / "d.csv")[0] == 0
    assert pd.read_csv(tmp_path / "d.csv")["date"].str.fullmatch(r"\d\d-\d\d").all()
    assert call(capsys, "score", tmp_path / "run", tmp_path / "w.csv")[0] == 0
    assert call(capsys, "score", tmp_path / "run", tmp_path / "d.csv")[0] == 0
