"""The layer that makes columns normal: what it does to the shapes that data have; its contract is with the layers'."""

import pytest
import torch
from ffjord_kit.gaussianize import KNOTS, STEEPEST, Gaussianize
from oracles import F64, close, randn


@pytest.mark.parametrize("shape", ["uniform", "exponential", "two peaks", "heavy tails"])
def test_columns_become_nearly_normal(shape):
    u = torch.rand(4000, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    x = {
        "uniform": u, "exponential": -u.log(), "two peaks": torch.where(u < 0.5, -3, 3) + 0.3 * randn(4000, 1),
        "heavy tails": (torch.pi * (u - 0.5)).tan(),
    }[shape]  # fmt: skip
    z = Gaussianize.of(x).to_base(x)[0]
    probabilities = torch.linspace(0.02, 0.98, 49, dtype=F64)
    close(torch.quantile(z, probabilities), torch.special.ndtri(probabilities), 0.15)


def test_it_goes_on_in_straight_lines():
    layer = Gaussianize.of(randn(500, 1).exp())
    far = torch.tensor([[-1e3], [-2e3], [1e3], [2e3]], dtype=F64)
    z, log_det = layer.to_base(far)
    close((z[1] - z[0])[0], -1e3 * log_det[0].exp(), 1e-6)
    close((z[3] - z[2])[0], 1e3 * log_det[2].exp(), 1e-6)
    close(layer.to_data(z)[0], far, 1e-9)


def test_ties_are_not_followed():
    x = torch.cat([torch.zeros(900, 1, dtype=F64), randn(100, 1)])
    layer = Gaussianize.of(x)
    assert float(layer.to_base(x)[1].exp().max()) < 2 * STEEPEST / float(x.std())


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_few_rows_and_constants_give_a_map_too(rows):
    x = torch.cat([randn(rows, 1), torch.ones(rows, 1, dtype=F64)], 1)
    layer = Gaussianize.of(x)
    z, log_det = layer.to_base(x)
    assert bool(z.isfinite().all() & log_det.isfinite().all())
    close(layer.to_data(z)[0], x, 1e-9)


def test_elements_of_any_event_have_maps_of_their_own():
    x = randn(300, 2, 3).exp() * torch.arange(1.0, 7.0, dtype=F64).reshape(2, 3)
    layer = Gaussianize.of(x)
    assert layer.x.shape == (2, 3, KNOTS)
    one = Gaussianize.of(x[:, 1, 2:])
    close(layer.to_base(x)[0][:, 1, 2:], one.to_base(x[:, 1, 2:])[0], 1e-14)


def test_one_outlier_does_not_flatten_the_others():
    x = randn(800, 1)
    x[5] = 1e6
    z = Gaussianize.of(x).to_base(x)[0]
    low, high = torch.quantile(z, torch.tensor([0.25, 0.75], dtype=F64))
    assert 1.2 < float(high - low) < 1.5
    assert float(z[5]) > float(z[:5].max())


def test_rows_that_were_not_seen_are_no_further_out_than_their_law_says():
    x, new = randn(200, 1), randn(20_000, 1, seed=7)
    assert float(Gaussianize.of(x).to_base(new)[0].abs().max()) < 8  # the law's own is 4


def test_a_column_far_from_zero_keeps_its_knots_apart():
    x = 1e15 + randn(500, 1)
    z, log_det = Gaussianize.of(x).to_base(x)
    assert bool(z.isfinite().all() & log_det.isfinite().all())
