"""The training loop: which weights it keeps, which fits it refuses, and what it records.

Most tests train a shift, an exact transform of one weight, whose likelihood and path are known by hand.
"""

import math
import random
import signal
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from ffjord_kit.data import Batch, Pixels, StreamedRows
from ffjord_kit.distributions import StandardNormal
from ffjord_kit.flow import Flow
from ffjord_kit.nn import ResidualDynamics
from ffjord_kit.objectives import FlowMatching, Loss, MaximumLikelihood, Objective, Reflow
from ffjord_kit.objectives.reflow import stack_pairs
from ffjord_kit.ode import ADJOINTS, FixedSolver, SolveError
from ffjord_kit.ode.time_limit import check_time
from ffjord_kit.run import Run
from ffjord_kit.trace import ExactTrace, HutchinsonTrace
from ffjord_kit.training import Phase, StreamedData, TensorData, TrainConfig, TrainingDiverged, fit, fit_flow
from ffjord_kit.training.data import Batches, preprocessed
from ffjord_kit.training.optim import MUON_FACTOR, MovingAverage, Optimizer
from ffjord_kit.training.runtime import Timer
from ffjord_kit.training.validation import ValidationScore
from ffjord_kit.transforms import CNF, Standardize, Transform
from ffjord_kit.transforms.cnf import SolveOptions

EULER = FixedSolver("euler", steps=3)


class Shift(Transform):
    """z = x - shift, so that the flow is a normal of unit variance around its one weight."""

    event_shape = (1,)

    def __init__(self, start=-1.0):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([start]))

    def to_base(self, x, context=None):
        return x - self.shift, x.new_zeros(len(x))

    def to_data(self, z, context=None):
        return z + self.shift, z.new_zeros(len(z))


@dataclass(frozen=True)
class Toward(Objective):
    """Walk the shift to a target with a gradient of constant size, whatever the data say; fail at bad calls."""

    target: float
    poison: str = ""
    name: str = "toward"
    calls: list = field(default_factory=list)
    bad: tuple = (4,)

    def loss(self, flow, batch, generator):
        shift = flow.transforms[0].shift
        self.calls.append(shift.item())
        poison = self.poison if len(self.calls) in self.bad else ""
        if poison == "dynamics":
            raise SolveError("the dynamics became NaN")
        value = (shift - self.target).abs().sum()
        steep = (shift - shift.detach()).sum().sqrt()  # zero, with an infinite slope
        return Loss({"loss": value * math.nan, "gradient": value + steep}.get(poison, value), {}, ())


def shifted(start=-1.0):
    return Flow([Shift(start)], base=StandardNormal((1,)))


def weight(flow):
    return flow.transforms[0].shift.item()


