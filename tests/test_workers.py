"""Several workers make the fit that one makes, all decide alike, and none waits for one that is gone.

Workers are processes of gloo on this machine, forked from one that has imported everything.
"""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from threading import Thread

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

import ffjord_kit
from ffjord_kit import (
    CNF,
    FFJORD,
    ExactTrace,
    Flow,
    FlowMatching,
    HutchinsonTrace,
    Integration,
    LayersLikelihood,
    MaximumLikelihood,
    Phase,
    ResidualDynamics,
    RunError,
    SolveError,
    Solver,
    Standardize,
    TrainingDiverged,
    fit,
)
from ffjord_kit.cli import main
from ffjord_kit.estimator import auto
from ffjord_kit.layers import Layer
from ffjord_kit.training import Workers, WorkersError
from ffjord_kit.training.data import Batches, Data, peel
from ffjord_kit.training.joining import agreed_word
from ffjord_kit.training.parts import Parts, check_parts
from ffjord_kit.training.workers import ENVIRONMENT

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["ffjord_kit.cli", "torch._dynamo", "test_workers"])
EULER = Solver("euler", steps=2)
MLE = MaximumLikelihood(HutchinsonTrace(), {}, EULER)
SMALL = [
    "fit", "moons", "--rows", "80", "--schedule", "flow_matching:24,mle:8", "--hidden", "8", "--solver", "euler",
    "--steps", "2", "--batch-size", "16", "--validate-every", "4", "--patience", "100", "--seed", "3", "--no-verbose",
]  # fmt: skip


# One of several processes.


def enter(job, rank, size, port, folder, args, environment):
    torch.set_num_threads(1)
    values = (rank, size, "127.0.0.1", port)
    os.environ.update({name: str(value) for name, value in zip(ENVIRONMENT, values, strict=True)}, **environment)
    result = job(folder, *args)
    (folder / f"{rank}.json").write_text(json.dumps(result))


class Group:
    """A job on two workers, under way."""

    def __init__(self, job, folder, *args, **environment):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = [
            SERVER.Process(target=enter, args=(job, rank, 2, port, folder, args, environment)) for rank in (0, 1)
        ]
        for process in self.processes:
            process.start()

    def codes(self):
        for process in self.processes:
            process.join(60)
        late = [process.kill() for process in self.processes if process.is_alive()]
        assert not late, "a worker hangs"
        return [process.exitcode for process in self.processes]

    def results(self):
        assert self.codes() == [0, 0]
        return [json.loads((self.folder / f"{rank}.json").read_text()) for rank in (0, 1)]


# What is trained.


class Shift(Layer):
    """An exact layer with one weight, which flow matching leaves alone."""

    event_shape = (2,)

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.5))

    def to_base(self, x, context=None):
        return x - self.shift, x.new_zeros(len(x))

    def to_data(self, z, context=None):
        return z + self.shift, z.new_zeros(len(z))


