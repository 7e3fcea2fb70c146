"""A flow as a distribution of torch.distributions, alone, wrapped, with contexts and inside other objects."""

import pytest
import torch
from oracles import F64, SmoothMLP, close, randn
from torch import distributions as d
from torch.distributions import constraints

from ffjord_kit.flow import Flow
from ffjord_kit.flow_distribution import FlowDistribution
from ffjord_kit.ode import FixedSolver
from ffjord_kit.transforms import CNF, Logit, Softplus, Standardize, Whiten

INF = torch.inf


def a_flow(context_dim=0, preprocess=(), **options):
    cnf = CNF(SmoothMLP(context_dim=context_dim), (2,), solver=FixedSolver("rk4", 6))
    return Flow([cnf], context_dim=context_dim, preprocess=preprocess, **options).double()


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_the_contexts_leading_axes_are_the_batch_shape(batch):
    flow, context = a_flow(4), randn(*batch, 4)
    law = flow(context)
    assert isinstance(law, d.Distribution)
    assert (law.batch_shape, law.event_shape, law.has_rsample) == (batch, (2,), True)
    x = law.sample((5,))
    assert x.shape == (5, *batch, 2)
    value = law.log_prob(x)
    assert value.shape == (5, *batch)
    rows = context.expand(5, *batch, 4).reshape(-1, 4)
    close(value.flatten(), flow.log_prob(x.reshape(-1, 2), rows), 1e-12)


def test_an_unconditional_flow_has_no_batch_shape_and_one_draw_is_an_event():
    law = a_flow()()
    assert law.batch_shape == ()
    assert law.sample().shape == (2,)
    assert law.log_prob(law.sample()).shape == ()
    assert law.log_prob(law.sample((3, 4))).shape == (3, 4)


def test_log_prob_broadcasts_values_against_contexts():
    flow, context, x = a_flow(4), randn(3, 4), randn(2, seed=5)
    value = flow(context).log_prob(x)
    assert value.shape == (3,)
    close(value, flow.log_prob(x.expand(3, 2), context), 1e-12)
    grid = flow(context[:, None]).log_prob(randn(5, 2))
    assert grid.shape == (3, 5)
    close(grid[1], flow.log_prob(randn(5, 2), context[1].expand(5, 4)), 1e-12)


def test_draws_carry_gradients_only_by_rsample():
    flow, context = a_flow(4), randn(3, 4).requires_grad_()
    law = flow(context)
    assert not law.sample((2,)).requires_grad
    x = law.rsample((2,))
    gradients = torch.autograd.grad(x.square().sum(), [context, *flow.parameters()])
    assert all(bool(gradient.isfinite().all()) and bool((gradient != 0).any()) for gradient in gradients)


