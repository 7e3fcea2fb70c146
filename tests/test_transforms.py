"""Contract of every exact transform: inverse maps, and log-determinants of the Jacobians; then each one by itself."""

import math

import pytest
import torch
from oracles import F64, close, jacobian, randn

from ffjord_kit.transforms import SCALINGS, Affine, Asinh, Gaussianize, Logit, Planar, Softplus, Standardize, Whiten
from ffjord_kit.transforms.affine import gaussian_total_correlation
from ffjord_kit.transforms.gaussianize import KNOTS, MAX_SLOPE

INF = float("inf")


def values(*numbers):
    return torch.tensor(numbers, dtype=F64)


def shaped(shape):
    """Return bounds of an event of four elements, one of them unbounded."""
    lower, upper = values(-1.0, -INF, 1000.0, 0.0), values(0.1, INF, 1003.0, 1.0)
    return lower.reshape(shape), upper.reshape(shape)


def planar(shape, end):
    """Return a planar transform of some strength, in float64."""
    transform = Planar(shape, explicit_from=end).double()
    with torch.no_grad():
        for seed, parameter in enumerate(transform.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed))
    return transform


TRANSFORMS = {
    "standardize": lambda shape: Standardize(randn(*shape), randn(*shape, seed=1).exp()),
    "whiten": lambda shape: Whiten(randn(*shape), randn(4, 4).tril(-1) + randn(4, seed=2).exp().diag()),
    "affine": lambda shape: Affine(randn(*shape), randn(4, 4) + 2 * torch.eye(4, dtype=F64)),
    "logit": lambda shape: Logit(*shaped(shape)),
    "logit of all": lambda shape: Logit(torch.zeros(shape, dtype=F64), torch.ones(shape, dtype=F64)),
    "softplus": lambda shape: Softplus(shaped(shape)[0]),
    "gaussianize": lambda shape: Gaussianize.of(randn(400, *shape, seed=3).exp()),
    "asinh": Asinh,
    "planar from data": lambda shape: planar(shape, "data"),
    "planar from base": lambda shape: planar(shape, "base"),
    "softplus of all": lambda shape: Softplus(torch.full(shape, -2.5, dtype=F64)),
}
CONTRACT = [
    pytest.param(make, shape, id=f"{name}-{shape}")
    for name, make in TRANSFORMS.items()
    for shape in [(4,), (2, 2), (4, 1, 1)]
]


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize(("make", "shape"), CONTRACT)
def test_the_two_maps_are_inverse_and_their_log_determinants_opposite(make, shape, scale):
    transform, z = make(shape), scale * randn(5, *shape).clamp(-3, 3)
    x, up = transform.to_data(z)
    back, down = transform.to_base(x)
    assert x.shape == z.shape
    assert up.shape == down.shape == (5,)
    close(back, z, 1e-10 if scale == 1 else 1e-8)
    close(down, -up, 1e-10 if scale == 1 else 1e-8)


@pytest.mark.parametrize(("make", "shape"), CONTRACT)
def test_the_log_determinants_are_those_of_autograds_jacobian(make, shape):
    transform, z = make(shape), 2 * randn(4, *shape)
    x, up = transform.to_data(z)
    close(up, torch.linalg.slogdet(jacobian(lambda y: transform.to_data(y)[0], z))[1], 1e-8)
    _, down = transform.to_base(x)
    close(down, torch.linalg.slogdet(jacobian(lambda y: transform.to_base(y)[0], x))[1], 1e-8)


@pytest.mark.parametrize(("make", "shape"), CONTRACT)
def test_maps_and_log_determinants_are_differentiable(make, shape):
    transform, z = make(shape), randn(2, *shape).requires_grad_()
    assert torch.autograd.gradcheck(transform.to_data, z, fast_mode=True)
    x = transform.to_data(z)[0].detach().requires_grad_()
    assert torch.autograd.gradcheck(transform.to_base, x, fast_mode=True, eps=1e-8, atol=1e-4)


