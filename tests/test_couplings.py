"""Couplings: orders of the base points that shorten paths, and leave their distribution unchanged in every context."""

import math

import pytest
import torch
from oracles import F64, close, randn
from scipy.optimize import linear_sum_assignment

from ffjord_kit.objectives.couplings import COUPLINGS, GROUP_SIZE, optimal_transport

SIZES = [1, 2, 3, GROUP_SIZE, GROUP_SIZE + 1, 300]


def cost(start, end, order=None):
    """Return the mean squared distance of pairs."""
    order = range(len(start)) if order is None else order
    return float((start[order] - end).square().reshape(len(end), -1).sum(1).mean())


def classes(n, kinds=3, seed=0):
    return torch.randint(kinds, (n, 1), generator=torch.Generator().manual_seed(seed)).double()


CONTEXTS = {
    "none": lambda n: None,
    "one": lambda n: torch.ones(n, 2, dtype=F64),
    "classes": classes,
    "numbers": lambda n: randn(n, 2, seed=7),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("word", COUPLINGS)
def test_a_coupling_is_a_permutation_that_never_costs_more_and_is_the_same_again(word, n, context):
    start, end, c = randn(n, 3), 2 * randn(n, 3, seed=1) + 1, CONTEXTS[context](n)
    kept = start.clone(), end.clone()
    order = COUPLINGS[word](start, end, c)
    assert order.sort().values.tolist() == list(range(n))
    if context != "numbers":  # the cost of unequal contexts has a term of its own
        assert cost(start, end, order) <= cost(start, end) + 1e-12
    assert torch.equal(order, COUPLINGS[word](start, end, c))
    close(start, kept[0], 0.0)
    close(end, kept[1], 0.0)


@pytest.mark.parametrize("shape", [(2,), (2, 2), (1, 4, 4)])
def test_events_of_any_shape_and_type_are_paired_by_their_distance(shape):
    start, end = randn(16, *shape).float(), randn(16, *shape, seed=1).float().requires_grad_()
    order = optimal_transport(start, end, None)
    exact = linear_sum_assignment(torch.cdist(end.detach().flatten(1), start.flatten(1)).square())[1]
    assert order.tolist() == exact.tolist()


def test_points_that_are_not_finite_keep_their_order():
    start = randn(40, 2)
    start[3] = math.nan
    assert optimal_transport(start, randn(40, 2, seed=1)).tolist() == list(range(40))


def test_each_group_of_a_batch_is_assigned_exactly():
    start, end = randn(3 * GROUP_SIZE + 5, 9), randn(3 * GROUP_SIZE + 5, 9, seed=1)
    order = optimal_transport(start, end)
    for rows in torch.arange(len(start)).split(GROUP_SIZE):
        exact = linear_sum_assignment(torch.cdist(end[rows], start[rows]).square())[1]
        assert order[rows].tolist() == rows[exact].tolist()


def standard_errors(values):
    """Return the mean of values (n,) in its own standard errors."""
    return float(values.mean() / (values.std() / math.sqrt(len(values))))


def coupled(context_of, data_of, batches=60, n=512):
    """Return base points and contexts of many coupled batches, and the share of the cost that the coupling saves."""
    starts, contexts, before, after = [], [], 0.0, 0.0
    for seed in range(batches):
        c, start = context_of(n, seed), randn(n, 2, seed=3 * seed)
        end = data_of(c, randn(n, 2, seed=3 * seed + 1))
        order = optimal_transport(start, end, c)
        before, after = before + cost(start, end), after + cost(start, end, order)
        starts.append(start[order])
        contexts.append(c)
    return torch.cat(starts), torch.cat(contexts), 1 - after / before


def test_the_base_points_of_every_class_stay_standard_normal():
    centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]], dtype=F64)
    x, c, saved = coupled(
        lambda n, seed: classes(n, seed=seed), lambda c, noise: centres[c[:, 0].long()] + noise * (0.3 + 0.5 * c)
    )
    assert saved > 0.15
    for kind in range(3):
        for values in x[c[:, 0] == kind].T:
            assert abs(standard_errors(values)) < 4
            assert abs(standard_errors(values.square() - 1)) < 4
    assert abs(standard_errors(x.prod(1) * (c[:, 0] - 1))) < 4


def test_without_the_context_the_same_batches_would_be_biased():
    x, c, _ = coupled(lambda n, seed: classes(n, kinds=2, seed=seed), lambda c, noise: 4 * c - 2 + 0.5 * noise, 3)
    start, end = randn(512, 2), 4 * c[:512] - 2 + 0.5 * randn(512, 2, seed=1)
    blind = start[optimal_transport(start, end, None)]
    assert standard_errors(blind[:, 0] * (c[:512, 0] - 0.5)) > 10
    assert abs(standard_errors(x[:, 0] * (c[:, 0] - 0.5))) < 4


@pytest.mark.parametrize("bend", [lambda c: 1.5 * c, lambda c: 1.2 * (3 * c).sin()], ids=["line", "wave"])
def test_under_a_context_of_numbers_the_base_points_do_not_follow_it(bend):
    x, c, saved = coupled(
        lambda n, seed: randn(n, 1, seed=3 * seed + 2), lambda c, noise: bend(c) + noise * (0.2 + 0.3 * c.abs())
    )
    assert saved > 0.2
    for wave in (c, (3 * c).sin(), (3 * c).cos()):
        assert abs(standard_errors((x * wave)[:, 0])) < 4
    assert abs(standard_errors((x[:, 0].square() - 1) * (c[:, 0].square() - 1))) < 4