def normal_rows(n, d=1, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def continuous(preprocess=(), d=2, seed=0, context_dim=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        dynamics = ResidualDynamics((d,), hidden=(16,), context_dim=context_dim)
    return Flow([CNF(dynamics, (d,), solver=EULER)], preprocess=preprocess, context_dim=context_dim, **options)


def nll(flow, x):
    with torch.no_grad():
        return float(-flow.log_prob(x.to(next(flow.parameters()))).double().mean())


def steady(**options):
    return TrainConfig(**{"warmup": 1, "ema_decay": 0.0, **options})


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def interrupt_at(*steps):
    """A listener that asks for a stop at some steps, as Ctrl-C does."""

    def on_step(record):
        if record["step"] in steps:
            signal.raise_signal(signal.SIGINT)

    return on_step


def test_early_stopping_restores_the_best_weights():
    held_out, flow = normal_rows(200, seed=1), shifted()
    history = fit_flow(
        flow, normal_rows(50), validation=Batch(held_out), schedule=[Phase(Toward(9.0), 1000, 0.05)],
        config=steady(validate_every=2, patience=2),
    )  # fmt: skip
    assert history.step < 100
    events = [record["event"] for record in history.records if "event" in record]
    assert ["early" in text for text in events] == [True, False]
    assert history.step == history.best_step + 2 * 2
    assert nll(flow, held_out) == pytest.approx(history.best_nll, abs=1e-7)
    assert history.best_nll == min(r["validation_nll"] for r in history.records if "validation_nll" in r)
    assert abs(weight(flow) - float(held_out.mean())) < 0.11


def test_weight_decay_is_of_matrices_alone_and_of_no_step_that_is_not_finite():
    parameters = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]
    optimizer = Optimizer(parameters, TrainConfig())
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer.step(torch.tensor(0.0), 0.1, 0.3)
    assert parameters[0].tolist() == [[pytest.approx(0.97)] * 2] * 2
    assert parameters[1].tolist() == [1.0, 1.0]
    with pytest.raises(ArithmeticError, match="the loss is nan"):
        optimizer.step(torch.tensor(math.nan), 0.1, 0.3)
    assert parameters[0].tolist() == [[pytest.approx(0.97)] * 2] * 2


def test_muon_makes_the_singular_values_of_an_update_equal_and_leaves_small_parameters_to_adam():
    wide, small, bias = (nn.Parameter(torch.zeros(*shape)) for shape in ((40, 32), (8, 32), (40,)))
    optimizer = Optimizer([wide, small, bias], TrainConfig(optimizer="muon", clip_norm=1e9))
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(40, 32, generator=generator) @ torch.diag(torch.logspace(-1, 1, 32))
    wide.grad, small.grad, bias.grad = gradient.clone(), torch.ones(8, 32), torch.ones(40)
    optimizer.step(torch.tensor(0.0), 0.01)
    values = torch.linalg.svdvals(wide.detach()) / (0.01 * MUON_FACTOR * 0.2 * math.sqrt(40))
    assert float(torch.linalg.cond(gradient)) > 100
    assert 0.3 < float(values.min()) < float(values.median()) < float(values.max()) < 1.3
    assert float((wide.detach() * gradient).sum()) < 0
    for p in (small, bias):
        torch.testing.assert_close(p.detach(), torch.full_like(p, -0.01))
    before = wide.detach().clone()
    wide.grad = torch.full((40, 32), math.inf)
    with pytest.raises(ArithmeticError):
        optimizer.step(torch.tensor(0.0), 0.01)
    assert torch.equal(wide, before)
    optimizer.every = 50  # as on a GPU, which looks at bad steps later
    wide.grad = torch.full((40, 32), math.inf)
    optimizer.step(torch.tensor(0.0), 0.01)
    assert torch.equal(wide, before)
    with pytest.raises(ArithmeticError, match="in 1 of the last"):
        optimizer.check()


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="optimizer must be one of adamw, muon; got 'sgd'"):
        TrainConfig(optimizer="sgd")


@pytest.mark.slow
def test_the_first_validations_come_at_doubled_numbers_of_steps_after_an_epoch():
    def validated(rows, **options):
        history = fit_flow(
            shifted(), normal_rows(rows), validation=Batch(normal_rows(50, seed=1)),
            schedule=[Phase(MaximumLikelihood(), 800, 0.01, **options)], config=steady(batch_size=10),
        )  # fmt: skip
        return [step for step, _ in history.validations]

    assert validated(50) == [10, 20, 40, 80, 160, 200, 400, 600, 800]
    assert validated(900) == [90, 180, 200, 400, 600, 800]
    assert validated(50, trial=True)[:2] == [200, 400]
    assert validated(50, trial=True, from_start=True)[:3] == [0, 200, 400]


def test_the_weights_that_a_phase_begins_with_are_a_candidate():
    x, held_out, flow = normal_rows(200), normal_rows(200, seed=1), shifted()
    fit_flow(flow, x, schedule=[Phase(MaximumLikelihood(), 200, 0.1)], validation=Batch(held_out), config=steady())
    learnt = weight(flow)
    spoil = Phase(Toward(9.0), 40, 0.1, trial=True, from_start=True)
    history = fit_flow(flow, x, schedule=[spoil], validation=Batch(held_out), config=steady())
    assert (weight(flow), history.best_step) == (learnt, 0)