@pytest.mark.parametrize("height", [-40.0, 40.0])
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)
def test_extreme_values_have_finite_images_and_gradients_that_can_be_mapped_back(make, dtype, height):
    transform, z = make((4,)).to(dtype), torch.full((2, 4), height, dtype=dtype, requires_grad=True)
    x, up = transform.to_data(z)
    assert bool(x.isfinite().all() and up.isfinite().all())
    (gradient,) = torch.autograd.grad(x.sum() + up.sum(), z)
    assert bool(gradient.isfinite().all())
    again = x.detach().requires_grad_()
    back, down = transform.to_base(again)  # whatever a flow samples, it can score
    (gradient,) = torch.autograd.grad(back.sum() + down.sum(), again)
    assert bool(back.isfinite().all() and down.isfinite().all() and gradient.isfinite().all())


def test_softplus_is_inverted_to_the_last_digits_where_it_is_nearly_linear():
    transform, z = Softplus(values(0.0)), torch.linspace(15, 45, 61, dtype=F64)[:, None]
    close(transform.to_base(transform.to_data(z)[0])[0], z, 1e-13)


@pytest.mark.parametrize("bounds", [(-1.0, 0.1), (0.0, 3.0), (1000.0, 1003.0)], ids=str)
def test_data_next_to_a_bound_are_inside_it(bounds):
    lower, upper = (values(b) for b in bounds)
    x = torch.stack([torch.nextafter(lower, upper), torch.nextafter(upper, lower)])
    z, log_det = Logit(lower, upper).to_base(x)
    assert bool(z.isfinite().all() and log_det.isfinite().all())
    z, log_det = Softplus(lower).to_base(x)
    assert bool(z.isfinite().all() and log_det.isfinite().all())


@pytest.mark.parametrize(("kind", "bounds"), [(Logit, [(0.0, -INF), (1.0, INF)]), (Softplus, [(0.0, -INF)])])
def test_unbounded_elements_pass_unchanged_and_the_others_as_if_alone(kind, bounds):
    z = randn(5, 2)
    x, log_det = kind(*(values(*b) for b in bounds)).to_data(z)
    alone, expected = kind(*(values(b[0]) for b in bounds)).to_data(z[:, :1])
    close(x, torch.cat([alone, z[:, 1:]], 1), 0.0)
    close(log_det, expected, 0.0)


OUTSIDE = {
    "below": (Logit(values(0.0, 0.0), values(1.0, 2.0)), values(0.5, -0.1), "strictly between the bounds"),
    "above": (Logit(values(0.0, 0.0), values(1.0, 2.0)), values(0.5, 2.1), "strictly between the bounds"),
    "on the upper bound": (Logit(values(0.0, 0.0), values(1.0, 2.0)), values(0.5, 2.0), "strictly between the bounds"),
    "on the lower bound": (Softplus(values(-INF, 3.0)), values(-9.0, 3.0), "above the lower bound"),
    "under the lower bound": (Softplus(values(-INF, 3.0)), values(-9.0, 2.0), "above the lower bound"),
    "no number": (Softplus(values(-INF, 3.0)), values(-9.0, float("nan")), "above the lower bound"),
}


@pytest.mark.parametrize(("transform", "bad", "text"), OUTSIDE.values(), ids=OUTSIDE)
def test_data_outside_the_bounds_are_refused_by_row_and_element(transform, bad, text):
    x = torch.stack([values(0.5, 1.0) + 3 * isinstance(transform, Softplus)] * 3 + [bad])
    with pytest.raises(ValueError) as caught:
        transform.to_base(x)
    assert text in str(caught.value)
    assert "row 3, element (1,)" in str(caught.value)


@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_standardize_of_data_gives_zero_mean_and_unit_variance(shape):
    x = 5 * randn(500, *shape) + 30
    z, _ = Standardize.of(x).to_base(x)
    close(z.mean(0), torch.zeros(shape, dtype=F64), 1e-12)
    close(z.var(0, correction=0), torch.ones(shape, dtype=F64), 1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, -7.7, 1e6 + 0.1])
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["double", "single"])
def test_standardize_keeps_the_scale_of_a_constant(dtype, constant):
    for rows in (3, 37, 1000):
        for columns in (1, 2):
            x = torch.full((rows, columns), constant, dtype=dtype)
            transform = Standardize.of(x)
            close(transform.scale, torch.ones(columns, dtype=dtype), 0.0)
            assert float(transform.to_base(x)[0].abs().max()) <= 1e-6 * abs(constant)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 2)])
