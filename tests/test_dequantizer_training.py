"""Training of a dequantizer: the bound comes nearer to known probabilities, by a gradient through the solve."""

import math

import numpy as np
import pytest
import torch
from oracles import F64, close, linear, randn

from ffjord_kit.data import Batch, Pixels
from ffjord_kit.diagnostics.bits_per_dim import bits_per_dim
from ffjord_kit.flow import Flow
from ffjord_kit.nn.convolutional import ConvolutionDynamics
from ffjord_kit.objectives import MaximumLikelihood
from ffjord_kit.objectives.dequantization import (
    DequantizationBound,
    DequantizedFlow,
    UniformDequantizer,
    VariationalDequantizer,
)  # fmt: skip
from ffjord_kit.ode import FixedSolver
from ffjord_kit.trace import ExactTrace
from ffjord_kit.training import TrainConfig, TrainingDiverged, fit_dequantizer
from ffjord_kit.transforms import CNF, Standardize, Whiten
from ffjord_kit.transforms.bounded import Logit


def grey(n, shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).integers(0, 256, (n, *shape)), dtype=torch.uint8)


def dequantizer(shape, bits=8):
    torch.manual_seed(0)
    return VariationalDequantizer(shape, bits=bits, hidden=8)


def logit_flow():
    """A flow on images of 2 by 2 pixels with 256 levels, with linear dynamics."""
    bounds = torch.zeros(1, 2, 2), torch.full((1, 2, 2), 256.0)
    return Flow([CNF(linear(4), (1, 2, 2))], preprocess=[Logit(*bounds)]).double()


class Known:
    """Two pixels whose density is normal, as narrow as a grey level and correlated: P(k) by quadrature."""

    def __init__(self, bits):
        self.mean, self.bits = torch.full((1, 1, 2), 0.45 * 2**bits, dtype=F64), bits
        self.factor = torch.tensor([[0.5, 0.0], [0.35, 0.25]], dtype=F64)
        self.flow = Flow([Whiten(self.mean, self.factor)])

    def pixels(self, n, seed):
        x = self.mean + (randn(n, 2, seed=seed) @ self.factor.T).reshape(n, 1, 1, 2)
        return Pixels((x.floor().long() << (8 - self.bits)).to(torch.uint8), self.bits)

    def bits_per_dim(self, pixels):
        """Return the truth of each image, (n,)."""
        nodes, weights = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(40))
        u = torch.cartesian_prod((nodes + 1) / 2, (nodes + 1) / 2).reshape(-1, 1, 1, 2)
        mass = torch.outer(weights, weights).flatten().log() - 2 * math.log(2)
        logs = [torch.logsumexp(self.flow.log_prob(k + u) + mass, 0) for k in pixels.level(slice(None))]
        return -torch.stack(logs) / (2 * math.log(2))


@pytest.mark.parametrize("bits", [5, pytest.param(8, marks=pytest.mark.slow)])
def test_the_bound_comes_nearer_to_a_known_discrete_law(bits):
    known, law = Known(bits), dequantizer((1, 1, 2), bits)
    config = TrainConfig(batch_size=128, ema_decay=0.98)
    history = fit_dequantizer(law, known.flow, known.pixels(4000, 1), steps=200, learning_rate=1e-2, config=config)
    assert history.step == 200
    assert any(record["step"] == 200 and "bits" in record for record in history.records)
    pixels = known.pixels(1500, 2)
    truth = known.bits_per_dim(pixels)

    def above(dequantizer, draws):
        """Return the excess of the figure over the truth, and its standard error."""
        result = bits_per_dim(known.flow, pixels, dequantizer=dequantizer, draws=draws)
        assert result.noise == (dequantizer or UniformDequantizer()).name
        gap = result.values - truth
        return float(gap.mean()), float(gap.std()) / math.sqrt(len(gap))

    (flat, _), (one, width), (many, narrow) = above(None, 1), above(law, 1), above(law, 16)
    assert one < 0.1 * flat
    assert one > -3 * width
    assert many > -3 * narrow
    assert abs(many) < 0.5 * one
    assert many < above(None, 16)[0]