def flow(seed=0, hidden=8, blocks=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        cnfs = [CNF(ResidualDynamics((2,), hidden=(hidden,)), (2,), solver=EULER) for _ in range(blocks)]
    return Flow([Standardize.of(rows()), Shift(), *cnfs])


def rows(n=40, seed=1):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 3


def train(objective, made=None, x=None, **options):
    made = made or flow()
    options = {"batch_size": 12, "seed": 2, "validate_every": 3, "schedule": [Phase(objective, 9, 0.01)], **options}
    history = fit(
        made, rows() if x is None else x, validation=(rows(11, 5), None), guard=0.5,
        evaluation=Integration(solver=Solver(rtol=1e-4, atol=1e-4)), **options,
    )  # fmt: skip
    scores = [(r["validation_nll"], r["validation_solver_error"]) for r in history.records if "validation_nll" in r]
    losses = [r["loss"] for r in history.records if "loss" in r]
    weights = {name: value.flatten().tolist() for name, value in made.named_parameters()}
    return {"weights": weights, "scores": scores, "losses": losses}


OBJECTIVES = {"flow_matching": FlowMatching(), "mle": MLE, "layers": LayersLikelihood()}


def same(found, expected, rel=1e-5):
    assert found["weights"].keys() == expected["weights"].keys()
    for name, values in found["weights"].items():
        assert values == pytest.approx(expected["weights"][name], rel=rel, abs=1e-6)
    assert found["losses"] == pytest.approx(expected["losses"], rel=rel)
    assert torch.tensor(found["scores"]).allclose(torch.tensor(expected["scores"]), rtol=1e-4, atol=1e-5)


def train_all(folder):
    return {word: train(objective, flow(blocks=2)) for word, objective in OBJECTIVES.items()}


def test_two_workers_make_what_one_makes_in_two_parts(tmp_path):
    first, second = Group(train_all, tmp_path).results()
    assert first == second
    for word, objective in OBJECTIVES.items():
        whole = train(objective, flow(blocks=2), micro_batches=2)
        same(first[word], whole)
        assert whole["losses"] != train(objective, flow(blocks=2))["losses"] or word == "layers"
    assert first["flow_matching"]["weights"]["layers.1.shift"] == [0.5]


def test_parts_add_up_to_the_batch_where_there_is_no_noise():
    made, x = peel(flow())[1], rows().float()
    parameters = list(made.parameters())
    exact = MaximumLikelihood(ExactTrace(), {"kinetic": 0.1}, EULER)
    found = []
    for count in (1, 3):
        parts = Parts(made, Batches(Data(x, None, x[:, 0]), 12, seed=0), parameters, count, Workers())
        loss, news = parts.backward(exact, 5, lambda: (0.0, 7.0))
        found.append([loss.value, *loss.terms.values(), *(p.grad.clone() for p in parameters)])
        assert (news, loss.evaluations[0].forward, list(loss.terms)) == ([0.0, 7.0], 2, ["nll", "kinetic"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "size", "said"),
    [
        (3, 12, "micro_batches must be a multiple of the number of workers, 2; got 3: pass 4"),
        (4, 10, "a batch of 10 rows cannot be made in 4 equal parts: pass batch_size=8"),
        (4, 3, "a batch of 3 rows cannot be made in 4 equal parts: start fewer workers"),
    ],
)
def test_parts_that_do_not_go_into_each_other_are_refused(count, size, said):
    with pytest.raises(ValueError, match=said):
        check_parts(count, size, Workers(0, 2))


def test_parts_are_checked_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="a batch of 512 rows cannot be made in 3 equal parts"):
        FFJORD(micro_batches=3).fit(rows(2000).numpy(), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_workers_agree_on_a_new_word_beside_the_traces_of_dead_ones():
    store, longest, words = dist.HashStore(), timedelta(seconds=20), []

    def come(rank):
        words.append(agreed_word(store, rank, 3, longest))

    for _ in range(3):
        threads = [Thread(target=come, args=(rank,)) for rank in (2, 0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(words) == 9
    assert [len(set(words[i : i + 3])) for i in (0, 3, 6)] == [1, 1, 1]
    assert len(set(words)) == 3
    with pytest.raises(RuntimeError, match="not all 3 came within 0 s"):
        agreed_word(store, 0, 3, timedelta(seconds=0.1))


# Workers that are not alike.


def differ(folder):
    """What is said of one difference after the other."""
    rank, said = int(os.environ["RANK"]), []
    odd = [
        {"seed": rank}, {"batch_size": 12 + 2 * rank}, {"x": rows(40 + rank)}, {"x": rows(seed=rank)},
        {"schedule": [Phase(FlowMatching(), 9 + rank)]}, {"made": flow(hidden=8 + rank)},
        {"micro_batches": 2 + 2 * rank},
    ]  # fmt: skip
    for options in odd:
        said.append(message(WorkersError, lambda options=options: train(FlowMatching(), **options)))
    said.append(message(WorkersError, lambda: FFJORD(schedule="mle:3", clip_norm=1.0 + rank).fit(rows().numpy())))
    said.append(message(WorkersError, lambda: FFJORD(schedule="mle:3").fit(rows(seed=rank).numpy())))
    return said


def message(kind, make):
    try:
        make()
    except kind as error:
        return str(error)
    return "nothing"


def test_workers_that_were_not_given_the_same_say_so_and_end(tmp_path):
    both = Group(differ, tmp_path).results()
    names = ["seed", "batch_size", "number of rows", "rows", "schedule", "network", "micro_batches", "clip_norm"]
    for rank, said in enumerate(both):
        for name, text in zip([*names, "data (SHA-256)"], said, strict=True):
            assert text.startswith(f"worker {rank} of 2 ends, as workers 0 and 1 were not given the same {name}: "), (
                text
            )
    assert "'1.0', and '2.0'; start all with the same" in both[1][7]


def drawn_apart(folder):
    """Weights that each draws for itself, and an error of the first one alone."""
    rank = int(os.environ["RANK"])
    result = train(FlowMatching(), flow(seed=rank))
    workers = Workers.here()
    assert workers == Workers(rank, 2, rank)
    assert workers.told(lambda: {"a": [1, 2.5, None], "b": "ü"}) == {"a": [1, 2.5, None], "b": "ü"}
    assert workers.gathered("x" * rank) == ["", "x"]
    return result, message((WorkersError, RunError), lambda: workers.only_first(refuse))


def refuse():
    raise RunError("the folder\nis full")


def test_weights_are_the_first_workers_and_so_are_errors(tmp_path):
    (first, one), (second, other) = Group(drawn_apart, tmp_path).results()
    assert first == second
    same(first, train(FlowMatching(), micro_batches=2))
    assert (one, other) == ("the folder\nis full", "worker 1 of 2 ends, as the first one failed: the folder is full")


class Failing(FlowMatching):
    """Flow matching that fails on the second worker alone, at its second step of each start."""

    calls = 0

    def loss(self, flow, x, context, generator):
        Failing.calls += 1
        if os.environ["RANK"] == "1" and Failing.calls == 2:
            raise SolveError("the dynamics became NaN")
        return super().loss(flow, x, context, generator)


class Hopeless(FlowMatching):
    def loss(self, flow, x, context, generator):
        if os.environ["RANK"] == "1":
            raise SolveError("the dynamics became NaN")
        return super().loss(flow, x, context, generator)


def fail(folder):
    made = flow()
    history = fit(made, rows(), schedule=[Phase(Failing(), 5)], batch_size=12)
    events = [r["event"] for r in history.records if "event" in r]
    return events, message(TrainingDiverged, lambda: train(Hopeless()))


def test_a_failure_on_one_worker_is_gone_back_from_by_all(tmp_path):
    first, second = Group(fail, tmp_path).results()
    assert first == second
    assert "went back to the last good weights" in first[0][0]
    assert "the dynamics became NaN" in first[0][0]
    assert first[1].startswith("training diverged at step 4, at learning rate")


def choose(folder):
    for name, value in (("STEPS", 12), ("TRIAL_STEPS", 3), ("MLE_STEPS", 4)):
        setattr(auto, name, value)
    model = FFJORD(hidden=(8,), random_state=None if "RANK" in os.environ else Chosen.seed, batch_size=16)
    model.micro_batches = 2
    model.fit(rows(80).numpy())
    scores = model.score_samples(rows(5).numpy()).tolist()
    return model.seed_, model.config_["chosen"], scores, len(model.history_.records)


class Chosen:
    seed = 0


def test_the_first_workers_trials_and_its_seed_are_everybodys(tmp_path, monkeypatch):
    first, second = Group(choose, tmp_path).results()
    assert first == second
    for name in ("STEPS", "TRIAL_STEPS", "MLE_STEPS"):
        monkeypatch.setattr(auto, name, getattr(auto, name))
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


def test_only_the_first_worker_writes_and_prints(whole):
    assert not (whole / "run1").exists()
    out, *others = texts(whole)
    assert out.startswith("done after 32 steps")
    assert others == ["", "", ""]


def test_the_command_makes_what_one_process_makes(whole, tmp_path):
    alone([*SMALL, "--micro-batches", "2", "--out", str(tmp_path / "one")])
    assert_same_end(whole / "run0", tmp_path / "one", exact=False)


def test_a_killed_worker_ends_the_other_and_all_go_on_from_the_checkpoint(whole, tmp_path):
    run = str(tmp_path / "run")
    began = time.monotonic()
    assert Group(command, tmp_path, [*SMALL, "--out", run], signal.SIGKILL, 11).codes() == [1, -9]
    assert time.monotonic() - began < 30  # seconds, of which waiting has none
    said = texts(tmp_path)[1]
    assert said.startswith("error: worker 0 of 2 lost another one, which has told why in its own output (")
    assert "that was at step 10; what" in said
    assert f"go on with `torchrun --standalone --nproc-per-node 2 -m ffjord_kit fit --resume {run}`" in said
    again = Group(command, tmp_path, [*SMALL, "--out", run], TORCHELASTIC_RESTART_COUNT="1")
    assert again.codes() == [0, 0]
    assert_same_end(tmp_path / "run", whole / "run0")


def test_a_request_to_end_on_any_worker_ends_all_with_a_checkpoint_and_fewer_may_go_on(whole, tmp_path):
    run = str(tmp_path / "run")
    assert Group(command, tmp_path, [*SMALL, "--out", run], signal.SIGTERM, 7).codes() == [130, 130]
    out, err, *others = texts(tmp_path)
    assert out.startswith("interrupted after 7 steps")
    assert (err, others) == (f"go on with: ffjord-kit fit --resume {run}\n", ["", ""])
    alone(["fit", "--resume", run])  # in the parts that two workers began with
    assert_same_end(tmp_path / "run", whole / "run0", exact=False)


def test_another_number_of_parts_is_refused_on_resume(tmp_path):
    made = {"schedule": "flow_matching:4", "hidden": (8,), "random_state": 0, "batch_size": 12}
    model = FFJORD(**made, micro_batches=2).fit(rows().numpy(), run=tmp_path / "run")
    assert model.history_.micro_batches == 2
    with pytest.raises(RunError, match="has micro_batches=2; got 3"):
        FFJORD(**made, micro_batches=3).fit(rows().numpy(), run=tmp_path / "run", resume=True)


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
        "from ffjord_kit import FlowMatching\n"
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
