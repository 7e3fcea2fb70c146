"""Kernels on a sphere against SciPy's distributions, their choice of widths, and fits that begin and end with them."""

import math

import numpy as np
import pytest
import torch
from commands import call
from oracles import randn
from scipy import stats

from ffjord_kit import FFJORD, Category, Sphere
from ffjord_kit.distributions import SphereKernels, fit_kernels
from ffjord_kit.geometry import unit

SKY = {("lon", "lat"): Sphere("deg")}


def kernels(n: int = 5, scale: float = 0.3, uniform: float = 0.2) -> SphereKernels:
    weights = torch.arange(1.0, n + 1).double()
    return SphereKernels((3,), weights / weights.sum(), unit(randn(n, 3)), torch.full((n,), scale).double(), uniform)


def places(rng: np.random.Generator, n: int, centres: int, width: float) -> np.ndarray:
    """Clusters of some degrees: longitudes and latitudes, degrees, (n, 2)."""
    middles = np.column_stack([rng.uniform(-180, 180, centres), rng.uniform(-60, 60, centres)])
    return middles[rng.integers(centres, size=n)] + width * rng.normal(size=(n, 2))


@pytest.mark.parametrize("scale", [0.05, 0.3, 2.0])
def test_the_log_density_is_scipys(scale):
    base, u = kernels(scale=scale), unit(randn(40, 3))
    weights, centres = base.weights[:5].numpy(), base.places[:5].numpy()
    parts = [w * stats.vonmises_fisher(m, scale**-2).pdf(u.numpy()) for w, m in zip(weights, centres, strict=True)]
    expected = np.log(0.2 / (4 * math.pi) + 0.8 * np.sum(parts, axis=0))
    assert base.log_prob(u).numpy() == pytest.approx(expected, abs=1e-6)
    assert base.log_prob(3 * u).numpy() == pytest.approx(expected, abs=1e-6)  # near the sphere, as solvers end


def test_narrow_kernels_keep_their_digits_in_single_precision():
    base = kernels(scale=1e-4).float()
    near = base.places[:5] + torch.tensor([0.0, 5e-5, 0.0])
    assert torch.allclose(base.log_prob(near).double(), base.double().log_prob(near.double()), atol=0.02)


def test_draws_have_the_density():
    base = kernels(scale=0.5)
    u = base.sample(4000, torch.Generator().manual_seed(0))
    assert torch.allclose(u.norm(dim=1), torch.ones(4000).double())
    centre, widths = base.places[0], base.scales[:5]
    v = unit(randn(200_000, 3, seed=1))
    density, value = base.log_prob(v).exp() * 4 * math.pi, v @ centre  # importance weights of uniform points
    assert density.mean().item() == pytest.approx(1.0, abs=4 * density.std().item() / len(v) ** 0.5)
    error = (u @ centre).std().item() / len(u) ** 0.5
    assert (u @ centre).mean().item() == pytest.approx((density * value).mean().item(), abs=4.5 * error)
    assert torch.equal(u, base.sample(4000, torch.Generator().manual_seed(0))) and len(widths) == 5
    alone = SphereKernels((3,))
    assert alone.log_prob(v[:2]).tolist() == pytest.approx([-math.log(4 * math.pi)] * 2)
    assert alone.sample(3).shape == (3, 3)


def test_widths_follow_the_neighbours_and_no_place_vouches_for_itself_nor_for_its_copies():
    u = unit(randn(400, 3) * torch.tensor([1.0, 0.1, 0.1]).double())
    found, twice = fit_kernels(u), fit_kernels(torch.cat([u, u]))
    assert torch.allclose(found.scales, twice.scales) and found.uniform == twice.uniform
    assert torch.allclose(found.weights, twice.weights)
    new = unit(randn(2000, 3, seed=1) * torch.tensor([1.0, 0.1, 0.1]).double())
    here, there = (SphereKernels.of(u).log_prob(each).mean().item() for each in (u, new))
    assert here - there < 1.0  # a kernel of no width would be infinitely likely at its own place
    narrow = SphereKernels((3,), *found[:2], found.scales / 5, found.uniform)
    assert narrow.log_prob(new).mean().item() < there > SphereKernels((3,)).log_prob(new).mean().item()