def test_a_later_phase_that_never_improves_leaves_the_best_of_the_earlier_one():
    x, held_out, first, both = normal_rows(200), normal_rows(200, seed=1), shifted(), shifted()
    learn, spoil = Phase(MaximumLikelihood(), 100, 0.1), Phase(Toward(9.0), 40, 0.1)
    options = {"validation": Batch(held_out), "config": steady(validate_every=5)}
    alone = fit_flow(first, x, schedule=[learn], **options)
    history = fit_flow(both, x, schedule=[learn, spoil], **options)
    assert history.step > alone.step
    assert (history.best_nll, history.best_step) == (alone.best_nll, alone.best_step)
    assert weight(both) == weight(first)
    assert nll(both, held_out) == pytest.approx(history.best_nll, abs=1e-7)


def test_a_phase_may_begin_with_weights_of_its_own():
    x, held_out, flow, path = normal_rows(200), normal_rows(200, seed=1), shifted(), []
    anew = Phase(Toward(9.0), 40, 0.1, initial=lambda: [torch.full_like(p, 5.0) for p in flow.inner.parameters()])
    history = fit_flow(
        flow, x, schedule=[Phase(MaximumLikelihood(), 100, 0.1), anew], validation=Batch(held_out), config=steady(),
        on_step=lambda record: path.append(weight(flow)),
    )  # fmt: skip
    assert path[99] < 1 < 4.9 < path[100]
    assert nll(flow, held_out) == pytest.approx(history.best_nll, abs=1e-7)
    assert history.best_step <= 100


