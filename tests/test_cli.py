"""The command line: every command on a tiny run, what it writes, and how it ends."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from commands import call

from ffjord_kit import FFJORD, __version__, datasets
from ffjord_kit.cli import main, plot
from ffjord_kit.cli.commands import cli
from ffjord_kit.estimator import DensityModel
from ffjord_kit.estimator.fields import HEADINGS, ImageFields, TableFields

TINY = ["--schedule", "flow_matching:8", "--hidden", "8", "--seed", "0", "--no-verbose"]
QUICK = {"schedule": [("flow_matching", 8)], "hidden": (8,)}
MOONS = ["fit", "moons", "--rows", "60", *TINY]


@pytest.fixture
def command(capsys):
    """A command that must succeed, in silence on stderr; what it printed."""

    def run(*argv):
        code, out, err = call(capsys, *argv)
        assert (code, err) == (0, "")
        return out

    return run


def made(folder, *argv):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["ffjord-kit", *map(str, argv), "--out", str(folder)])
        main()
    assert not ended.value.code
    return folder


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    return made(tmp_path_factory.mktemp("cli") / "moons", *MOONS)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A file of three columns, the last of them to condition on."""
    path = tmp_path_factory.mktemp("cli") / "table.csv"
    datasets.write(path, np.random.default_rng(0).normal(size=(50, 3)), ["speed [m/s]", "mass", "age"])
    return path


@pytest.fixture(scope="module")
def conditional(table, tmp_path_factory):
    return made(tmp_path_factory.mktemp("cli") / "conditional", "fit", table, "--context", "age", *TINY)


