"""A run that is killed and resumed is, to the bit, the run that was never stopped."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file

from ffjord_kit import (
    CNF,
    FFJORD,
    FixedSolver,
    Flow,
    FlowMatching,
    MaximumLikelihood,
    ResidualDynamics,
    Standardize,
    atomic,
)
from ffjord_kit.cli import main
from ffjord_kit.data import Batch
from ffjord_kit.run import Run, RunError
from ffjord_kit.trace import HutchinsonTrace
from ffjord_kit.training import Phase, TrainConfig, fit_flow
from ffjord_kit.transforms.cnf import SolveOptions

EULER = FixedSolver("euler", steps=2)
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["ffjord_kit.cli.fit", "torch._dynamo"])
SMALL = [
    "--schedule", "flow_matching:100,mle:24", "--hidden", "8", "--solver", "euler", "--solver-steps", "2",
    "--batch-size", "16", "--validate-every", "4", "--patience", "100", "--trace", "rademacher", "--seed", "3",
]  # fmt: skip
LONG = ["--schedule", "flow_matching:1000,mle:100"]


class Crash(BaseException):
    """What a kill is to a test in the same process: nothing in the package may catch it."""


def timeless(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def log_of(run):
    return timeless(json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())


def assert_same_end(run, whole):
    assert log_of(run) == log_of(whole)
    ours, theirs = load_file(run / "model.safetensors"), load_file(whole / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# In a process of its own, killed by the system.


def run_command(argv):
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    sys.argv = ["ffjord-kit", *argv]
    main()


class Forked:
    """The command in a process that has already imported everything."""

    def __init__(self, argv):
        self.process = SERVER.Process(target=run_command, args=(argv,))
        self.process.start()

    def exit_code(self):
        return self.process.exitcode

    def kill(self):
        self.process.kill()

    def wait(self):
        self.process.join()
        return self.process.exitcode


class Started:
    """The command as a user starts it."""

    def __init__(self, argv):
        command = [sys.executable, "-m", "ffjord_kit", *argv]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def exit_code(self):
        return self.process.poll()

    def kill(self):
        self.process.kill()

    def wait(self):
        return self.process.wait()


def look(log):
    """Which file the log is, and its number of lines."""
    with suppress(FileNotFoundError):
        content = log.read_bytes()
        return log.stat().st_ino, content.count(b"\n")
    return None, 0


def killed(process, log, lines, delay):
    """Kill the process once it has written to the log and the log has so many lines; False if it ends before."""
    before = look(log)
    while look(log) == before or look(log)[1] < lines:
        if process.exit_code() is not None:
            return False
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    return process.wait() != 0


@pytest.mark.parametrize(
    ("start", "wanted", "longer"),
    [
        pytest.param(Forked, 6, [], marks=pytest.mark.slow),
        pytest.param(Started, 10, [], marks=pytest.mark.slow),
        pytest.param(Forked, 100, LONG, marks=pytest.mark.slow),
    ],
)
def test_kill_9_at_random_moments_changes_nothing(tmp_path, start, wanted, longer):
    whole, fit_moons = tmp_path / "whole", ["fit", "moons", "--rows", "80", *SMALL, *longer]
    assert start([*fit_moons, "--out", str(whole)]).wait() == 0
    rng, kills = random.Random(11), 0
    for attempt in range(3):  # a process that was too quick for its kill has ended a run; then begin another
        run = tmp_path / str(attempt)
        command = [*fit_moons, "--out", str(run)]
        later = rng.sample(range(2, int(0.9 * look(whole / "metrics.jsonl")[1])), wanted - kills - 1)
        for count in [1, *sorted(later)]:  # 1: before the first checkpoint
            if not killed(start(command), run / "metrics.jsonl", count, 0 if count == 1 else rng.uniform(0, 0.03)):
                break
            kills, command = kills + 1, ["fit", "--resume", str(run)]
        assert start(["fit", "--resume", str(run)]).wait() == 0
        assert_same_end(run, whole)
        if kills == wanted:
            return
    raise AssertionError(f"only {kills} kills")


# In this process, stopped at every write.


def flow():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dynamics = ResidualDynamics((2,), hidden=(8,))
    x = rows()
    return Flow([CNF(dynamics, (2,), solver=EULER)], preprocess=[Standardize.of(x)])


def rows():
    return torch.randn(24, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 + 3


def train(run, *, resume=False, restless=False):
    """A fit of two phases; a `restless` one soon meets a worse validation, which ends a phase."""
    rate, patience = (0.3, 1) if restless else (0.01, 9)
    likelihood = MaximumLikelihood(HutchinsonTrace(), {}, EULER)
    config = TrainConfig(batch_size=8, validate_every=1, patience=patience, seed=2, ema_decay=0.8, weight_decay=0.1)
    return fit_flow(
        flow(), rows(), validation=Batch(rows() + 1), resume=resume, run=run, config=config,
        schedule=[Phase(FlowMatching(), 4, rate), Phase(likelihood, 2, rate)], evaluation=SolveOptions(solver=EULER),
    )  # fmt: skip


def make_run(path):
    return Run.create(path, {"columns": ["a", "b"]})


@pytest.fixture
def crashing(monkeypatch):
    """Arm a crash before write number n: of a whole file, which then keeps its old content, or of a log's line."""
    writes, replace, record = {"left": -1, "made": 0}, os.replace, Run.record
    monkeypatch.setattr(atomic, "flush", lambda path: None)

    def count(torn=lambda: None):
        writes["left"] -= 1
        writes["made"] += 1
        if writes["left"] == -1:
            torn()
            raise Crash

    def crashing_replace(source, target):
        count()
        replace(source, target)

    def crashing_record(run, line):
        count(lambda: (run.path / "metrics.jsonl").open("a").write(json.dumps(line)[:20]))
        record(run, line)

    monkeypatch.setattr(atomic.os, "replace", crashing_replace)
    monkeypatch.setattr(Run, "record", crashing_record)

    def arm(n):
        writes.update(left=n, made=0)

    arm.made = lambda: writes["made"]
    return arm