def test_without_validation_rows_the_moving_average_is_left_in_the_flow():
    flow, path = shifted(), []
    history = fit_flow(
        flow, normal_rows(50), schedule=[Phase(Toward(9.0), 30, 0.1)], config=steady(ema_decay=0.6),
        on_step=lambda record: path.append(weight(flow)),
    )  # fmt: skip
    average = -1.0
    for step, value in enumerate(path):
        decay = min(0.6, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
    assert history.best_nll is None
    assert weight(flow) == pytest.approx(average, abs=1e-6)
    assert weight(flow) < path[-1]


def test_the_learning_rate_warms_up_then_falls_as_a_cosine_in_every_phase():
    rates = []
    schedule = [Phase(Toward(9.0), 100, 0.02), Phase(Toward(9.0), 50, 0.01)]
    fit_flow(shifted(), normal_rows(9), schedule=schedule, on_step=lambda r: rates.append(r["learning_rate"]))
    for part, peak in ((rates[:100], 0.02), (rates[100:], 0.01)):
        warmup, steps = len(part) // 10, len(part)
        cosine = [peak * 0.5 * (1 + math.cos(math.pi * s / steps)) for s in range(steps)]
        assert part[warmup:] == pytest.approx(cosine[warmup:])
        assert part[:warmup] == pytest.approx([c * (s + 1) / warmup for s, c in enumerate(cosine[:warmup])])
        assert part[-1] < 0.01 * peak


def test_a_gradient_is_clipped_to_its_norm_and_the_norm_before_is_returned():
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    loss = sum((1000 * p).sum() for p in parameters)
    loss.backward()
    norm = Optimizer(parameters, TrainConfig(clip_norm=0.5)).step(loss, 0.1)
    assert float(norm) == pytest.approx(1000 * math.sqrt(5), rel=1e-5)
    assert float(torch.cat([p.grad for p in parameters]).norm()) == pytest.approx(0.5, rel=1e-3)
    assert torch.cat([p.detach() for p in parameters]).tolist() == pytest.approx([-0.1] * 5, rel=1e-4)  # Adam's first


@pytest.mark.parametrize("poison", ["loss", "gradient", "dynamics"])
def test_a_step_that_is_not_finite_leaves_the_weights_alone_and_raises_at_the_fourth(poison):
    flow, seen, toward = shifted(), [], Toward(9.0, poison, bad=(4, 5, 6, 7))
    with pytest.raises(TrainingDiverged, match=r"step 7, at learning rate .*Lower the learning rate") as caught:
        fit_flow(
            flow, normal_rows(50), schedule=[Phase(toward, 20, 0.1)],
            on_step=lambda record: seen.append(weight(flow)),
        )  # fmt: skip
    assert len(seen) == 3
    assert weight(flow) == toward.calls[0]
    assert "\n" not in str(caught.value)


def test_a_phase_without_a_single_finite_step_raises_however_short():
    with pytest.raises(TrainingDiverged, match="step 2, at learning rate"):
        fit_flow(shifted(), normal_rows(9), schedule=[Phase(Toward(9.0, "loss", bad=(1, 2)), 2)])
    history = fit_flow(shifted(), normal_rows(9), schedule=[Phase(Toward(9.0, "loss", bad=(2,)), 2)])
    assert history.restored == 0 and history.step == 2


def test_training_goes_back_to_the_last_good_weights_and_on_at_a_lower_rate():
    flow, toward = shifted(), Toward(9.0, "loss", bad=(4, 9))
    config = TrainConfig(validate_every=5)
    history = fit_flow(flow, normal_rows(50), schedule=[Phase(toward, 20, 0.1)], config=config)
    start = toward.calls[0]
    events = [r["event"] for r in history.records if "went back" in r.get("event", "")]
    assert toward.calls[4] == start
    assert len(events) == 2
    assert "at 0.3 of the learning rate (1 of 3 times): training diverged at step 4, at learning rate" in events[0]
    assert "0.09 of the learning rate (2 of 3 times): training diverged at step 9" in events[1]
    assert start < toward.calls[9] < toward.calls[8]  # the weights of the validation between
    rates = {r["step"]: r["learning_rate"] for r in history.records if "learning_rate" in r}
    assert rates[12] == pytest.approx(0.09 * config.learning_rate(11, 20, 0.1, 11 / 20))
    assert weight(flow) > start


@pytest.mark.parametrize(("steps", "diverged_at"), [(9, 8), (2, 2)], ids=["fourth", "last of the phase"])
def test_a_validation_that_is_not_finite_raises(steps, diverged_at):
    held_out = Batch(torch.full((5, 1), 1e30, dtype=torch.float64))
    with pytest.raises(TrainingDiverged, match=f"step {diverged_at}, in validation: the validation NLL is not finite"):
        fit_flow(
            shifted(), normal_rows(9), validation=held_out, schedule=[Phase(Toward(9.0), steps)],
            config=TrainConfig(validate_every=2),
        )  # fmt: skip


def test_a_trial_that_diverges_ends_its_phase_and_keeps_the_best_weights():
    x, held_out = normal_rows(200), Batch(normal_rows(200, seed=1))
    learn, spoil = Phase(MaximumLikelihood(), 60, 0.1), Phase(Toward(9.0, "loss", bad=(4,)), 20, 0.1, trial=True)
    plain, tried = shifted(), shifted()
    fit_flow(plain, x, validation=held_out, schedule=[learn], config=steady())
    history = fit_flow(tried, x, validation=held_out, schedule=[learn, spoil], config=steady())
    assert weight(tried) == weight(plain)
    assert history.step == 63
    assert any("toward ended (early: training diverged at step 64" in r.get("event", "") for r in history.records)


def test_fits_that_make_no_sense_are_refused():
    unlearnable = Flow([Standardize.of(normal_rows(9))], base=StandardNormal((1,)))
    with pytest.raises(ValueError, match="nothing to train"):
        fit_flow(unlearnable, normal_rows(9), schedule=[Phase(MaximumLikelihood(), 1)])
    with pytest.raises(ValueError, match="schedule must be a list of one or more Phase"):
        fit_flow(shifted(), normal_rows(9), schedule=[])
    with pytest.raises(ValueError, match="schedule must be a list of one or more Phase"):
        fit(shifted(), TensorData(Batch(normal_rows(9))), [MaximumLikelihood()])
    with pytest.raises(ValueError, match=r"validation must be a Batch\(x, context\)"):
        fit_flow(shifted(), normal_rows(9), schedule=[Phase(Toward(9.0), 1)], validation=(normal_rows(9), None))
    with pytest.raises(ValueError, match="1 of 9 rows are NaN or infinite"):
        fit_flow(shifted(), normal_rows(9).index_fill(0, torch.tensor([3]), math.nan), schedule=[Phase(Toward(9.0), 1)])
    with pytest.raises(ValueError, match="positive and not both infinite"):
        Phase(Toward(9.0), math.inf)


def test_no_global_random_state_is_read_or_moved():
    def trained(disturb):
        disturb()
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        flow = continuous()
        fit_flow(
            flow, normal_rows(40, 2), config=TrainConfig(seed=5, batch_size=8),
            schedule=[Phase(FlowMatching(), 4), Phase(MaximumLikelihood(HutchinsonTrace(2)), 2)],
        )  # fmt: skip
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
        assert random.getstate() == before[2]
        return weights(flow)

    with torch.random.fork_rng():
        assert torch.equal(trained(lambda: torch.manual_seed(1)), trained(lambda: torch.manual_seed(2)))


def test_batches_cover_an_epoch_without_replacement_and_depend_on_seed_and_step_alone():
    rows = torch.arange(11.0)[:, None]
    data = TensorData(Batch(rows, 10 * rows))
    batches, others = Batches(data, 3, seed=4), Batches(data, 3, seed=4)
    epochs = [torch.cat([batches[s].x for s in range(3 * e, 3 * e + 3)]).flatten().tolist() for e in range(4)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    prefetched = Batches(data, 3, seed=4, prefetch=True)
    assert all(torch.equal(prefetched[step].x, batches[step].x) for step in (0, 1, 2, 2, 3, 9, 10, 2))
    for step in (10, 2, 7, 2):
        batch = others[step]
        assert torch.equal(batch.x, batches[step].x)
        assert torch.equal(batch.context, 10 * batch.x)


def fitted_nll(scale=1.0, shift=0.0):
    scale, shift = torch.tensor([scale, 1.0]), torch.tensor([shift, 0.0])
    x, held_out = (normal_rows(n, 2, seed=seed) ** 2 * scale + shift for n, seed in ((200, 0), (99, 1)))
    history = fit_flow(
        continuous([Standardize.of(x)]), x, validation=Batch(held_out), schedule=[Phase(FlowMatching(), 40, 0.01)],
        config=TrainConfig(batch_size=64, ema_decay=0.9),
    )  # fmt: skip
    return history.best_nll


def test_the_validation_nll_is_that_of_the_data_in_their_units_wherever_they_lie():
    near = fitted_nll()
    assert fitted_nll(shift=1e8) == pytest.approx(near, abs=1e-4)
    assert fitted_nll(scale=1000.0) - near == pytest.approx(math.log(1000), abs=1e-4)


def test_contexts_are_scaled_in_training_and_validation_as_in_scoring():
    x, context = normal_rows(90, 2), 100 * normal_rows(90, 1, seed=1) + 7
    flow = continuous([Standardize.of(x)], context_dim=1, context_preprocess=Standardize.of(context))
    few, held_out = slice(0, 60), Batch(x, context)[60:]
    history = fit_flow(
        flow, x[few], context=context[few], validation=held_out, schedule=[Phase(FlowMatching(), 12, 0.05)],
        config=TrainConfig(ema_decay=0.5),
    )  # fmt: skip
    with torch.no_grad():
        assert history.best_nll == pytest.approx(float(-flow.log_prob(held_out.x, held_out.context).mean()), abs=1e-5)
    assert preprocessed(flow, held_out).batch.context.abs().max() < 4


def test_training_works_where_gradients_were_switched_off():
    flow = continuous()
    before = weights(flow)
    with torch.no_grad():
        fit_flow(flow, normal_rows(40, 2), schedule=[Phase(FlowMatching(), 3)])
    assert not torch.equal(weights(flow), before)


def test_regularized_likelihood_logs_its_costs_and_minimises_their_weighted_sum():
    objective = MaximumLikelihood(ExactTrace(), {"kinetic": 0.5, "jacobian": 0.25}, EULER)
    history = fit_flow(continuous(), 3 * normal_rows(40, 2), schedule=[Phase(objective, 5, 0.02)])
    steps = [r for r in history.records if "loss" in r]
    assert len(steps) == 5
    for r in steps:
        assert r["loss"] == pytest.approx(r["nll"] + 0.5 * r["kinetic"] + 0.25 * r["jacobian"], rel=1e-5)
    assert steps[-1]["kinetic"] > 0
    assert steps[-1]["jacobian"] > 0


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_evaluations_backward_are_counted_where_there_are_any(adjoint):
    solver = FixedSolver("rk4", steps=2, adjoint=adjoint)
    schedule = [Phase(MaximumLikelihood(ExactTrace(), {}, solver), 2)]
    history = fit_flow(continuous(), normal_rows(40, 2), schedule=schedule, config=TrainConfig(guard=0.0))
    steps = [r for r in history.records if "loss" in r]
    assert all(r["nfe_forward"] == (16 if adjoint == "reversible" else 8) for r in steps)
    assert all((r["nfe_backward"] > 0) == (adjoint != "backprop") for r in steps)


# One loop for every model.


@dataclass(frozen=True)
class LeastSquares(Objective):
    """Mean squared error; the targets stand in the place of the contexts, and the inputs get a little noise."""

    name: str = "least_squares"

    def loss(self, model, batch, generator):
        noise = 0.01 * torch.randn(batch.x.shape, generator=generator)
        value = (model(batch.x + noise) - batch.context).square().mean()
        return Loss(value, {"error": value.sqrt()})


@dataclass(frozen=True)
class HeldOutError:
    """The mean squared error of a regressor on held-out rows, as a validation."""

    model: nn.Module
    batch: Batch

    @torch.no_grad()
    def __call__(self, workers, pieces):
        errors = (self.model(self.batch.x) - self.batch.context).square().mean(1)
        return ValidationScore(float(errors.mean()), float(errors.std()) / math.sqrt(len(errors)), None)


class Case:
    """A model that the loop trains, with its data, its objective and its validation."""

    def __init__(self, make, data, objective, validate=None, optimizer="adamw"):
        self.make, self.data, self.objective, self.validate = make, data, objective, validate
        self.optimizer = optimizer

    def fit(self, folder, **options):
        model = self.make()
        validate = None if self.validate is None else self.validate(model)
        run = None if folder is None else Run(folder) if folder.exists() else Run.create(folder, {})
        config = TrainConfig(batch_size=16, optimizer=self.optimizer, ema_decay=0.9, validate_every=5, seed=3)
        schedule = [Phase(self.objective, 12, 0.02), Phase(self.objective, 8, 0.01)]
        return model, fit(model, self.data, schedule, config=config, validate=validate, run=run, **options)


def regressor():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))