def content(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_fit_says_how_it_went_and_leaves_a_run(command, tmp_path):
    out = command(*MOONS, "--out", tmp_path / "run")
    assert re.search(r"done after 8 steps, [\d.]+ s \([\d.]+ s of work\)\n", out)
    assert re.search(r"validation NLL: \d\.\d{4} ± \d\.\d{4} nats at step \d, solver's error \d\.\de-\d\d", out)
    assert out.count("(± is over rows, not over fits)") == 1
    assert f"run: {tmp_path / 'run'}   seed: 0" in out
    assert DensityModel.load(tmp_path / "run").n_features == 2


def test_the_progress_bar_goes_to_stderr(capsys, tmp_path):
    code, out, err = call(capsys, *MOONS, "--verbose", "--out", tmp_path / "run")
    assert code == 0
    assert "8/8" in err
    assert "8/8" not in out


def test_a_dry_run_prints_the_whole_configuration_and_leaves_nothing(command, tmp_path):
    shown = json.loads(command(*MOONS, "--dry-run", "--out", tmp_path / "run"))
    assert shown["estimator"].keys() == {f.name for f in fields(TableFields)}
    assert shown["estimator"]["hidden"] == [8]
    assert shown["estimator"]["schedule"] == [["flow_matching", 8]]
    assert shown["data"]["rows"] == 60
    assert shown["data"]["columns"] == ["x0", "x1"]
    assert content(tmp_path) == {}


def test_help_lists_every_field_under_its_heading_and_every_command(command):
    shown = command("fit", "--help")
    headings = re.findall(r"^(.*) options:$", shown, re.MULTILINE)
    assert headings == ["Main", "Image", *HEADINGS[1:], "Output"]
    for f in (*fields(TableFields), *fields(ImageFields)):
        assert f"--{f.name.replace('_', '-')}" in shown
        assert all(word in shown for word in f.metadata["choices"])
    main_options = shown.partition("Main options:")[2].partition("\n\n")[0]
    assert len(re.findall(r"^  -", main_options, re.MULTILINE)) == 8
    listed = command("--help")
    assert all(name in listed for name in cli.commands)


HEAVY = "matplotlib", "numpy", "pandas", "scipy", "sklearn", "torch"


def test_without_arguments_three_things_to_do_next_are_shown(command):
    shown = command()
    assert all(f"ffjord-kit {line}" in shown for line in ("demo", "fit table.csv", "report runs/mine", "--help"))


@pytest.mark.parametrize(
    "line", ["--help", *(f"{name} --help" for name in cli.commands), "score a b --draws 0", "fit a --nonsense",
             "fit a --solver nonsense", "fit --resume a --hidden 5", "sample", "score a b c", "nonsense"],
)  # fmt: skip
def test_help_and_usage_errors_load_no_heavy_module(line):
    program = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('loaded', sorted(set({HEAVY}) & set(sys.modules))))\n"
        f"sys.argv = ['ffjord-kit', *{line.split()}]\n"
        "from ffjord_kit.cli import main\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == (0 if "--help" in line else 2)
    assert ended.stdout.splitlines()[-1] == "loaded []"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fit nosuch.csv --out r", "nosuch.csv: no such file"),
        ("fit mooons --out r", "no data set and no file 'mooons' (did you mean 'moons'?)"),
        ("fit mnist:valid --out r", "'mnist:valid': the splits of mnist are train and test; got 'valid'"),
        ("fit image:nosuch.png --out r", "nosuch.png: "),
        ("fit moons --out r --schedule sgd:5", "schedule must be 'auto', or read like"),
        ("fit moons --out r --bits 5", "--bits is for images; moons is a table: leave it out"),
        ("fit moons --out full", "full is not empty and holds no run: choose another folder"),
        ("fit --resume nosuch", "nosuch is no run folder: no such folder"),
        ("info full/note.txt", "full/note.txt is no run folder: it is a file"),
        ("info full", "full is no run folder: it has no config.json"),
        ("sample nosuch --out a.csv", "nosuch is no run folder: no such folder"),
        ("sample run --out full/note.txt", "full/note.txt exists: choose another name, or pass --force"),
        ("sample run --out no/a.csv", "no/a.csv: no folder"),
        ("score run nosuch.csv", "nosuch.csv: no such file"),
        ("score run moons nosuch.csv --outliers", "nosuch.csv: no such file"),
        ("doctor run nosuch.csv", "nosuch.csv: no such file"),
        ("reflow run nosuch.csv --out r", "nosuch.csv: no such file"),
        ("reflow run --out run", "run is the run to begin with, which stays as it is"),
        ("plot run --out p --data nosuch.csv", "nosuch.csv: no such file"),
    ],
)
def test_what_is_not_there_is_told_before_a_slow_library_is_loaded(line, message, tmp_path):
    for name, file in (("full", "note.txt"), ("run", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    slow = {"matplotlib", "pandas", "sklearn", "torch"}
    program = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('loaded', sorted({slow} & set(sys.modules))))\n"
        f"sys.argv = ['ffjord-kit', *{line.split()}]\n"
        "from ffjord_kit.cli import main\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "loaded []\n")
    assert ended.stderr.startswith(f"error: {message}")


@pytest.mark.slow
@pytest.mark.parametrize("library", ["click", "rich", "numpy", "torch"])
@pytest.mark.parametrize("line", ["data", "fit moons --out a"])
def test_ctrl_c_while_a_library_is_loaded_ends_in_one_line(line, library, tmp_path):
    program = (
        "import signal, sys\n"
        "class Loader:\n"
        "    def find_spec(self, name, *more):\n"
        f"        if name == '{library}': signal.raise_signal(signal.SIGINT)\n"
        f"sys.meta_path.insert(0, Loader()); sys.argv = ['ffjord-kit', *{line.split()}]\n"
        "from ffjord_kit.__main__ import main\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode in (130, -signal.SIGINT)  # a shell shows both as 130
    assert ended.stderr.split() == ["interrupted"]


@pytest.mark.slow
def test_a_terminal_of_ascii_alone_gets_plain_characters(moons):
    shown = subprocess.run(
        [sys.executable, "-m", "ffjord_kit", "info", moons],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert re.search(rb"best validation NLL +\d\.\d{4} \+- \d\.\d{4} nats", shown.stdout)


def test_what_was_found_in_a_file_is_told_in_one_line(capsys, tmp_path):
    (tmp_path / "x.csv").write_bytes("Größe;b\n1,5;2\n3;4\n5;6\n".encode("latin-1"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sys, "argv", ["ffjord-kit", "fit", str(tmp_path / "x.csv"), "--dry-run", *TINY])
        main()
    shown = capsys.readouterr()
    told = f"read {tmp_path / 'x.csv'}: 3 rows, 2 columns; separator ';'; decimal ',', Latin-1\n"
    assert shown.err == told and json.loads(shown.out)["data"]["columns"] == ["Größe", "b"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "npy", "npz", "parquet", "feather", "xlsx"])
def test_samples_are_written_in_the_format_of_the_file(command, moons, tmp_path, suffix):
    path = tmp_path / f"samples.{suffix}"
    assert command("sample", moons, "-n", 7, "--seed", 1, "--out", path) == f"7 samples in {path}\n"
    read = datasets.load(path)
    digits = {"rel": 1e-15} if suffix == "xlsx" else {"abs": 0}
    assert read.x == pytest.approx(DensityModel.load(moons).sample(7, random_state=1), **digits)
    assert read.columns == ("x0", "x1")


@pytest.mark.parametrize("context", [None, [0.5]])
def test_samples_larger_than_the_memory_go_to_the_file_as_they_are_drawn(
    command, moons, conditional, tmp_path, monkeypatch, context
):
    run, more = (moons, []) if context is None else (conditional, ["--context", "0.5"])
    whole = DensityModel.load(run).sample(20, context=context, random_state=1)
    monkeypatch.setattr("ffjord_kit.estimator.sampling.sampling_batch_size", lambda *_: 8)
    monkeypatch.setattr(DensityModel, "check_draws", lambda *_: pytest.fail("they must not be held at once"))
    command("sample", run, "-n", "2e1", "--seed", 1, "--out", tmp_path / "x.csv", *more)
    drawn = datasets.load(tmp_path / "x.csv").x
    assert drawn.shape == whole.shape
    assert drawn[:8] == pytest.approx(whole[:8], abs=1e-6)  # the noise is drawn chunk by chunk


def test_draws_of_counts_and_tenths_are_written_as_the_data_are(command, tmp_path):
    rng = np.random.default_rng(0)
    x = np.stack([rng.poisson(3, 900), np.round(175 + 3 * rng.normal(size=900), 1), rng.normal(size=900)], axis=1)
    datasets.write(tmp_path / "people.csv", x, ["children", "height", "score"])
    run = made(tmp_path / "run", "fit", tmp_path / "people.csv", "--dequantize", "auto", *TINY)
    command("sample", run, "-n", 300, "--seed", 0, "--out", tmp_path / "draws.csv")
    header, *rows = (tmp_path / "draws.csv").read_text().splitlines()
    assert header == "children,height,score"
    assert all(re.fullmatch(r"\d+,\d+\.\d,-?\d+\.\d+(e-\d+)?", row) for row in rows)


def test_the_same_seed_gives_the_same_bytes(command, moons, tmp_path):
    command(*MOONS, "--out", tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (moons / "model.safetensors").read_bytes()
    for name, seed in (("a.csv", 4), ("b.csv", 4), ("c.csv", 5)):
        command("sample", moons, "-n", 9, "--seed", seed, "--out", tmp_path / name)
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.csv", "b.csv", "c.csv"))
    assert a == b != c


def test_score_prints_the_likelihood_and_writes_it_row_by_row(command, moons, tmp_path):
    datasets.write(tmp_path / "x.csv", datasets.load("moons", rows=30, seed=3).x, ["x0", "x1"])
    out = command("score", moons, tmp_path / "x.csv", "--out", tmp_path / "scores.csv")
    scores = DensityModel.load(moons).score_samples(datasets.load(tmp_path / "x.csv").x)
    written = datasets.load(tmp_path / "scores.csv")
    assert written.columns == ("log_likelihood",)
    assert written.x[:, 0] == pytest.approx(scores, abs=1e-12)
    error = scores.std(ddof=1) / np.sqrt(30)
    assert f"{scores.mean():.4f} ± {error:.4f} nats" in out
    assert f"{-scores.mean() / 2 / np.log(2):.4f} ± {error / 2 / np.log(2):.4f}" in out
    assert "KL" not in out


@pytest.mark.slow
def test_score_states_the_error_of_each_row_and_meets_a_requested_one(command, moons, tmp_path):
    datasets.write(tmp_path / "x.csv", datasets.load("moons", rows=12, seed=3).x, ["x0", "x1"])
    out = command("score", moons, tmp_path / "x.csv", "--certify", "--out", tmp_path / "scores.csv")
    found = DensityModel.load(moons).certify(datasets.load(tmp_path / "x.csv").x)
    written = datasets.load(tmp_path / "scores.csv")
    assert written.columns == ("log_likelihood", "error")
    assert written.x[:, 1] == pytest.approx(found.error, rel=1e-6)
    assert f"error of a row  median {np.median(found.error):.1e}, largest {found.error.max():.1e}" in " ".join(
        out.split("\n")
    )
    assert re.search(r"steps of a row +median \d+, largest \d+; rejected: \d", out)
    assert "longest step    0.12 of the time" in out
    assert re.search(
        r"error of 1e-07 +met by every row", command("score", moons, tmp_path / "x.csv", "--error", "1e-7")
    )
    assert "of the trace" in command("score", moons, tmp_path / "x.csv", "--probes", 2)


def test_score_with_errors_takes_a_subset_of_many_rows_unless_they_go_to_a_file(command, moons, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "TOY_ROWS", 30)
    monkeypatch.setattr(importlib.import_module("ffjord_kit.cli.score"), "CERTIFIED_ROWS", 20)
    for option in (["--certify"], ["--error", "0.1"]):
        out = command("score", moons, "moons:test", *option)
        assert out.startswith("20 of 30 rows, a random subset (all: --rows 30)\n")
        assert "over 20 rows of moons:test" in out
        assert "30, 2 columns" in command("score", moons, "moons:test", *option, "--rows", 30)
        assert "30, 2 columns" in command(
            "score", moons, "moons:test", *option, "--out", tmp_path / f"{len(option)}.csv"
        )
    assert "30, 2 columns" in command("score", moons, "moons:test")


def test_score_tells_its_progress(moons, monkeypatch):
    model, x, told = DensityModel.load(moons), datasets.load("moons", rows=600, seed=3).x, []
    model.certify(x, on_progress=lambda *counts: told.append(counts))
    assert told == [(0, 600), (256, 600), (512, 600)]
    monkeypatch.setattr(DensityModel, "_rows_at_once", 400)
    told.clear()
    model.evaluate(x, on_progress=lambda *counts: told.append(counts))
    assert told == [(0, 600), (400, 600)]


def test_score_names_the_rows_that_could_not_meet_the_target(command, moons, tmp_path, monkeypatch):
    found = DensityModel.load(moons).certify(datasets.load("moons", rows=9, seed=3).x)
    monkeypatch.setattr(DensityModel, "certify", lambda *_, **__: found._replace(met=np.arange(9) == 4))
    datasets.write(tmp_path / "x.csv", datasets.load("moons", rows=9, seed=3).x, ["x0", "x1"])
    out = command("score", moons, tmp_path / "x.csv", "--error", "0.01")
    assert re.search(r"error of 0\.01 +met by 1 of 9 rows; not by rows 0, 1, 2, 3, 5, \.\.\.", out)


@pytest.mark.slow
def test_a_row_scores_alike_among_any_other_rows(moons):
    model, x = DensityModel.load(moons), datasets.load("moons", rows=60, seed=3).x
    whole = model.score_samples(x)
    for parts in (2, 7, 60):
        cut = np.concatenate([model.score_samples(rows) for rows in np.array_split(x, parts)])
        assert np.abs(cut - whole).max() < 1e-7


def test_score_takes_the_columns_of_the_run_by_their_names(command, moons, tmp_path):
    x = datasets.load("moons", rows=9, seed=3).x
    datasets.write(tmp_path / "plain.csv", x, ["x0", "x1"])
    datasets.write(tmp_path / "other.csv", np.c_[x[:, 1], x.sum(1), x[:, 0]], ["x1", "sum", "x0"])
    assert command("score", moons, tmp_path / "plain.csv") == command("score", moons, tmp_path / "other.csv")


def test_score_of_a_set_whose_truth_is_known_prints_the_divergence(command, moons, monkeypatch):
    monkeypatch.setattr(datasets, "TOY_ROWS", 50)
    out = command("score", moons, "moons:test")
    assert re.search(r"KL\(truth \| model\) +\d\.\d{4} ± \d\.\d{4} nats over 50 rows of moons:test", out)
    assert re.search(r"rows +50, 2 columns; ± is over rows, not over fits", out)


def test_info_tells_what_a_run_is(command, moons, conditional, table):
    out = command("info", moons)
    for part in ("moons, 60 rows", "x0, x1", "seed 0", "flow_matching:8", "best validation NLL", "model.safetensors"):
        assert part in out
    out = command("info", conditional)
    assert f"{table}, 50 rows" in " ".join(out.split())  # a long path is folded
    assert re.search(r"columns +speed \[m/s\], mass", out)
    assert re.search(r"context +age", out)


def test_data_lists_every_name(command):
    assert all(name in command("data") for name in datasets.DATASETS)


@pytest.fixture
def small_pictures(monkeypatch):
    for name, value in {"GRID": 16, "GIF_GRID": 8, "PATHS": 9, "FRAMES": 3, "POINTS": 60, "DIGITS": 4}.items():
        monkeypatch.setattr(plot, name, value)
    monkeypatch.setattr(plot, "STRIP_TIMES", np.linspace(0, 1, 2))
    monkeypatch.setattr(plot, "GIF_TIMES", np.linspace(0, 1, 2))


PLANE = {"density.png", "samples.png", "trajectories.png", "field.png", "flow.png", "flow.gif", "training.png"}


@pytest.mark.slow
def test_plot_of_a_plane_draws_everything(command, moons, tmp_path, small_pictures):
    out = command("plot", moons, "--out", tmp_path / "new" / "pictures")
    drawn = content(tmp_path / "new" / "pictures")
    assert drawn.keys() == PLANE
    assert out.split() == [str(tmp_path / "new" / "pictures" / name) for name in sorted(drawn, key=out.index)]
    assert all(data.startswith((b"\x89PNG", b"GIF8")) for data in drawn.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "name"), [((), "6 held-out rows"), (("--data", "moons:test"), "50 rows of moons:test")]
)
def test_the_divergence_of_the_picture_is_that_of_score_and_says_over_which_rows(
    command, moons, tmp_path, small_pictures, monkeypatch, data, name
):
    titles, draw = [], plot.plots.density
    monkeypatch.setattr(datasets, "TOY_ROWS", 50)
    monkeypatch.setattr(
        plot.plots, "density", lambda *xs, title, **more: titles.append(title) or draw(*xs, title=title, **more)
    )
    command("plot", moons, *data, "--out", tmp_path / "pictures")
    model, rows = DensityModel.load(moons), datasets.load("moons:test")
    x = rows.x if data else model.split(datasets.load("moons", rows=60, seed=0).x)[1]
    kl = (rows.log_prob(x) - model.score_samples(x)).mean()
    assert titles[0].startswith(f"KL(truth ‖ model) = {kl:.4f} ± ")
    assert titles[0].endswith(f" nats over {name}")


@pytest.fixture(scope="module")
def bereft(tmp_path_factory):
    """A run whose table is gone, and another table like it."""
    folder = tmp_path_factory.mktemp("bereft")
    for name in ("table.csv", "other.csv"):
        datasets.write(folder / name, np.random.default_rng(0).normal(size=(50, 2)), ["a", "b"])
    run = made(folder / "run", "fit", folder / "table.csv", *TINY)
    (folder / "table.csv").unlink()
    return run.rename(folder / "moved"), folder / "other.csv"


@pytest.mark.parametrize(
    ("name", "advice"),
    [("plot", "pass rows to draw beside it by --data"), ("doctor", "pass rows that it has not seen as DATA"),
     ("reflow", "pass rows to compare on as DATA"), ("fit", "put the data back there, or resume it in Python")],
)  # fmt: skip
def test_a_run_without_its_table_says_how_to_pass_another(capsys, bereft, tmp_path, name, advice):
    argv = ["fit", "--resume", bereft[0]] if name == "fit" else [name, bereft[0], "--out", tmp_path / "out"]
    code, _, err = call(capsys, *argv)
    assert code == 1
    assert re.search(rf"table\.csv: no such file.*; .*moved was fitted to it: {advice}", err)


@pytest.mark.slow
def test_a_run_without_its_table_works_on_another(command, bereft, tmp_path, small_pictures):
    run, other = bereft
    assert "density.png" in command("plot", run, "--data", other, "--out", tmp_path / "pictures")
    assert "change, row by row" in command(
        "reflow", run, other, "--pairs", 20, "--steps", 2, "--out", tmp_path / "fast"
    )
    assert "the data of the fit are gone" in command("score", run, other, "--outliers")


@pytest.mark.slow
def test_plot_of_more_columns_draws_pairs_and_of_pictures_a_sheet(command, tmp_path, small_pictures):
    for name, expected, kind in (("iris", set(), "svg"), ("digits", {"sheet.png"}, "png")):
        run = made(tmp_path / name, "fit", name, "--rows", "60", *TINY)
        command("plot", run, "--out", tmp_path / f"{name}-pictures", "--format", kind)
        drawn = {f"{picture}.{kind}" for picture in ("training", "columns", "pairs")}
        assert content(tmp_path / f"{name}-pictures").keys() == drawn | expected


def test_plot_of_a_conditional_run_is_at_the_median_or_at_a_given_context(command, conditional, table, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, "draw_table", lambda subject, *more, **options: drawn.append(subject) or [])
    command("plot", conditional, "--out", "nowhere")
    command("plot", conditional, "--out", "nowhere", "--context", "1.5")
    assert [subject.context.tolist() for subject in drawn] == [[np.median(datasets.load(table).x[:, 2])], [1.5]]
    assert [subject.density(np.zeros((3, 2))).shape for subject in drawn] == [(3,), (3,)]


def test_a_context_is_given_as_values_or_as_a_file(command, conditional, tmp_path):
    datasets.write(tmp_path / "ages.csv", np.linspace(-1, 1, 6)[:, None], ["age"])
    command("sample", conditional, "-n", 6, "--seed", 0, "--context", "-0.5", "--out", tmp_path / "one.csv")
    command(
        "sample", conditional, "-n", 6, "--seed", 0, "--context", tmp_path / "ages.csv", "--out", tmp_path / "6.npy"
    )
    model = DensityModel.load(conditional)
    one, each = datasets.load(tmp_path / "one.csv"), np.load(tmp_path / "6.npy")
    assert one.columns == ("speed [m/s]", "mass")
    assert one.x == pytest.approx(model.sample(6, context=[-0.5], random_state=0), abs=0)
    assert each == pytest.approx(model.sample(6, context=np.linspace(-1, 1, 6)[:, None], random_state=0), abs=0)


def test_score_of_a_conditional_run_takes_the_context_from_its_column(command, conditional, table, tmp_path):
    command("score", conditional, table, "--out", tmp_path / "scores.npy")
    x, model = datasets.load(table).x, DensityModel.load(conditional)
    scores = model.score_samples(x[:, :2], context=x[:, 2:])
    assert np.load(tmp_path / "scores.npy")[:, 0] == pytest.approx(scores, abs=1e-12)


@pytest.mark.slow
def test_the_demo_fits_compares_draws_and_reports(command, tmp_path, monkeypatch, small_pictures):
    demo = importlib.import_module("ffjord_kit.cli.demo")
    exhibit = replace(demo.EXHIBITS[-1], name="iris", train_rows=60)  # of so few, repeated values are no warning
    monkeypatch.setattr(demo, "EXHIBITS", (exhibit,))
    monkeypatch.setattr(demo, "FFJORD", lambda **options: FFJORD(**{**options, **QUICK, "verbose": False}))
    monkeypatch.setattr(demo, "report", lambda run, source, out, *_: print(f"report of {run} in {out}"))
    out = command("demo", "--out", tmp_path / "demo")
    assert all(part in out for part in ("ffjord_kit flow", "Gaussian mixture", "KDE", "3 pictures"))
    assert (tmp_path / "demo/iris/model.safetensors").exists()
    assert (tmp_path / "demo/iris-pictures/pairs.png").exists()
    assert out.splitlines()[-1] == f"report of {tmp_path / 'demo/iris'} in {tmp_path / 'demo/report.html'}"


def test_nothing_is_overwritten_without_force(capsys, command, conditional, moons, tmp_path):
    run, file = made(tmp_path / "run", *MOONS), tmp_path / "file.csv"
    command("sample", run, "-n", 3, "--seed", 0, "--out", file)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "density.png").write_bytes(b"mine")
    before = content(tmp_path)
    for argv in (
        [*MOONS, "--out", run], ["sample", run, "-n", 3, "--seed", 1, "--out", file],
        ["score", run, "moons", "--out", file], ["plot", run, "--out", tmp_path / "pictures"],
    ):  # fmt: skip
        code, out, err = call(capsys, *argv)
        assert (code, out, content(tmp_path)) == (1, "", before), argv
        assert "--force" in err
    command("sample", run, "-n", 3, "--seed", 1, "--out", file, "--force")
    command(*MOONS, "--seed", 1, "--out", run, "--force")
    assert content(tmp_path)["file.csv"] != before["file.csv"]
    assert content(tmp_path)["run/model.safetensors"] != before["run/model.safetensors"]


@pytest.fixture
def ctrl_c(monkeypatch):
    """Ctrl-C, pressed at one step of the next fit."""
    original = FFJORD.fit

    def arm(step, times=1):
        def press(record):
            if record["step"] == step:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(FFJORD, "fit", lambda self, *args, **more: original(self, *args, on_step=press, **more))

    arm.off = lambda: monkeypatch.setattr(FFJORD, "fit", original)
    return arm


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(capsys, command, moons, tmp_path, ctrl_c):
    run = tmp_path / "run"
    ctrl_c(5)
    code, out, err = call(capsys, *MOONS, "--out", run)
    assert (code, err) == (130, f"go on with: ffjord-kit fit --resume {run}\n")
    assert "interrupted after 5 steps" in out
    ctrl_c.off()
    assert "done after 8 steps" in command("fit", "--resume", run, "--no-verbose")
    assert (run / "model.safetensors").read_bytes() == (moons / "model.safetensors").read_bytes()


def test_a_second_ctrl_c_ends_at_once_with_130(capsys, tmp_path, ctrl_c):
    ctrl_c(5, times=2)
    code, out, err = call(capsys, *MOONS, "--out", tmp_path / "run")
    assert (code, out) == (130, "")
    assert err.split("\n") == [f"go on with: ffjord-kit fit --resume {tmp_path / 'run'}", "", "interrupted", ""]


@pytest.mark.parametrize("more", [["--rows", "5"], ["--hidden", "9"], ["--force"], ["--dry-run"], ["--out", "x"]])
def test_resume_takes_nothing_else(capsys, moons, more):
    before = content(moons)
    code, _, err = call(capsys, "fit", "--resume", moons, *more)
    assert (code, content(moons)) == (2, before)
    assert more[0].strip("-").replace("-", "_") in err


def test_an_unexpected_error_is_one_line_and_a_traceback_only_for_debugging(capsys, monkeypatch, moons):
    monkeypatch.setattr(DensityModel, "load", lambda path: {}["of all things"])
    code, out, err = call(capsys, "score", moons, "moons")
    assert (code, out) == (1, "")
    assert err == "error: KeyError: 'of all things' (unexpected; set FFJORD_KIT_DEBUG=1 for the traceback)\n"
    monkeypatch.setenv("FFJORD_KIT_DEBUG", "1")
    with pytest.raises(KeyError):
        call(capsys, "score", moons, "moons")


def test_the_module_is_the_command():
    shown = subprocess.run([sys.executable, "-m", "ffjord_kit", "--version"], capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert __version__ in shown.stdout