def test_weights_count_as_copies_and_none_may_be_negative():
    u = unit(randn(60, 3))
    weight = torch.arange(60) % 3
    copies = fit_kernels(torch.cat([u, u[weight == 2]])[torch.cat([weight, torch.ones(20)]) > 0])
    found = fit_kernels(u, weight.double())
    assert len(found.weights) == 80 and torch.allclose(found.weights, copies.weights)
    assert torch.allclose(found.scales, copies.scales)
    with pytest.raises(ValueError, match="no negative weights: choose another base"):
        fit_kernels(u, weight.double() - 1)
    with pytest.raises(ValueError, match="10 places or more that differ; got 1"):
        fit_kernels(u[:1].repeat(9, 1))
    with pytest.raises(ValueError, match=r"of shape \(3,\); got events of \(2,\)"):
        SphereKernels((2,))
    with pytest.raises(ValueError, match="at most 32768 kernels; got 40000"):
        kernels(40_000)


def test_auto_takes_kernels_where_places_cluster_and_a_flow_where_they_do_not(tmp_path):
    rng = np.random.default_rng(0)
    x, new = np.split(places(rng, 2400, 60, 0.5), [1600])
    model = FFJORD(columns=SKY, max_seconds=4, random_state=0).fit(x, columns=["lon", "lat"])
    assert model.model_.config.fields.base == "kernels" and model.model_.flow.base.geometry.spheres
    chosen = next(each["event"] for each in model.history_.records if "chosen" in str(each.get("event")))
    assert "the density is that of the base alone: kernels" in chosen
    assert model.score(new) > 2.0 - math.log(4 * math.pi)
    model.save(tmp_path / "run")
    assert FFJORD.load(tmp_path / "run").score(new) == model.score(new)
    draws = model.sample(500, random_state=0)
    assert model.score(np.asarray(draws)) > 2.0 - math.log(4 * math.pi)
    smooth = np.column_stack([rng.uniform(-180, 180, 2000), np.degrees(np.arcsin(rng.uniform(-1, 1, 2000)))])
    other = FFJORD(columns=SKY, max_seconds=4, random_state=0).fit(smooth, columns=["lon", "lat"])
    assert other.model_.config.fields.base == "normal"


def test_the_command_line_says_that_the_density_is_that_of_kernels(tmp_path, capsys):
    x = places(np.random.default_rng(0), 1200, 20, 0.5)
    np.savetxt(tmp_path / "t.csv", x, delimiter=",", header="lon,lat", comments="")
    fit = ["fit", tmp_path / "t.csv", "--columns", "lon+lat=sphere:deg", "--base", "kernels"]
    code, output, _ = call(capsys, *fit, "--out", tmp_path / "run")
    assert code == 0 and "so the density is that of the base alone: kernels" in output
    code, _, errors = call(capsys, "fit", tmp_path / "t.csv", "--base", "kernels", "--out", tmp_path / "other")
    assert code == 1 and errors.count("\n") == 1 and "is for places on one sphere" in errors
    assert not (tmp_path / "other").exists()


@pytest.mark.filterwarnings("ignore")  # of repeated rows
@pytest.mark.parametrize("rows", [200, 1500])
def test_few_places_get_no_kernels(rows):
    x = places(np.random.default_rng(0), 9, 3, 10.0)[np.arange(rows) % 9]
    model = FFJORD(columns=SKY, max_seconds=2, random_state=0).fit(x, columns=["lon", "lat"])
    assert model.model_.config.fields.base == "normal"


def test_kernels_are_given_and_refused_where_they_make_no_sense():
    rng = np.random.default_rng(0)
    x = places(rng, 1200, 20, 2.0)
    model = FFJORD(columns=SKY, base="kernels", random_state=0).fit(x, columns=["lon", "lat"])
    assert model.history_.step == 1
    for columns, rows in ((None, x), ({**SKY, "z": "positive"}, np.c_[x, rng.random(1200)])):
        with pytest.raises(ValueError, match="base='kernels' is for places on one sphere without other columns"):
            FFJORD(columns=columns, base="kernels").fit(rows, columns=["lon", "lat", "z"][: rows.shape[1]])
    with pytest.raises(ValueError, match="knows no contexts or categories: leave them out"):
        FFJORD(columns=SKY, base="kernels").fit(x, context=rng.random(1200), columns=["lon", "lat"])
    with pytest.raises(ValueError, match="knows no contexts or categories: leave them out"):
        FFJORD(columns={**SKY, "kind": Category()}, base="kernels").fit(
            np.c_[x, rng.integers(2, size=1200)], columns=["lon", "lat", "kind"]
        )
