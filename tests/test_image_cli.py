"""The command line on images: every command on a tiny run, its files, and what it refuses."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from commands import call
from PIL import Image

from ffjord_kit import ImageFFJORD, datasets, metrics
from ffjord_kit.cli import main

TINY = ["--schedule", "flow_matching:4", "--hidden", "8", "--batch-size", "16", "--tolerance", "1e-3"]
TINY += ["--seed", "0", "--no-verbose"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of two classes, all of one size."""
    place, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (place / name).mkdir()
        for i in range(25):
            pixels = np.clip(rng.normal(level, 20, (6, 6, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / name / f"{i:02d}.png")
    return place


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run that is conditioned on the classes."""
    out = tmp_path_factory.mktemp("runs") / "classes"
    fitted(folder, out, "--context", "label", "--size", "4", "--context-dropout", "0.1")
    return out


@pytest.fixture(scope="module")
def grey(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "grey"
    fitted(folder, out, "--grey", "--size", "4")
    return out


def fitted(source, out, *options):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["ffjord-kit", "fit", str(source), "--out", str(out), *options, *TINY])
        main()
    assert not ended.value.code


@pytest.mark.slow
def test_a_run_remembers_its_images_and_shows_samples_as_training_goes(run, capsys):
    config = json.loads((run / "config.json").read_text())
    assert config["images"] == {"shape": [3, 4, 4], "channels": True, "bits": 8, "classes": 2}
    assert config["data"]["classes"] == ["dark", "light"] and config["data"]["size"] == 4
    assert re.fullmatch(r"step-000004-\d\.\d{4}-bits\.png", max(path.name for path in (run / "samples").iterdir()))
    code, out, _ = call(capsys, "info", run)
    assert code == 0 and re.search(r"images +3 x 4 x 4, 8 bits", out)
    assert "bits/dim" in out and "2 classes: dark, light" in out


def test_samples_are_an_archive_and_a_sheet_that_can_be_read_as_data(run, capsys, tmp_path):
    code, out, _ = call(capsys, "sample", run, "-n", 6, "--context", "dark,1", "--seed", 1, "--out", tmp_path / "s.npz")
    assert code == 0 and f"6 samples in {tmp_path / 's.npz'} and {tmp_path / 's.png'}" in out
    with np.load(tmp_path / "s.npz") as arrays:
        assert arrays["x_train"].shape == (6, 4, 4, 3) and arrays["y_train"].tolist() == [0, 1, 0, 1, 0, 1]
    assert Image.open(tmp_path / "s.png").size[0] > 100
    code, out, _ = call(capsys, "score", run, tmp_path / "s.npz")
    assert code == 0 and re.search(r"bits/dim +\d\.\d{4} ± ", out)
    assert call(capsys, "sample", run, "--context", "0", "--out", tmp_path / "s.png")[0] == 1  # both are there
    code, _, err = call(capsys, "sample", run, "--out", tmp_path / "t.npz")
    assert code == 1 and "this run is conditional: pass --context with classes, e.g. dark, light" in err
    code, _, err = call(capsys, "sample", run, "--context", "blue", "--out", tmp_path / "t.npz")
    assert code == 1 and "no class 'blue'; the classes are dark, light" in err
    code, _, err = call(capsys, "sample", run, "--context", "0", "--out", tmp_path / "t.csv")
    assert code == 1 and "samples of images go to a .npz and a .png" in err


@pytest.mark.slow
def test_score_states_every_error_of_bits_per_dimension(grey, folder, capsys, tmp_path):
    out = call(capsys, "score", grey, folder, "--rows", 6, "--draws", 2, "--out", tmp_path / "bits.csv")[1]
    for part in ("6 of 1 x 4 x 4, 8 bits", "uniform, 2 draws", "logit with alpha 1e-06", "2 probes", "rk4 with"):
        assert part in out
    assert (tmp_path / "bits.csv").read_text().startswith("log_likelihood,bits_per_dim")
    out = call(capsys, "score", grey, folder, "--rows", 4, "--certify")[1]
    assert "4, 16 pixels" in out and "for about 99 % of rows" in out


@pytest.mark.slow
def test_outlier_scores_separate_two_sets(grey, folder, capsys, tmp_path):
    np.savez(tmp_path / "odd.npz", x_train=np.tile(np.array([0, 255], np.uint8), (8, 4, 2)))
    picture = tmp_path / "scores.png"
    argv = ("score", grey, folder, tmp_path / "odd.npz", "--rows", 8, "--outliers", "--picture", picture)
    code, out, _ = call(capsys, *argv)
    assert code == 0 and re.search(r"likelihood .* 1\.000 ± 0\.000", out) and "typicality" in out and "gradient" in out
    assert "likelihood alone may rate simpler data of another kind higher" in out
    assert picture.exists()
    assert call(capsys, "score", grey, folder, folder)[0] == 2


def test_outliers_of_a_table_have_the_same_scores(capsys, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        datasets.write(
            tmp_path / f"{name}.csv", np.random.default_rng(seed).normal(size=(60, 2)) + 6 * seed, ["u", "v"]
        )
    fitted(tmp_path / "a.csv", tmp_path / "run")
    out = call(capsys, "score", tmp_path / "run", tmp_path / "a.csv", tmp_path / "b.csv", "--outliers")[1]
    assert re.search(r"likelihood .* 1\.000 ± 0\.000", out)


@pytest.mark.slow
def test_every_picture_is_drawn(run, grey, folder, capsys, tmp_path):
    call(capsys, "plot", grey, "--data", folder, "--out", tmp_path / "other")
    assert "extremes.png" in {picture.name for picture in (tmp_path / "other").iterdir()}
    assert not (tmp_path / "other" / "nearest.png").exists()  # the data are not those that it was fitted to
    for name, path in (("run", run), ("grey", grey)):
        code, _, err = call(capsys, "plot", path, "--out", tmp_path / name)
        assert (code, err) == (0, "")
        names = {picture.name for picture in (tmp_path / name).iterdir()}
        assert names == {
            "training.png", "sheet.png", "strip.png", "interpolation.png", "nearest.png", "extremes.png",
        }  # fmt: skip


@pytest.mark.slow
def test_a_model_made_in_python_is_used_like_any_other(capsys, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (60, 4, 4), np.uint8)
    ImageFFJORD(hidden=(8,), schedule=[("flow_matching", 2)], random_state=0).fit(x).save(tmp_path / "run")
    assert call(capsys, "sample", tmp_path / "run", "-n", 3, "--out", tmp_path / "s.npz")[0] == 0
    assert np.load(tmp_path / "s.npz")["x_train"].shape == (3, 4, 4)
    assert call(capsys, "score", tmp_path / "run", tmp_path / "s.npz")[0] == 0
    np.savez(tmp_path / "x.npz", x_train=x)
    assert call(capsys, "plot", tmp_path / "run", "--data", tmp_path / "x.npz", "--out", tmp_path / "pictures")[0] == 0


@pytest.mark.slow
def test_classes_are_known_by_their_names(run, folder, capsys, tmp_path):
    shutil.copytree(folder / "light", tmp_path / "few" / "light")
    _, out, _ = call(capsys, "score", run, tmp_path / "few", "--out", tmp_path / "few.csv")
    _, out, _ = call(capsys, "score", run, folder, "--out", tmp_path / "all.csv")
    few, both = (np.loadtxt(tmp_path / f"{name}.csv", delimiter=",", skiprows=1)[:, 0] for name in ("few", "all"))
    assert few == pytest.approx(both[25:], abs=0.5)
    shutil.copytree(folder / "light", tmp_path / "odd" / "bright")
    code, _, err = call(capsys, "score", run, tmp_path / "odd")
    assert code == 1 and "has the class 'bright', which the run has not; its classes are dark, light" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--draws", "2", "--certify"],
        ["--draws", "2", "--error", "1"],
        ["--outliers", "--draws", "2"],
        ["--picture", "x.png"],
        ["--outliers", "--probes", "3"],
    ],
)
def test_options_that_would_be_ignored_are_wrong_usage(grey, folder, capsys, options):
    assert call(capsys, "score", grey, folder, *options)[0] == 2


def test_a_dry_run_prints_the_configuration(folder, capsys):
    code, out, _ = call(capsys, "fit", folder, "--dry-run", "--grey", "--bits", "5", *TINY)
    shown = json.loads(out)
    assert code == 0 and shown["data"]["event_shape"] == [1, 6, 6] and shown["estimator"]["bits"] == 5


def test_digits_come_with_their_five_bits(capsys):
    assert json.loads(call(capsys, "fit", "digits8", "--dry-run", *TINY)[1])["estimator"]["bits"] == 5


@pytest.mark.slow
def test_a_complete_run_is_resumed_without_a_step(folder, capsys, tmp_path):
    fitted(folder, tmp_path / "run", "--size", "4")
    code, out, _ = call(capsys, "fit", "--resume", tmp_path / "run")
    assert code == 0 and "no steps were left" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["fit", "moons", "--size", "8"], "--size and --grey are for images; moons is a table"),
        (
            ["fit", "FOLDER", "--context", "colour"],
            "no column 'colour' in FOLDER to condition on; there is only 'label'",
        ),
        (["fit", "moons", "--bits", "5"], "--bits is for images; moons is a table: leave it out"),
        (
            ["fit", "FOLDER", "--support", "positive"],
            "--support is for tables; FOLDER is a set of images: leave it out",
        ),
        (["fit", "FOLDER", "--scaling", "whiten"], "scaling must be one of logit, plain; got 'whiten'"),
        (["score", "RUN", "moons"], "moons holds no images, and this run is on images of 3 x 4 x 4"),
        (["reflow", "RUN"], "reflow is for tables, and this model is of images"),
        (["doctor", "RUN"], "doctor is for tables, and this model is of images"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(argv, text, run, folder, capsys, tmp_path):
    words = [{"FOLDER": folder, "RUN": run}.get(word, word) for word in argv]
    options = ["--out", tmp_path / "x", *(TINY if argv[0] == "fit" else [])] if argv[0] != "score" else []
    code, _, err = call(capsys, *words, *options)
    assert code == 1 and text.replace("FOLDER", str(folder)) in err and len(err.splitlines()) == 1


def test_images_are_refused_by_a_run_on_a_table(capsys, folder, tmp_path):
    fitted("moons", tmp_path / "run", "--rows", "50")
    code, _, err = call(capsys, "score", tmp_path / "run", folder)
    assert code == 1 and "holds images, and" in err and "is a run on a table of x0, x1" in err


def test_the_nearest_are_those_of_all_distances():
    rng = np.random.default_rng(0)
    x, among = rng.integers(0, 256, (5, 2, 3), np.uint8), rng.integers(0, 256, (900, 2, 3), np.uint8)
    which, distances = metrics.nearest(x, among, 4)
    differences = x[:, None].astype(float) - among
    truth = np.sqrt((differences**2).mean((2, 3)))
    assert np.array_equal(which, np.argsort(truth, axis=1)[:, :4])
    assert distances == pytest.approx(np.sort(truth, axis=1)[:, :4])
    with pytest.raises(ValueError, match=r"expected 901 or more events of shape \(2, 3\); got \(900, 2, 3\)"):
        metrics.nearest(x, among, 901)
