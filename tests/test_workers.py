"""Several workers make the fit that one makes, all decide alike, and none waits for one that is gone."""

import os
import signal
from datetime import timedelta
from threading import Thread

import pytest
import torch
import torch.distributed as dist
from oracles import LearntAffine
from worker_groups import Group, message

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.nn import ResidualDynamics
from ffjord_kit.objectives import FlowMatching, MaximumLikelihood, TransformsLikelihood
from ffjord_kit.ode import AdaptiveSolver, FixedSolver, SolveError
from ffjord_kit.run import Run, RunError
from ffjord_kit.trace import ExactTrace, HutchinsonTrace
from ffjord_kit.training import Phase, TensorData, TrainConfig, TrainingDiverged, Workers, WorkersError, fit_flow
from ffjord_kit.training.data import Batches, preprocessed
from ffjord_kit.training.distributed import agree_on_prefix
from ffjord_kit.training.micro_batches import MicroBatches, check_micro_batches
from ffjord_kit.transforms import CNF, Standardize
from ffjord_kit.transforms.cnf import SolveOptions

EULER = FixedSolver("euler", steps=2)
MLE = MaximumLikelihood(HutchinsonTrace(), {}, EULER)


def flow(seed=0, hidden=8, blocks=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        cnfs = [CNF(ResidualDynamics((2,), hidden=(hidden,)), (2,), solver=EULER) for _ in range(blocks)]
    return Flow([LearntAffine(2), *cnfs], preprocess=[Standardize.of(rows())])


def rows(n=40, seed=1):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 3


def train(objective, model=None, x=None, schedule=None, run=None, resume=False, on_step=None, **config):
    """Train a flow; return its weights, validation scores and losses as plain numbers."""
    model = model or flow()
    config = {"batch_size": 12, "seed": 2, "validate_every": 3, "guard": 0.5, **config}
    evaluation = SolveOptions(solver=AdaptiveSolver("bosh3", rtol=1e-2, atol=1e-2))
    history = fit_flow(
        model, rows() if x is None else x, validation=Batch(rows(11, 5)), evaluation=evaluation,
        schedule=schedule or [Phase(objective, 6, 0.01)], config=TrainConfig(**config), run=run, resume=resume,
        on_step=on_step,
    )  # fmt: skip
    scores = [(r["validation_nll"], r["validation_solver_error"]) for r in history.records if "validation_nll" in r]
    losses = [r["loss"] for r in history.records if "loss" in r]
    weights = {name: value.flatten().tolist() for name, value in model.named_parameters()}
    return {"weights": weights, "scores": scores, "losses": losses}


OBJECTIVES = {"flow_matching": FlowMatching(), "mle": MLE, "transforms": TransformsLikelihood()}


def same(result, expected, rel=1e-5):
    assert result["weights"].keys() == expected["weights"].keys()
    for name, values in result["weights"].items():
        assert values == pytest.approx(expected["weights"][name], rel=rel, abs=1e-6)
    assert result["losses"] == pytest.approx(expected["losses"], rel=rel)
    assert torch.tensor(result["scores"]).allclose(torch.tensor(expected["scores"]), rtol=1e-4, atol=1e-5)


def train_all(folder):
    return {word: train(objective, flow(blocks=2)) for word, objective in OBJECTIVES.items()}


@pytest.mark.slow
def test_two_workers_make_what_one_makes_in_two_parts(tmp_path):
    first, second = Group(train_all, tmp_path).results()
    assert first == second
    for word, objective in OBJECTIVES.items():
        whole = train(objective, flow(blocks=2), micro_batches=2)
        same(first[word], whole)
        if word == "mle":  # whose parts have noise of their own
            assert whole["losses"] != train(objective, flow(blocks=2))["losses"]
    assert first["flow_matching"]["weights"]["transforms.0.shift"] == [0.0, 0.0]


def test_parts_add_up_to_the_batch_where_there_is_no_noise():
    model = flow()
    inner, data = model.inner, TensorData(preprocessed(model, Batch(rows())).batch)
    parameters = list(inner.parameters())
    exact = MaximumLikelihood(ExactTrace(), {"kinetic": 0.1}, EULER)
    results = []
    for count in (1, 3):
        micro_batches = MicroBatches(inner, Batches(data, 12, seed=0), parameters, count, Workers())
        loss, extra = micro_batches.backward(exact, 5, lambda: (0.0, 7.0))
        results.append([loss.value, *loss.terms.values(), *(p.grad.clone() for p in parameters)])
        assert (extra, loss.stats[0].nfe, list(loss.terms)) == ([0.0, 7.0], 2, ["nll", "kinetic"])
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "size", "text"),
    [
        (3, 12, "micro_batches must be a multiple of the number of workers, 2; got 3: pass 4"),
        (4, 10, "a batch of 10 rows cannot be made in 4 equal parts: pass batch_size=8"),
        (4, 3, "a batch of 3 rows cannot be made in 4 equal parts: start fewer workers"),
    ],
)
def test_parts_that_do_not_go_into_each_other_are_refused(count, size, text):
    with pytest.raises(ValueError, match=text):
        check_micro_batches(count, size, Workers(0, 2))


