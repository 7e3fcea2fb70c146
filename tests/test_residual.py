"""The residual of a latent ODE: kriging in closed form, its kernel, and what it does to predictions."""

import copy
import math

import numpy as np
import pytest
import torch

from ffjord_kit.models import LatentODE
from ffjord_kit.models.residual import NEIGHBOURS, Residual, matern

OPTIONS = {"latent_dim": 2, "hidden": 8, "max_steps": 40, "max_seconds": math.inf, "random_state": 0}
LENGTH, VARIANCE, WHITE = 0.8, 0.5, 0.01


def known(length=LENGTH, variance=VARIANCE, white=WHITE):
    residual = Residual(1)
    for buffer, value in zip(
        (residual.length, residual.variance, residual.white), (length, variance, white), strict=True
    ):
        buffer.fill_(value)
    return residual


def dense(times, errors, at):
    """The mean and the variance of a Gaussian process, from all values at once."""
    cover = VARIANCE * matern(times, times, LENGTH) + WHITE * torch.eye(len(times)).double()
    across = VARIANCE * matern(at, times, LENGTH)
    solved = torch.linalg.solve(cover, across.T)
    return solved.T @ errors, VARIANCE - (across.T * solved).sum(0)


def rough(count, seed, rows=40, length=LENGTH, noise=0.1):
    """A level of its own for each series, a smooth path from row to row, and noise; and what is without noise."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.rand(count, rows, generator=generator).double().mul(10).sort(1).values
    cover = matern(times, times, length) + 1e-9 * torch.eye(rows).double()
    normal = torch.randn(count, rows, 1, generator=generator).double()
    paths = torch.linalg.cholesky(cover) @ normal + torch.randn(count, 1, 1, generator=generator).double()
    x = paths + noise * torch.randn(count, rows, 1, generator=generator).double()
    return times.numpy(), x.numpy(), paths.numpy()


def thinned(times, x, seed=0):
    """Series whose rows but the first are missing with probability 0.3."""
    hidden = np.random.default_rng(seed).random(x.shape) < 0.3
    hidden[:, 0] = False
    return [(t, values) for t, values in zip(times, np.where(hidden, np.nan, x), strict=True)], hidden


@pytest.fixture(scope="module")
def fitted():
    times, x, _ = rough(60, 0)
    return LatentODE(**OPTIONS).fit(thinned(times, x)[0])


# ---- the Gaussian process


def test_kriging_has_its_closed_form():
    times = torch.rand(20, generator=torch.Generator().manual_seed(0)).double().mul(6).sort().values
    at = torch.tensor([5.0, 0.3, 2.2, 2.2]).double()
    errors = torch.randn(3, 20, 1, generator=torch.Generator().manual_seed(1)).double()
    mean, variance = known().kriged(times, errors, at)
    for draw, found in zip(errors, mean, strict=True):
        truth, spread = dense(times, draw[:, 0], at)
        torch.testing.assert_close(found[:, 0], truth)
        torch.testing.assert_close(variance[:, 0], spread)


def test_the_nearest_values_say_nearly_all():
    times, at = torch.linspace(0, 20, 4 * NEIGHBOURS).double(), torch.linspace(0, 20, 33).double()
    errors = (2 * times).sin()[None, :, None]
    mean, variance = known().kriged(times, errors, at)
    truth, spread = dense(times, errors[0, :, 0], at)
    torch.testing.assert_close(mean[0, :, 0], truth, atol=1e-3, rtol=0)
    torch.testing.assert_close(variance[:, 0], spread, atol=1e-3, rtol=0)


def test_a_missing_value_is_left_out():
    times, at = torch.linspace(0, 5, 12).double(), torch.tensor([1.7, 4.0]).double()
    errors = torch.randn(2, 12, 1, generator=torch.Generator().manual_seed(1)).double()
    kept = torch.arange(12) % 3 > 0
    missing = torch.where(kept[:, None], errors, math.nan)
    for a, b in zip(known().kriged(times, missing, at), known().kriged(times[kept], errors[:, kept], at), strict=True):
        torch.testing.assert_close(a, b)


def test_far_from_all_values_the_mean_is_zero_and_the_variance_that_of_the_process():
    times = torch.linspace(0, 5, 12).double()
    for errors in (torch.ones(1, 12, 1).double(), torch.full((1, 12, 1), math.nan).double()):
        mean, variance = known().kriged(times, errors, torch.tensor([100.0]).double())
        assert abs(float(mean)) < 1e-12
        assert float(variance) == pytest.approx(VARIANCE)


def test_the_kernel_is_found_in_any_unit():
    times, x, _ = rough(30, 0)
    for unit in (1.0, 1e4):
        residual = Residual(2)
        errors = torch.from_numpy(unit * (x - x.mean()))
        noise = torch.randn(errors.shape, generator=torch.Generator().manual_seed(0)).double()
        residual.fit(unit * torch.from_numpy(times), torch.cat([errors, noise], 2)[None])
        assert float(residual.white[0]) / unit**2 == pytest.approx(0.01, rel=0.3)
        slope = residual.variance[0] / residual.length[0] ** 2  # which short lags tell, also where levels differ
        assert float(slope) == pytest.approx(1 / LENGTH**2, rel=0.3)
        assert residual.found.tolist() == [True, False]


def test_no_values_or_errors_of_zero_give_no_residual():
    times = torch.linspace(0, 5, 12).double().repeat(3, 1)
    for errors in (torch.full((1, 3, 12, 1), math.nan).double(), torch.zeros(1, 3, 12, 1).double()):
        residual = Residual(1)
        residual.fit(times, errors)
        assert not residual.found.any()


# ---- predictions


@pytest.mark.slow
def test_paths_that_no_dynamics_follow_are_filled_better_and_the_bands_hold_new_values(fitted):
    times, x, paths = rough(40, 5)
    series, hidden = thinned(times, x)
    with_it, without = (model.reconstruct(series) for model in (fitted, without_residual(fitted)))
    means = (np.stack([b.mean for b in bands]) for bands in (with_it, without))
    error, old = (math.sqrt(np.mean((mean - paths)[hidden] ** 2)) for mean in means)
    assert error < 0.6 * old
    inside = np.stack([(b.low < y) & (y < b.high) for b, y in zip(with_it, x, strict=True)])
    assert 0.85 < inside[hidden].mean() < 0.95


@pytest.mark.slow
def test_far_ahead_predictions_are_those_of_the_dynamics(fitted):
    series = thinned(*rough(3, 5)[:2])[0]
    with_it = fitted.extrapolate([60.0], series)
    plain = without_residual(fitted).extrapolate([60.0], series)
    for a, b in zip(with_it, plain, strict=True):
        np.testing.assert_allclose(a.mean, b.mean, atol=1e-5)


def without_residual(model):
    """The same weights in a model without residual."""
    plain = copy.copy(model)
    plain.network_ = copy.deepcopy(model.network_)
    plain.network_.residual = None
    return plain


@pytest.mark.slow
def test_a_residual_without_variance_changes_nothing(tmp_path, fitted):
    fitted.save(tmp_path / "run")
    zero, series = LatentODE.load(tmp_path / "run"), thinned(*rough(3, 5)[:2])[0]
    zero.network_.residual.variance.zero_()
    for a, b in zip(zero.reconstruct(series), without_residual(fitted).reconstruct(series), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
def test_a_saved_residual_predicts_the_same(tmp_path, fitted):
    fitted.save(tmp_path / "run")
    loaded, series = LatentODE.load(tmp_path / "run"), thinned(*rough(3, 5)[:2])[0]
    assert loaded.network_.residual.found.all()
    for a, b in zip(fitted.reconstruct(series), loaded.reconstruct(series), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
def test_a_run_of_a_fit_keeps_the_residual_also_without_held_out_series(tmp_path):
    series = thinned(*rough(12, 0)[:2])[0]
    model = LatentODE(**OPTIONS, validation_fraction=0).fit(series, run=tmp_path / "run")
    assert model.network_.residual.found.all()
    assert torch.equal(model.network_.residual.length, LatentODE.load(tmp_path / "run").network_.residual.length)


def test_events_have_no_residual():
    model = LatentODE(**{**OPTIONS, "max_steps": 2}, events=True).fit(thinned(*rough(6, 0)[:2])[0])
    assert model.network_.residual is None