def test_the_global_seed_decides_the_draws():
    law = a_flow()()
    torch.manual_seed(3)
    first, second = law.sample((4,)), law.sample((4,))
    torch.manual_seed(3)
    assert torch.equal(law.rsample((4,)).detach(), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("context_dim", [0, 4])
def test_expansion_repeats_the_law_over_a_larger_batch(context_dim):
    flow = a_flow(context_dim)
    law = flow(randn(3, 4) if context_dim else None)
    wide = law.expand([2, 3])
    assert (wide.batch_shape, wide.event_shape) == ((2, 3), (2,))
    x = wide.sample((5,))
    assert x.shape == (5, 2, 3, 2)
    close(wide.log_prob(x), law.log_prob(x), 1e-12)
    assert len(x.reshape(-1, 2).unique(dim=0)) == 30  # every element has a draw of its own


def test_a_plate_of_laws_is_one_event():
    law = d.Independent(a_flow()().expand([3]), 1)
    assert (law.batch_shape, law.event_shape) == ((), (3, 2))
    x = law.rsample((4,))
    assert x.shape == (4, 3, 2)
    close(law.log_prob(x), law.base_dist.log_prob(x).sum(-1), 1e-12)


def test_further_transforms_may_follow():
    law = a_flow()()
    scale = torch.tensor([2.0, 0.5], dtype=F64)
    scaled = d.TransformedDistribution(law, [d.transforms.AffineTransform(1.0, scale)])
    x = scaled.rsample((4,))
    close(scaled.log_prob(x), law.log_prob((x - 1) / scale) - scale.log().sum(), 1e-10)


def test_a_flow_may_be_the_base_of_another():
    inner, scaling = a_flow(), Standardize(randn(2), randn(2, seed=1).exp())
    outer, x = Flow([scaling], base=inner()).double(), randn(4, 2)
    z, log_det = scaling.to_base(x)
    close(outer.log_prob(x), inner.log_prob(z) + log_det, 1e-10)
    assert outer.sample(3).shape == (3, 2)


def test_a_mixture_of_flows_has_the_mean_density():
    flow, context, x = a_flow(4), randn(3, 4), randn(5, 2)
    mixture = d.MixtureSameFamily(d.Categorical(torch.ones(3, dtype=F64)), flow(context))
    expected = (
        torch.stack([flow.log_prob(x, row.expand(5, 4)) for row in context]).logsumexp(0) - torch.tensor(3.0).log()
    )
    close(mixture.log_prob(x), expected.double(), 1e-6)


def test_a_reverse_kl_divergence_falls_as_a_guide_learns():
    target = d.MultivariateNormal(torch.tensor([1.0, -1.0], dtype=F64), 0.5 * torch.eye(2, dtype=F64))
    guide = a_flow()
    optimizer, divergences = torch.optim.Adam(guide.parameters(), 0.05), []
    torch.manual_seed(0)
    for _ in range(40):
        law = guide()
        z = law.rsample((64,))
        divergence = (law.log_prob(z) - target.log_prob(z)).mean()
        optimizer.zero_grad()
        divergence.backward()
        optimizer.step()
        divergences.append(float(divergence.detach()))
    assert sum(divergences[-5:]) < 0.2 * sum(divergences[:5])


def bounds(*values):
    return torch.tensor(values, dtype=F64)


SUPPORTS = {
    "the plane": ([Standardize(bounds(0, 0), bounds(1, 1))], [[-1e9, 1e9]], []),
    "a box": ([Logit(bounds(0, -1), bounds(1, 2))], [[0.5, -0.5], [0.9, 1.9]], [[1.5, 0.0], [0.5, 3.0]]),
    "above": ([Softplus(bounds(1, 2))], [[1.5, 2.5]], [[0.5, 3.0]]),
    "one above": ([Softplus(bounds(-INF, 2))], [[-99.0, 2.5]], [[0.0, 1.0]]),
    "both": ([Logit(bounds(0, -INF), bounds(1, INF)), Softplus(bounds(-INF, 2))], [[0.5, 9.0]], [[2, 9.0], [0.5, 1]]),
}  # fmt: skip


@pytest.mark.parametrize(("preprocess", "inside", "outside"), SUPPORTS.values(), ids=SUPPORTS)
def test_the_support_is_that_of_the_preprocessing(preprocess, inside, outside):
    law = a_flow(preprocess=[*preprocess, Whiten(bounds(0, 0), torch.eye(2, dtype=F64))])()
    assert law.support.event_dim == 1
    assert bool(law.support.check(bounds(*inside)).all())
    assert not bool(law.support.check(bounds(*outside)).any()) or not outside
    x = law.sample((9,))
    assert bool(law.support.check(x).all())
    assert bool(law.log_prob(x).isfinite().all())
    to_support = d.biject_to(law.support)  # as samplers of unconstrained space use it
    assert bool(law.support.check(to_support(randn(7, 2))).all())


def test_the_support_of_a_bounded_transform_of_the_flow_itself_counts_too():
    cnf = CNF(SmoothMLP(), (2,), solver=FixedSolver("rk4", 4))
    law = Flow([Softplus(bounds(0, 0)), cnf]).double()()
    assert isinstance(law.support.base_constraint, type(constraints.greater_than(0)))


def test_the_support_of_images_is_a_box():
    lower, upper = torch.zeros(1, 2, 2, dtype=F64), torch.full((1, 2, 2), 256.0, dtype=F64)
    law = Flow([], preprocess=[Logit(lower, upper)])()
    assert law.support.event_dim == 3
    assert law.support.check(law.sample((3,))).tolist() == [True] * 3


def test_a_solver_of_ones_own_is_used():
    coarse = FlowDistribution(a_flow(), solver=FixedSolver("euler", 1))
    with torch.no_grad():
        assert float((coarse.log_prob(randn(4, 2)) - a_flow()().log_prob(randn(4, 2))).abs().min()) > 1e-4
    assert coarse.expand([2]).solver is coarse.solver


REFUSED = {
    "a missing context": (lambda: a_flow(4)(), r"context must have shape \(..., 4\).*got none"),
    "a surplus context": (lambda: a_flow()(randn(3, 1)), r"context must be None for this flow; got shape \(3, 1\)"),
    "a short context": (lambda: a_flow(4)(randn(3, 2)), r"context must have shape \(..., 4\).*got shape \(3, 2\)"),
    "a wrong event": (lambda: a_flow()().log_prob(randn(5, 3)), r"events of shape \(..., 2\); got \(5, 3\)"),
    "an event to broadcast": (lambda: a_flow()().log_prob(randn(5, 1)), r"events of shape \(..., 2\); got \(5, 1\)"),
    "too few axes": (lambda: a_flow()().log_prob(randn()), r"events of shape \(..., 2\); got \(\)"),
    "values outside": (lambda: a_flow(preprocess=[Softplus(bounds(0, 0))])().log_prob(-bounds([1, 2])), "lie above"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "text"), REFUSED.values(), ids=REFUSED)
def test_calls_that_do_not_fit_are_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()
