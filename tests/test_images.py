"""Images: exact bookkeeping of determinants, dynamics of any size, and bits per dimension that are right."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from oracles import randn
from scipy.stats import norm

from ffjord_kit.data import Pixels, Subset
from ffjord_kit.diagnostics import bits_per_dim
from ffjord_kit.flow import Flow
from ffjord_kit.nn import IMAGE_DYNAMICS
from ffjord_kit.objectives import FlowMatching, MaximumLikelihood
from ffjord_kit.ode import AdaptiveSolver, FixedSolver, PerRowSolver
from ffjord_kit.trace import ExactTrace, evaluate_field
from ffjord_kit.training import Phase, TrainConfig, fit_flow
from ffjord_kit.transforms import CNF, Squeeze, Standardize, multi_scale
from ffjord_kit.transforms.bounded import pixel_logit, pixel_scaling
from ffjord_kit.transforms.multiscale import squeeze, unsqueeze

SMALL = {"convolution": {"hidden": (6, 6)}, "unet": {"hidden": (8, 16)}}
FINE = AdaptiveSolver("dopri5", 1e-10, 1e-10)


def make(word, shape, context_dim=0):
    torch.manual_seed(0)
    dynamics = IMAGE_DYNAMICS[word](shape, context_dim=context_dim, **SMALL[word]).double()
    for parameter in dynamics.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.15)
    return dynamics


def levels(n, shape=(1, 4, 4), seed=0):
    return torch.as_tensor(np.random.default_rng(seed).integers(0, 256, (n, *shape)), dtype=torch.uint8)


def test_squeeze_puts_each_square_into_channels_and_back():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert squeeze(x)[0, :, 0, 0].tolist() == [0.0, 1.0, 4.0, 5.0]
    assert squeeze(x).shape == (1, 4, 2, 2)
    images = randn(3, 2, 6, 4)
    assert torch.equal(unsqueeze(squeeze(images)), images)
    z, log_det = Squeeze((2, 6, 4)).to_base(images)
    assert z.shape == (3, *Squeeze((2, 6, 4)).event_shape) and not log_det.any()
    assert torch.equal(Squeeze((2, 6, 4)).to_data(z)[0], images)


def test_what_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="even height and width; got 3 x 4"):
        squeeze(randn(1, 1, 3, 4))
    with pytest.raises(ValueError, match="four channels, or a multiple; got 6"):
        unsqueeze(randn(1, 6, 2, 2))
    with pytest.raises(ValueError, match="2 scales need sides that are multiples of 4; got 6 x 8"):
        multi_scale((1, 6, 8), lambda shape: make("convolution", shape), scales=2)
    with pytest.raises(ValueError, match="multiples of 8; got"):
        IMAGE_DYNAMICS["unet"]((1, 4, 4), hidden=(12,))


@pytest.mark.parametrize("word", IMAGE_DYNAMICS)
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 7), (2, 9, 1)])
def test_dynamics_take_images_of_any_size_row_by_row(word, shape):
    dynamics, x, context = make(word, shape, context_dim=2), randn(4, *shape), randn(4, 2)
    for t in (torch.tensor(0.3), torch.tensor([0.1, 0.2, 0.3, 0.4])):
        dx = dynamics(t.double(), x, context)
        assert dx.shape == x.shape
        alone = dynamics(t.double() if t.dim() == 0 else t[2:3].double(), x[2:3], context[2:3])
        assert torch.allclose(dx[2:3], alone, atol=1e-12)
    dx.square().sum().backward()
    assert all(parameter.grad is not None for parameter in dynamics.parameters())
    assert dynamics(t.double(), x, -context).sub(dx).abs().max().item() > 1e-6


def test_an_untrained_unet_stands_still():
    assert not IMAGE_DYNAMICS["unet"]((1, 4, 4), hidden=(8,))(torch.tensor(0.5), torch.randn(2, 1, 4, 4)).any()


@pytest.mark.parametrize("word", IMAGE_DYNAMICS)
def test_the_trace_of_dynamics_is_that_of_autograds_jacobian(word):
    dynamics, x, t = make(word, (2, 3, 2)), randn(2, 2, 3, 2), torch.tensor(0.4).double()
    point = evaluate_field(dynamics, t, x, ExactTrace().draw(x))
    jacobian = torch.autograd.functional.jacobian(lambda row: dynamics(t, row[None])[0], x[1]).reshape(12, 12)
    assert point.trace[1].item() == pytest.approx(jacobian.trace().item(), abs=1e-12)
    assert point.dx.shape == x.shape


@pytest.mark.slow
def test_multi_scale_determinants_are_those_of_autograd_and_it_is_undone():
    shape = (1, 4, 4)
    flow = Flow(multi_scale(shape, lambda inner: make("convolution", inner), scales=2, solver=FINE)).double()
    x = randn(2, *shape)
    z, log_det = flow.to_base(x)
    jacobian = torch.autograd.functional.jacobian(lambda row: flow.to_base(row[None])[0][0], x[0]).reshape(16, 16)
    assert log_det[0].item() == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-8)
    assert torch.allclose(flow.to_data(z)[0], x, atol=1e-5)


def test_channels_left_out_stand_still_and_the_rest_moves():
    fine, coarse = multi_scale((1, 4, 4), lambda inner: make("convolution", inner), scales=2)
    x = randn(3, 1, 4, 4)
    point = evaluate_field(coarse.dynamics, torch.tensor(0.5).double(), x, ExactTrace().draw(x))
    still = (point.dx == 0).all(0).flatten()
    assert int(still.sum()) == 8
    assert not still[fine.dynamics.indices[:8]].any()  # the first half of the squeezed channels goes on
    assert len(fine.dynamics.indices) == 16 and sorted(fine.dynamics.indices.tolist()) == list(range(16))


@pytest.mark.slow
def test_a_multi_scale_flow_learns_by_likelihood():
    torch.manual_seed(0)
    small = partial(IMAGE_DYNAMICS["convolution"], hidden=(8,))
    transforms = multi_scale((1, 4, 4), small, solver=FixedSolver("rk4", 2))
    flow = Flow(transforms, preprocess=[pixel_scaling((1, 4, 4))])
    pixels = Pixels(levels(256) // 4)
    before = bits_per_dim(flow, pixels, solver=FixedSolver("rk4", 4)).mean
    fit_flow(flow, pixels, schedule=[Phase(MaximumLikelihood(), 60, 2e-2)], config=TrainConfig(batch_size=64))
    assert bits_per_dim(flow, pixels, solver=FixedSolver("rk4", 4)).mean < before - 0.3


def test_the_logit_has_the_papers_alpha_and_bits_are_counted():
    layer, x, alpha = pixel_logit((1, 2, 2), bits=5, alpha=0.05), 32 * torch.rand(9, 1, 2, 2).double(), 0.05
    expected = torch.logit(alpha + (1 - 2 * alpha) * x / 32)
    assert torch.allclose(layer.to_base(x)[0], expected, atol=1e-9)
    slope = torch.autograd.functional.jacobian(lambda v: torch.logit(alpha + (1 - 2 * alpha) * v / 32), x[0].flatten())
    assert float(layer.to_base(x)[1][0]) == pytest.approx(float(slope.diagonal().log().sum()))
    assert float(pixel_scaling((1, 2, 2), bits=5).to_base(x)[0].abs().max()) <= 1
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1/2; got 0"):
        pixel_logit((1, 2, 2), alpha=0)


def test_pixels_keep_their_bytes_and_get_noise_from_the_generator():
    pixels = Pixels(levels(6), bits=5)
    assert pixels.level(slice(None)).max() < 32 and pixels.levels == 32
    one, two = (pixels.fetch(slice(2), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(one.floor(), pixels.level(slice(2)))
    with pytest.raises(ValueError, match="uint8, 0 to 255; got torch.float32"):
        Pixels(levels(6).float())
    with pytest.raises(ValueError, match="bits must be 1 to 8; got 9"):
        Pixels(levels(6), bits=9)


@pytest.mark.slow
@pytest.mark.parametrize("probes", [None, 2])
def test_bits_of_a_known_discrete_law_are_recovered(probes):
    mean, scale, count = 100.0, 6.0, 200
    rng = np.random.default_rng(0)
    images = np.clip(np.floor(rng.normal(mean, scale, (count, 1, 2, 2))), 0, 255)
    law = norm.cdf(images + 1, mean, scale) - norm.cdf(images, mean, scale)
    truth = -np.log2(law).sum(axis=(1, 2, 3)) / 4
    full = {"mean": torch.full((1, 2, 2), mean), "scale": torch.full((1, 2, 2), scale)}
    still = CNF(IMAGE_DYNAMICS["unet"]((1, 2, 2), hidden=(8,)), (1, 2, 2))
    flow = Flow([Standardize(**{k: v.double() for k, v in full.items()}), still]).double()
    found = bits_per_dim(flow, Pixels(torch.as_tensor(images, dtype=torch.uint8)), draws=16, probes=probes)
    assert abs(found.mean - truth.mean()) < 3 * (found.values.numpy() - truth).std() / math.sqrt(count)
    assert found.standard_error == pytest.approx(truth.std() / math.sqrt(count), rel=0.1)
    assert found.solver_error < 1e-6
    text = str(found)
    for part in ("bits/dim", "200 images, 8 bits, 16 draws", "dopri5_by_row with tolerance 0.0001"):
        assert part in text
    assert ("2 probes" if probes else "exact trace") in text


@pytest.mark.slow
def test_the_fewest_steps_that_hold_an_error_are_found():
    torch.manual_seed(0)
    field = IMAGE_DYNAMICS["unet"]((1, 4, 4), hidden=(8,))
    for p in field.parameters():
        p.data += 0.02 * torch.randn_like(p)
    flow = Flow([pixel_logit((1, 4, 4)), CNF(field, (1, 4, 4))]).double()
    pixels = Pixels(levels(20, (1, 4, 4)))
    exact = bits_per_dim(flow, pixels, solver=PerRowSolver(1e-8, 1e-8))
    few = bits_per_dim(flow, pixels, max_error=1e-3)
    assert isinstance(few.solver, FixedSolver)
    assert few.nfe < exact.nfe
    assert few.solver_error <= 1e-3
    assert few.mean == pytest.approx(exact.mean, abs=1e-3)
    assert isinstance(bits_per_dim(flow, pixels, max_error=1e-15).solver, PerRowSolver)
    with pytest.raises(ValueError, match="max_error must be positive; got 0"):
        bits_per_dim(flow, pixels, max_error=0)


@pytest.mark.slow
def test_draws_lower_the_bound_and_none_are_refused():
    flow = Flow([pixel_logit((1, 2, 2)), CNF(IMAGE_DYNAMICS["unet"]((1, 2, 2), hidden=(8,)), (1, 2, 2))]).double()
    pixels = Pixels(levels(200, (1, 2, 2)) // 250)  # noise matters most at the edge
    assert bits_per_dim(flow, pixels, draws=16).mean < bits_per_dim(flow, pixels).mean
    with pytest.raises(ValueError, match="draws must be at least 1; got 0"):
        bits_per_dim(flow, pixels, draws=0)


@pytest.mark.slow
def test_flow_matching_on_fresh_noise_learns_images_and_resumes_in_step():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    bright = rng.integers(40, 200, (300, 1, 1, 1)) + rng.normal(0, 4, (300, 1, 4, 4))
    pixels = Pixels(torch.as_tensor(np.clip(bright, 0, 255), dtype=torch.uint8))
    unet = IMAGE_DYNAMICS["unet"]((1, 4, 4), hidden=(8,))
    flow = Flow([CNF(unet, (1, 4, 4))], preprocess=[pixel_scaling((1, 4, 4))])
    solver = AdaptiveSolver("dopri5", 1e-3, 1e-3)
    held_out = Pixels(pixels.images[:64])
    untrained = bits_per_dim(flow, held_out, solver=solver).mean
    phases = [Phase(FlowMatching("likelihood"), 100, 1e-2)]
    history = fit_flow(flow, pixels, schedule=phases, config=TrainConfig(batch_size=64, seed=0))
    assert history.step == 100
    found = bits_per_dim(flow, held_out, solver=solver)
    gaussian = 0.5 * np.log2(2 * np.pi * np.e * bright.var())
    assert found.mean < min(untrained, gaussian) - 0.3


def test_some_of_other_rows_are_flipped_by_the_generator_alone():
    pixels = Pixels(torch.arange(48, dtype=torch.uint8).reshape(4, 1, 3, 4))
    some = Subset(pixels, torch.tensor([3, 1]), flip=True)
    assert some.shape == (2, 1, 3, 4)
    assert torch.equal(some.fetch(slice(None)), pixels.fetch(torch.tensor([3, 1])))
    drawn = torch.cat([some.fetch(slice(None), torch.Generator().manual_seed(seed)).floor() for seed in range(40)])
    levels = pixels.level(torch.tensor([3, 1])).repeat(40, 1, 1, 1)
    straight, turned = ((drawn == way).flatten(1).all(1) for way in (levels, levels.flip(-1)))
    assert bool((straight ^ turned).all()) and 20 < int(turned.sum()) < 60


def test_noise_that_is_an_images_own_is_another_for_each_draw():
    pixels = Pixels(torch.tensor([[[[7]]], [[[9]]], [[[7]]]], dtype=torch.uint8))
    noise = pixels.own_noise(slice(None))
    assert torch.equal(pixels.fetch(slice(1, 2)), pixels.level(slice(1, 2)) + noise[1:2])
    assert len({float(u) for u in [*noise.flatten(), *pixels.own_noise(slice(None), 1).flatten()]}) == 6
