"""Workers of torchrun at the estimator and the command: one run, the same result, and a way to go on."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from worker_groups import Group, message

import ffjord_kit
from ffjord_kit import FFJORD
from ffjord_kit.cli import main
from ffjord_kit.estimator import search
from ffjord_kit.objectives import FlowMatching
from ffjord_kit.run import RunError
from ffjord_kit.training import WorkersError

SMALL = [
    "fit", "moons", "--rows", "80", "--schedule", "flow_matching:24,mle:8", "--hidden", "8", "--solver", "euler",
    "--solver-steps", "2", "--batch-size", "16", "--validate-every", "4", "--patience", "100", "--seed", "3",
    "--no-verbose",
]  # fmt: skip


def rows(n=40, seed=1):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy() * 2 + 3


def test_parts_are_checked_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="a batch of 512 rows cannot be made in 3 equal parts"):
        FFJORD(micro_batches=3).fit(rows(2000), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def differ(folder):
    """Return the errors of a field, and of rows, that differ."""
    rank = int(os.environ["RANK"])
    short = {"schedule": [("mle", 3)]}
    models = [(FFJORD(**short, clip_norm=1.0 + rank), rows()), (FFJORD(**short), rows(seed=rank))]
    return [message(WorkersError, lambda model=model, x=x: model.fit(x)) for model, x in models]


def test_workers_whose_fields_or_data_differ_say_so_and_end(tmp_path):
    for rank, texts in enumerate(Group(differ, tmp_path).results()):
        start = f"worker {rank} of 2 ends, as workers 0 and 1 were not given the same"
        assert texts[0].startswith(f"{start} clip_norm: '1.0', and '2.0'; start all with the same")
        assert texts[1].startswith(f"{start} data (SHA-256): ")


def choose(folder):
    for name, value in (("STEPS", 12), ("TRIAL_STEPS", 3), ("STEPS_IN_STEPS", 4)):
        setattr(search, name, value)
    model = FFJORD(hidden=(8,), random_state=None if "RANK" in os.environ else Chosen.seed, batch_size=16)
    model.micro_batches = 2
    model.fit(rows(80))
    scores = model.score_samples(rows(5)).tolist()
    return model.seed_, json.loads(json.dumps(model.config_["chosen"])), scores, len(model.history_.records)


class Chosen:
    seed = 0


@pytest.mark.slow
def test_the_first_workers_trials_and_its_seed_are_everybodys(tmp_path, monkeypatch):
    first, second = Group(choose, tmp_path).results()
    assert first == second
    for name in ("STEPS", "TRIAL_STEPS", "STEPS_IN_STEPS"):
        monkeypatch.setattr(search, name, getattr(search, name))
    monkeypatch.setattr(Chosen, "seed", first[0])
    seed, words, scores, records = choose(tmp_path)
    assert (words | {"hidden": None}, records) == (first[1] | {"hidden": None}, first[3])
    assert scores == pytest.approx(first[2], rel=1e-3)


# The command, and workers that end.


def command(folder, argv, deed=None, at=0):
    """The command on a worker, which does the deed at a step, if it is the second one."""
    if deed is not None and os.environ["RANK"] == "1":
        real, calls = FlowMatching.loss, []

        def loss(self, *args):
            calls.append(0)
            if len(calls) == at:
                os.kill(os.getpid(), deed)
            return real(self, *args)

        FlowMatching.loss = loss
    rank = os.environ["RANK"]
    sys.argv = ["ffjord-kit", *(word.replace("RANK", rank) for word in argv)]
    out, err = ((folder / f"{rank}.{kind}").open("w") for kind in ("out", "err"))
    with out, err, redirect_stdout(out), redirect_stderr(err):
        main()


def alone(argv):
    """The same in one process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["ffjord-kit", *argv])
        main()
    assert not ended.value.code


def texts(folder):
    return [(folder / f"{rank}.{kind}").read_text() for rank in (0, 1) for kind in ("out", "err")]


