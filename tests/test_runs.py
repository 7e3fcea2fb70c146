"""A run folder: made, refused, and read back, also where it is damaged."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ffjord_kit import FFJORD, Flow, Transform
from ffjord_kit import run as runs
from ffjord_kit.distributions import StandardNormal
from ffjord_kit.run import Run, RunError

X = np.random.default_rng(0).normal(size=(20, 2))
CONFIG = {"columns": ["a"], "seed": 3}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run folder with everything that a fit leaves; not to be changed."""
    path = tmp_path_factory.mktemp("runs") / "fitted"
    FFJORD(schedule=[("flow_matching", 4)], hidden=(4,), random_state=0).fit(X, columns=["a", "b"], run=path)
    return path


@pytest.fixture
def folder(fitted, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(fitted, tmp_path / "run")


def content(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_fit_leaves_its_four_things_and_no_temporary_file(fitted):
    assert set(content(fitted)) == {
        "config.json", "metrics.jsonl", "model.safetensors", "checkpoint/state.safetensors",
    }  # fmt: skip


def test_the_config_explains_the_run(fitted):
    config = Run.open(fitted).config
    assert config["format"] == runs.FORMAT
    assert config["estimator"]["schedule"] == [["flow_matching", 4]]
    assert config["estimator"]["random_state"] == config["seed"] == 0
    assert (config["columns"], config["rows"], config["context_dim"]) == (["a", "b"], 20, 0)
    assert len(config["sha256"]) == 64


def test_a_new_run_makes_its_folder_and_those_above(tmp_path):
    run = Run.create(tmp_path / "a" / "b", CONFIG)
    assert Run.open(tmp_path / "a" / "b").config["columns"] == ["a"]
    assert set(content(run.path)) == {"config.json"}


def test_an_empty_folder_may_become_a_run(tmp_path):
    assert Run.create(tmp_path, CONFIG).config["seed"] == 3


def test_an_existing_run_is_replaced_only_by_force(folder):
    (folder / "notes.txt").write_text("mine")
    before = content(folder)
    with pytest.raises(RunError, match=r"already holds a run: choose another folder, --resume it, or pass --force"):
        Run.create(folder, CONFIG)
    assert content(folder) == before
    run = Run.create(folder, CONFIG, force=True)
    assert run.config["seed"] == 3
    assert before.items() <= content(folder).items()  # until there is a model
    run.record({"step": 1})
    run.save_model(torch.nn.Linear(1, 1))
    assert set(content(folder)) == {"config.json", "notes.txt", "metrics.jsonl", "model.safetensors"}
    assert Run.open(folder).config["seed"] == 3
    assert Run.open(folder).records() == run.records() == [{"step": 1}]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_holds_something_else_is_never_touched(tmp_path, force):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="not empty and holds no run"):
        Run.create(tmp_path, CONFIG, force=force)
    assert content(tmp_path) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("force", [False, True])
def test_a_file_in_the_place_of_the_folder_is_never_touched(tmp_path, force):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunError, match="is a file: choose another folder"):
        Run.create(tmp_path / "run", CONFIG, force=force)
    assert content(tmp_path) == {"run": b"a file"}


class Killed(BaseException):
    """An end that nothing is tidied after."""