def test_whiten_of_data_gives_zero_mean_and_the_identity_as_covariance(shape):
    size = torch.Size(shape).numel()
    x = (randn(500, size) @ (randn(size, size, seed=1) + 2 * torch.eye(size, dtype=F64)) + 30).reshape(500, *shape)
    z = Whiten.of(x).to_base(x)[0].flatten(1)
    close(z.mean(0), torch.zeros(size, dtype=F64), 1e-12)
    close(z.T @ z / 500, torch.eye(size, dtype=F64), 1e-11)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["double", "single"])
def test_whiten_refuses_collinear_columns(dtype, seed):
    x = randn(100, 2, seed=seed)
    x = torch.cat([x, (2.7 * x[:, :1] - 0.3 * x[:, 1:] + 1.3)], 1).to(dtype)
    with pytest.raises(ValueError, match="regular covariance"):
        Whiten.of(x)


def test_whiten_refuses_a_constant_column_and_fewer_rows_than_columns():
    for x in (torch.cat([randn(50, 1), torch.full((50, 1), 0.1, dtype=F64)], 1), randn(3, 4)):
        with pytest.raises(ValueError, match="regular covariance"):
            Whiten.of(x)


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["double", "single"])
def test_whiten_accepts_independent_columns_of_very_different_units(dtype):
    x = (randn(200, 3) * values(1e-9, 1.0, 1e6)).to(dtype)
    z = Whiten.of(x).to_base(x)[0].double()
    close(z.T @ z / 200 - torch.outer(z.mean(0), z.mean(0)), torch.eye(3, dtype=F64), 1e-11 if dtype == F64 else 1e-4)


@pytest.mark.parametrize("word", SCALINGS)
def test_a_blank_scaling_loads_the_weights_of_a_fitted_one(word):
    if not SCALINGS[word]:
        assert word == "none"
        return
    make, blank = SCALINGS[word]
    made, loaded, x = make(3 * randn(50, 3) + 1), blank(torch.zeros(3, dtype=F64)), randn(5, 3)
    close(loaded.to_base(x)[0], x, 0.0)
    loaded.load_state_dict(made.state_dict())
    close(loaded.to_base(x)[0], made.to_base(x)[0], 0.0)


def test_an_aligning_transform_whitens_and_turns_as_near_as_a_linear_map_can():
    z, matrix = randn(4000, 3, seed=4), values(1.0, 0.9, 0.0, 0.9, 1.0, 0.0, 0.3, 0.0, 0.01).reshape(3, 3)
    turn = torch.linalg.matrix_exp(values(0.0, -1.0, 0.5, 1.0, 0.0, 2.0, -0.5, -2.0, 0.0).reshape(3, 3))
    x = z @ turn.T @ matrix.T + values(1.0, -2.0, 3.0)
    y, _ = Affine.aligning(z, x).to_base(x)
    close(torch.cov(y.T, correction=0), torch.eye(3, dtype=F64), 1e-9)
    apart = (y - z).square().mean()
    assert apart < 1e-2
    for seed in range(20):
        other = torch.linalg.qr(randn(3, 3, seed=seed))[0]
        assert (y @ other - z).square().mean() > apart


def test_an_aligning_transform_of_flat_rows_is_still_invertible():
    z = randn(50, 2)
    transform = Affine.aligning(z, torch.stack([z[:, 0], z[:, 0]], 1))
    x, _ = transform.to_data(z)
    close(transform.to_base(x)[0], z, 1e-4)


def test_the_total_correlation_of_gaussian_columns_is_that_of_their_correlation_matrix():
    factor = values(1.0, 0.0, 0.8, 0.6).reshape(2, 2)  # a correlation of 0.8
    shared = gaussian_total_correlation(randn(200_000, 2) @ factor.T)
    assert shared == pytest.approx(-0.5 * math.log(1 - 0.8**2), abs=0.01)
    assert gaussian_total_correlation(randn(9, 1) @ values(1.0, 2.0)[None]) == math.inf


