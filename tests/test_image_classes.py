"""Classes: hidden at random in training, guidance in sampling, and classification by Bayes' rule."""

import numpy as np
import pytest
import torch
from oracles import randn
from scipy.stats import norm

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.nn import ResidualDynamics
from ffjord_kit.objectives import DropContext, FlowMatching, class_log_probs, guided, one_hot
from ffjord_kit.ode import FixedSolver
from ffjord_kit.training import Phase, TrainConfig, fit_flow
from ffjord_kit.transforms import CNF

SOLVER = FixedSolver("rk4", 12)


@pytest.fixture(scope="module")
def two_classes():
    """A flow of two normal classes at -2 and 2, trained with the class left out of a fifth of the rows."""
    torch.manual_seed(0)
    labels = torch.arange(2000) % 2
    x = randn(2000, 1) + 4.0 * labels[:, None] - 2.0
    flow = Flow([CNF(ResidualDynamics((1,), context_dim=2, hidden=(32, 32)), (1,), solver=SOLVER)], context_dim=2)
    phases = [Phase(DropContext(FlowMatching(), 0.2), 600, 8e-3)]
    fit_flow(flow, x, context=one_hot(labels, 2), schedule=phases, config=TrainConfig(batch_size=256))
    return flow.double().requires_grad_(False)


def drawn(flow, context, n=1500):
    return flow.sample(n, torch.tensor(context).double(), solver=SOLVER, generator=torch.Generator().manual_seed(1))


def test_labels_become_contexts():
    assert one_hot(torch.tensor([1, 0]), 3).tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    with pytest.raises(ValueError, match=r"lie in 0 .. 2; got \(1,\)"):
        one_hot(torch.tensor([3]), 3)


def test_one_network_knows_the_classes_and_the_whole(two_classes):
    assert float(drawn(two_classes, [0.0, 1.0]).mean()) == pytest.approx(2, abs=0.25)
    assert float(drawn(two_classes, [1.0, 0.0]).mean()) == pytest.approx(-2, abs=0.25)
    whole = drawn(two_classes, [0.0, 0.0])
    assert float(whole.mean()) == pytest.approx(0, abs=0.35) and float(whole.std()) == pytest.approx(5**0.5, abs=0.3)


def test_guidance_of_one_changes_nothing_and_more_goes_further(two_classes):
    plain = drawn(two_classes, [0.0, 1.0])
    assert torch.allclose(drawn(guided(two_classes, 1.0), [0.0, 1.0]), plain, atol=1e-9)
    assert torch.allclose(drawn(guided(two_classes, 0.0), [0.0, 1.0]), drawn(two_classes, [0.0, 0.0]), atol=1e-9)
    assert float(drawn(guided(two_classes, 3.0), [0.0, 1.0]).mean()) > float(plain.mean()) + 0.2


def test_bayes_rule_makes_it_a_classifier(two_classes):
    x = torch.linspace(-3, 3, 13).double()[:, None]
    found = class_log_probs(lambda x, c: two_classes.log_prob(x, c, solver=SOLVER), x, 2)
    assert torch.allclose(found.exp().sum(1), torch.ones(13).double())
    both = np.stack([norm.pdf(x[:, 0].numpy(), -2), norm.pdf(x[:, 0].numpy(), 2)], axis=1)
    assert found.exp().numpy() == pytest.approx(both / both.sum(1, keepdims=True), abs=0.12)
    tilted = class_log_probs(lambda x, c: x[:, 0] * 0, x, 2, log_prior=torch.tensor([0.9, 0.1]).log())
    assert tilted[0].exp().tolist() == pytest.approx([0.9, 0.1], abs=1e-6)


def test_what_has_no_context_is_refused():
    flow = Flow([CNF(ResidualDynamics((1,), hidden=(4,)), (1,))])
    with pytest.raises(ValueError, match="guidance needs a conditional flow"):
        guided(flow, 2.0)
    with pytest.raises(ValueError, match="no context to leave out"):
        DropContext(FlowMatching()).loss(flow, Batch(randn(4, 1).float()), torch.Generator())
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\]; got 2"):
        DropContext(FlowMatching(), 2.0)
