"""The spectrum of a learned density: closed forms, noise, what is visible, and the reading of it."""

import math

import pytest
import torch

from ffjord_kit import Flow, Standardize
from ffjord_kit.diagnostics import spectrum as module
from ffjord_kit.diagnostics.spectrum import (
    FREQUENCIES,
    characteristic_function,
    check_spectrum,
    density_spectrum,
    mode_errors,
    plane_spectrum,
    sample_spectrum,
    steps_to_learn,
    unit_directions,
)

SQUARE = ((-8.0, 8.0), (-8.0, 8.0))


def normal_log_prob(deviation):
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), deviation)
    return lambda x: normal.log_prob(x).sum(1)


def rows(n, seed=0, size=2):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_characteristic_function_of_two_points_is_a_cosine():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    values = characteristic_function(x, torch.eye(2, dtype=torch.float64), FREQUENCIES)
    torch.testing.assert_close(values[0].real, FREQUENCIES.cos(), rtol=0, atol=1e-14)
    torch.testing.assert_close(values[1].real, torch.ones_like(FREQUENCIES), rtol=0, atol=1e-14)
    assert float(values.imag.abs().max()) < 1e-14


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_directions_are_of_unit_length_and_differ(size):
    directions = unit_directions(size)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(len(directions), dtype=torch.float64))
    overlaps = (directions @ directions.T).abs() - torch.eye(len(directions))
    assert size == 1 or float(overlaps.max()) < 1 - 1e-3


def test_normals_of_two_widths_differ_as_their_closed_forms_do():
    spectrum = plane_spectrum(normal_log_prob(0.8), normal_log_prob(1.0), SQUARE, size=64)
    for ring in (1, 2, 3, 4):  # holds frequencies up to half a step, 2 pi / 16, from its own
        k = float(spectrum.frequencies[ring])
        low, high = (math.expm1(0.18 * (k + shift) ** 2) for shift in (-0.2, 0.2))
        assert low < float(spectrum.relative_error[ring]) < high


def test_the_transform_of_a_normal_on_a_grid_is_its_characteristic_function():
    start = torch.tensor([-8.0, -8.0], dtype=torch.float64)
    values = module._grid_transform(normal_log_prob(1.0), start, 16.0, 64)
    w = torch.fft.fftfreq(64, 0.25, dtype=torch.float64) * 2 * math.pi
    expected = torch.exp(-0.5 * (w[:, None].square() + w[None, :].square()))
    torch.testing.assert_close(values, expected + 0j, rtol=0, atol=1e-10)


def test_rows_and_the_density_that_they_are_drawn_from_agree_up_to_noise():
    spectrum = plane_spectrum(normal_log_prob(1.0), rows(20_000), SQUARE, size=32)
    assert bool(spectrum.visible[:3].all())
    assert not bool(spectrum.unlearned.any())


def test_two_draws_of_one_density_agree_up_to_noise():
    spectrum = sample_spectrum(rows(4000, 1), rows(4000, 2))
    assert check_spectrum(spectrum).verdict == "good"
    assert not bool(spectrum.visible[FREQUENCIES > 6].any())  # exp(-18) is far below the noise


def comb(n, wavelength, depth, seed):
    """A normal with a ripple of a wavelength, by rejection."""
    x = rows(8 * n, seed, 1)
    keep = torch.rand(len(x), 1, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64)
    return x[keep < (1 + depth * (2 * math.pi / wavelength * x).cos()) / 2][:n, None]


def test_a_missing_ripple_is_read_at_its_scale():
    spectrum = sample_spectrum(rows(20_000, 3, 1), comb(20_000, 0.5, 0.9, 4))
    finding = check_spectrum(spectrum)
    near = (FREQUENCIES / (4 * math.pi) - 1).abs() < 0.2
    assert bool(spectrum.unlearned[near].any())
    assert not bool(spectrum.unlearned[FREQUENCIES < 2].any())
    assert finding.verdict == "bad"
    assert "0.5" in finding.measured or "0.6" in finding.measured
    assert "fourier_features" in finding.remedy


def test_a_flow_is_compared_by_its_samples():
    x = rows(3000) * torch.tensor([2.0, 0.1], dtype=torch.float64) + 3
    assert check_spectrum(density_spectrum(Flow([Standardize.of(x)]), x)).verdict == "good"
    wrong = Flow([Standardize(torch.tensor([3.0, 3.0]), torch.tensor([2.0, 0.2]))]).double()
    assert check_spectrum(density_spectrum(wrong, x)).verdict == "bad"


def test_a_constant_column_is_compared_in_its_own_units():
    constant = torch.cat([rows(500), torch.full((500, 1), 3.0)], dim=1)
    assert check_spectrum(sample_spectrum(constant.flip(0), constant)).verdict == "good"
    assert check_spectrum(sample_spectrum(constant + torch.tensor([0.0, 0.0, 1.0]), constant)).verdict == "bad"


def test_records_are_plain():
    record = sample_spectrum(rows(100, 1), rows(100, 2)).record()
    assert len(record["frequencies"]) == len(record["errors"]) == len(FREQUENCIES)
    assert record["errors"][-1] is None


def test_sines_and_their_times():
    grid = torch.arange(120, dtype=torch.float64) / 120
    sines = torch.stack([(2 * math.pi * p * grid).sin() for p in (1, 3, 5)])
    predicted = torch.stack([sines[0], sines[0] + sines[1], sines.sum(0)])
    errors = mode_errors(predicted, sines.sum(0), (1, 3, 5))
    torch.testing.assert_close(errors, 1 - torch.ones(3, 3, dtype=torch.float64).tril(), rtol=0, atol=1e-12)
    assert steps_to_learn([1, 2, 3], errors).tolist() == [1, 2, 3]
    assert steps_to_learn([1, 2], errors[:2]).tolist() == [1, 2, math.inf]


def test_an_error_that_comes_back_does_not_count_as_learned():
    assert steps_to_learn([1, 2, 3, 4], torch.tensor([[0.5], [0.01], [0.5], [0.01]])).tolist() == [4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_spectrum(rows(9), rows(9, size=3)), "same columns"),
        (lambda: sample_spectrum(rows(1), rows(9)), "two rows or more"),
        (lambda: plane_spectrum(normal_log_prob(1.0), rows(9), ((0, 1), (0, 2))), "square"),
        (lambda: mode_errors(torch.zeros(8), torch.ones(8), (1,)), "no part"),
        (lambda: mode_errors(torch.zeros(8), torch.ones(8), (5,)), "10 points or more"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