def replacement(folder):
    """Replace the run in a folder, as a fit does."""
    run = Run.create(folder, CONFIG, force=True)
    run.record({"step": 1})
    run.save_checkpoint({"a": torch.ones(1)}, {"step": 7})
    run.save_model(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("call", range(40))
def test_a_replacement_killed_at_any_call_leaves_the_old_run_or_the_new_one(folder, monkeypatch, call):
    calls = iter(range(1000))

    def counted(function):
        def count(*args, **kwargs):
            if next(calls) == call:
                raise Killed
            return function(*args, **kwargs)

        return count

    monkeypatch.setattr(Run, "close", lambda self: None)
    for module, name in ((runs.os, "replace"), (runs.os, "rename"), (runs.os, "rmdir"), (runs.os, "unlink"),
                         (runs.os, "mkdir"), (runs, "save_file"), (runs, "_remove")):  # fmt: skip
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    with contextlib.suppress(Killed):
        replacement(folder)
    monkeypatch.undo()
    run = Run.open(folder)
    if run.config["seed"] == 3:
        assert set(run.model_shapes()) == {"weight", "bias"}
        assert run.records() == [{"step": 1}]
        assert run.load_checkpoint()[1] == {"step": 7}
    else:
        assert np.isfinite(FFJORD.load(folder).score(X))
        assert run.load_checkpoint()[1]["step"] == 4
    run.tidy()
    assert not [entry.name for entry in folder.rglob(".*")]
    replacement(folder)
    assert Run.open(folder).load_checkpoint()[1] == {"step": 7}


def test_a_replacement_that_fails_leaves_the_old_run_and_no_trace(folder):
    before = content(folder)

    def fail(record):
        raise ArithmeticError("made to fail")

    with pytest.raises(ArithmeticError):
        FFJORD(schedule=[("flow_matching", 4)], hidden=(8,), random_state=0).fit(
            X, run=folder, force=True, on_step=fail
        )
    assert content(folder) == before


@pytest.mark.parametrize("how", ["fit", "save"])
def test_a_run_whose_checkpoint_is_a_link_is_replaced_and_what_the_link_leads_to_stays(folder, tmp_path, how):
    (folder / "checkpoint").rename(tmp_path / "elsewhere")
    (folder / "checkpoint").symlink_to(tmp_path / "elsewhere")
    before = content(tmp_path / "elsewhere")
    model = FFJORD(schedule=[("flow_matching", 4)], hidden=(8,), random_state=0)
    if how == "fit":
        model.fit(X, run=folder, force=True)
    else:
        model.fit(X).save(folder, force=True)
    assert FFJORD.load(folder).score(X) == model.score(X)
    assert not (folder / "checkpoint").is_symlink()
    assert content(tmp_path / "elsewhere") == before


def test_a_model_survives_the_way_to_the_disk_and_back(fitted):
    model = FFJORD(schedule=[("flow_matching", 4)], hidden=(4,), random_state=0).fit(X)
    loaded = FFJORD.load(fitted)
    assert np.array_equal(loaded.score_samples(X), model.score_samples(X))
    assert [r["step"] for r in loaded.history_.records] == [r["step"] for r in model.history_.records]


def test_a_checkpoint_survives_the_way_to_the_disk_and_back(tmp_path):
    run = Run.create(tmp_path, CONFIG)
    tensors = {"a/0": torch.randn(3, dtype=torch.float64), "b": torch.tensor(4), "shared": torch.ones(2, 3).T}
    assert run.load_checkpoint() is None
    run.save_checkpoint(tensors, {"step": 4, "best_nll": 0.1 + 0.2, "none": None})
    found, state = run.load_checkpoint()
    assert state == {"step": 4, "best_nll": 0.1 + 0.2, "none": None}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_records_come_back_without_a_last_line_that_was_torn(tmp_path):
    run = Run.create(tmp_path, CONFIG)
    assert run.records() == []
    records = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": float("inf"), "phase": "mle"}]
    for record in records:
        run.record(record)
    with open(tmp_path / "metrics.jsonl", "a") as log:
        log.write('{"step": 3, "lo')
    assert run.records() == records


def test_a_run_with_a_torn_log_can_be_loaded(folder):
    log = folder / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-9])
    assert len(FFJORD.load(folder).history_.records) == log.read_bytes().count(b"\n")


def damaged_config(change):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def damaged_model(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def cut(name, keep):
    def damage(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:keep])

    return damage


