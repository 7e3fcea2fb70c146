"""The loss on lines and planes through the weights."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ffjord_kit import CNF, ConcatDynamics, Flow, FlowMatching, Phase, fit_flow, plots
from ffjord_kit.data import Batch
from ffjord_kit.diagnostics import (
    NORMALIZATIONS,
    WeightHistory,
    WeightLoss,
    curvature_on_plane,
    loss_along,
    loss_on_plane,
    principal_plane,
    random_direction,
)

STEPS = np.linspace(-1, 1, 5)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Point(nn.Module):
    """Weights alone."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)


def bowl():
    """The quadratic w^T A w / 2, not convex, at a point w."""
    square = randn(6, 6)
    matrix = square + square.T
    return WeightLoss(Point(randn(6, seed=1)), lambda point: point.weights @ matrix @ point.weights / 2), matrix


def relu_net(scale):
    """A network whose first layer is scaled up and whose second one is scaled down; it computes the same for each."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        net[0].weight.mul_(scale), net[0].bias.mul_(scale), net[2].weight.div_(scale)
    x, y = randn(20, 3), randn(20, 2, seed=1)
    return WeightLoss(net, lambda model: (model(x) - y).square().mean())


def plane_of(loss, normalization):
    directions = torch.stack([random_direction(loss, seed, normalization=normalization) for seed in (0, 1)])
    return loss_on_plane(loss, directions, (STEPS, STEPS))


def test_the_landscape_of_a_quadratic_is_exact():
    loss, matrix = bowl()
    d, e = randn(6, seed=2), randn(6, seed=3)
    line = [float((loss.weights + a * d) @ matrix @ (loss.weights + a * d) / 2) for a in STEPS]
    np.testing.assert_allclose(loss_along(loss, d, STEPS), line, rtol=1e-12)
    plane = loss_on_plane(loss, torch.stack([d, e]), (STEPS, STEPS[:2]))
    for i, a in enumerate(STEPS):
        for j, b in enumerate(STEPS[:2]):
            w = loss.weights + a * d + b * e
            assert plane[i, j] == pytest.approx(float(w @ matrix @ w / 2), rel=1e-12)


def test_the_curvature_of_a_quadratic_is_that_of_its_matrix_everywhere():
    loss, matrix = bowl()
    curvature = curvature_on_plane(loss, torch.stack([randn(6), randn(6, seed=1)]), (STEPS[:2], STEPS[:3]))
    values = np.linalg.eigvalsh(matrix.numpy())
    np.testing.assert_allclose(curvature.ratio, np.full((2, 3), abs(values[0] / values[-1])), rtol=1e-8)


@pytest.mark.parametrize("normalization", ["filter", "layer"])
def test_normalised_pictures_do_not_change_when_one_layer_is_scaled_up_and_the_next_down(normalization):
    np.testing.assert_allclose(
        plane_of(relu_net(10.0), normalization), plane_of(relu_net(1.0), normalization), rtol=1e-10
    )


def test_pictures_without_normalisation_do_change():
    plain, scaled = plane_of(relu_net(1.0), "none"), plane_of(relu_net(10.0), "none")
    assert scaled.max() > 3 * plain.max()


def test_the_line_between_two_models_begins_and_ends_at_their_losses():
    loss, other = relu_net(1.0), relu_net(3.0)
    torch.testing.assert_close(loss.value(), other.value())
    moved = other.at(other.weights + 0.1)
    values = loss_along(loss, moved.weights - loss.weights, [0, 0.5, 1])
    np.testing.assert_allclose(values[[0, 2]], [loss.value(), moved.value()], rtol=1e-12)


def test_a_path_in_a_plane_is_found_with_its_coordinates():
    basis = torch.linalg.qr(randn(50, 2)).Q.T
    angles = torch.linspace(0, 3, 20, dtype=torch.float64)
    coordinates = torch.stack([3 * angles.cos(), angles.sin()], 1)
    path = coordinates @ basis + randn(50, seed=1)
    plane = principal_plane(path)
    assert plane.shares.sum() == pytest.approx(1) and plane.shares[0] > plane.shares[1] > 0
    rebuilt = path[-1] + torch.as_tensor(plane.path) @ plane.directions
    torch.testing.assert_close(rebuilt, path)
    assert np.abs(plane.path[-1]).max() == 0


def test_the_weights_of_a_flow_in_training_are_recorded_in_the_order_of_its_loss():
    x = randn(64, 2)
    flow = Flow([CNF(ConcatDynamics((2,), hidden=(8,)), (2,))])
    history = WeightHistory(flow, every=5)
    fit_flow(flow, x, schedule=[Phase(FlowMatching(), steps=20, learning_rate=1e-2)], on_step=history)
    loss = WeightLoss.of(flow, Batch(x), FlowMatching())
    assert history.weights.shape == (5, loss.size)
    values = [loss.value(weights) for weights in history.weights]
    assert values[-1] < values[0]
    plane = principal_plane(history.weights)
    grid = loss_on_plane(loss, plane.directions, ([0.0], [0.0]))
    assert grid.shape == (1, 1) and grid[0, 0] == pytest.approx(loss.value())


def test_a_loss_is_nan_where_the_flow_cannot_be_solved():
    flow = Flow([CNF(ConcatDynamics((1,), hidden=(4,)), (1,))])
    loss = WeightLoss.of(flow, Batch(randn(5, 1)))
    values = loss_along(loss, torch.full_like(loss.weights, 1e300), [0.0, 1.0])
    assert np.isfinite(values).tolist() == [True, False]


def test_bad_input_is_refused_in_one_line():
    loss, _ = bowl()
    with pytest.raises(ValueError, match="normalization must be one of filter, layer, none; got 'row'"):
        random_direction(loss, normalization="row")
    with pytest.raises(ValueError, match="not all zero"):
        random_direction(loss.at(torch.zeros(6)))
    with pytest.raises(ValueError, match="expected directions of 6 weights"):
        loss_along(loss, torch.ones(5), STEPS)
    with pytest.raises(ValueError, match="finite and not zero"):
        loss_along(loss, torch.zeros(6), STEPS)
    with pytest.raises(ValueError, match="two directions and two lists of steps; got 1, 2"):
        loss_on_plane(loss, torch.ones(1, 6), (STEPS, STEPS))
    with pytest.raises(ValueError, match="three steps or more"):
        principal_plane(torch.ones(2, 6))
    with pytest.raises(ValueError, match="moved in training"):
        principal_plane(torch.ones(4, 6))
    with pytest.raises(ValueError, match="every must be at least 1"):
        WeightHistory(nn.Linear(1, 1), every=0)
    assert set(NORMALIZATIONS) == {"filter", "layer", "none"}


def test_pictures_leave_gaps_where_a_loss_is_not_finite_and_share_their_levels():
    losses = STEPS[:, None] ** 2 + STEPS**2
    holed = np.where(losses > 1.5, np.inf, losses)
    figure = plots.loss_planes({"whole": (STEPS, STEPS, losses), "holed": (STEPS, STEPS, holed)}, path=[[1, 1], [0, 0]])
    panels = figure.axes[:2]
    assert [panel.get_title() for panel in panels] == ["whole", "holed"]
    levels = [panel.collections[0].levels for panel in panels]
    np.testing.assert_array_equal(*levels)
    assert levels[0].min() == 0 and levels[0].max() == 2
    (curve,) = plots.loss_lines(STEPS, {"loss": [np.nan, 1, 2, 3, np.inf]}).axes[0].lines
    assert np.isnan(curve.get_ydata()).tolist() == [True, False, False, False, True]
    figure.canvas.draw(), plots.loss_surface((STEPS, STEPS), losses).canvas.draw()
    density = ([0.0, 1.0], [1.0, 0.1], [0.1, 0.01])
    plots.spectral_densities({"a": density, "b": density}).canvas.draw()


def test_pictures_refuse_what_they_cannot_draw():
    with pytest.raises(ValueError, match="losses must have one curve or more"):
        plots.loss_lines(STEPS, {})
    with pytest.raises(ValueError, match="planes must have one plane"):
        plots.loss_planes({})
    with pytest.raises(ValueError, match=r"bowl must have shape \(5, 5\); got \(2, 2\)"):
        plots.loss_planes({"bowl": (STEPS, STEPS, np.zeros((2, 2)))})
    with pytest.raises(ValueError, match="a finite loss"):
        plots.loss_planes({"bowl": (STEPS, STEPS, np.full((5, 5), np.nan))})
    with pytest.raises(ValueError, match="densities must have one or more"):
        plots.spectral_densities({})


@pytest.mark.slow
@pytest.mark.parametrize("study", ["skips", "batches", "robust"])
def test_each_study_gets_its_rows(study, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    landscapes = importlib.import_module("landscapes")
    for name, value in {
        "LAYERS": 2,
        "ROWS": 20,
        "DIRECTIONS": 2,
        "SIDE": 3,
        "TRAINED_ON": 300,
        "JUDGED_ON": 50,
    }.items():
        monkeypatch.setattr(landscapes, name, value)
    monkeypatch.setattr(landscapes, "STEPS", {"skips": 3, "flow": 3})
    monkeypatch.setattr(landscapes, "EPOCHS", 1)
    method = landscapes.STUDIES[study][-1]
    measures, picture = landscapes.MEASURES[study](method, 0)
    assert all(np.isfinite(value) for value in measures.values())
    rows = [{"method": method, "seed": seed, **measures} for seed in (0, 1)]
    assert landscapes.table(rows).count("\n") == 3 and "± 0" in landscapes.table(rows)
    if picture is not None:
        plots.save(landscapes.DRAWING[study]({method: picture}), tmp_path / "picture.png")
