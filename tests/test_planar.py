"""Planar flows, finite and continuous, by likelihood and by an energy."""

import math

import pytest
import torch
from oracles import F64, close, jacobian, randn

from ffjord_kit import CNF, FixedSolver, Flow, MaximumLikelihood, Phase, Standardize, fit_flow
from ffjord_kit.data import Batch
from ffjord_kit.datasets import load
from ffjord_kit.nn import PlanarDynamics
from ffjord_kit.objectives import EnergyMatching, evidence
from ffjord_kit.objectives.energy import effective_sample_size
from ffjord_kit.trace import ExactTrace
from ffjord_kit.training import BaseDraws, TrainConfig, fit_energy
from ffjord_kit.training.data import Batches
from ffjord_kit.transforms import Planar

CONFIG = TrainConfig(batch_size=256, ema_decay=0.95, warmup=20)


def field(context_dim=0, event=(3,)):
    dynamics = PlanarDynamics(event, width=7, context_dim=context_dim).double()
    with torch.no_grad():
        dynamics.directions.copy_(randn(*dynamics.directions.shape))
    return dynamics


def gaussian(x):
    """The energy of a normal distribution with means (1, -2), deviations (0.5, 2) and log Z = log(2 pi)."""
    return 0.5 * ((x - torch.tensor([1.0, -2.0])) / torch.tensor([0.5, 2.0])).square().sum(1)


def planar_flow(depth, end):
    torch.manual_seed(0)
    return Flow([Planar((2,), explicit_from=end) for _ in range(depth)])


def continuous_flow(width):
    torch.manual_seed(0)
    return Flow([CNF(PlanarDynamics((2,), width=width), (2,), solver=FixedSolver("rk4", 6))])


# ---- the field


@pytest.mark.parametrize("event", [(3,), (1, 2, 2)])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_trace_and_tangents_are_those_of_autograd(context_dim, event):
    dynamics, x = field(context_dim, event), randn(4, *event)
    t, context = torch.tensor(0.3, dtype=F64), randn(1, 2, seed=1).expand(4, -1) if context_dim else None
    dx, trace = dynamics.divergence(t, x, context)
    matrices = jacobian(lambda y: dynamics(t, y, None if context is None else context[: len(y)]), x)
    close(dx, dynamics(t, x, context), 1e-14)
    close(trace, matrices.diagonal(dim1=1, dim2=2).sum(1), 1e-12)
    v = randn(2, 4, *event, seed=2)
    products = dynamics.jvp(t, x, v, context)[1]
    close(products.flatten(2), torch.einsum("bij,kbj->kbi", matrices, v.flatten(2)), 1e-12)


def test_an_untrained_field_is_zero():
    assert bool((PlanarDynamics((2,), width=3)(torch.tensor(0.5), torch.ones(4, 2)) == 0).all())


def test_a_width_below_one_is_refused():
    with pytest.raises(ValueError, match="width must be at least 1, the number of planar functions; got 0"):
        PlanarDynamics((2,), width=0)


# ---- the transform


def test_the_constraint_keeps_an_inverse_for_any_weights():
    planar = Planar((2,)).double()
    with torch.no_grad():
        planar.direction.copy_(torch.tensor([-30.0, 5.0]))
        planar.normal.copy_(torch.tensor([4.0, 0.5]))
    x = randn(50, 2)
    z, log_det = planar.to_base(x)
    close(planar.to_data(z)[0], x, 1e-9)
    assert bool(log_det.isfinite().all())


def test_another_end_is_refused():
    with pytest.raises(ValueError, match="explicit_from must be one of data, base; got 'middle'"):
        Planar((2,), explicit_from="middle")


# ---- likelihood


@pytest.mark.slow
@pytest.mark.parametrize("flow", [planar_flow(16, "data"), continuous_flow(16)], ids=["finite", "continuous"])
def test_likelihood_training_beats_a_normal_distribution(flow):
    x, test = (torch.as_tensor(load(f"moons:{part}", rows=1000, seed=0).x) for part in ("train", "test"))
    flow = Flow(list(flow.transforms), preprocess=[Standardize.of(x)])
    normal = Flow([], base=flow.base, preprocess=[Standardize.of(x)])
    fit_flow(flow, x, schedule=[Phase(MaximumLikelihood(ExactTrace()), 150, 5e-2)], config=CONFIG)
    assert float((flow.log_prob(test) - normal.log_prob(test)).detach().mean()) > 0.25


