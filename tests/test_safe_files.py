"""Run folders and data files that are shared, crafted, or on a full disk: one clear error, and nothing lost."""

import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from textwrap import dedent

import numpy as np
import pandas as pd
import pytest
import torch
from commands import call
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ffjord_kit import FFJORD, datasets, memory
from ffjord_kit import run as runs
from ffjord_kit.run import Run, RunError, claimed

X = np.random.default_rng(0).normal(size=(30, 2))
TINY = {"schedule": [("flow_matching", 6)], "hidden": (4,), "random_state": 0, "validate_every": 2}
CALM = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run folder; not to be changed."""
    path = tmp_path_factory.mktemp("runs") / "fitted"
    FFJORD(**TINY).fit(X, run=path)
    return path


@pytest.fixture
def folder(fitted, tmp_path):
    """A copy of it."""
    return shutil.copytree(fitted, tmp_path / "run")


# Shared.

HOLDER = """
    import sys, time
    from ffjord_kit.run import claimed
    with claimed(sys.argv[1]):
        print("held", flush=True)
        time.sleep(600)
"""


@pytest.mark.slow
def test_two_processes_are_kept_apart_and_a_killed_one_keeps_nobody_out(folder):
    before = (folder / "model.safetensors").read_bytes()
    holder = subprocess.Popen([sys.executable, "-c", dedent(HOLDER), folder], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        for how in ({"resume": True}, {"force": True}):
            with pytest.raises(RunError, match="another process is at work in .*: wait for it, or choose another"):
                FFJORD(**TINY).fit(X, run=folder, **how)
        with pytest.raises(RunError, match="another process"):
            FFJORD(**TINY).fit(X).save(folder, force=True)
        assert (folder / "model.safetensors").read_bytes() == before
        assert FFJORD.load(folder).score(X) < 0  # readers are welcome
    finally:
        holder.kill()
        holder.wait()
    FFJORD(**TINY).fit(X, run=folder, resume=True)


def test_a_system_without_locks_works_all_the_same(folder, monkeypatch):
    monkeypatch.setattr(runs, "fcntl", None)
    with claimed(folder), claimed(folder):
        pass


# On a full disk.


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("may not mount a file system here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on_when_there_is_room(small_disk):
    run, filler, told = small_disk / "run", small_disk / "filler", []
    fields = {**TINY, "schedule": [("flow_matching", 40)], "hidden": (16, 16)}

    def fill(record):
        if record["step"] == 9:
            with open(filler, "wb", buffering=0) as file:
                while not told:
                    try:
                        file.write(bytes(4096))
                    except OSError:
                        told.append("full")

    with pytest.raises(RunError, match="could not be written .*what was there before is intact; make room, and resume"):
        FFJORD(**fields).fit(X, run=run, on_step=fill)
    assert told == ["full"]
    assert not [entry.name for entry in run.rglob(".*")]
    assert Run.open(run).load_checkpoint()[1]["step"] == 8
    assert np.isfinite(FFJORD.load(run).score(X))
    filler.unlink()
    resumed = FFJORD(**fields).fit(X, run=run, resume=True)
    whole = FFJORD(**fields).fit(X)
    assert resumed.score(X) == whole.score(X)


@pytest.mark.parametrize("victim", ["save_file", "open"])
def test_what_the_disk_does_not_take_is_named(folder, monkeypatch, victim):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, victim, full, raising=False)
    with pytest.raises(RunError, match=r"could not be written \(.*No space left on device\)"):
        Run(folder).save_checkpoint({"a": torch.zeros(2)}, {}) if victim == "save_file" else Run(folder).record({})


@pytest.mark.parametrize("how", ["fit", "save"])
def test_a_disk_that_is_full_when_a_run_is_replaced_leaves_the_old_one(small_disk, how):
    run, filler = small_disk / "run", small_disk / "filler"
    old, new = FFJORD(**TINY).fit(X, run=run), FFJORD(**{**TINY, "hidden": (64, 64)})
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 20_000))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="what was there before is intact; make room, and fit again"):
        new.fit(X, run=run, force=True) if how == "fit" else new.fit(X).save(run, force=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert FFJORD.load(run).score(X) == old.score(X)


@pytest.mark.slow
def test_a_fit_that_replaces_a_run_and_is_killed_leaves_the_old_model_or_the_new_one(fitted, tmp_path):
    fit = [sys.executable, "-m", "ffjord_kit", "fit", "moons", "--rows", "60", "--seed", "0", "--hidden", "8"]
    fit += ["--schedule", "flow_matching:400", "--validate-every", "3", "--no-verbose", "--force", "--out"]
    start = time.monotonic()
    subprocess.run([*fit, tmp_path / "new"], check=True, capture_output=True)
    duration, wait, told = time.monotonic() - start, np.random.default_rng(0), []
    for attempt in range(10):
        folder = shutil.copytree(fitted, tmp_path / f"run{attempt}")
        process = subprocess.Popen([*fit, folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(wait.uniform(0.3, 1) * duration)
        process.kill()
        process.wait()
        model = FFJORD.load(folder)
        assert np.isfinite(model.score(X))
        told.append(model.config_["rows"])
    assert set(told) <= {30, 60}


# Crafted.

HUGE = {
    "a wide network": {"hidden": [10**9, 10**9]}, "a long network": {"hidden": [4] * 100_000},
    "many blocks": {"blocks": 10**12},
    "many transforms": {"transforms": [["maf", 10**9]]}, "many features": {"fourier_features": 10**9},
    "no widths": {"hidden": "wide"}, "a width that is none": {"hidden": [None]}, "a word as blocks": {"blocks": "x"},
    "an end in the past": {"end_time": -1.0}, "a base that is none": {"base": "cauchy"}, "no scaling": {"scaling": []},
    "a list as tolerance": {"tolerance": [1]},
    "a dict as transforms": {"transforms": {"maf": 1}}, "an unknown field": {"depth": 3},
    "a negative width": {"hidden": [-4]}, "text as features": {"fourier_features": "2"},
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_a_config_that_describes_another_flow_is_refused_before_it_is_built(folder, name):
    config = json.loads((folder / "config.json").read_text())
    config["estimator"] |= HUGE[name]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((RunError, ValueError), match=r"does not fit config.json|is damaged|must be"):
        FFJORD.load(folder).score(X)


@pytest.mark.parametrize(
    "config",
    ["[" * 100_000, "null", "[1]", '{"format": 2}', '{"format": [2]}', '{"format": 2, "estimator": 3}', "\x00", "NaN"],
    ids=lambda text: text[:20],
)
def test_a_config_of_any_other_shape_is_refused(folder, config):
    (folder / "config.json").write_text(config)
    with pytest.raises(RunError):
        FFJORD.load(folder)


DAMAGE = {
    "no estimator": {"estimator": ...}, "no seed": {"seed": ...}, "no version": {"version": ...},
    "no columns": {"columns": ...}, "no rows": {"rows": ...}, "no data": {"data": ...},
    "no length": {"context_dim": ...}, "fields that are text": {"estimator": "x"}, "data that are a list": {"data": []},
    "no names": {"columns": []}, "a name that is a number": {"columns": [1, 2]}, "huge rows": {"rows": 1e300},
    "negative rows": {"rows": -1}, "a huge seed": {"seed": 10**400}, "more digits than can be read": {"seed": "HUGE"},
    "a word as length": {"context_dim": "x"}, "a choice of nothing": {"chosen": {"depth": 3}},
    "a choice of another kind": {"chosen": {"hidden": 3}}, "a reflow of nothing": {"reflow": [{}]},
    "a reflow that is a number": {"reflow": 3}, "a context that is none": {"data": {"context_columns": None}},
    "a source that is a number": {"data": {"source": 3}}, "rows that are text": {"data": {"source": "a", "rows": "x"}},
    "a format that is text": {"format": "2"}, "images that are a number": {"images": 3},
    "a grid of one column": {"grid": {"step": [0.0], "offset": [0.0]}},
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_config_is_called_so_by_every_command(folder, capsys, tmp_path, name):
    config = json.loads((folder / "config.json").read_text()) | DAMAGE[name]
    text = json.dumps({key: value for key, value in config.items() if value is not ...})
    (folder / "config.json").write_text(text.replace('"HUGE"', "9" * 5000))
    for line in (
        ["info", folder],
        ["sample", folder, "-n", 3, "--out", tmp_path / "x.csv"],
        ["score", folder, "moons"],
    ):
        code, out, err = call(capsys, *line)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert re.match(r"error: .*config\.json is damaged \(.*\): restore it, or fit again$", err.strip())


WEIGHTS = {
    "complex": ("transforms.0.dynamics.input_layer.weight", lambda value: value.to(torch.complex64)),
    "whole numbers": ("transforms.0.dynamics.input_layer.weight", torch.Tensor.int),
    "halves": ("transforms.0.dynamics.input_layer.weight", torch.Tensor.half),
    "a scale of 0": ("preprocess.transforms.0.scale", torch.zeros_like),
    "a negative scale": ("preprocess.transforms.0.scale", torch.neg),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_another_type_and_scales_that_are_none_are_refused(folder, name):
    (key, change), path = WEIGHTS[name], folder / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, key: change(weights[key])}, path)
    with pytest.raises(RunError, match=r"model\.safetensors is damaged \(.*\): restore it, or fit again"):
        FFJORD.load(folder)


@pytest.mark.parametrize(
    "change",
    [{"phase": -1}, {"phase": 2}, {"step": -3}, {"phase_step": 1.5}, {"stale": "x"}, {"seconds": None},
     {"micro_batches": 0}, {"best_nll": "low"}, {"average_steps": -1}, {"records": -2}, {"seed": True}],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_whose_numbers_make_no_sense_is_refused(folder, change):
    state = Run(folder).load_checkpoint()
    before = (folder / "metrics.jsonl").read_bytes()
    Run(folder).save_checkpoint(state[0], {**state[1], **change})
    with pytest.raises(RunError, match=r"checkpoint/state\.safetensors is damaged \(.*\): restore it, or fit again"):
        FFJORD(**TINY).fit(X, run=folder, resume=True)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_of_complex_weights_is_refused(folder):
    tensors, state = Run(folder).load_checkpoint()
    Run(folder).save_checkpoint({name: value.to(torch.complex64) for name, value in tensors.items()}, state)
    with pytest.raises(RunError, match=r"is damaged \(.*must be floats; got torch.complex64"):
        FFJORD(**TINY).fit(X, run=folder, resume=True)


@pytest.mark.parametrize(
    "fields",
    [{"hidden": (10**30,)}, {"blocks": 10**22}, {"fourier_features": 10**14}, {"transforms": [("maf", 10**17)]}],
)
def test_a_network_that_the_memory_cannot_hold_is_refused_before_it_is_made(fields):
    with pytest.raises(ValueError, match=r"the weights .* would take \S+ PB, more than 50% of this machine's memory"):
        FFJORD(**{**TINY, **fields}).fit(X)


def test_rows_that_the_memory_cannot_hold_are_refused_before_they_are_drawn():
    with pytest.raises(ValueError, match="1000000000000000 rows of moons would take 64 PB, more than 50% of .*: draw"):
        datasets.load("moons", rows=10**15)


def test_a_checkpoint_of_another_run_is_refused(folder, tmp_path):
    other = FFJORD(**{**TINY, "hidden": (8, 8)}).fit(X, run=tmp_path / "other")
    assert other.history_.step == 6
    shutil.copytree(tmp_path / "other/checkpoint", folder / "checkpoint", dirs_exist_ok=True)
    with pytest.raises(RunError, match=r"checkpoint/state\.safetensors is damaged"):
        FFJORD(**TINY).fit(X, run=folder, resume=True)
    state = folder / "checkpoint/state.safetensors"
    save_file(load_file(state), state, {"state": "7"})
    with pytest.raises(RunError, match=r"is damaged \(no state\)"):
        FFJORD(**TINY).fit(X, run=folder, resume=True)


def test_an_archive_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((1000, 1000)))
    assert (tmp_path / "bomb.npz").stat().st_size < 20_000
    monkeypatch.setattr(memory, "total_memory", lambda: 1e7)
    with pytest.raises(ValueError, match=r"x would unpack to 8 MB, more than 50% of this machine's memory: save a tab"):
        datasets.load(tmp_path / "bomb.npz")


@pytest.mark.parametrize("ending", ["npz", "npy"])
def test_an_array_of_bytes_is_refused_for_what_it_becomes(tmp_path, monkeypatch, ending):
    array, path = np.zeros((1000, 1000), np.uint8), tmp_path / f"bytes.{ending}"
    np.savez_compressed(path, x=array) if ending == "npz" else np.save(path, array)
    monkeypatch.setattr(memory, "total_memory", lambda: 1e7)
    with pytest.raises(ValueError, match=r"1000000 numbers would take 8 MB, more than 50% of this machine's memory"):
        datasets.load(path)
    monkeypatch.setattr(memory, "total_memory", lambda: 1e8)
    assert datasets.load(path).x.dtype == np.float64


def test_a_path_in_an_archive_is_only_a_name(tmp_path):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "inside").mkdir()
    with zipfile.ZipFile(tmp_path / "inside/tricky.npz", "w") as archive:
        archive.write(tmp_path / "x.npy", "../evil.npy")
    assert np.array_equal(datasets.load(tmp_path / "inside/tricky.npz").x, X)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["inside", "x.npy"]


def test_an_array_whose_header_lies_is_refused(tmp_path):
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**13, 3)}
    with open(tmp_path / "lies.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(240))
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        archive.write(tmp_path / "lies.npy", "x.npy")
    for name in ("lies.npy", "lies.npz"):
        with pytest.raises(ValueError, match="damaged, or not a NumPy file"):
            datasets.load(tmp_path / name)


@pytest.mark.slow
@settings(max_examples=60, **CALM)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans(), which=st.integers(0, 3))
def test_a_run_with_any_byte_changed_or_its_end_cut_is_read_or_refused(fitted, tmp_path, place, byte, cut, which):
    folder = shutil.copytree(fitted, tmp_path / "run", dirs_exist_ok=True)
    path = folder / ("config.json", "metrics.jsonl", "model.safetensors", "checkpoint/state.safetensors")[which]
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    content[at] = byte
    path.write_bytes(content[:at] if cut else content)
    for use in (lambda: FFJORD.load(folder).score(X), lambda: FFJORD(**TINY).fit(X, run=folder, resume=True)):
        try:
            use()
        except (ValueError, RuntimeError) as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=100, **CALM)
@given(data=st.data(), value=JSON)
def test_a_config_with_any_value_changed_is_read_or_refused(fitted, tmp_path, data, value):
    folder = shutil.copytree(fitted, tmp_path / "run", dirs_exist_ok=True)
    config = json.loads((fitted / "config.json").read_text())
    places = [(config, name) for name in config] + [(config["estimator"], name) for name in config["estimator"]]
    holder, name = data.draw(st.sampled_from(places))
    holder[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    try:
        FFJORD.load(folder).score(X)
    except (ValueError, RuntimeError) as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def kinds_of_runs(tmp_path_factory):
    """Run folders of tables of every kind, and rows of each."""
    root, rng = tmp_path_factory.mktemp("kinds"), np.random.default_rng(0)
    mixed = pd.DataFrame({"a": X[:, 0], "phi": rng.uniform(0, 360, 30), "city": np.resize(["Oslo", "Bergen"], 30)})
    gaps = np.where(np.arange(60).reshape(30, 2) == 7, np.nan, X)
    in_steps = {**TINY, "schedule": [("flow_matching", 2), ("steps", 2)]}
    FFJORD(**TINY, columns={"phi": "circle:360"}).fit(mixed, run=root / "mixed", sample_weight=rng.uniform(0, 2, 30))
    FFJORD(**TINY, subsets=True).fit(gaps, run=root / "subsets")
    FFJORD(**in_steps).fit(X, run=root / "errors", noise_std=0.1)
    return root, {"mixed": mixed, "subsets": gaps, "errors": X}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixed", "subsets", "errors"])
def test_each_entry_of_a_config_with_another_value_is_read_or_refused(kinds_of_runs, tmp_path, kind):
    root, rows = kinds_of_runs
    folder = shutil.copytree(root / kind, tmp_path / "run")
    text = (folder / "config.json").read_text()
    for part in (None, "estimator"):
        for name in json.loads(text) if part is None else json.loads(text)[part]:
            for value in ([], {}, 0, "x", None, -1, True, [1], {"a": 1}, 1.5):
                config = json.loads(text)
                (config if part is None else config[part])[name] = value
                (folder / "config.json").write_text(json.dumps(config))
                try:
                    FFJORD.load(folder).score(rows[kind][:5])
                except (ValueError, RuntimeError) as error:
                    assert "\n" not in str(error), (name, value)


ENDINGS = [".csv", ".tsv", ".npy", ".npz", ".parquet", ".txt", ".feather", ".xlsx", ".h5", ".fits", ".json", ".jsonl"]
ENDINGS += [".csv.gz", ".csv.zip", ".txt.xz", ".tsv.bz2"]


@settings(max_examples=200, **CALM)
@given(content=st.binary(max_size=300), ending=st.sampled_from(ENDINGS))
def test_a_file_of_any_bytes_is_read_or_refused_in_one_line(tmp_path, content, ending):
    path = tmp_path / f"data{ending}"
    path.write_bytes(content)
    try:
        assert np.isfinite(datasets.load(path).x).all()
    except (ValueError, ImportError) as error:
        assert "\n" not in str(error)


@settings(max_examples=60, **CALM)
@given(
    rows=st.lists(st.lists(st.floats(width=64), min_size=2, max_size=2), min_size=0, max_size=8),
    option=st.sampled_from([{}, {"base": "student"}, {"scaling": "gaussianize"}, {"dequantize": "auto"}]),
)
def test_rows_of_any_numbers_are_learned_or_refused(rows, option):
    try:
        model = FFJORD(**TINY, **option).fit(np.array(rows, dtype=float).reshape(-1, 2))
        assert np.isfinite(model.score_samples(np.array(rows))).all()
    except (ValueError, RuntimeError) as error:
        assert "\n" not in str(error).strip() or "Input" in str(error)  # scikit-learn's own has more than one line


ODD = [
    -1,
    0,
    0.5,
    1,
    2,
    3,
    np.nan,
    np.inf,
    -np.inf,
    "x",
    "",
    None,
    [],
    (),
    True,
    {},
    "auto",
    [("mle", 1)],
    {"kinetic": 0.1},
    "exact",
    "euler",
]


CHANGED = st.dictionaries(st.sampled_from(sorted(FFJORD().get_params())), st.sampled_from(ODD), min_size=1, max_size=2)


@pytest.mark.slow
@settings(max_examples=150, **CALM)
@given(changed=CHANGED)
@example(changed={"regularizers": -1})
def test_fields_of_any_value_are_used_or_refused(changed):
    fields = {**TINY, **changed}
    fields["max_nfe"] = fields.get("max_nfe", 2000)
    try:
        model = FFJORD(**fields).fit(X)
        assert np.isfinite(model.score_samples(X)).all()
        assert np.isfinite(model.sample(3, random_state=0)).all()
    except (ValueError, RuntimeError) as error:
        assert "\n" not in str(error)