@pytest.mark.parametrize("adjoint", ["checkpointed", "adjoint"])
def test_the_way_back_goes_through_the_flows_solve(adjoint):
    def trained(solver):
        flow, law = logit_flow(), dequantizer((1, 2, 2)).double()
        before = [p.clone() for p in flow.parameters()]
        fit_dequantizer(
            law, flow, Pixels(grey(64, (1, 2, 2)) // 64), steps=4, learning_rate=1e-2, solver=solver,
            config=TrainConfig(batch_size=16, ema_decay=0.0, guard=0.0),
        )  # fmt: skip
        assert all(torch.equal(p, q) and p.requires_grad for p, q in zip(flow.parameters(), before, strict=True))
        return torch.cat([p.detach().flatten() for p in law.parameters()])

    expected = trained(FixedSolver("rk4", steps=8))
    close(trained(FixedSolver("rk4", steps=8, adjoint=adjoint)), expected, 1e-5)
    assert not torch.equal(expected, trained(FixedSolver("euler", steps=1)))


def test_the_loss_is_the_bound_of_the_flow_in_grey_levels():
    """The flow is evaluated on preprocessed rows; the loss is log q - log p(k + u) in the units of grey levels."""
    flow, law = logit_flow(), dequantizer((1, 2, 2)).double()
    for parameter in law.parameters():  # those that are zero at first make the law uniform
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    k = grey(6, (1, 2, 2)).double()
    solver = FixedSolver("rk4", steps=20)
    objective = DequantizationBound(MaximumLikelihood(ExactTrace(), solver=solver))
    model = DequantizedFlow(flow, law)
    loss = objective.loss(model, Batch(k), torch.Generator().manual_seed(3))
    share = torch.rand(k.shape, generator=torch.Generator().manual_seed(3), dtype=F64)
    u, log_q = law.draw(k, share)
    expected = (log_q - flow.log_prob(k + u, solver=solver)).mean()
    assert log_q.abs().min() > 1e-3
    close(loss.value, expected, 1e-8)
    close(loss.terms["bits"], expected / (4 * math.log(2)), 1e-8)
    rows = objective.row_losses(model, Batch(k), torch.Generator().manual_seed(3), solver)
    close(rows.mean(), expected, 1e-8)


@pytest.mark.slow
def test_the_flow_learns_too_where_they_are_joint():
    shape, rng = (1, 4, 4), np.random.default_rng(0)
    law = dequantizer(shape)
    bright = rng.integers(90, 110, (200, 1, 1, 1)) + rng.normal(0, 2, (200, *shape))
    pixels = Pixels(torch.as_tensor(bright, dtype=torch.uint8))
    scaling = Standardize(torch.full(shape, 100.0), torch.full(shape, 20.0))
    flow, records = Flow([CNF(ConvolutionDynamics(shape, hidden=(8,)), shape)], preprocess=[scaling]), []
    before = bits_per_dim(flow, pixels, dequantizer=law)
    assert "1 draw of variational noise" in str(before)
    history = fit_dequantizer(
        law, flow, pixels, steps=40, learning_rate=1e-2, joint=True, on_step=records.append,
        solver=FixedSolver("midpoint", steps=3, adjoint="checkpointed"),
    )  # fmt: skip
    assert bits_per_dim(flow, pixels, dequantizer=law).mean < before.mean - 0.1
    assert [record["step"] for record in records] == list(range(1, 41))
    assert all(record["nfe_forward"] > 0 and record["nfe_backward"] > 0 for record in records)
    assert records[-1]["loss"] == pytest.approx(records[-1]["bits"] * 16 * math.log(2), rel=1e-5)
    assert any("solver_error" in record for record in history.records)


def test_a_flow_that_is_no_longer_finite_ends_the_fit():
    flow = Flow([], preprocess=[Standardize(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 1e-300).double())])
    law = dequantizer((1, 2, 2))
    with pytest.raises(TrainingDiverged, match="training diverged at step 2, at learning rate"):
        fit_dequantizer(law, flow, Pixels(grey(8, (1, 2, 2))), steps=2)
    with pytest.raises(ValueError, match=r"expected events of shape \(batch >= 1, 1, 2, 2\)"):
        fit_dequantizer(law, flow, Pixels(grey(8, (1, 3, 2))), steps=2)