@pytest.mark.slow
@pytest.mark.parametrize("restless", [False, True])
def test_a_crash_at_any_write_is_forgotten_on_resume(tmp_path, crashing, restless):
    crashing(-1)
    whole = make_run(tmp_path / "whole")
    expected = train(whole, restless=restless)
    for n in range(crashing.made() - 1):
        run = make_run(tmp_path / str(n))
        crashing(n)
        with pytest.raises(Crash):
            train(run, restless=restless)
        crashing(-1)
        history = train(run, resume=True, restless=restless)
        assert_same_end(run.path, whole.path)
        assert timeless(history.records) == timeless(expected.records), f"after a crash at write {n}"


def test_a_run_that_crashes_again_and_again_still_ends_the_same(tmp_path, crashing):
    crashing(-1)
    whole, run = make_run(tmp_path / "whole"), make_run(tmp_path / "run")
    train(whole)
    rng, crashes, ended = random.Random(5), 0, False
    while not ended:
        crashing(rng.randrange(3, 7))
        with suppress(Crash):
            train(run, resume=crashes > 0)
            ended = True
        crashes += not ended
    assert crashes > 4
    assert_same_end(run.path, whole.path)


def test_a_restless_fit_ends_a_phase_early_as_the_test_above_needs(tmp_path):
    events = [r["event"] for r in train(make_run(tmp_path / "run"), restless=True).records if "event" in r]
    assert any("early" in event for event in events)


def test_the_model_can_be_loaded_after_every_checkpoint(tmp_path, monkeypatch):
    seen, save, run = [], Run.save_model, tmp_path / "run"

    def save_and_load(self, flow):
        save(self, flow)
        seen.append(FFJORD.load(run).score_samples(rows().numpy()[:2]))

    monkeypatch.setattr(Run, "save_model", save_and_load)
    options = {
        "schedule": [("flow_matching", 8), ("mle", 4)],
        "solver": "euler",
        "solver_steps": 2,
        "random_state": 0,
        "hidden": (8,),
    }
    model = FFJORD(**options).fit(rows().numpy(), run=run)
    assert len(seen) == 4 + 1 + 4 + 1 + 1
    assert (seen[-1] == model.score_samples(rows().numpy()[:2])).all()


def test_a_finished_run_resumes_to_itself(tmp_path):
    run = make_run(tmp_path / "run")
    first = train(run)
    before = (run.path / "model.safetensors").read_bytes(), log_of(run.path)
    again = train(run, resume=True)
    assert ((run.path / "model.safetensors").read_bytes(), log_of(run.path)) == before
    assert (again.step, again.best_nll, again.interrupted) == (first.step, first.best_nll, False)


def test_other_data_are_refused_on_resume_and_the_run_stays_as_it_was(tmp_path):
    options = {"schedule": [("flow_matching", 2)], "random_state": 0, "hidden": (8,)}
    FFJORD(**options).fit(rows().numpy(), run=tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="was fitted to other data"):
        FFJORD(**options).fit(rows().numpy() + 1e-9, run=tmp_path / "run", resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path):
    run = make_run(tmp_path / "run")
    train(run)
    state = run.path / "checkpoint/state.safetensors"
    state.write_bytes(state.read_bytes()[:-7])
    with pytest.raises(RunError, match=r"state\.safetensors is damaged"):
        train(run, resume=True)


@pytest.mark.parametrize(("number", "heard"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_script_hears_of_a_signal_during_its_fit_after_the_step_is_saved(tmp_path, number, heard):
    model = FFJORD(schedule=[("flow_matching", 8)], hidden=(8,), random_state=0)
    with pytest.raises(heard):
        model.fit(rows().numpy(), run=tmp_path / "run", on_step=lambda record: signal.raise_signal(number))
    assert (model.history_.interrupted, model.history_.step) == (True, 1)
    assert FFJORD.load(tmp_path / "run").score(rows().numpy()) == model.score(rows().numpy())


def test_a_handler_of_the_script_is_called_and_the_fit_returns(monkeypatch):
    calls, before = [], signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    try:
        model = FFJORD(schedule=[("flow_matching", 8)], hidden=(8,), random_state=0)
        model.fit(rows().numpy(), on_step=lambda record: signal.raise_signal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert calls == [signal.SIGTERM]
    assert model.history_.step == 1
