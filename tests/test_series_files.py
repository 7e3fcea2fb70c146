"""Files of series in long form, and the commands `series fit`, `series predict` and `series plot`."""

import numpy as np
import pytest
from commands import call

from ffjord_kit.datasets.series import SeriesTable, read_series, select_channels, write_series

FEW = ("--max-steps", "4", "--max-seconds", "60", "--hidden", "6", "--latent-dim", "2", "--seed", "0", "--no-verbose")


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    series = []
    for _ in range(12):
        t = np.sort(rng.uniform(5, 9, 10))
        x = np.stack([np.sin(t), np.cos(t)], axis=1)
        x[rng.random(x.shape) < 0.3] = np.nan
        x[0] = 0.5
        series.append((t, x))
    write_series(tmp_path / "data.csv", SeriesTable(("a", "b"), tuple(f"s{i}" for i in range(12)), series))
    return tmp_path / "data.csv"


def written(tmp_path, text):
    path = tmp_path / "own.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_what_is_written_is_read_again(tmp_path):
    series = [
        (np.array([0.1, 2.0]), np.array([[1 / 3, np.nan], [np.nan, 2.0]])),
        (np.array([5.0]), np.array([[0.0, 1e9]])),
    ]
    for name in ("a.csv", "a.tsv"):
        write_series(tmp_path / name, SeriesTable(("x", "y"), ("one", "two"), series))
        table = read_series(str(tmp_path / name))
        assert (table.channels, table.names) == (("x", "y"), ("one", "two"))
        for (t, x), (s, y) in zip(table.series, series, strict=True):
            assert np.array_equal(t, s) and np.array_equal(x, y, equal_nan=True)


def test_rows_of_series_may_stand_mixed_and_words_for_missing_are_known(tmp_path):
    table = read_series(written(tmp_path, "id,t,x\n7,0,1\nb,0,NA\n7,1,\nb,2,3\n"))
    assert table.names == ("7", "b")
    assert np.array_equal(table.series[0][0], [0, 1])
    assert np.array_equal(table.series[1][1][:, 0], [np.nan, 3], equal_nan=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,t\na,0\n", "expected a header and rows of series, time and one channel or more; got 2 lines of 2 columns"),
        ("id,t,x\n", "got 1 lines of 3 columns"),
        ("", "cannot be read as a table of text"),
        ("id,t,x,x\na,0,1,1\n", "two columns are called 'x'"),
        (
            "id,t,x\na,0,1\na,1,one\n",
            "column 'x', line 3: expected a number, or nothing where the value is missing; got 'one'",
        ),
        ("id,t,x\na,,1\n", "line 2 has no time"),
        ("id,t,x\n,0,1\n", "line 2 has no name of a series"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read_series(written(tmp_path, text))
    assert "\n" not in str(error.value)


def test_channels_are_found_by_name_and_unknown_ones_refused():
    table = SeriesTable(("b",), ("s",), [(np.array([0.0, 1.0]), np.array([[1.0], [2.0]]))])
    assert np.array_equal(select_channels(table, ["a", "b"]).series[0][1], [[np.nan, 1], [np.nan, 2]], equal_nan=True)
    with pytest.raises(ValueError, match="expected the channels a, c; got 'b': rename or drop it"):
        select_channels(table, ["a", "c"])


@pytest.mark.slow
def test_fit_predict_plot_and_resume(capsys, tmp_path, data):
    run, out = tmp_path / "run", tmp_path / "out.csv"
    code, shown, _ = call(capsys, "series", "fit", data, "--out", run, *FEW)
    assert code == 0 and "done after 4 steps" in shown and "12 series" in shown
    assert call(capsys, "series", "predict", run, data, "--out", out, "--ahead", 2)[0] == 0
    table, given = read_series(str(out)), read_series(str(data))
    assert table.channels == ("a", "a_low", "a_high", "b", "b_low", "b_high")
    assert table.names == given.names
    for (t, x), (s, _) in zip(table.series, given.series, strict=True):
        assert np.array_equal(t[: len(s)], s) and t[-1] > s[-1] + 1.5
        assert (x[:, 1] < x[:, 0]).all() and (x[:, 0] < x[:, 2]).all()
    assert call(capsys, "series", "plot", run, "--out", tmp_path / "pictures")[0] == 0
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"series.png", "training.png"}
    code, shown, _ = call(capsys, "series", "fit", "--resume", run)
    assert code == 0 and "done after 4 steps" in shown


def test_bad_commands_are_one_line_that_says_what_to_do(capsys, tmp_path, data):
    run, out = tmp_path / "run", tmp_path / "out.csv"
    assert call(capsys, "series", "fit", data, "--out", run, *FEW)[0] == 0
    one = written(tmp_path, "id,t,a,b\ns,0,1,1\n")
    other = tmp_path / "other.csv"
    other.write_text("id,t,c\ns,0,1\ns,1,1\n", encoding="utf-8")
    for words, message in [
        (("fit", data), "needs DATA and --out RUN, or --resume RUN"),
        (("fit", data, "--out", run), "already holds a run"),
        (("fit", one, "--out", tmp_path / "new"), "expected two times or more; got 1"),
        (("fit", "spiral", "--out", tmp_path / "new"), "series come from a .csv or .tsv file"),
        (("fit", data, "--out", tmp_path / "new", "--hidden", 0), "hidden must be at least 1; got 0"),
        (("fit", "--resume", run, "--hidden", 3), "leave out hidden"),
        (("predict", run, other, "--out", out), "expected the channels a, b; got 'c': rename or drop it"),
        (("predict", run, data, "--out", out, "--times", "1,2"), "ask for times from there on"),
        (("predict", run, data, "--out", out, "--times", "1", "--ahead", 2), "--times or --ahead, not both"),
        (("predict", run, data, "--out", out, "--ahead", -2), "ahead"),
        (("predict", run, data, "--out", tmp_path / "out.npy"), "predictions go to a .csv or .tsv file"),
    ]:
        code, _, errors = call(capsys, "series", *words)
        assert code != 0 and message in errors, (words, errors)
        assert "Traceback" not in errors


def test_other_commands_say_that_a_run_is_one_of_series(capsys, tmp_path, data):
    run = tmp_path / "run"
    assert call(capsys, "series", "fit", data, "--out", run, *FEW)[0] == 0
    for words in (("info", run), ("sample", run, "--out", tmp_path / "x.csv"), ("plot", run, "--out", tmp_path / "p")):
        code, _, errors = call(capsys, *words)
        assert code == 1 and "is a run of series: use ffjord-kit series predict or plot" in errors, errors
    assert call(capsys, "fit", "moons", "--rows", 50, "--out", tmp_path / "m", "--dry-run")[0] == 0


def test_a_run_of_a_flow_is_refused(capsys, tmp_path, data):
    flow = tmp_path / "flow"
    flow.mkdir()
    (flow / "config.json").write_text('{"format": 2}', encoding="utf-8")
    code, _, errors = call(capsys, "series", "predict", flow, data, "--out", tmp_path / "x.csv")
    assert code == 1 and "is no run of series" in errors