def assert_same_end(run, whole, exact=True):
    ours, theirs = load_file(run / "model.safetensors"), load_file(whole / "model.safetensors")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0 if exact else 1e-4, atol=0 if exact else 1e-5)
    steps = [[json.loads(line)["step"] for line in (run / "metrics.jsonl").open()] for run in (run, whole)]
    assert steps[0] == steps[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of two workers that nothing disturbs; the second one would write to a folder of its own."""
    folder = tmp_path_factory.mktemp("whole")
    assert Group(command, folder, [*SMALL, "--out", str(folder / "runRANK")]).codes() == [0, 0]
    return folder


@pytest.mark.slow
def test_only_the_first_worker_writes_and_prints(whole):
    assert not (whole / "run1").exists()
    out, *others = texts(whole)
    assert out.startswith("done after 32 steps")
    assert others == ["", "", ""]


def test_the_command_makes_what_one_process_makes(whole, tmp_path):
    alone([*SMALL, "--micro-batches", "2", "--out", str(tmp_path / "one")])
    assert_same_end(whole / "run0", tmp_path / "one", exact=False)


@pytest.mark.slow
def test_a_killed_worker_ends_the_other_and_all_go_on_from_the_checkpoint(whole, tmp_path):
    run = str(tmp_path / "run")
    began = time.monotonic()
    assert Group(command, tmp_path, [*SMALL, "--out", run], signal.SIGKILL, 11).codes() == [1, -9]
    assert time.monotonic() - began < 30  # seconds, of which waiting has none
    said = texts(tmp_path)[1]
    assert said.startswith("error: worker 0 of 2 lost another one, whose own output says why (")
    assert "that was at step 10; what" in said
    assert f"go on with `torchrun --standalone --nproc-per-node 2 -m ffjord_kit fit --resume {run}`" in said
    again = Group(command, tmp_path, [*SMALL, "--out", run], TORCHELASTIC_RESTART_COUNT="1")
    assert again.codes() == [0, 0]
    assert_same_end(tmp_path / "run", whole / "run0")


@pytest.mark.slow
def test_a_request_to_end_on_any_worker_ends_all_with_a_checkpoint_and_fewer_may_go_on(whole, tmp_path):
    run = str(tmp_path / "run")
    assert Group(command, tmp_path, [*SMALL, "--out", run], signal.SIGTERM, 7).codes() == [130, 130]
    out, err, *others = texts(tmp_path)
    assert out.startswith("interrupted after 7 steps")
    assert (err, others) == (f"go on with: ffjord-kit fit --resume {run}\n", ["", ""])
    alone(["fit", "--resume", run])  # in the parts that two workers began with
    assert_same_end(tmp_path / "run", whole / "run0", exact=False)


def test_another_number_of_parts_is_refused_on_resume(tmp_path):
    fields = {"schedule": [("flow_matching", 4)], "hidden": (8,), "random_state": 0, "batch_size": 12}
    model = FFJORD(**fields, micro_batches=2).fit(rows(), run=tmp_path / "run")
    assert model.history_.micro_batches == 2
    with pytest.raises(RunError, match="has micro_batches=2; got 3"):
        FFJORD(**fields, micro_batches=3).fit(rows(), run=tmp_path / "run", resume=True)


@pytest.mark.slow
def test_a_restart_before_the_first_checkpoint_begins_anew_and_a_first_start_overwrites_nothing(whole, tmp_path):
    run = str(tmp_path / "run")
    assert Group(command, tmp_path, [*SMALL, "--out", run], signal.SIGKILL, 2).codes() == [1, -9]
    assert Group(command, tmp_path, [*SMALL, "--out", run]).codes() == [1, 1]
    assert "already holds a run" in texts(tmp_path)[1]
    assert "worker 1 of 2 ends, as the first one failed" in texts(tmp_path)[3]
    assert Group(command, tmp_path, [*SMALL, "--out", run], TORCHELASTIC_RESTART_COUNT="1").codes() == [0, 0]
    assert_same_end(tmp_path / "run", whole / "run0")


@pytest.mark.slow
def test_torchrun_starts_again_what_was_killed(whole, tmp_path):
    run, script = tmp_path / "run", tmp_path / "dying.py"
    script.write_text(
        "import os, sys\n"
        "from ffjord_kit.objectives import FlowMatching\n"
        "from ffjord_kit.cli import main\n"
        "real, calls = FlowMatching.loss, []\n"
        "def loss(self, *args):\n"
        "    calls.append(0)\n"
        "    if os.environ['RANK'] + os.environ['TORCHELASTIC_RESTART_COUNT'] == '10' and len(calls) == 11:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return real(self, *args)\n"
        "FlowMatching.loss = loss\n"
        "main()\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    ended = subprocess.run(
        [*torchrun, str(script), *SMALL, "--out", str(run)], capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": str(Path(ffjord_kit.__file__).parents[1])},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert ended.stdout.count("done after 32 steps") == 1
    assert_same_end(run, whole / "run0")
