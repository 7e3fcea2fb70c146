"""Gradients are checked against finite differences, and a wrong one is found out."""

import pytest
import torch
from oracles import randn
from torch import nn

from ffjord_kit import CNF, DYNAMICS, GRADIENTS, Flow, HutchinsonTrace, Solver, Standardize
from ffjord_kit.diagnostics import check_gradients, gradient_table

SOLVERS = (Solver("dopri5", 1e-6, 1e-6), Solver("rk4", steps=12))


def flow_of(dynamics, **options):
    torch.manual_seed(0)
    flow = Flow([CNF(dynamics, (2,))], **options)
    for p in flow.parameters():
        nn.init.normal_(p, 0.0, 0.1)
    return flow


@pytest.mark.parametrize("word", DYNAMICS)
def test_every_dynamics_has_right_gradients_by_every_way(word):
    flow = flow_of(DYNAMICS[word]((2,), context_dim=1, hidden=(8,)), context_dim=1)
    checks = check_gradients(flow, randn(6, 2).float(), randn(6, 1), solvers=SOLVERS, directions=2)
    assert [(c.solver.method, c.solver.gradient) for c in checks] == [(s.method, g) for s in SOLVERS for g in GRADIENTS]
    for check in checks:
        assert check.failure == ""
        through_fixed_steps = check.solver.steps is not None and check.solver.gradient in ("backprop", "checkpointed")
        assert check.error < (1e-7 if through_fixed_steps else 1e-3)
        assert check.seconds > 0
    assert next(flow.parameters()).dtype is torch.float32  # as it was


def test_a_stochastic_trace_is_checked_with_its_own_noise():
    flow = flow_of(DYNAMICS["concat"]((2,), hidden=(8,)))
    for check in check_gradients(flow, randn(5, 2), trace=HutchinsonTrace(1), solvers=SOLVERS[1:]):
        assert check.error < 1e-3


def test_checkpoints_keep_less_than_backprop():
    flow = flow_of(DYNAMICS["residual"]((2,), hidden=(16, 16)))
    kept = {c.solver.gradient: c.kept_bytes for c in check_gradients(flow, randn(50, 2), solvers=SOLVERS[1:])}
    assert kept["checkpointed"] < kept["backprop"] / 10
    assert kept["adjoint"] < kept["backprop"] / 10


class Cut(nn.Module):
    """Dynamics that lose half of their gradient."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2))

    def forward(self, t, x, context=None):
        return torch.tanh(x @ self.weight) + (x @ self.weight).detach()


def test_a_gradient_that_is_wrong_is_found_out():
    checks = check_gradients(flow_of(Cut()), randn(8, 2), solvers=SOLVERS[1:])
    assert not any(check.good for check in checks)
    assert "no gradient is right to 0.01" in gradient_table(checks)


def test_the_table_names_the_way_for_speed_and_for_memory():
    flow = flow_of(DYNAMICS["concat_squash"]((2,), hidden=(8,)))
    solvers = (Solver("rk4", steps=4), Solver("dopri5_by_row", 1e-5, 1e-5))
    text = gradient_table(check_gradients(flow, randn(6, 2), solvers=solvers, directions=1))
    assert "rk4 x 4" in text
    assert "dopri5_by_row   adjoint: method 'dopri5_by_row' has no adjoint" in text
    assert "for speed, " in text.splitlines()[-1]
    assert "for memory" in text.splitlines()[-1]


def test_a_flow_with_nothing_to_differentiate_is_refused():
    with pytest.raises(ValueError, match="no parameters, so there are no gradients to check"):
        check_gradients(Flow([Standardize.of(randn(5, 2))]), randn(5, 2))
    with pytest.raises(ValueError, match=r"expected events of shape \(batch >= 1, 2\)"):
        check_gradients(flow_of(Cut()), randn(5, 3))
