"""Neurons of networks: duplicates keep the function and critical points, and merges take them out again."""

import copy

import pytest
import torch
from scipy.optimize import least_squares
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ffjord_kit import CNF, Flow
from ffjord_kit.models.blocks import BLOCKS
from ffjord_kit.models.networks import ODENet
from ffjord_kit.nn import ConcatDynamics, ConcatSquashDynamics, ResidualDynamics
from ffjord_kit.nn.neurons import duplicate_neuron, hidden_neurons, merge_neurons, select_neurons

NETWORKS = {
    "residual": lambda: ResidualDynamics((2,), context_dim=1, hidden=(6, 6, 6)),
    "residual of one layer": lambda: ResidualDynamics((2,), context_dim=1, hidden=(5,)),
    "residual of several widths": lambda: ResidualDynamics((2,), context_dim=1, hidden=(6, 6, 4, 4, 7)),
    "residual of features": lambda: ResidualDynamics(
        (2,), context_dim=1, hidden=(6, 6), fourier_features=2, input_scales=3
    ),
    "concat_squash": lambda: ConcatSquashDynamics((2,), context_dim=1, hidden=(6, 5)),
    "concat": lambda: ConcatDynamics((2,), context_dim=1, hidden=(6, 5)),
}


def drawn(name):
    """A network with every weight at random: some start at zero."""
    torch.manual_seed(0)
    network = NETWORKS[name]().double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return network


def inputs(n=32):
    generator = torch.Generator().manual_seed(1)
    sizes = [(n,), (n, 2), (n, 1)]
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


def loss(network):
    t, x, context = inputs()
    return (network(t, x, context) - x.sin()).square().mean()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_duplicate_keeps_the_function_and_the_gradient(name):
    network = drawn(name)
    loss(network).backward()
    for neurons in hidden_neurons(network):
        number, share = 1, 0.3
        wide = duplicate_neuron(network, neurons, number, share)
        torch.testing.assert_close(loss(wide), loss(network), rtol=0, atol=1e-10)
        torch.testing.assert_close(wide(*inputs()), network(*inputs()), rtol=0, atol=1e-10)
        loss(wide).backward()
        expected = split_gradient(network, neurons, number, share)
        for name, parameter in wide.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-10)


def split_gradient(network, neurons, number, share):
    """The gradient of a network with a duplicate, from that without: rows of the two get their shares."""
    gradient = copy.deepcopy(network).requires_grad_(False)
    for mine, parameter in zip(gradient.parameters(), network.parameters(), strict=True):
        mine.copy_(parameter.grad)
    index = torch.tensor([*range(neurons.count), number])
    gradient = select_neurons(gradient, neurons, index)
    for slot in neurons.feeding:
        start = slot.offset + sum(each.layer == slot.layer and each.offset < slot.offset for each in neurons.feeding)
        for parameter in gradient.get_submodule(slot.layer).parameters():
            parameter[start + number] *= share
            parameter[start + neurons.count] *= 1 - share
    return dict(gradient.named_parameters())


def test_a_critical_point_stays_one():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x = torch.linspace(-2, 2, 6, dtype=torch.float64)[:, None]

    def residual(model):
        return (model(x) - (2 * x).sin()).square().mean()

    def of_weights(weights):
        values = torch.func.functional_call(network, _named(network, weights), (x,))
        return (values - (2 * x).sin()).square().mean()

    found = least_squares(
        lambda w: jacobian(of_weights, torch.as_tensor(w)).numpy(), parameters_to_vector(network.parameters()).detach(),
        lambda w: hessian(of_weights, torch.as_tensor(w)).numpy(), xtol=1e-15, ftol=1e-15, gtol=1e-15,
    )  # fmt: skip
    vector_to_parameters(torch.as_tensor(found.x), network.parameters())
    wide = network
    for number in (0, 2, 3):
        wide = duplicate_neuron(wide, hidden_neurons(wide)[0], number, 0.4)
    for model in (network, wide):
        model.zero_grad()
        residual(model).backward()
        assert max(float(parameter.grad.abs().max()) for parameter in model.parameters()) < 1e-10
    torch.testing.assert_close(residual(wide), residual(network), rtol=0, atol=1e-10)


def _named(network, weights):
    """Pieces of a vector of weights, by name."""
    parameters = dict(network.named_parameters())
    pieces = weights.split([parameter.numel() for parameter in parameters.values()])
    return {name: piece.view_as(parameters[name]) for name, piece in zip(parameters, pieces, strict=True)}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_merge_undoes_a_duplicate(name):
    network = drawn(name)
    for number, neurons in enumerate(hidden_neurons(network)):
        wide = duplicate_neuron(network, neurons, 1, 0.3)
        wider = hidden_neurons(wide)[number]
        kept = torch.arange(neurons.count)
        factors = torch.eye(neurons.count, dtype=torch.float64)
        factors = torch.cat([factors, factors[1:2]])
        merged = merge_neurons(wide, wider, kept, [(factors, torch.zeros(len(factors)))] * len(wider.reading))
        assert hidden_neurons(merged) == hidden_neurons(network)
        torch.testing.assert_close(merged(*inputs()), network(*inputs()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_order_of_neurons_is_free(name):
    network = drawn(name)
    for neurons in hidden_neurons(network):
        index = torch.arange(neurons.count).flip(0)
        torch.testing.assert_close(select_neurons(network, neurons, index)(*inputs()), network(*inputs()))


def test_neurons_are_found_within_flows_and_ode_nets():
    flow = Flow([CNF(ResidualDynamics((2,), hidden=(8, 8)), (2,)), CNF(ConcatDynamics((2,), hidden=(4,)), (2,))])
    assert [neurons.count for neurons in hidden_neurons(flow)] == [8, 4]
    net = ODENet((2,), 3, lambda make: BLOCKS["rk"](make, 2, 1e-3, "backprop"), width=7, augmented=1)
    assert [neurons.count for neurons in hidden_neurons(net)] == [7, 7]
    assert hidden_neurons(nn.Linear(2, 2)) == []


def test_numbers_that_no_neuron_has_are_refused():
    network = drawn("concat")
    with pytest.raises(ValueError, match="from 0 to 5; got"):
        select_neurons(network, hidden_neurons(network)[0], torch.tensor([6]))
