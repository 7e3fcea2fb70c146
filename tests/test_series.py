"""Latent ODEs of irregular series: closed forms, masks, bands, events, and what a run keeps."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ffjord_kit.datasets.series import spiral_curves, spirals
from ffjord_kit.models import LatentODE, Series
from ffjord_kit.models.dense import solve_at
from ffjord_kit.models.elbo import ELBO, ELBOValidation, elbo, fit_noise, thinned
from ffjord_kit.models.latent_network import RECOGNITIONS, LatentNetwork, Scales
from ffjord_kit.models.posterior import Posterior, laplace
from ffjord_kit.models.series import check_series, lengths, padded, tails, trimmed
from ffjord_kit.run import RunError
from ffjord_kit.training import Workers

SMALL = {"latent_dim": 2, "hidden": 8, "max_steps": 10, "max_seconds": math.inf, "random_state": 0}


def waves(count, seed=0, rows=20, missing=0.3):
    """Pieces of sines at random times, which begin at any phase; some of the values are missing."""
    rng = np.random.default_rng(seed)
    series = []
    for _ in range(count):
        t = np.sort(rng.uniform(0, 6, rows)) + rng.uniform(10, 16)
        x = curve(t) + 0.1 * rng.standard_normal((rows, 2))
        x[1:][rng.random((rows - 1, 2)) < missing] = np.nan
        series.append((t, x))
    return series


def batch_of(series):
    checked = check_series(series)
    return padded([s.values for s in checked], [s.clock for s in checked])


def network(channels=2, **options):
    torch.manual_seed(3)
    return LatentNetwork(Scales.blank(channels), latent_dim=3, hidden=8, steps=8, **options)


# ---- the solve


def test_a_solve_at_own_times_has_the_order_of_its_steps():
    """dz/dt = A z with A a rotation, whose solution is known: the error falls as h^4."""
    times = torch.rand(7, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(7, 2)
    truth = torch.stack([times.cos(), times.sin()], dim=2)
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    errors = [
        float((solve_at(lambda y: (y[0] @ turn,), (start,), times, steps=n)[0] - truth).abs().max()) for n in (4, 8)
    ]
    assert errors[1] < 1e-4
    assert 12 < errors[0] / errors[1] < 20


def test_other_rows_do_not_change_a_solve():
    times = torch.tensor([[0.0, 0.5], [1.0, 7.0]], dtype=torch.float64)
    start = torch.ones(2, 1, dtype=torch.float64)
    (both,) = solve_at(lambda y: (-y[0],), (start,), times, steps=5)
    (alone,) = solve_at(lambda y: (-y[0],), (start[:1],), times[:1], steps=5)
    assert torch.equal(both[:1], alone)


# ---- masks and padding


@pytest.mark.slow
@pytest.mark.parametrize("recognition", RECOGNITIONS)
def test_a_masked_value_changes_nothing(recognition):
    model = network(recognition=recognition, events=True)
    (t, x), mask = waves(1, missing=0.0)[0], np.random.default_rng(0).random((20, 2)) < 0.4
    bounds = []
    for beneath in (-3.0, 1e6):
        values = np.ma.masked_array(np.where(mask, beneath, x), mask)
        batch = batch_of([(t, values)])
        bounds.append(elbo(model, batch, laplace(model, batch), draws=3))
    assert torch.equal(*bounds)
    assert bounds[0].isfinite().all()


@pytest.mark.parametrize("recognition", RECOGNITIONS)
def test_longer_series_in_the_batch_change_nothing(recognition):
    model = network(recognition=recognition, events=True)
    short, long = waves(1, rows=8)[0], waves(1, seed=1, rows=30)[0]
    together, alone = batch_of([short, long]), batch_of([short])
    for a, b in zip(
        model.posterior(together.x, together.context), model.posterior(alone.x, alone.context), strict=True
    ):
        torch.testing.assert_close(a[:1], b)
    start = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    value = model.log_likelihood(start, together.x, together.context)[:1]
    torch.testing.assert_close(value, model.log_likelihood(start[:1], alone.x, alone.context))


def test_the_worst_tenth_of_held_out_series_do_not_judge():
    model, ordinary = network(), waves(9)
    strange = [(times, 1000.0 + values) for times, values in waves(1)]
    with torch.no_grad():
        bounds = [-elbo(model, batch_of(each), laplace(model, batch_of(each)), draws=4) for each in (ordinary, strange)]
        score = ELBOValidation(model, batch_of([*ordinary, *strange]))(Workers(), 1)
    assert bounds[1].item() > 1e5 > bounds[0].max().item()
    assert bounds[0].min().item() - 1 < score.mean < bounds[0].max().item() + 1


def test_gradients_are_finite_where_values_are_missing(generator):
    model = network(events=True)
    ELBO().loss(model, batch_of(waves(6)), generator).value.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_recognition_reads_a_random_part_of_each_series_and_the_first_row_of_all(generator):
    values = torch.randn(200, 50, 2, generator=generator)
    seen = ~thinned(values, 0.2, generator).isnan().any(2)
    shares = seen.float().mean(1)
    assert bool(seen[:, 0].all())
    assert 0.1 < float(shares.min()) < 0.3 and 0.9 < float(shares.max()) <= 1.0
    assert float(shares.mean()) == pytest.approx(0.6, abs=0.05)
    torch.testing.assert_close(thinned(values, 1.0, generator), values)
    with pytest.raises(ValueError, match="least_share must be above 0"):
        ELBO(least_share=0.0)


def test_the_tail_of_a_series_is_the_series_that_begins_there():
    short, long = waves(1, rows=8)[0], waves(1, seed=1, rows=30)[0]
    batch, first = batch_of([short, long]), torch.tensor([3, 12])
    values, times = tails(*trimmed(batch), first)
    for i, (t, x) in enumerate((short, long)):
        row, left = int(first[i]), len(t) - int(first[i])
        torch.testing.assert_close(values[i, :left], torch.from_numpy(x[row:]), equal_nan=True)
        torch.testing.assert_close(times[i, :left], torch.from_numpy(t[row:] - t[row]))
        assert bool(values[i, left:].isnan().all()) and bool((times[i, left:] == times[i, left - 1]).all())
    assert lengths(times).tolist() == [5, 18]


def test_the_loss_is_the_negative_bound_and_a_multiple_of_the_surprise(generator):
    model, batch = network(), batch_of(waves(6, rows=2) + waves(6))
    loss = ELBO(consistency=0.2).loss(model, batch, generator)
    bound = loss.terms["log_likelihood"] - loss.terms["kl"]
    torch.testing.assert_close(loss.value, -bound + 0.2 * loss.terms["surprise"])
    assert bool(loss.value.isfinite())


@pytest.mark.slow
def test_the_unit_of_time_and_of_values_is_the_users():
    """The bound of values in other units differs by the logarithm of the unit, and a fit is the same."""
    series = waves(12, missing=0.2)
    other = [(1e4 * t, 1e3 * x) for t, x in series]
    first, second = (LatentODE(**SMALL).fit(each) for each in (series, other))
    seen = np.array([np.isfinite(x).sum() for _, x in series])
    np.testing.assert_allclose(second.score_samples() + seen * math.log(1e3), first.score_samples(), rtol=1e-3)


def test_the_angular_frequency_of_series_is_found_with_gaps_and_beside_noise():
    times = torch.linspace(0, 10, 81, dtype=torch.float64).repeat(5, 1)
    noise = torch.randn(times.shape, generator=torch.Generator().manual_seed(0))
    values = torch.stack([(3 * times + 0.1).sin(), 0.01 * times.square(), noise], dim=2)
    values[:, ::3] = torch.nan
    assert float(Scales.of(values, times).turn) == pytest.approx(30, rel=0.15)
    assert float(Scales.of(values[:, :, 1:], times).turn) < 3.5


# ---- closed forms


def exact(batch, factor, noise):
    """The posterior of z(0) where x(t) = a(t) z(0) + noise, z(0) ~ N(0, 1)."""
    a = factor(batch.context)[..., None]
    precision = 1 + (a / noise).square().sum((1, 2))
    mean = (a * batch.x).sum((1, 2)) / noise**2 / precision
    return Posterior(mean[:, None], precision.rsqrt()[:, None, None])


def assert_mean_is_zero(differences):
    """Within four standard errors, which themselves are small."""
    error = float(differences.std()) / math.sqrt(len(differences))
    assert abs(float(differences.mean())) < 4 * error < 0.2


def linear_gaussian(rate=-0.7, noise=0.4):
    """The network of dz/dt = rate z, x = z + noise, in one dimension, and 40 series of it with their log-densities."""
    model = LatentNetwork(Scales.blank(1), latent_dim=1, hidden=1, steps=20).double()
    model.requires_grad_(False)
    model.dynamics.linear.weight.fill_(rate)
    model.dynamics.net[-1].weight.zero_(), model.dynamics.net[-1].bias.zero_()
    model.decoder = nn.Sequential(nn.Linear(1, 1, bias=False)).double().requires_grad_(False)
    model.decoder[0].weight.fill_(1.0)
    model.log_noise.fill_(math.log(noise))
    rng = np.random.default_rng(5)
    times = np.c_[np.zeros(40), np.sort(rng.uniform(0, 2, (40, 6)), axis=1)]
    x = np.exp(rate * times) * rng.standard_normal((40, 1)) + noise * rng.standard_normal(times.shape)
    cover = np.exp(rate * times)[:, :, None] * np.exp(rate * times)[:, None, :] + noise**2 * np.eye(7)
    truth = torch.distributions.MultivariateNormal(torch.zeros(7).double(), torch.from_numpy(cover))
    log_prob = truth.log_prob(torch.from_numpy(x))
    batch = batch_of(list(zip(times, x, strict=True)))
    return model, batch, log_prob, exact(batch, lambda t: (rate * t).exp(), noise)


@pytest.mark.slow
def test_with_the_exact_posterior_the_bound_is_the_log_likelihood():
    model, batch, log_prob, posterior = linear_gaussian()
    assert_mean_is_zero(elbo(model, batch, posterior, draws=400) - log_prob)


def test_where_all_is_linear_the_climb_finds_the_exact_posterior():
    model, batch, _, posterior = linear_gaussian()
    for found, truth in zip(laplace(model, batch), posterior, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("events", "prior"), [(False, "normal"), (True, "normal"), (False, "flow")])
def test_slopes_are_those_of_automatic_differentiation(events, prior):
    model, batch = network(events=events, prior=prior).double().requires_grad_(False), batch_of(waves(1))
    start = torch.randn(1, 3, generator=torch.Generator().manual_seed(0)).double()

    def compared(start):
        z, seen = model.path(start, batch.context), ~batch.x.isnan()
        means = torch.where(seen, model.decode(z) / model.noise, 0.0)
        return torch.cat([means, torch.where(seen, model.log_rate(z), 0.0)], dim=2) if events else means

    truth = torch.autograd.functional.jacobian(compared, start)[0, :, :, 0].mT.clone()
    truth[0, :, 2:] = 0.0
    torch.testing.assert_close(model.slopes(start, batch.x, batch.context)[0], truth)


@pytest.mark.slow
def test_the_posterior_of_a_series_does_not_depend_on_the_others():
    model, series = network(events=True), waves(3)
    together, alone = (laplace(model, batch_of(part)) for part in (series, series[:1]))
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[:1], b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_noise_is_that_of_other_series():
    model, batch, _, _ = linear_gaussian(noise=0.4)
    model.log_noise.fill_(math.log(0.1))
    fit_noise(model, batch, draws=100)
    assert 0.3 < float(model.noise) < 0.45


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.2, 0.5])
def test_with_another_posterior_the_bound_is_lower_by_its_divergence(shift):
    """KL(N(m + d, s^2) || N(m, s^2)) = d^2 / 2 s^2."""
    model, batch, log_prob, posterior = linear_gaussian()
    shifted = posterior._replace(mean=posterior.mean + shift)
    gap = log_prob - elbo(model, batch, shifted, draws=400)
    assert (gap > 0).all()
    assert_mean_is_zero(gap - (shift / posterior.factor[:, 0, 0]).square() / 2)


@pytest.mark.slow
def test_a_trained_bound_stays_below_the_log_likelihood():
    model, batch, log_prob, _ = linear_gaussian()
    fitted = LatentODE(
        latent_dim=1, hidden=16, max_steps=200, max_seconds=math.inf, random_state=0, validation_fraction=0
    )
    rng = np.random.default_rng(0)
    series = []
    for _ in range(300):
        t = np.r_[0, np.sort(rng.uniform(0, 2, 6))]
        series.append((t, np.exp(-0.7 * t) * rng.standard_normal() + 0.4 * rng.standard_normal(7)))
    given = [(t.numpy(), x.numpy()) for t, x in zip(batch.context, batch.x, strict=True)]
    bound = fitted.fit(series).score_samples(given, draws=200)
    assert bound.mean() < log_prob.mean()
    assert log_prob.mean() - bound.mean() < 0.7


@pytest.mark.slow
def test_a_flow_as_prior_is_fitted_saved_and_sampled(tmp_path):
    model = LatentODE(**SMALL, prior="flow").fit(waves(8), run=tmp_path / "run")
    draws = [each.sample([0.0, 1.0], 5, random_state=0) for each in (model, LatentODE.load(tmp_path / "run"))]
    assert np.array_equal(*draws)
    start = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(model.network_.carried(start), start)


# ---- small sets


def damped_sines(count, seed):
    """Sines of any phase and frequency that fade, at 25 random times in days, with noise; and their curves."""
    rng, series, curves = np.random.default_rng(seed), [], []
    for phase, rate, decay in rng.uniform([0, 0.8, 0.1], [2 * np.pi, 2.0, 0.3], (count, 3)):

        def clean(days, phase=phase, rate=rate, decay=decay):
            s = (days[:, None] - 20000) / 300
            return np.exp(-decay * s) * np.sin(rate * s + phase + np.arange(2.0))

        t = 20000 + 300 * np.sort(rng.uniform(0, 10, 25))
        x = clean(t) + 0.1 * rng.standard_normal((25, 2))
        x[1:][rng.random((24, 2)) < 0.2] = np.nan
        series.append((t, x))
        curves.append(clean)
    return series, curves


def linearly(t, x, at):
    seen = np.isfinite(x)
    return np.stack([np.interp(at, t[s], column[s]) for s, column in zip(seen.T, x.T, strict=True)], axis=1)


@pytest.mark.slow
def test_sixty_short_series_are_learned_and_new_ones_smoothed_better_than_by_lines():
    """A fit of the size of a first trial: it ended with a flat mean, and bands over everything."""
    model = LatentODE(max_steps=500, max_seconds=math.inf, random_state=0).fit(damped_sines(60, 0)[0])
    series, curves = damped_sines(30, 1)
    times = [np.linspace(t[0], t[-1], 40) for t, _ in series]
    bands = model.extrapolate(times, series)
    truth = np.stack([curve(t) for curve, t in zip(curves, times, strict=True)])
    means, lines = [b.mean for b in bands], [linearly(t, x, at) for (t, x), at in zip(series, times, strict=True)]
    error, of_lines = (np.sqrt(np.mean((np.stack(each) - truth) ** 2)) for each in (means, lines))
    assert error < 0.7 * of_lines
    new = truth + 0.1 * np.random.default_rng(3).standard_normal(truth.shape)
    assert 0.83 < np.mean([(b.low < x) & (x < b.high) for b, x in zip(bands, new, strict=True)]) < 0.97


# ---- events


def test_the_likelihood_of_events_is_that_of_a_poisson_process():
    """A constant intensity: the log-density of n events in a window of length T is n log(rate) - rate T."""
    model, plain = network(events=True, channels=1), network(channels=1)
    model.requires_grad_(False)
    for layer in model.intensity[::2]:
        layer.weight.zero_(), layer.bias.zero_()
    model.intensity[-1].bias.fill_(math.log(2.5))
    plain.requires_grad_(False).load_state_dict(model.state_dict(), strict=False)
    t = np.array([0.0, 0.4, 1.1, 1.7, 3.0])  # it opens at 0, and closes at 3 without an event
    batch, start = batch_of([(t, [np.nan, 1, 1, 1, np.nan])]), torch.zeros(1, 3)
    difference = model.log_likelihood(start, batch.x, batch.context) - plain.log_likelihood(
        start, batch.x, batch.context
    )
    assert float(difference) == pytest.approx(3 * math.log(2.5) - 2.5 * 3.0, abs=1e-4)


@pytest.mark.slow
def test_known_rates_lie_within_their_bands():
    """Each series has a constant rate of its own, log-normal around 4, in a window of 5 that opens and closes empty.

    The bands are those of the state of a series, given the network, so the rates must differ from series to series.
    """
    series, _ = events_at_rates(150, seed=0)
    new, rates = events_at_rates(80, seed=1)
    model = LatentODE(latent_dim=2, hidden=8, events=True, max_steps=300, max_seconds=math.inf, random_state=0)
    bands = model.fit(series).intensity(np.linspace(0, 5, 11), new, level=0.9)
    low, mean, high = (np.stack([getattr(band, name)[:, 0] for band in bands]) for name in ("low", "mean", "high"))
    assert ((low < rates[:, None]) & (rates[:, None] < high)).mean() > 0.8
    assert np.corrcoef(np.log(mean.mean(1)), np.log(rates))[0, 1] > 0.8


def events_at_rates(count, seed):
    rng = np.random.default_rng(seed)
    rates = rng.lognormal(math.log(4), 0.5, count).clip(1)
    times = [np.sort(rng.uniform(0, 5, rng.poisson(5 * rate))) for rate in rates]
    return [(np.r_[0, t, 5.0], np.r_[np.nan, rng.standard_normal(len(t)), np.nan]) for t in times], rates


def test_a_model_without_events_has_no_intensity():
    model = LatentODE(**SMALL).fit(waves(8))
    with pytest.raises(ValueError, match="fit it with events=True"):
        model.intensity([11.0])


# ---- predictions


@pytest.fixture(scope="module")
def fitted():
    options = {"latent_dim": 2, "hidden": 24, "max_steps": 400, "max_seconds": math.inf, "learning_rate": 2e-2}
    return LatentODE(**options, random_state=0).fit(waves(200))


@pytest.fixture(scope="module")
def small():
    return LatentODE(**SMALL).fit(waves(20))


def curve(times):
    return np.stack([np.sin(times + 1), np.cos(times)], axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [-4.0, 0.0, 1.5])
def test_bands_hold_new_observations_within_and_beyond_a_series(fitted, ahead):
    rng, new = np.random.default_rng(9), waves(40, seed=7)
    times = [np.maximum(t[0], t[-1] + ahead + np.linspace(0, 1.5, 6)) for t, _ in new]
    bands = fitted.extrapolate(times, new, level=0.9)
    seen = [curve(t) + 0.1 * rng.standard_normal((6, 2)) for t in times]
    assert np.mean([(b.low < y) & (y < b.high) for b, y in zip(bands, seen, strict=True)]) > 0.85
    assert np.sqrt(np.mean([(b.mean - curve(t)) ** 2 for b, t in zip(bands, times, strict=True)])) < 0.1
    assert np.mean([b.high - b.low for b in bands]) < 0.7


@pytest.mark.slow
def test_imputed_values_are_near_and_seen_ones_stay(fitted):
    new = waves(40, seed=8, missing=0.5)
    filled = fitted.impute(new)
    for (t, x), y in zip(new, filled, strict=True):
        assert np.array_equal(y[np.isfinite(x)], x[np.isfinite(x)])
        assert np.isfinite(y).all() and len(y) == len(t)
    errors = [(y - curve(t))[np.isnan(x)] for (t, x), y in zip(new, filled, strict=True)]
    assert np.sqrt(np.mean(np.concatenate(errors) ** 2)) < 0.15


@pytest.mark.slow
def test_samples_are_series_like_those_of_the_fit(fitted):
    draws = fitted.sample(np.linspace(0, 4, 9), 300, random_state=0)
    assert draws.shape == (300, 9, 2)
    assert np.array_equal(draws, fitted.sample(np.linspace(0, 4, 9), 300, random_state=0))
    assert 0.4 < draws.std() < 1.1


def test_predictions_are_the_same_again_and_in_any_order_of_times(small):
    new, times = waves(3, seed=4), np.array([27.0, 22.5, 27.0, 26.2])
    first, second = (small.extrapolate(times, new) for _ in range(2))
    assert all(np.array_equal(a.low, b.low) for a, b in zip(first, second, strict=True))
    assert np.array_equal(first[0].times, times)
    assert np.array_equal(first[0].mean[0], first[0].mean[2])


@pytest.mark.slow
def test_coarse_steps_are_told():
    with pytest.warns(UserWarning, match="steps are coarse"):
        LatentODE(**{**SMALL, "steps": 4, "max_steps": 250, "learning_rate": 2e-2, "hidden": 24}).fit(waves(40))


# ---- several fits


def test_the_best_of_several_fits_is_kept():
    series, options = waves(40), {**SMALL, "max_steps": 20}
    one, three = (LatentODE(**options, n_init=count).fit(series).history_ for count in (1, 3))
    assert (three.step, three.phases) == (60, 3)
    assert three.best_nll == min(nll for _, nll in three.validations)
    assert min(nll for step, nll in three.validations if step <= 20) == one.best_nll


def test_several_fits_begin_with_weights_of_their_own():
    model = LatentODE(**SMALL).fit(waves(8))
    networks = [model._blank(Scales.blank(2), number) for number in (0, 1, 2)]
    first, second, third = (nn.utils.parameters_to_vector(each.parameters()) for each in networks)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


@pytest.mark.parametrize(("seconds", "fits"), [(60.0, 1), (599.0, 1), (600.0, 2), (900.0, 3), (3600.0, 3)])
def test_fits_by_time(seconds, fits):
    model = LatentODE(max_seconds=seconds)
    assert (model._fits(judged=True), model._fits(judged=False)) == (fits, 1)


# ---- runs


@pytest.mark.slow
def test_a_saved_model_predicts_the_same(tmp_path):
    model, new = LatentODE(**SMALL, events=True).fit(waves(8), channels=["a", "b"]), waves(2, seed=3)
    model.save(tmp_path / "run")
    loaded = LatentODE.load(tmp_path / "run")
    assert loaded.channels_ == ["a", "b"]
    for a, b in zip(model.reconstruct(new), loaded.reconstruct(new), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert np.array_equal(model.score_samples(new), loaded.score_samples(new))
    with pytest.raises(ValueError, match="does not hold the series of its fit: pass series="):
        loaded.reconstruct()


@pytest.mark.slow
@pytest.mark.parametrize(("recognition", "steps", "fits"), [("gru", 12, 1), ("ode_rnn", 12, 1), ("gru", 6, 2)])
def test_a_resumed_fit_equals_one_that_was_not_stopped(tmp_path, monkeypatch, recognition, steps, fits):
    options, series = {**SMALL, "recognition": recognition, "max_steps": steps, "n_init": fits}, waves(60)
    whole = LatentODE(**options).fit(series)
    calls, loss = [], ELBO.loss

    def stopping(self, model, batch, generator):
        calls.append(1)
        if len(calls) == 9:
            raise MemoryError
        return loss(self, model, batch, generator)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(ELBO, "loss", stopping)
        LatentODE(**options).fit(series, run=tmp_path / "run")
    resumed = LatentODE(**options).fit(series, run=tmp_path / "run", resume=True)
    for a, b in zip(whole.network_.parameters(), resumed.network_.parameters(), strict=True):
        assert torch.equal(a, b)


def test_several_fits_need_held_out_series(tmp_path):
    with pytest.raises(ValueError, match="n_init=2 needs series held out"):
        LatentODE(**SMALL, n_init=2).fit(waves(8), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_resumed_with_its_own_series_and_fields(tmp_path):
    LatentODE(**SMALL).fit(waves(8), run=tmp_path / "run")
    with pytest.raises(RunError, match="fitted to other series"):
        LatentODE(**SMALL).fit(waves(8, seed=5), run=tmp_path / "run", resume=True)
    with pytest.raises(RunError, match="has hidden=8; got 9: resume it with its own"):
        LatentODE(**{**SMALL, "hidden": 9}).fit(waves(8), run=tmp_path / "run", resume=True)
    with pytest.raises(RunError, match="already holds a run"):
        LatentODE(**SMALL).fit(waves(8), run=tmp_path / "run")


# ---- bad input


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ([], "expected a list of series, each a pair"),
        ([([1.0], [2.0])], "series '0': expected two times or more; got 1: leave the series out"),
        ([([1.0, 1.0], [2.0, 3.0])], "series '0': times must rise; got 1 after 1: sort the rows, merge repeated times"),
        ([([2.0, 1.0], [2.0, 3.0])], "series '0': times must rise; got 1 after 2"),
        ([([0.0, np.nan], [2.0, 3.0])], "times must be finite"),
        ([([0.0, 1.0], [np.nan, np.nan])], "series '0': expected some values; got none, all are missing"),
        ([([0.0, 1.0], [np.inf, 1.0])], "values must be finite, or NaN where missing"),
        ([([0.0, 1.0], [[1.0]])], "expected times \\(T,\\) and values \\(T, channels\\)"),
        ([([0.0, 1.0], [1.0, 2.0]), ([0.0, 1.0], np.ones((2, 2)))], "series '1': expected 1 channel; got 2"),
        ([3.0], "series 0: expected a pair \\(times, values\\); got float"),
        ([([0.0, 1.0], [[1.0, np.nan], [2.0, np.nan]])], "channel 'x1' has no value in any series of the fit"),
    ],
)
def test_bad_series_are_refused_in_one_line(series, message):
    with pytest.raises(ValueError, match=message) as error:
        LatentODE(**SMALL).fit(series)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be at least 1; got 0"),
        ({"hidden": 2.5}, "hidden must be a whole number; got 2.5"),
        ({"recognition": "lstm"}, "recognition must be one of gru, ode_rnn; got 'lstm'"),
        ({"prior": "gamma"}, "prior must be one of normal, flow; got 'gamma'"),
        ({"max_steps": None}, "training needs an end"),
        ({"learning_rate": 0.0}, "must be above 0"),
        ({"validation_fraction": 1.0}, "validation_fraction must be below 1"),
    ],
)
def test_bad_fields_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LatentODE(**{**SMALL, **options}).fit(waves(2))


def test_bad_predictions_are_refused(small):
    new = waves(2, seed=3)
    with pytest.raises(ValueError, match="begins at 1.*; got time 3: ask for times from there on"):
        small.extrapolate([3.0], new)
    with pytest.raises(ValueError, match="expected 2 channels; got 1"):
        small.reconstruct([([0.0, 1.0], [1.0, 2.0])])
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        small.reconstruct(new, level=90)
    with pytest.raises(ValueError, match="times must be finite numbers"):
        small.extrapolate([np.nan], new)
    with pytest.raises(ValueError, match="expected times within 20 times the longest series of the fit"):
        small.extrapolate([1e9], new)
    with pytest.raises(ValueError, match="expected times within 20 times"):
        small.sample([0.0, 1e9])
    with pytest.raises(ValueError, match="not fitted yet"):
        LatentODE().reconstruct(new)


def test_a_series_keeps_its_name_and_takes_one_channel():
    series = Series([0.0, 1.0], [1.0, 2.0], "a")
    assert series.values.shape == (2, 1)
    assert series.label == "series 'a'"


# ---- spirals


def test_spirals_are_points_of_their_curves_with_noise():
    table, curves = spirals(40, points=30, noise=0.3, ahead=100, seed=3), spiral_curves(40, ahead=100, seed=3)
    errors = np.concatenate([x - curve[t.astype(int)] for (t, x), curve in zip(table.series, curves, strict=True)])
    assert abs(errors.std() - 0.3) < 0.02
    assert all(t[0] == 0 and len(t) == 30 and (np.diff(t) > 0).all() for t, _ in table.series)
    assert not np.array_equal(curves, spiral_curves(40, ahead=100, seed=4))
    with pytest.raises(ValueError, match="points must be 2 to 100"):
        spirals(3, points=101)


def test_half_of_the_spirals_turn_clockwise():
    steps = np.diff(spiral_curves(400), axis=1)
    turn = steps[:, 0, 0] * steps[:, 1, 1] - steps[:, 0, 1] * steps[:, 1, 0]
    assert 0.4 < (turn > 0).mean() < 0.6