def deep_regressor():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))


def sums(n, seed):
    x = normal_rows(n, 2, seed).float()
    return Batch(x, x.sum(1, keepdim=True))


def pairs(n=40):
    start = normal_rows(n, 2).float()
    return TensorData(Batch(stack_pairs(start, start + 2.0), start.sum(1, keepdim=True)))


def streamed():
    table = 3 * normal_rows(70, 2) + 5
    rows = StreamedRows(table, torch.tensor([0, 33, 69]))
    return StreamedData(rows, None, continuous([Standardize.of(table)]))


CASES = {
    "regressor": Case(
        regressor, TensorData(sums(64, 0)), LeastSquares(), lambda model: HeldOutError(model, sums(32, 1))
    ),
    "muon": Case(deep_regressor, TensorData(sums(64, 0)), LeastSquares(), optimizer="muon"),
    "pairs": Case(lambda: continuous(context_dim=1), pairs(), Reflow()),
    "streamed rows": Case(continuous, streamed(), MaximumLikelihood(ExactTrace())),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_any_model_is_trained_and_resumed_to_the_bit(tmp_path, case):
    """A fit resumes after a requested stop, and after an exception between two checkpoints."""
    whole, history = case.fit(tmp_path / "whole")
    losses = [r["loss"] for r in history.records if "loss" in r]
    assert history.step == len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5])
    assert (history.best_nll is None) == (case.validate is None)

    class Crash(Exception):
        pass

    def crash(record):
        if record["step"] == 15:
            raise Crash

    handler = signal.getsignal(signal.SIGINT)
    for step in (4, 12, 20):  # within a phase, and at the end of each
        stopped, cut = case.fit(tmp_path / "cut", resume=True, on_step=interrupt_at(step))
        assert (cut.interrupted, cut.step) == (True, step)
        assert signal.getsignal(signal.SIGINT) is handler
        saved = case.make()
        Run(tmp_path / "cut").load_model(saved)
        assert torch.equal(weights(saved), weights(stopped))
        if step == 12:
            with pytest.raises(Crash):
                case.fit(tmp_path / "cut", resume=True, on_step=crash)
    resumed, again = case.fit(tmp_path / "cut", resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert (again.interrupted, again.step, again.best_nll) == (False, 20, history.best_nll)
    first, second = ([{**r, "seconds": 0} for r in h.records] for h in (history, again))
    assert first == second
    assert [{**r, "seconds": 0} for r in Run(tmp_path / "cut").records()] == second


def test_a_second_ctrl_c_ends_the_fit_at_once_and_sigterm_is_a_request_too():
    def twice(record):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit_flow(shifted(), normal_rows(50), schedule=[Phase(Toward(9.0), 20)], on_step=twice)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    history = fit_flow(
        shifted(), normal_rows(50), schedule=[Phase(Toward(9.0), 20)],
        on_step=lambda record: signal.raise_signal(signal.SIGTERM),
    )  # fmt: skip
    assert (history.interrupted, history.step) == (True, 1)


def test_training_on_pairs_is_flow_matching_with_their_own_base_points():
    """All pairs differ by 2, and so does the field that joins them, whatever the start."""
    flow = continuous()
    fit(flow, TensorData(Batch(pairs().batch.x)), [Phase(Reflow(), 150, 0.02)], config=TrainConfig(ema_decay=0.9))
    start = normal_rows(8, 2, seed=5).float()
    reached = flow.to_data(start, options=SolveOptions(trace=None, solver=FixedSolver("euler", 1)))[0]
    assert torch.allclose(reached, start + 2.0, atol=0.1)


def test_a_moving_average_follows_its_formula():
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    average, expected = MovingAverage([weight]), 0.0
    for s, value in enumerate([1.0, -2.0, 5.0, 5.0]):
        with torch.no_grad():
            weight.fill_(value)
        average.update(0.2)
        decay = min(0.2, (1 + s) / (10 + s))
        expected = decay * expected + (1 - decay) * value
    assert float(average.values[0]) == pytest.approx(expected, rel=1e-12)


def test_an_earlier_history_goes_on():
    first = fit_flow(shifted(), normal_rows(50), schedule=[Phase(Toward(9.0), 3)])
    second = fit_flow(shifted(), normal_rows(50), schedule=[Phase(Toward(9.0), 2)], before=first)
    assert second.records[: len(first.records)] == first.records
    assert second.seconds > first.seconds
    assert (first.step, second.step, second.phase_step) == (3, 5, 0)


def test_the_best_weights_of_an_earlier_history_stay_until_a_validation_is_better():
    options = {"validation": Batch(normal_rows(200, seed=1)), "config": steady()}
    flow = shifted()
    first = fit_flow(flow, normal_rows(200), schedule=[Phase(MaximumLikelihood(), 100, 0.1)], **options)
    learnt = weight(flow)
    second = fit_flow(flow, normal_rows(200), schedule=[Phase(Toward(9.0), 40, 0.1)], before=first, **options)
    assert min(nll for _, nll in second.validations[len(first.validations) :]) > first.best_nll
    assert (second.best_nll, weight(flow)) == (first.best_nll, learnt)


def test_a_phase_of_seconds_ends_in_time_and_its_rate_falls_to_nothing():
    def train(**length):
        rates = []
        history = fit_flow(
            shifted(), normal_rows(50), validation=Batch(normal_rows(50, seed=1)),
            schedule=[Phase(MaximumLikelihood(), learning_rate=0.01, **length)],
            on_step=lambda r: rates.append(r["learning_rate"]),
        )  # fmt: skip
        return history, rates

    train(steps=1)  # what is imported at the first solve costs a second
    history, rates = train(steps=math.inf, seconds=0.3)
    assert 0.2 < history.work_seconds < 0.6
    assert any("its time was up" in r.get("event", "") for r in history.records)
    assert 3 <= sum("validation_nll" in r for r in history.records) <= 31  # twenty, the last, and the early ones
    assert rates[-1] < 0.2 * max(rates)


@pytest.mark.parametrize("costs, cut", [((1.0, 2.0), False), ((1.0, 6.0), True)])
def test_what_a_phase_has_learnt_is_judged_though_its_last_validation_takes_longer_than_the_first(
    monkeypatch, costs, cut
):
    """On a clock that steps and validations advance: 10 s, and a tenth more for a validation that takes too long."""
    now, left = [0.0], iter(costs)
    monkeypatch.setattr(Timer, "read", lambda self: (now[0], now[0]))

    class Timed(LeastSquares):
        def loss(self, model, batch, generator):
            now[0] += 0.1
            return super().loss(model, batch, generator)

    def validate(workers, pieces):
        cost = next(left)
        for _ in range(100):  # evaluations
            now[0] += cost / 100
            check_time()
        return ValidationScore(-now[0], 0.0, None)

    data = TensorData(Batch(torch.ones(8, 1), torch.ones(8, 1)))
    history = fit(
        nn.Linear(1, 1), data, [Phase(Timed(), math.inf, 0.1, 10.0)], config=TrainConfig(batch_size=8, ema_decay=0.0),
        validate=validate,
    )  # fmt: skip
    assert history.work_seconds < 11.2
    assert (history.best_step == history.step) != cut


# Rows that are fetched batch by batch.


def test_streamed_batches_hold_preprocessed_rows_without_replacement():
    rows = StreamedRows(3 * normal_rows(70, 2) + 5, torch.tensor([0, 33, 69]))
    held = rows.fetch(slice(None))
    context = held.sum(1, keepdim=True)
    flow = continuous([Standardize.of(held)], context_dim=1)
    expected = preprocessed(flow, Batch(held, context)).batch
    batches = Batches(StreamedData(rows, context, flow), 16, seed=4)
    seen = [batches[step] for step in range(batches.per_epoch)]
    found = {tuple(row) for batch in seen for row in torch.cat([batch.x, batch.context], 1).tolist()}
    assert len(found) == 64
    assert found <= {tuple(row) for row in torch.cat([expected.x, expected.context], 1).tolist()}
    assert seen[0].x.dtype is torch.float32


def test_pixels_get_new_noise_in_every_batch_which_depends_on_seed_and_step_alone():
    pixels = Pixels(torch.randint(0, 256, (8, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8))
    flow = Flow([Standardize(torch.zeros(1, 2, 2), torch.ones(1, 2, 2))])
    batches, again = (Batches(StreamedData(pixels, None, flow), 8, seed=1) for _ in range(2))
    first, second = (batches[step].x.flatten(1) for step in (0, 1))
    assert torch.equal(first, again[0].x.flatten(1))
    assert torch.equal(first.floor().sort(0).values, second.floor().sort(0).values)
    assert not set(first.frac().flatten().tolist()) & set(second.frac().flatten().tolist())


def test_a_streamed_row_that_is_not_finite_ends_the_fit():
    table = normal_rows(1100, 1)
    table[1050] = math.nan  # beyond the rows that are checked first
    rows = StreamedRows(table, torch.empty(0, dtype=torch.long))
    with pytest.raises(ValueError, match="rows are NaN or infinite"):
        fit_flow(shifted(), rows, schedule=[Phase(Toward(9.0), 3)])
