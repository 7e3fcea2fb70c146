"""Preprocessing is a part of the flow: exact, in float64, wherever the transforms behind it live."""

import copy

import pytest
import torch
from oracles import F64, LearntAffine, SmoothMLP, close, randn

from ffjord_kit.flow import Flow, with_transforms
from ffjord_kit.nn import ConcatSquashDynamics
from ffjord_kit.ode import FixedSolver
from ffjord_kit.transforms import CNF, Logit, Preprocess, Standardize
from ffjord_kit.transforms.cnf import SolveOptions


def scalings():
    lower, upper = torch.tensor([-90.0, -INF], dtype=F64), torch.tensor([90.0, INF], dtype=F64)
    return [Logit(lower, upper), Standardize(randn(2), randn(2, seed=1).exp())]


INF = torch.inf
OF_CONTEXT = Standardize(randn(3, seed=4), randn(3, seed=5).exp())


def a_flow(dtype=F64, *, within=False):
    """The same flow with its fitted transforms as preprocessing, or among its own transforms."""
    torch.manual_seed(0)
    field = ConcatSquashDynamics((2,), hidden=(8,), context_dim=3)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    cnf = CNF(field.double(), (2,), solver=FixedSolver("rk4", 5))
    if within:
        return Flow([*scalings(), cnf], context_dim=3).double()
    flow = Flow([cnf], preprocess=scalings(), context_dim=3, context_preprocess=OF_CONTEXT)
    return flow.to(dtype)


X, CONTEXT = 3 * randn(5, 2, seed=2), randn(5, 3, seed=3)


@pytest.mark.parametrize("time", [1.0, 0.4, 0.0])
def test_preprocessing_is_the_same_as_transforms_of_the_flow(time):
    ours, plain, scaled = a_flow(), a_flow(within=True), OF_CONTEXT.to_base(CONTEXT)[0]
    close(ours.log_prob(X, CONTEXT, time=time), plain.log_prob(X, scaled, time=time), 1e-12)
    draws = [
        flow.sample(5, context, time=time, generator=torch.Generator().manual_seed(0))
        for flow, context in ((ours, CONTEXT), (plain, scaled))
    ]
    close(*draws, 1e-12)


def test_every_call_agrees_with_transforms_of_the_flow():
    ours, plain, scaled = a_flow(), a_flow(within=True), OF_CONTEXT.to_base(CONTEXT)[0]
    times = [1.0, 0.3, 0.6, 0.0]
    mine, theirs = ours.trajectory(X, times, CONTEXT), plain.trajectory(X, times, scaled)
    close(mine.x, theirs.x, 1e-10)
    close(mine.log_prob, theirs.log_prob, 1e-10)
    for call in (
        lambda flow, c: flow.to_base(X, c)[0],
        lambda flow, c: flow.to_base(X, c)[1],
        lambda flow, c: flow.to_data(randn(5, 2), c)[0],
        lambda flow, c: flow.to_data(randn(5, 2), c)[1],
        lambda flow, c: flow.velocity(X, 0.5, c),
        lambda flow, c: flow.score(X, c),
        lambda flow, c: flow.evaluate(X, c, tolerance=1e-8).value,
        lambda flow, c: flow.sample_with_log_prob(5, c, generator=torch.Generator().manual_seed(1))[1],
    ):
        close(call(ours, CONTEXT), call(plain, scaled), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_it_stays_in_float64_while_the_rest_moves(dtype):
    flow = a_flow(dtype)
    assert {buffer.dtype for buffer in flow.preprocess.buffers()} == {F64, torch.bool}
    assert {parameter.dtype for parameter in flow.parameters()} == {dtype}
    log_prob, moved = flow.evaluate_log_prob(X, CONTEXT)
    assert (log_prob.dtype, moved.x.dtype) == (F64, dtype)
    assert flow.sample(3, CONTEXT[0]).dtype == F64
    exact = a_flow().log_prob(X, CONTEXT)
    close(log_prob, exact, 1e-5 if dtype is torch.float32 else 0.0)
    z, log_det = flow.preprocess.to_base(X)
    inner = flow.inner.log_prob(z.to(dtype), flow.preprocess.scale_context(CONTEXT, flow.like))
    assert torch.equal(log_prob, inner.double() + log_det)


def test_moves_and_casts_leave_it_alone():
    preprocess = Preprocess(scalings(), OF_CONTEXT)
    before = copy.deepcopy(preprocess.state_dict())
    for moved in (preprocess.float(), preprocess.half(), preprocess.to("meta"), preprocess.to(torch.float32)):
        assert moved is preprocess
    assert all(torch.equal(value, before[name]) for name, value in preprocess.state_dict().items())


def test_the_callers_transforms_are_copied():
    scaling = Standardize(torch.zeros(2), torch.ones(2))
    preprocess = Preprocess([scaling])
    scaling.mean += 1
    assert preprocess.to_base(torch.zeros(1, 2))[0].tolist() == [[0.0, 0.0]]
    assert scaling.mean.dtype == torch.float32


def test_transforms_with_parameters_are_refused():
    with pytest.raises(ValueError, match="nothing to learn; got LearntAffine with parameters"):
        Flow([], preprocess=[LearntAffine(2)])
    with pytest.raises(ValueError, match="nothing to learn; got LearntAffine with parameters"):
        Flow([CNF(SmoothMLP(), (2,))], context_preprocess=LearntAffine(3), context_dim=3)


def test_an_empty_one_changes_nothing():
    flow = Flow([CNF(SmoothMLP(), (2,), solver=FixedSolver("rk4", 4))])
    assert flow.preprocess.identity
    assert torch.equal(flow.log_prob(X), flow.inner.log_prob(X))
    assert not a_flow().preprocess.identity
    assert not Preprocess([], OF_CONTEXT).identity


def test_a_flow_with_other_transforms_keeps_its_preprocessing():
    flow = a_flow()
    other = with_transforms(flow, [])
    assert other.preprocess is flow.preprocess
    assert other.base is flow.base
    z, log_det = flow.preprocess.to_base(X)
    close(other.log_prob(X, CONTEXT), flow.base.log_prob(z) + log_det, 1e-12)


def test_its_state_is_part_of_the_flows():
    flow, other = a_flow(), a_flow()
    with torch.no_grad():
        for value in flow.state_dict().values():
            value.add_(1) if value.is_floating_point() else None
    other.load_state_dict(flow.state_dict())
    assert torch.equal(other.preprocess.to_base(X)[0], flow.preprocess.to_base(X)[0])


def test_a_flow_without_parameters_maps_and_scores_in_float64():
    flow = Flow([], preprocess=scalings())
    value = flow.log_prob(X)
    assert value.dtype == F64
    close(flow.score(X), torch.autograd.functional.jacobian(lambda x: flow.log_prob(x).sum(), X), 1e-10)
    close(flow.to_data(flow.to_base(X)[0])[0], X, 1e-12)


def test_gradients_go_through_to_the_data():
    flow, x = a_flow(), X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(flow.log_prob(x, CONTEXT).sum(), x)
    close(gradient, a_flow(within=True).score(X, OF_CONTEXT.to_base(CONTEXT)[0]), 1e-10)


def test_a_log_density_needs_a_trace():
    with pytest.raises(ValueError, match="a log-density needs a trace; got trace=None"):
        a_flow().evaluate_log_prob(X, CONTEXT, options=SolveOptions(trace=None))
