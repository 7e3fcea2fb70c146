"""Dequantizers: distributions of the noise that are normalised, start uniform, and match autograd's Jacobian."""

import math

import numpy as np
import pytest
import torch
from oracles import F64, close, jacobian, linear, randn

from ffjord_kit.data import Pixels
from ffjord_kit.diagnostics import bits_per_dim
from ffjord_kit.flow import Flow
from ffjord_kit.objectives.dequantization import UniformDequantizer, VariationalDequantizer
from ffjord_kit.transforms import CNF
from ffjord_kit.transforms.bounded import pixel_logit

SHAPES = [(1, 1, 1), (1, 2, 3), (3, 2, 2)]


def made(shape, *, spread=0.3, bits=8, context_dim=0, couplings=4):
    """Return a dequantizer of random weights, in float64."""
    torch.manual_seed(0)
    law = VariationalDequantizer(shape, bits=bits, context_dim=context_dim, couplings=couplings, hidden=8).double()
    for coupling in law.couplings:
        torch.nn.init.normal_(coupling.second_conv.weight, 0.0, spread)
    return law.requires_grad_(False)


def grey(n, shape, *, bits=8, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).integers(0, 2**bits, (n, *shape))).double()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def share(k):
    return torch.rand(k.shape, generator=seeded(), dtype=F64)


def logistic(w):
    return (w.sigmoid() * (-w).sigmoid()).log().flatten(1).sum(1)


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_log_q_is_that_of_autograds_jacobian_and_of_the_way_back(shape, context_dim):
    law, k = made(shape, context_dim=context_dim), grey(3, shape)
    w, context = 2 * randn(3, *shape), randn(3, context_dim) if context_dim else None
    u, log_q = law.from_logistic(w, k, context)
    for row in range(3):
        own = None if context is None else context[row : row + 1]
        slope = jacobian(lambda v, row=row, own=own: law.from_logistic(v, k[row : row + 1], own)[0], w[row : row + 1])
        close(log_q[row : row + 1], logistic(w[row : row + 1]) - torch.linalg.slogdet(slope).logabsdet, 1e-8)
    close(law.log_prob(u, k, context), log_q, 1e-8)
    assert log_q.abs().max() > 0.01


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2)])
def test_the_law_integrates_to_one(shape):
    """By the trapezoid rule in v, u = sigmoid(v), where the integrand is smooth and falls off on both sides."""
    line, size = torch.linspace(-40, 40, 201, dtype=F64), math.prod(shape)
    v = torch.cartesian_prod(*[line] * size).reshape(-1, *shape)
    k = torch.tensor([3.0, 200.0]).double()[:size].reshape(1, *shape).expand(len(v), *shape)
    total = (made(shape).log_prob(v.sigmoid(), k) + logistic(v)).exp().sum() * 0.4**size
    assert float(total) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_it_begins_at_the_uniform_law(dtype):
    begun, k = VariationalDequantizer((3, 4, 5)), grey(200, (3, 4, 5)).to(dtype)
    u, log_q = begun.draw(k, share(k))
    assert u.dtype == log_q.dtype == dtype and not log_q.any()
    assert torch.allclose(u.double(), share(k), atol=1e-6)
    flat, log_q = UniformDequantizer().draw(k, share(k))
    assert torch.allclose(flat.double(), share(k), atol=1e-7) and flat.dtype == dtype and not log_q.any()
    assert float(UniformDequantizer().draw(k, torch.full(k.shape, 1 - 2.0**-53, dtype=F64))[0].max()) < 1


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_noise_stays_below_one_and_everything_finite_at_the_edges(dtype):
    wild = made((1, 2, 2), spread=3.0).float()
    w = torch.tensor([-1e3, -37.4, 37.4, 1e3], dtype=dtype).reshape(4, 1, 1, 1).expand(4, 1, 2, 2).requires_grad_()
    u, log_q = wild.from_logistic(w, grey(4, (1, 2, 2)).to(dtype))
    assert bool(((u >= 0) & (u < 1)).all()) and bool(log_q.isfinite().all())
    log_q.sum().backward()
    assert bool(w.grad.isfinite().all())
    edges = torch.tensor([0.0, 1 - torch.finfo(dtype).eps / 2], dtype=dtype).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert bool(wild.log_prob(edges, grey(2, (1, 2, 2)).to(dtype)).isfinite().all())


def test_rows_are_their_own_and_noise_is_what_comes():
    law, k, context = made((1, 3, 2), context_dim=2), grey(4, (1, 3, 2)), randn(4, 2)
    before = torch.random.get_rng_state()
    u, log_q = law.draw(k, share(k), context)
    assert torch.equal(law.draw(k, share(k), context)[0], u) and torch.equal(torch.random.get_rng_state(), before)
    close(law.log_prob(u[2:3], k[2:3], context[2:3]), log_q[2:3], 1e-10)
    assert (law.log_prob(u, k, -context) - log_q).abs().min() > 1e-6
    assert (law.log_prob(u, k.flip(0), context) - log_q).abs().max() > 1e-6


def test_what_does_not_fit_is_refused():
    law = VariationalDequantizer((1, 2, 2), context_dim=3)
    with pytest.raises(ValueError, match=r"levels must have shape \(batch, 1, 2, 2\); got \(5, 1, 3, 2\)"):
        law.draw(grey(5, (1, 3, 2)), share(grey(5, (1, 3, 2))), randn(5, 3))
    with pytest.raises(ValueError, match=r"a context of shape \(5, 3\); got None"):
        law.draw(grey(5, (1, 2, 2)), share(grey(5, (1, 2, 2))))
    with pytest.raises(ValueError, match="couplings >= 1 and an event"):
        VariationalDequantizer((1, 2, 2), couplings=0)
    with pytest.raises(ValueError, match="couplings >= 1 and an event"):
        VariationalDequantizer((4,))


@pytest.mark.slow
def test_draws_share_their_probes_so_that_an_estimated_trace_does_not_flatter_the_figure():
    """Of linear dynamics the error of the trace is the same for all draws, and its mean is zero."""
    flow = Flow([pixel_logit((1, 2, 2)), CNF(linear(4), (1, 2, 2))]).double()
    pixels = Pixels(grey(600, (1, 2, 2)).to(torch.uint8))
    exact, estimated = (bits_per_dim(flow, pixels, draws=8, probes=probes).values for probes in (None, 1))
    error = (estimated - exact) * 4 * math.log(2)
    assert error.std() > 0.5
    assert abs(error.mean()) < 3 * error.std() / math.sqrt(len(error))
