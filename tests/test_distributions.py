"""Student's t distribution against SciPy's, its fit against the truth, and flows over it with heavy tails."""

import warnings

import numpy as np
import pytest
import torch
from oracles import randn
from scipy import stats

from ffjord_kit import FFJORD, metrics
from ffjord_kit.diagnostics.columns import DegenerateDataWarning
from ffjord_kit.distributions import (
    BASES,
    AsinhStudentT,
    DistributionBase,
    StandardNormal,
    StudentT,
    as_base,
    fit_student,
    fit_tails,
)
from ffjord_kit.run import RunError
from ffjord_kit.transforms import Standardize

QUICK = {"hidden": (32, 32), "batch_size": 256, "random_state": 0}
DF = torch.tensor([0.8, 2.0, 30.0], dtype=torch.float64)


def test_the_log_density_is_scipys():
    z = 3 * randn(50, 3)
    expected = stats.t(DF.numpy()).logpdf(z.numpy()).sum(1)
    assert StudentT((3,), DF).double().log_prob(z).detach().numpy() == pytest.approx(expected, rel=1e-6)


def test_draws_follow_the_law_and_the_generator():
    base = StudentT((3,), DF).double()
    z = base.sample(4000, torch.Generator().manual_seed(0)).numpy()
    assert all(stats.kstest(z[:, i], stats.t(float(DF[i])).cdf).pvalue > 0.01 for i in range(3))
    assert np.array_equal(z, base.sample(4000, torch.Generator().manual_seed(0)).numpy())
    assert abs(stats.spearmanr(z[:, 0], z[:, 1]).statistic) < 0.05