# ---- energies


def test_evidence_has_its_closed_form(generator):
    """q standard normal, p normal of variance 1/2, in one dimension: E_q[log w] = -1/2, log Z = log sqrt(pi)."""
    flow = Flow([], base=torch.distributions.Independent(torch.distributions.Normal(torch.zeros(1), torch.ones(1)), 1))
    found = evidence(flow, lambda x: x.square().sum(1), draws=20_000, generator=generator)
    assert abs(found.elbo - (0.5 * math.log(2 * math.pi) - 0.5)) < 4 * found.elbo_error
    assert abs(found.log_evidence - 0.5 * math.log(math.pi)) < 4 * found.log_evidence_error
    assert found.elbo_error == pytest.approx(math.sqrt(0.5) / math.sqrt(20_000), rel=0.05)
    assert found.effective_sample_size == pytest.approx(20_000 * math.sqrt(3) / 2, rel=0.01)
    assert "effective of 20000 draws" in str(found)


def test_effective_sample_size_counts_equal_weights_whatever_their_scale():
    weights = torch.tensor([0.0, 0.0, -torch.inf, 0.0], dtype=F64)
    assert float(effective_sample_size(weights + 5000)) == pytest.approx(3.0)


@pytest.mark.slow
@pytest.mark.parametrize("flow", [planar_flow(8, "base"), continuous_flow(16)], ids=["finite", "continuous"])
def test_a_flow_is_matched_to_an_energy(flow, generator):
    before = evidence(flow, gaussian, draws=2000, generator=generator)
    history = fit_energy(flow, [Phase(EnergyMatching(gaussian), 200, 3e-2)], config=CONFIG)
    after = evidence(flow, gaussian, draws=4000, generator=generator)
    assert math.log(2 * math.pi) - before.elbo > 3  # nats of KL
    assert 0 <= math.log(2 * math.pi) - after.elbo + 4 * after.elbo_error < 0.25
    assert after.effective_sample_size > 4 * before.effective_sample_size
    last = history.records[-2]
    assert last["elbo"] == pytest.approx(-last["loss"])
    assert 0 < last["ess"] <= 1


def test_each_step_has_new_draws_which_a_seed_repeats():
    first, again = (Batches(BaseDraws(planar_flow(1, "base").base, 8), 8, seed=3) for _ in range(2))
    assert torch.equal(first[0].x, again[0].x)
    assert not bool((first[0].x == first[1].x).any())


def test_the_gradient_of_the_bound_is_that_of_its_closed_form():
    """For E = |x + m|^2/2 and draws of zero mean, ELBO = const - |m|^2/2."""
    flow = Flow([Standardize(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64))])
    z = randn(64, 2)
    mean = torch.tensor([0.3, -1.0], dtype=F64, requires_grad=True)
    objective = EnergyMatching(lambda x: 0.5 * (x + mean).square().sum(1))
    loss = objective.loss(flow, Batch(z - z.mean(0)), torch.Generator())
    close(torch.autograd.grad(loss.value, mean)[0], mean.detach(), 1e-12)


BAD = {
    "the energy must return one number for each row, shape (256,); got (256, 2)": lambda: fit_energy(
        planar_flow(1, "base"), [Phase(EnergyMatching(lambda x: x), 1)], config=CONFIG
    ),
    "the energy must return one number for each row, shape (256,); got float": lambda: fit_energy(
        planar_flow(1, "base"), [Phase(EnergyMatching(lambda x: 0.0), 1)], config=CONFIG
    ),
    "no data to preprocess: pass its maps in transforms": lambda: evidence(
        Flow([Planar((2,))], preprocess=[Standardize(torch.zeros(2), torch.ones(2))]), gaussian
    ),
    "takes no context; got context_dim=1: leave it out": lambda: evidence(
        Flow([CNF(PlanarDynamics((2,), context_dim=1), (2,))], context_dim=1), gaussian
    ),
    "draws must be at least 2; got 1": lambda: evidence(planar_flow(1, "base"), gaussian, draws=1),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_one_line(message):
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
