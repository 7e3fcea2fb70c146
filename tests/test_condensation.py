"""Condensation of layers: groups, effective neurons, amplitudes and phases in closed form."""

import math

import pytest
import torch
from torch import nn

from ffjord_kit import CNF, Flow, ResidualDynamics
from ffjord_kit.diagnostics.condensation import (
    initial_scale_phase,
    layer_condensation,
    network_condensation,
    relative_change,
)


def bundles(angles, copies, noise=0.0):
    """Rows of two inputs: copies of different lengths along each angle."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.as_tensor(angles, dtype=torch.float64).repeat(copies)
    angle = angle + noise * torch.randn(len(angle), generator=generator, dtype=torch.float64)
    lengths = 1 + torch.arange(len(angle), dtype=torch.float64)
    return lengths[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_bundles_count_as_one_neuron_each(noise):
    layer = layer_condensation(bundles([0.0, 1.0, 2.0, 3.1], 8, noise))
    assert (layer.width, layer.effective) == (32, 4)
    assert layer.groups[:4].unique().numel() == 4
    assert all(layer.groups[place::4].unique().numel() == 1 for place in range(4))
    torch.testing.assert_close(layer.angles[:4], torch.tensor([0.0, 1, 2, 3.1], dtype=torch.float64), rtol=0, atol=0.1)


def test_like_neurons_are_side_by_side_in_the_ordered_matrix():
    layer = layer_condensation(bundles([0.0, 1.5, 3.0], 5))
    blocks = layer.ordered_similarity > 0.999
    expected = torch.block_diag(*[torch.ones(5, 5)] * 3).bool()
    assert torch.equal(blocks, expected)


def test_opposite_neurons_are_alike_for_an_odd_activation_alone():
    rows = bundles([0.3, 0.3 + math.pi], 3)
    assert layer_condensation(rows).effective == 2
    assert layer_condensation(rows, odd=True).effective == 1


def test_amplitudes_and_silent_neurons():
    rows, columns = torch.tensor([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    layer = layer_condensation(rows, columns)
    assert layer.amplitudes.tolist() == [10.0, 1.0, 0.0]
    assert layer.groups.tolist()[2] == -1
    assert layer.effective == 2


def test_a_threshold_of_one_tells_all_but_parallel_neurons_apart():
    rows = torch.cat([bundles([0.0, 0.01], 1), bundles([0.0, 0.01], 1)])
    assert layer_condensation(rows, threshold=1.0).effective == 2
    assert layer_condensation(rows, threshold=0.9).effective == 1


def test_networks_within_a_flow_are_measured():
    torch.manual_seed(0)
    flow = Flow([CNF(ResidualDynamics((2,), hidden=(16, 16)), (2,))])
    with torch.no_grad():
        flow.transforms[0].dynamics.output_layer.weight.normal_()
    (layer,) = network_condensation(flow)
    assert layer.name == "transforms.0.dynamics.input_layer"
    assert (layer.width, layer.effective) == (16, 16)


@pytest.mark.parametrize(
    ("scales", "phase"),
    [
        ((1.0, 1.0), "linear"),  # gamma 0
        ((100**-0.5, 100**-0.5), "critical"),  # gamma 1
        ((100**-1.0, 100**-1.0), "condensed"),  # gamma 2
        ((100**-1.5, 1.0), "linear"),  # gamma 1.5, gamma' 1.5
        ((100**-1.0, 100**-0.5), "critical"),  # gamma 1.5, gamma' 0.5
    ],
)
def test_phases(scales, phase):
    assert initial_scale_phase(*scales, 100)[0] == phase


def test_small_initial_weights_condense_and_large_ones_do_not():
    x = torch.linspace(-1, 1, 10)[:, None]
    y = (3 * x).tanh() - 0.5 * x

    def trained(scale):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 1, bias=False))
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=scale)
        before = network[0].weight.detach().clone()
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(600):
            optimizer.zero_grad()
            (network(x) - y).square().mean().backward()
            optimizer.step()
        return network_condensation(network, odd=True)[0].effective, relative_change(before, network[0].weight.detach())

    (few, far), (many, near) = trained(1e-3), trained(1.0)
    assert few <= 4 < many
    assert far > 10 > near


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: network_condensation(nn.Linear(2, 2)), "hidden layer or more; got Linear"),
        (lambda: layer_condensation(torch.ones(3, 2), threshold=1.5), "threshold must be in"),
        (lambda: initial_scale_phase(0.0, 1.0, 10), "positive scales"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