def test_the_law_of_asinh_is_that_of_student_with_the_slope_of_the_map():
    z = 3 * randn(50, 3)
    expected = (stats.t(DF.numpy()).logpdf(np.sinh(z.numpy())) + np.log(np.cosh(z.numpy()))).sum(1)
    base = AsinhStudentT((3,), DF).double()
    assert base.log_prob(z).detach().numpy() == pytest.approx(expected, rel=1e-6)
    draws = base.sample(4000, torch.Generator().manual_seed(0)).sinh()
    assert torch.allclose(draws, StudentT((3,), DF).double().sample(4000, torch.Generator().manual_seed(0)), rtol=1e-6)
    assert AsinhStudentT.of(draws.asinh()).df.tolist() == pytest.approx([1.0, 2.0, 50.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_law_of_asinh_falls_exponentially_at_any_distance(dtype):
    z = torch.tensor([[0.0], [80.0], [-80.0], [81.0]], dtype=dtype, requires_grad=True)
    log_prob = AsinhStudentT((1,), 2.0).to(dtype).log_prob(z)
    (slope,) = torch.autograd.grad(log_prob.sum(), z)
    assert slope.flatten().tolist() == pytest.approx([0.0, -2.0, 2.0, -2.0])
    assert (log_prob[1] - log_prob[3]).item() == pytest.approx(2.0, rel=1e-4)


def test_degrees_of_freedom_have_a_gradient_and_must_be_positive():
    base = StudentT((2,))
    base.log_prob(torch.randn(9, 2)).sum().backward()
    assert bool((base.log_df.grad != 0).all())
    with pytest.raises(ValueError, match="df must be positive"):
        StudentT((2,), 0.0)


@pytest.mark.parametrize("nu", [1.0, 3.0, 50.0])
def test_the_fit_finds_location_scale_and_degrees_of_freedom_in_any_units(nu):
    x = torch.as_tensor(stats.t(nu).rvs((5000, 1), random_state=0) * [1e-12, 1.0, 1e12] + [0, 5, 0])
    fit = fit_student(x)
    assert (fit.scale / torch.tensor([1e-12, 1.0, 1e12])).numpy() == pytest.approx(1, abs=0.08)
    assert float(fit.loc[1]) == pytest.approx(5, abs=0.08)
    assert {1.0: fit.df == 1, 3.0: fit.df == 3, 50.0: fit.df >= 20}[nu].all()


def test_robust_units_ignore_outliers_and_constants():
    x = randn(1000, 3)
    x[0, 0], x[:, 2] = 1e6, 4.0
    transform = Standardize.robust(x)
    assert float(transform.scale[0]) == pytest.approx(float(transform.scale[1]), rel=0.3)
    assert float(transform.scale[2]) == 1.0


@pytest.mark.parametrize("word", BASES)
def test_a_base_is_made_from_rows_and_blank(word):
    fitted, blank = BASES[word]
    assert fitted(randn(50, 3)).event_shape == blank((3,)).event_shape == (3,)
    assert set(fitted(randn(50, 3)).state_dict()) == set(blank((3,)).state_dict())


def test_a_torch_distribution_is_wrapped_copied_and_cast():
    normal = torch.distributions.MultivariateNormal(torch.ones(2), 2.0 * torch.eye(2))
    base = as_base(normal).double()
    assert isinstance(base, DistributionBase) and base.event_shape == (2,)
    assert base.sample(3, torch.Generator().manual_seed(0)).dtype == torch.float64 and normal.loc.dtype == torch.float32
    z = randn(5, 2)
    assert torch.allclose(base.log_prob(z), StandardNormal((2,)).log_prob((z - 1) / 2**0.5) - np.log(2.0))
    state, draws = torch.random.get_rng_state(), base.sample(4, torch.Generator().manual_seed(1))
    assert torch.equal(base.sample(4, torch.Generator().manual_seed(1)), draws)
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ValueError, match="empty batch shape; got"):
        DistributionBase(torch.distributions.Normal(torch.zeros(2), 1.0))


def test_the_tails_of_a_mixture_are_those_of_its_components():
    x = torch.as_tensor(stats.t(2.0).rvs((10_000, 2), random_state=0))
    x[::2], x[1::2] = x[::2] - 5, x[1::2] + 5
    assert all(1.5 <= nu <= 3 for nu in fit_tails(x).tolist())
    assert fit_tails(torch.as_tensor(stats.norm.rvs(size=(10_000, 1), random_state=0))).tolist() == [50.0]
    assert AsinhStudentT.of((x / 5).asinh()).df.max().item() < 3.1 < fit_student(x / 5).df.min().item()
    assert bool(fit_tails(torch.zeros(50, 2)).isfinite().all())


@pytest.mark.slow
def test_each_of_two_cauchy_columns_keeps_the_power_of_its_tail_and_a_run_of_before_is_refused(tmp_path):
    """A field that acts on the columns themselves mixes their tails: the log-density falls twice as fast."""
    x = stats.cauchy.rvs(size=(4000, 2), random_state=0)
    model = FFJORD(base="student", schedule=[("flow_matching", 600)], **QUICK).fit(x, run=tmp_path / "run")
    far = np.geomspace(1e2, 1e4, 5)
    for axis in ([1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]):
        slope = np.polyfit(np.log(far), model.score_samples(far[:, None] * axis), 1)[0]
        assert -2.6 < slope < -1.6
    stray = model.certify([[1e10, 0.0], [-1e10, 1e10]])
    assert np.isfinite(stray.log_prob).all() and (stray.error < 1e-3 * np.abs(stray.log_prob)).all()
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"asinh": true', '"asinh": false'))
    with pytest.raises(RunError, match="of an earlier version, .*: fit again"):
        FFJORD.load(tmp_path / "run")


@pytest.mark.slow
def test_heavy_tails_are_learned_saved_and_drawn(tmp_path):
    shape = np.array([[1.0, 0.8], [0.8, 1.0]])
    law = stats.multivariate_t(shape=shape, df=2.0)
    x, test = law.rvs(3000, random_state=0), law.rvs(3000, random_state=1)
    model = FFJORD(base="student", schedule=[("flow_matching", 400), ("mle", 15)], **QUICK).fit(x)
    kl, error = metrics.kl_divergence(law.logpdf(test), model.score_samples(test))
    assert kl < 0.05 + 3 * error
    assert float(model.flow_.base.df.min()) > 1.2 and float(model.flow_.base.df.max()) < 4
    far = np.abs(test).max(1) > 20
    assert np.abs(law.logpdf(test) - model.score_samples(test))[far].mean() < 2
    model.save(tmp_path / "run")
    again = FFJORD.load(tmp_path / "run")
    assert np.array_equal(again.score_samples(test[:50]), model.score_samples(test[:50]))
    assert np.abs(model.sample(2000, random_state=0)).max() > 20


@pytest.mark.slow
def test_an_outlier_of_a_million_deviations_is_reported_and_does_not_hide_the_rest():
    rng = np.random.default_rng(0)
    x, test = rng.normal(size=(1000, 2)), rng.normal(size=(500, 2))
    x[7, 1] = 1e6
    with pytest.warns(DegenerateDataWarning, match=r"'x1' reaches .*\(row 7, counted from 0: 1e\+06\).*base='student'"):
        FFJORD(schedule=[("flow_matching", 2)], **QUICK).fit(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DegenerateDataWarning)  # the advice has been taken
        model = FFJORD(base="student", schedule=[("flow_matching", 400)], **QUICK).fit(x)
    truth = stats.norm.logpdf(test).sum(1)
    assert (truth - model.score_samples(test)).mean() < 0.15
    assert np.isfinite(model.score_samples(x)).all()


def test_auto_takes_robust_units_where_outliers_widen_a_column():
    x = np.random.default_rng(0).normal(size=(150, 2))
    x[7, 1] = 1e6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        model = FFJORD(max_seconds=1.0, **QUICK).fit(x)
    assert model.config_["chosen"]["scaling"] == "robust"


def test_columns_of_any_scale_have_the_likelihood_of_their_units():
    rng = np.random.default_rng(0)
    x, units = rng.normal(size=(300, 2)), np.array([1e12, 1e-12])
    one, other = (FFJORD(schedule=[("flow_matching", 20)], **QUICK).fit(rows) for rows in (x, x * units))
    shift = np.log(units).sum()
    assert other.score_samples(x * units) == pytest.approx(one.score_samples(x) - shift, abs=1e-3)