NAME = "transforms.0.dynamics.input_layer.weight"
DAMAGE = {
    "a config cut short": (cut("config.json", 100), r"config\.json is damaged \(.*\): restore it, or fit again"),
    "an empty config": (cut("config.json", 0), r"config\.json is damaged"),
    "a config that is no object": (lambda f: (f / "config.json").write_text("[]"), "damaged \\(not a JSON object"),
    "a config that is no text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), r"config\.json is damaged"),
    "no config": (lambda f: (f / "config.json").unlink(), "is no run folder: it has no config.json"),
    "a later format": (
        damaged_config(lambda c: c.update(format=99, version="9.0")),
        r"has format 99; ffjord_kit .* reads format 2: use the version that wrote it \(9\.0\)",
    ),
    "a config of something else": (
        damaged_config(lambda c: c.clear()), r"config\.json is damaged \(format must be \d; got None\)",
    ),
    "a config without columns": (damaged_config(lambda c: c.pop("columns")), r"config\.json is damaged .*columns"),
    "a config without a context": (
        damaged_config(lambda c: c.pop("context_dim")), r"config\.json is damaged .*context_dim",
    ),
    "a field that FFJORD has not": (
        damaged_config(lambda c: c["estimator"].update(depth=3)), r"config\.json is damaged .*depth",
    ),
    "a model cut short": (cut("model.safetensors", 1000), r"model\.safetensors is damaged \(.*\): restore it"),
    "an empty model": (cut("model.safetensors", 0), r"model\.safetensors is damaged"),
    "no model": (lambda f: (f / "model.safetensors").unlink(), r"is missing: the run had not reached its first check"),
    "weights that are NaN": (damaged_model(lambda t: t[NAME].fill_(np.nan)), "holds weights that are NaN or infinite"),
    "weights of another shape": (
        damaged_model(lambda t: t.update({NAME: torch.zeros(4, 3)})),
        rf"does not fit config\.json \(first at '{NAME}'\)",
    ),
    "weights that lack one": (damaged_model(lambda t: t.pop(NAME)), rf"does not fit .*'{NAME}'"),
    "weights with one too many": (damaged_model(lambda t: t.update(more=torch.ones(1))), "does not fit .*'more'"),
    "a model that fits another config": (
        damaged_config(lambda c: c["estimator"].update(hidden=[5])), r"does not fit config\.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_in_one_line_and_the_folder_left_as_it_is(folder, damage):
    make, message = DAMAGE[damage]
    make(folder)
    before = content(folder)
    with pytest.raises(RunError, match=message) as caught:
        FFJORD.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert content(folder) == before


def test_a_folder_that_is_not_there_is_no_run(tmp_path):
    with pytest.raises(RunError, match="is no run folder: no such folder"):
        FFJORD.load(tmp_path / "nowhere")
    assert content(tmp_path) == {}


def test_a_refused_model_leaves_the_flow_as_it_was(folder):
    damaged_model(lambda tensors: tensors[NAME].fill_(np.nan))(folder)
    flow = FFJORD(schedule=[("flow_matching", 4)], hidden=(4,), random_state=1).fit(X).flow_
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    with pytest.raises(RunError):
        Run.open(folder).load_model(flow)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())


def test_save_writes_a_folder_that_load_reads_and_never_replaces_one_unasked(tmp_path):
    model = FFJORD(schedule=[("flow_matching", 4)], hidden=(4,), random_state=1).fit(X)
    model.save(tmp_path / "saved")
    assert np.array_equal(FFJORD.load(tmp_path / "saved").score_samples(X), model.score_samples(X))
    before = content(tmp_path)
    with pytest.raises(RunError, match="already holds a run"):
        model.save(tmp_path / "saved")
    assert content(tmp_path) == before
    model.save(tmp_path / "saved", force=True)
    assert content(tmp_path) == before


def test_a_loaded_model_can_be_saved_again(fitted, tmp_path):
    FFJORD.load(fitted).save(tmp_path / "again")
    assert np.array_equal(FFJORD.load(tmp_path / "again").sample(3, random_state=0),
                          FFJORD.load(fitted).sample(3, random_state=0))  # fmt: skip


class Plain(Transform):
    """A transform of a user's own, with a weight and a number that is not a float."""

    event_shape = (1,)

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.ones(1))
        self.register_buffer("count", torch.tensor(3))

    def to_base(self, x, context=None):
        return x - self.shift, x.new_zeros(len(x))

    def to_data(self, z, context=None):
        return z + self.shift, z.new_zeros(len(z))


def test_any_flow_can_be_kept_in_a_run(tmp_path):
    run, flows = Run.create(tmp_path, CONFIG), [Flow([Plain()], base=StandardNormal((1,))) for _ in range(2)]
    with torch.no_grad():
        flows[0].transforms[0].shift.fill_(5.0)
    run.save_model(flows[0])
    run.load_model(flows[1])
    assert flows[1].transforms[0].shift.item() == 5.0
