"""The costate and the Jacobian along the paths, against the closed form of a linear field."""

import pytest
import torch
from oracles import F64, LinearDynamics, close, linear, randn

from ffjord_kit import CNF, Flow, Standardize
from ffjord_kit.diagnostics import control_path, diagnose
from ffjord_kit.transforms import Whiten


def gaussian_path(field, x, times):
    """Norms of the score of p_t, and singular values of dx(t)/dx(1), for a linear field over a standard normal base."""
    costate, values = [], []
    for time in times.tolist():
        here = field.flow(x, 1.0, time) if time < 1 else x
        growth = torch.matrix_exp(field.a * field.reach(0.0, time))
        z = field.flow(here, time, 0.0) if time > 0 else here
        costate.append((z @ torch.linalg.inv(growth)).norm(dim=1))  # E^-T z: the score is -(E E^T)^-1 (x - m)
        values.append(torch.linalg.svdvals(torch.matrix_exp(field.a * -field.reach(time, 1.0))).expand(len(x), -1))
    return torch.stack(costate), torch.stack(values)


@pytest.mark.parametrize("rate", [0.0, 0.7])
def test_they_are_those_of_a_linear_field(rate):
    field, x = linear(3, rate=rate), randn(4, 3, seed=5)
    path = control_path(Flow([CNF(field, (3,))]).double(), x, times=5)
    costate, values = gaussian_path(field, x, path.times)
    close(path.times, torch.linspace(1, 0, 5, dtype=F64), 1e-15)
    close(path.costate, costate.detach(), 1e-4)
    close(path.largest, values[..., 0].detach(), 1e-4)
    close(path.smallest, values[..., -1].detach(), 1e-4)


def test_the_costate_is_the_score_of_the_flow_at_each_time():
    """With two continuous transforms and an exact one between them."""
    whiten = Whiten(randn(2), torch.tensor([[0.8, 0.0], [0.4, 1.3]], dtype=F64))
    flow = Flow([CNF(linear(2, seed=1), (2,)), whiten, CNF(linear(2, seed=2), (2,))]).double()
    x = randn(3, 2)
    path = control_path(flow, x, times=4)
    states = flow.trajectory(x, path.times.tolist()).x.detach()
    for time, state, size in zip(path.times.tolist(), states, path.costate, strict=True):
        point = state.clone().requires_grad_()
        score = torch.autograd.grad(flow.log_prob(point, time=time).sum(), point)[0]
        close(size, score.norm(dim=1), 1e-3)


@pytest.mark.slow
def test_a_field_that_stretches_a_lot_is_named_by_the_diagnosis():
    field = LinearDynamics(torch.diag(torch.tensor([6.0, -6.0], dtype=F64)))
    flow = Flow([CNF(field, (2,))]).double()
    x = flow.sample(40, generator=torch.Generator().manual_seed(0))
    finding = diagnose(flow, x)["gradient along the path"]
    assert finding.verdict == "fair"  # exp(6) = 403
    assert "singular values of the Jacobian from 0.0025 to 4e+02" in finding.measured
    assert "regularize" in finding.remedy


def test_the_flow_stays_as_it_is_and_its_preprocessing_is_passed():
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    flow = Flow([CNF(linear(2).float(), (2,))], preprocess=[Standardize.of(100 * x)])
    path = control_path(flow, 100 * x)
    inner = control_path(Flow(list(flow.transforms)), flow.preprocess.to_base(100 * x)[0].float())
    close(path.costate, inner.costate, 1e-5)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in flow.parameters())
    with torch.no_grad():
        close(control_path(flow, 100 * x).costate, path.costate, 1e-12)


BAD = {
    "expected a flow with a continuous transform; got none": lambda: control_path(
        Flow([Standardize(torch.zeros(2), torch.ones(2))]), torch.zeros(3, 2)
    ),
    "times must be at least 2; got 1": lambda: control_path(Flow([CNF(linear(2), (2,))]), randn(3, 2), times=1),
    "expected events of shape (batch >= 1, 2); got (3, 4)": lambda: control_path(
        Flow([CNF(linear(2), (2,))]), randn(3, 4)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_one_line(message):
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