def test_half_whitening_leaves_the_root_of_each_principal_variance():
    x = randn(5000, 3) @ values(1.0, 0.0, 0.0, 0.8, 0.6, 0.0, 0.5, 0.1, 0.02).reshape(3, 3).T * values(1.0, 50.0, 0.1)
    y, log_det = Affine.half_whitening(x).to_base(x)
    variances = torch.linalg.eigvalsh(torch.corrcoef(x.T))
    close(torch.cov(y.T, correction=0), variances.sqrt().diag(), 1e-9)
    whole, none = Whiten.of(x).to_base(x)[1], Standardize.of(x).to_base(x)[1]
    close(log_det, (whole + none) / 2, 1e-9)


@pytest.mark.parametrize("shape", ["uniform", "exponential", "two peaks", "heavy tails"])
def test_gaussianized_columns_are_nearly_normal(shape):
    u = torch.rand(4000, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    x = {
        "uniform": u, "exponential": -u.log(), "two peaks": torch.where(u < 0.5, -3, 3) + 0.3 * randn(4000, 1),
        "heavy tails": (torch.pi * (u - 0.5)).tan(),
    }[shape]  # fmt: skip
    z = Gaussianize.of(x).to_base(x)[0]
    probabilities = torch.linspace(0.02, 0.98, 49, dtype=F64)
    close(torch.quantile(z, probabilities), torch.special.ndtri(probabilities), 0.15)


def test_gaussianize_continues_linearly():
    transform = Gaussianize.of(randn(500, 1).exp())
    far = torch.tensor([[-1e3], [-2e3], [1e3], [2e3]], dtype=F64)
    z, log_det = transform.to_base(far)
    close((z[1] - z[0])[0], -1e3 * log_det[0].exp(), 1e-6)
    close((z[3] - z[2])[0], 1e3 * log_det[2].exp(), 1e-6)
    close(transform.to_data(z)[0], far, 1e-9)


def test_gaussianize_bounds_its_slope_at_tied_values():
    x = torch.cat([torch.zeros(900, 1, dtype=F64), randn(100, 1)])
    transform = Gaussianize.of(x)
    assert float(transform.to_base(x)[1].exp().max()) < 2 * MAX_SLOPE / float(x.std())


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_gaussianize_takes_few_rows_and_constants(rows):
    x = torch.cat([randn(rows, 1), torch.ones(rows, 1, dtype=F64)], 1)
    transform = Gaussianize.of(x)
    z, log_det = transform.to_base(x)
    assert bool(z.isfinite().all() & log_det.isfinite().all())
    close(transform.to_data(z)[0], x, 1e-9)


def test_gaussianize_maps_each_element_of_an_event_by_itself():
    x = randn(300, 2, 3).exp() * torch.arange(1.0, 7.0, dtype=F64).reshape(2, 3)
    transform = Gaussianize.of(x)
    assert transform.x.shape == (2, 3, KNOTS)
    one = Gaussianize.of(x[:, 1, 2:])
    close(transform.to_base(x)[0][:, 1, 2:], one.to_base(x[:, 1, 2:])[0], 1e-14)


def test_gaussianize_is_robust_to_an_outlier():
    x = randn(800, 1)
    x[5] = 1e6
    z = Gaussianize.of(x).to_base(x)[0]
    low, high = torch.quantile(z, torch.tensor([0.25, 0.75], dtype=F64))
    assert 1.2 < float(high - low) < 1.5
    assert float(z[5]) > float(z[:5].max())


def test_gaussianize_keeps_unseen_rows_within_the_range_of_their_distribution():
    x, new = randn(200, 1), randn(20_000, 1, seed=7)
    assert float(Gaussianize.of(x).to_base(new)[0].abs().max()) < 8  # the law's own is 4


def test_gaussianize_keeps_the_knots_of_a_column_far_from_zero_apart():
    x = 1e15 + randn(500, 1)
    z, log_det = Gaussianize.of(x).to_base(x)
    assert bool(z.isfinite().all() & log_det.isfinite().all())