def test_workers_agree_on_a_new_prefix_beside_the_traces_of_dead_ones():
    store, longest, prefixes = dist.HashStore(), timedelta(seconds=20), []

    def come(rank):
        prefixes.append(agree_on_prefix(store, rank, 3, longest))

    for _ in range(3):
        threads = [Thread(target=come, args=(rank,)) for rank in (2, 0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(prefixes) == 9
    assert [len(set(prefixes[i : i + 3])) for i in (0, 3, 6)] == [1, 1, 1]
    assert len(set(prefixes)) == 3
    with pytest.raises(RuntimeError, match="not all 3 came within 0 s"):
        agree_on_prefix(store, 0, 3, timedelta(seconds=0.1))


# Workers that are not alike.


def differ(folder):
    """Return the error of one difference after the other."""
    rank = int(os.environ["RANK"])
    odd = [
        {"seed": rank}, {"batch_size": 12 + 2 * rank}, {"x": rows(40 + rank)}, {"x": rows(seed=rank)},
        {"schedule": [Phase(FlowMatching(), 9 + rank)]}, {"model": flow(hidden=8 + rank)},
        {"micro_batches": 2 + 2 * rank}, {"resume": bool(rank)},
    ]  # fmt: skip
    return [message(WorkersError, lambda options=options: train(FlowMatching(), **options)) for options in odd]


@pytest.mark.slow
def test_workers_whose_data_or_options_differ_say_so_and_end(tmp_path):
    both = Group(differ, tmp_path).results()
    names = ["seed", "batch_size", "number of rows", "rows", "schedule", "network", "micro_batches", "resume"]
    for rank, texts in enumerate(both):
        for name, text in zip(names, texts, strict=True):
            start = f"worker {rank} of 2 ends, as workers 0 and 1 were not given the same {name}: "
            assert text.startswith(start), text
    assert "'0', and '1'; start all with the same" in both[1][0]


def drawn_apart(folder):
    """Return a fit of weights that each worker draws for itself, and an error of the first worker alone."""
    rank = int(os.environ["RANK"])
    result = train(FlowMatching(), flow(seed=rank))
    workers = Workers.here()
    assert workers == Workers(rank, 2, rank)
    assert workers.broadcast(lambda: {"a": [1, 2.5, None], "b": "ü"}) == {"a": [1, 2.5, None], "b": "ü"}
    assert workers.all_gather("x" * rank) == ["", "x"]
    return result, message((WorkersError, RunError), lambda: workers.run_on_first(refuse))


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

    def loss(self, *args):
        Failing.calls += 1
        if os.environ["RANK"] == "1" and Failing.calls == 2:
            raise SolveError("the dynamics became NaN")
        return super().loss(*args)


class Hopeless(FlowMatching):
    def loss(self, *args):
        if os.environ["RANK"] == "1":
            raise SolveError("the dynamics became NaN")
        return super().loss(*args)


class Unmeasurable(MaximumLikelihood):
    """Maximum likelihood whose measurement by the guard fails, which the first worker alone makes."""

    def row_losses(self, *args):
        raise SolveError("the guard's solve became NaN")


def fail(folder):
    events = []
    for objective in (Failing(), Unmeasurable(HutchinsonTrace(), {}, EULER)):
        history = fit_flow(flow(), rows(), schedule=[Phase(objective, 5)], config=TrainConfig(batch_size=12))
        events.append([r["event"] for r in history.records if "event" in r])
    return events, message(TrainingDiverged, lambda: train(Hopeless()))


def test_a_failure_on_one_worker_is_gone_back_from_by_all(tmp_path):
    first, second = Group(fail, tmp_path).results()
    assert first == second
    events, hopeless = first
    for (event, *_), reason in zip(events, ("the dynamics became NaN", "the guard's solve became NaN"), strict=True):
        assert "went back to the last good weights" in event
        assert reason in event
    assert hopeless.startswith("training diverged at step 4, at learning rate")


# Runs of workers that end.


def run_of(folder):
    run = Run(folder / "run")
    return run if run.path.exists() else Run.create(run.path, {})


def stop_and_resume(folder):
    """Stop by a signal to the second worker alone, and resume; return both fits."""
    first = os.environ["RANK"] == "0"
    run = run_of(folder) if first else None
    calls = []

    class Signalled(FlowMatching):
        def loss(self, *args):
            calls.append(0)
            if not first and len(calls) == 5:
                signal.raise_signal(signal.SIGTERM)
            return super().loss(*args)

    stopped = train(Signalled(), run=run)
    calls.extend([0] * 5)
    return stopped, train(Signalled(), model=flow(seed=7), run=run, resume=True)


def test_a_request_to_stop_on_any_worker_stops_all_and_their_run_resumes(tmp_path):
    (stopped, resumed), (other, again) = Group(stop_and_resume, tmp_path).results()
    assert stopped["weights"] == other["weights"]
    assert resumed == again
    assert len(stopped["losses"]) == 5
    same(resumed, train(FlowMatching(), micro_batches=2))
    with pytest.raises(RunError, match="trained in micro_batches=2; got 3"):
        train(FlowMatching(), run=run_of(tmp_path), resume=True, micro_batches=3)


def die(folder):
    """End the second worker without a word; return the error of the first."""
    first = os.environ["RANK"] == "0"

    class Dying(FlowMatching):
        calls = 0

        def loss(self, *args):
            Dying.calls += 1
            if not first and Dying.calls == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().loss(*args)

    return message(WorkersError, lambda: train(Dying(), run=run_of(folder) if first else None))


def test_a_lost_worker_ends_the_others_with_the_way_to_go_on(tmp_path):
    assert Group(die, tmp_path).codes() == [0, -9]
    text = (tmp_path / "0.json").read_text()
    assert "worker 0 of 2 lost another one" in text
    assert "that was at step 4; what" in text
    assert (
        f"go on with `torchrun --standalone --nproc-per-node 2 -m ffjord_kit fit --resume {tmp_path / 'run'}`" in text
    )
