"""ODE-Nets and the residual networks beside them: blocks are the schemes they claim, and classifiers learn."""

import numpy as np
import pytest
import torch
from oracles import F64, LinearDynamics, close, randn

from ffjord_kit.datasets.images import load_images
from ffjord_kit.models import ODENetClassifier, ODENetRegressor
from ffjord_kit.models.blocks import BLOCKS, LayeredField, MultistepBlock, ODEBlock
from ffjord_kit.models.networks import ConvolutionField
from ffjord_kit.nn import ConcatDynamics
from ffjord_kit.ode import AdaptiveSolver, FixedSolver

QUICK = {"width": 16, "batch_size": 64, "random_state": 0}


def annuli(n, seed):
    """A disc, and a ring around it."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    radius = np.sqrt(np.where(label == 0, rng.uniform(0, 0.25, n), rng.uniform(1, 2.25, n)))
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), label


def layers(count=4):
    return LayeredField([ConcatDynamics((3,), hidden=(5,)).double() for _ in range(count)])


# ---- blocks


def test_the_ode_block_of_a_linear_field_is_a_matrix_exponential():
    field, x = LinearDynamics(randn(3, 3)), randn(5, 3, seed=1)
    y, stats = ODEBlock(field, AdaptiveSolver("dopri5", 1e-10, 1e-10))(x)
    close(y, x @ torch.matrix_exp(field.a).T, 1e-8)
    assert stats.nfe > 0


def test_a_residual_network_adds_its_layers():
    field, x = layers(), randn(5, 3)
    y, stats = ODEBlock(field, FixedSolver("euler", 4), 4.0)(x)
    for layer in field.layers:
        x = x + layer(torch.zeros((), dtype=F64), x)
    close(y, x, 1e-14)
    assert stats.nfe == 4


def test_a_multistep_network_remembers_the_state_before_the_last():
    block, x = MultistepBlock(layers()).double(), randn(5, 3)
    with torch.no_grad():
        block.scheme.unbounded.copy_(randn(4))
    y, stats = block(x)
    before = None
    for layer, k in zip(block.field.layers, block.scheme.memory, strict=True):
        f = layer(torch.zeros((), dtype=F64), x)
        before, x = x, x + f if before is None else (1 - k) * x + k * before + (1 + k) * f
    close(y, x, 1e-13)
    assert stats.nfe == 4


@pytest.mark.parametrize("word", BLOCKS)
def test_every_block_keeps_the_shape_and_gives_each_weight_a_gradient(word):
    torch.manual_seed(0)
    block = BLOCKS[word](lambda: ConvolutionField(4), 3, 1e-3, "backprop")
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    y, stats = block(x)
    assert y.shape == x.shape
    assert stats.nfe >= 3
    gradients = torch.autograd.grad(y.square().sum(), [x, *block.parameters()])
    first_memory = word == "lm"  # whose first k has no state before to weigh
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert first_memory or all(bool((g != 0).any()) for g in gradients)


def test_the_adjoint_gives_the_gradient_of_the_steps():
    x = randn(4, 3)
    field = ConcatDynamics((3,), hidden=(8,)).double()
    found = []
    for adjoint in ("backprop", "adjoint"):
        y, stats = ODEBlock(field, AdaptiveSolver("dopri5", 1e-9, 1e-9, adjoint=adjoint))(x)
        found.append(torch.autograd.grad(y.square().sum(), list(field.parameters())))
        assert (stats.nfe_backward > 0) == (adjoint == "adjoint")
    for one, other in zip(*found, strict=True):
        close(one, other, 1e-6)


# ---- estimators


@pytest.fixture(scope="module")
def nets():
    """A plain and an augmented ODE-Net on nested annuli."""
    x, y = annuli(300, 0)
    return [ODENetClassifier(augmented=k, epochs=40, **QUICK).fit(x, y) for k in (0, 1)]


@pytest.mark.slow
def test_an_augmented_net_separates_nested_annuli_and_a_plain_one_cannot(nets):
    x, y = annuli(20_000, 1)
    plain, augmented = (net.evaluate(x, y) for net in nets)
    assert plain.score < 1  # a homeomorphism of the plane leaves the ring around the disc
    assert augmented.score == 1


@pytest.mark.slow
def test_probabilities_are_those_of_the_predictions(nets):
    x, y = annuli(50, 2)
    p = nets[1].predict_proba(x)
    assert p.shape == (50, 2)
    np.testing.assert_allclose(p.sum(1), 1)
    assert (nets[1].classes_[p.argmax(1)] == nets[1].predict(x)).all()
    assert nets[1].score(x, y) == nets[1].evaluate(x, y).score


@pytest.mark.slow
def test_fewer_steps_cost_less_and_in_the_end_accuracy(nets):
    solvers = [AdaptiveSolver("dopri5", 1e-4, 1e-4), FixedSolver("rk4", 8), FixedSolver("euler", 1)]
    fine, steps, crude = nets[0].cost_curve(*annuli(2000, 3), solvers)
    assert (steps.nfe, crude.nfe) == (32, 1)
    assert abs(fine.score - steps.score) < 0.005
    assert crude.score < fine.score - 0.02
    assert crude.solver == "1 euler step"


@pytest.mark.slow
@pytest.mark.parametrize("word", BLOCKS)
def test_every_block_regresses(word):
    x = np.linspace(-2, 2, 120)[:, None]
    y = np.concatenate([np.sin(2 * x), 100 + 10 * x], 1)
    model = ODENetRegressor(word, layers=3, epochs=120, **QUICK).fit(x, y)
    assert model.predict(x).shape == (120, 2)
    assert model.score(x, y) > 0.95


@pytest.mark.slow
def test_an_rk_net_may_walk_back_by_inverse_steps():
    x, y = annuli(100, 0)
    model = ODENetClassifier("rk", adjoint="reversible", layers=4, epochs=150, **QUICK).fit(x, y)
    assert model.history_.records[0]["nfe_backward"] > 0
    assert model.score(x, y) > 0.9


@pytest.mark.parametrize("word", ["rk", "resnet"])
def test_images_are_classified(word):
    train, test = load_images("digits8"), load_images("digits8:test")
    model = ODENetClassifier(word, layers=2, augmented=0, epochs=4, **QUICK).fit(train.images, train.labels)
    assert model.score(test.images, test.labels) > 0.9
    assert model.history_.records[-1]["step"] == model.history_.step


def test_a_seed_repeats_a_fit():
    x, y = annuli(60, 0)
    first, again = (ODENetClassifier("lm", layers=2, epochs=3, **QUICK).fit(x, y).predict_proba(x) for _ in range(2))
    assert (first == again).all()


def test_labels_may_be_texts():
    x, y = annuli(60, 0)
    model = ODENetClassifier("resnet", layers=2, epochs=2, **QUICK).fit(x, np.array(["disc", "ring"])[y])
    assert set(model.predict(x)) <= {"disc", "ring"}


# ---- bad input

X, Y = annuli(30, 0)
BAD = {
    "expected labels of classes, whole numbers or texts, shape (n,); got continuous: round them, or use": (
        lambda: ODENetClassifier().fit(X, X[:, 0])
    ),
    "expected labels of two or more classes; got one class, 1: add others": (
        lambda: ODENetClassifier().fit(X, np.ones(30, int))
    ),
    "got shape (30, 2, 1): images of one channel are X[:, None]": lambda: ODENetClassifier().fit(X[:, :, None], Y),
    "got 2 x 2: pass them as a table": lambda: ODENetClassifier().fit(np.zeros((30, 1, 2, 2)), Y),
    "inconsistent numbers of samples: [30, 29]": lambda: ODENetClassifier().fit(X, Y[1:]),
    "Input X contains NaN": lambda: ODENetClassifier().fit(X * np.nan, Y),
    "block must be one of ode, resnet, rk, lm; got 'cnn'": lambda: ODENetClassifier("cnn").fit(X, Y),
    "layers must be a whole number of at least 1; got 0": lambda: ODENetClassifier(layers=0).fit(X, Y),
    "augmented must be a whole number of at least 0; got 0.5": lambda: ODENetClassifier(augmented=0.5).fit(X, Y),
    "learning_rate must be a number of at least 1e-10; got 0": lambda: ODENetClassifier(learning_rate=0).fit(X, Y),
    "weight_decay must be a number of at least 0; got 'a'": lambda: ODENetClassifier(weight_decay="a").fit(X, Y),
    "tolerance must be a number of at least 1e-06; got 1e-09": lambda: ODENetClassifier(tolerance=1e-9).fit(X, Y),
    "adjoint must be one of": lambda: ODENetClassifier("lm", adjoint="none").fit(X, Y),
    "adjoint 'reversible' walks back by fixed steps: pass block='rk'": lambda: ODENetClassifier(
        adjoint="reversible"
    ).fit(X, Y),
    "device must be one that torch has here, e.g. 'cpu' or 'cuda'; got 'gpu'": lambda: ODENetClassifier(
        device="gpu"
    ).fit(X, Y),
    "expected X of shape (n, 1, 8, 8), as in the fit; got (1, 1, 9, 8)": lambda: (
        ODENetClassifier("rk", layers=1, epochs=1, width=8)
        .fit(randn(30, 1, 8, 8).numpy(), Y)
        .predict(np.zeros((1, 1, 9, 8)))
    ),
    "separate layers are no ODE, which 1 euler step could solve: leave the solver out": lambda: (
        ODENetClassifier("lm", layers=1, epochs=1).fit(X, Y).evaluate(X, Y, solver=FixedSolver("euler", 1))
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_by_a_line_that_says_what_to_do(message):
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert message in str(error.value)
