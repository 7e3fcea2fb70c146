"""The loop of training: what it keeps, what it refuses, and what it writes down.

Most tests train a shift, an exact layer of one weight, whose likelihood and path are known by hand.
"""

import math
import random
import signal
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from ffjord_kit import CNF, FFJORD, Flow, ResidualDynamics, StandardNormal
from ffjord_kit.failures import SolveError
from ffjord_kit.layers import Layer, Standardize
from ffjord_kit.objectives import FlowMatching, Loss, MaximumLikelihood, Objective
from ffjord_kit.solver import GRADIENTS, Solver
from ffjord_kit.trace import ExactTrace, HutchinsonTrace
from ffjord_kit.training import Optimization, Phase, TrainingDiverged, fit
from ffjord_kit.training.data import Batches, Data
from ffjord_kit.training.optimization import Descent

EULER = Solver("euler", steps=3)


class Shift(Layer):
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

    def loss(self, flow, x, context, generator):
        shift = flow.layers[0].shift
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
    return flow.layers[0].shift.item()


def normal_rows(n, d=1, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def continuous(layers=(), d=2, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        dynamics = ResidualDynamics((d,), hidden=(16,))
    return Flow([*layers, CNF(dynamics, (d,), solver=EULER)])


def nll(flow, x):
    with torch.no_grad():
        return float(-flow.log_prob(x.to(next(flow.parameters()))).double().mean())


def steady(**options):
    return Optimization(**{"warmup": 1, "ema_decay": 0.0, **options})


def test_early_stopping_restores_the_best_weights():
    held_out, flow = normal_rows(200, seed=1), shifted()
    history = fit(
        flow, normal_rows(50), validation=(held_out, None), schedule=[Phase(Toward(9.0), 1000, 0.05)],
        validate_every=2, patience=3, optimization=steady(),
    )  # fmt: skip
    assert history.step < 100
    told = [record["event"] for record in history.records if "event" in record]
    assert ["early" in text for text in told] == [True, False]
    assert history.step == history.best_step + 3 * 2
    assert nll(flow, held_out) == pytest.approx(history.best_nll, abs=1e-7)
    assert history.best_nll == min(r["validation_nll"] for r in history.records if "validation_nll" in r)
    assert abs(weight(flow) - float(held_out.mean())) < 0.11


def test_a_later_phase_that_never_improves_leaves_the_best_of_the_earlier_one():
    x, held_out, first, both = normal_rows(200), normal_rows(200, seed=1), shifted(), shifted()
    learn, spoil = Phase(MaximumLikelihood(), 100, 0.1), Phase(Toward(9.0), 40, 0.1)
    options = {"validation": (held_out, None), "validate_every": 5, "optimization": steady()}
    alone = fit(first, x, schedule=[learn], **options)
    history = fit(both, x, schedule=[learn, spoil], **options)
    assert history.step > alone.step
    assert (history.best_nll, history.best_step) == (alone.best_nll, alone.best_step)
    assert weight(both) == weight(first)
    assert nll(both, held_out) == pytest.approx(history.best_nll, abs=1e-7)


def test_without_validation_rows_the_moving_average_is_left_in_the_flow():
    flow, path = shifted(), []
    history = fit(
        flow, normal_rows(50), schedule=[Phase(Toward(9.0), 30, 0.1)], optimization=steady(ema_decay=0.6),
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
    fit(shifted(), normal_rows(9), schedule=schedule, on_step=lambda record: rates.append(record["learning_rate"]))
    for part, peak in ((rates[:100], 0.02), (rates[100:], 0.01)):
        warmup, steps = len(part) // 10, len(part)
        cosine = [peak * 0.5 * (1 + math.cos(math.pi * s / steps)) for s in range(steps)]
        assert part[warmup:] == pytest.approx(cosine[warmup:])
        assert part[:warmup] == pytest.approx([c * (s + 1) / warmup for s, c in enumerate(cosine[:warmup])])
        assert part[-1] < 0.01 * peak


def test_a_gradient_is_clipped_to_its_norm_and_the_norm_before_is_told():
    weights = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    loss = sum((1000 * w).sum() for w in weights)
    norm = Descent(weights, Optimization(clip_norm=0.5), 0.1).step(loss, 0.1)
    assert float(norm) == pytest.approx(1000 * math.sqrt(5), rel=1e-5)
    assert float(torch.cat([w.grad for w in weights]).norm()) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("poison", ["loss", "gradient", "dynamics"])
def test_a_step_that_is_not_finite_leaves_the_weights_alone_and_raises_at_the_fourth(poison):
    flow, seen, toward = shifted(), [], Toward(9.0, poison, bad=(4, 5, 6, 7))
    with pytest.raises(TrainingDiverged, match=r"step 7, at learning rate .*Lower the learning rate") as caught:
        fit(
            flow, normal_rows(50), schedule=[Phase(toward, 20, 0.1)],
            on_step=lambda record: seen.append(weight(flow)),
        )  # fmt: skip
    assert len(seen) == 3
    assert weight(flow) == toward.calls[0]
    assert "\n" not in str(caught.value)


def test_training_goes_back_to_the_last_good_weights_and_on_at_a_lower_rate():
    flow, toward = shifted(), Toward(9.0, "loss", bad=(4, 9))
    history = fit(flow, normal_rows(50), schedule=[Phase(toward, 20, 0.1)], validate_every=5)
    start = toward.calls[0]
    events = [r["event"] for r in history.records if "went back" in r.get("event", "")]
    assert toward.calls[4] == start
    assert len(events) == 2
    assert "at 0.3 of the learning rate (1 of 3 times): training diverged at step 4, at learning rate" in events[0]
    assert "0.09 of the learning rate (2 of 3 times): training diverged at step 9" in events[1]
    assert start < toward.calls[9] < toward.calls[8]  # the weights of the validation between
    rates = {r["step"]: r["learning_rate"] for r in history.records if "learning_rate" in r}
    cosine = Optimization().rate(11, 20, 0.1)
    assert rates[12] == pytest.approx(0.09 * cosine)
    assert weight(flow) > start


def test_a_validation_that_is_not_finite_says_so():
    held_out = torch.full((5, 1), 1e30, dtype=torch.float64)
    with pytest.raises(TrainingDiverged, match="step 8, in validation: the validation NLL is not finite"):
        fit(shifted(), normal_rows(9), validation=(held_out, None), schedule=[Phase(Toward(9.0), 9)], validate_every=2)


def test_a_last_validation_that_is_not_finite_is_no_end():
    held_out = torch.full((5, 1), 1e30, dtype=torch.float64)
    with pytest.raises(TrainingDiverged, match="step 2, in validation"):
        fit(shifted(), normal_rows(9), validation=(held_out, None), schedule=[Phase(Toward(9.0), 2)], validate_every=2)


def test_a_flow_without_weights_is_refused():
    flow = Flow([Standardize.of(normal_rows(9))], base=StandardNormal((1,)))
    with pytest.raises(ValueError, match="nothing to train"):
        fit(flow, normal_rows(9), schedule=[Phase(MaximumLikelihood(), 1)])


def test_no_global_random_state_is_read_or_moved():
    def trained(disturb):
        disturb()
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        flow = continuous()
        fit(
            flow, normal_rows(40, 2), seed=5, batch_size=8,
            schedule=[Phase(FlowMatching(), 4), Phase(MaximumLikelihood(HutchinsonTrace(2)), 2)],
        )  # fmt: skip
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
        assert random.getstate() == before[2]
        return torch.cat([p.flatten() for p in flow.parameters()])

    with torch.random.fork_rng():
        assert torch.equal(trained(lambda: torch.manual_seed(1)), trained(lambda: torch.manual_seed(2)))


def test_batches_cover_an_epoch_without_replacement_and_depend_on_seed_and_step_alone():
    rows = torch.arange(11.0)[:, None]
    data = Data(rows, 10 * rows, torch.zeros(11))
    batches, others = Batches(data, 3, seed=4), Batches(data, 3, seed=4)
    epochs = [torch.cat([batches[s][0] for s in range(3 * e, 3 * e + 3)]).flatten().tolist() for e in range(4)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    ahead = Batches(data, 3, seed=4, ahead=True)
    assert all(torch.equal(ahead[step][0], batches[step][0]) for step in (0, 1, 2, 2, 3, 9, 10, 2))
    for step in (10, 2, 7, 2):
        x, context = others[step]
        assert torch.equal(x, batches[step][0])
        assert torch.equal(context, 10 * x)


def fitted_nll(x, held_out):
    flow = continuous([Standardize.of(x)])
    history = fit(
        flow, x, validation=(held_out, None), schedule=[Phase(FlowMatching(), 60, 0.01)], batch_size=64,
        optimization=Optimization(ema_decay=0.9),
    )  # fmt: skip
    return history.best_nll


def test_a_column_far_from_zero_is_fitted_as_well_as_one_around_it():
    x, held_out, far = normal_rows(200, 2) ** 2, normal_rows(99, 2, seed=1) ** 2, torch.tensor([1e8, 0.0])
    near_nll, far_nll = fitted_nll(x, held_out), fitted_nll(x + far, held_out + far)
    assert far_nll == pytest.approx(near_nll, abs=1e-4)


def test_the_validation_nll_is_counted_in_the_units_of_the_data():
    x, held_out, units = normal_rows(200, 2), normal_rows(99, 2, seed=1), torch.tensor([1000.0, 1.0])
    shift = fitted_nll(x * units, held_out * units) - fitted_nll(x, held_out)
    assert shift == pytest.approx(math.log(1000), abs=1e-4)


def test_training_works_where_gradients_were_switched_off():
    flow = continuous()
    before = [p.detach().clone() for p in flow.parameters()]
    with torch.no_grad():
        fit(flow, normal_rows(40, 2), schedule=[Phase(FlowMatching(), 3)])
    assert not all(torch.equal(p, old) for p, old in zip(flow.parameters(), before, strict=True))


def test_regularized_likelihood_logs_its_costs_and_minimises_their_weighted_sum():
    objective = MaximumLikelihood(ExactTrace(), {"kinetic": 0.5, "jacobian": 0.25}, EULER)
    history = fit(continuous(), 3 * normal_rows(40, 2), schedule=[Phase(objective, 5, 0.02)])
    steps = [r for r in history.records if "loss" in r]
    assert len(steps) == 5
    for r in steps:
        assert r["loss"] == pytest.approx(r["nll"] + 0.5 * r["kinetic"] + 0.25 * r["jacobian"], rel=1e-5)
    assert steps[-1]["kinetic"] > 0
    assert steps[-1]["jacobian"] > 0


def test_a_context_layer_with_weights_learns_too():
    with torch.random.fork_rng():
        dynamics = ResidualDynamics((1,), context_dim=1, hidden=(8,))
    flow = Flow([CNF(dynamics, (1,), solver=EULER)], context_dim=1, context_layer=Shift(0.0))
    fit(flow, normal_rows(40), context=normal_rows(40, seed=1), schedule=[Phase(FlowMatching(), 20, 0.1)])
    assert flow.context_layer.shift.item() != 0.0


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_evaluations_backward_are_counted_where_there_are_any(gradient):
    solver = Solver("rk4", steps=2, gradient=gradient)
    schedule = [Phase(MaximumLikelihood(ExactTrace(), {}, solver), 2)]
    history = fit(continuous(), normal_rows(40, 2), schedule=schedule, guard=0.0)
    steps = [r for r in history.records if "loss" in r]
    assert all(r["nfe_forward"] == 8 for r in steps)
    assert all((r["nfe_backward"] > 0) == (gradient != "backprop") for r in steps)


ROWS = normal_rows(60, 2).numpy()
TWO_PHASES = {"schedule": "flow_matching:10,mle:5", "hidden": (8,), "solver": "euler", "steps": 2, "random_state": 1}


@pytest.fixture(scope="module")
def whole():
    return FFJORD(**TWO_PHASES).fit(ROWS)


@pytest.mark.parametrize("step", [3, 8, 13, 15])
def test_ctrl_c_leaves_a_model_that_loads_and_a_run_that_resumes_to_the_same_end(tmp_path, whole, step):
    def interrupt(record):
        if record["step"] == step:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    stopped = FFJORD(**TWO_PHASES).fit(ROWS, run=tmp_path, on_step=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert (stopped.history_.interrupted, stopped.history_.step) == (True, step)
    assert same_weights(FFJORD.load(tmp_path), stopped)
    resumed = FFJORD(**TWO_PHASES).fit(ROWS, run=tmp_path, resume=True)
    assert (resumed.history_.interrupted, resumed.history_.step) == (False, 15)
    assert resumed.history_.best_nll == whole.history_.best_nll
    assert same_weights(resumed, whole)


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.flow_.parameters(), b.flow_.parameters(), strict=True))


def test_a_second_ctrl_c_ends_the_fit_at_once():
    def twice(record):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(shifted(), normal_rows(50), schedule=[Phase(Toward(9.0), 20)], on_step=twice)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
