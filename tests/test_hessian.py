"""The Hessian of a loss by the weights, against closed forms and against the whole matrix."""

import numpy as np
import pytest
import torch
from torch import nn

from ffjord_kit import CNF, ConcatDynamics, FixedSolver, Flow, FlowMatching, MaximumLikelihood, Standardize
from ffjord_kit.data import Batch
from ffjord_kit.diagnostics import WeightLoss, hessian_matrix, spectral_density, top_eigenvalues
from ffjord_kit.diagnostics.weight_loss import weight_vector
from ffjord_kit.models import LatentODE
from ffjord_kit.trace import HutchinsonTrace


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def least_squares(rows, columns):
    """A linear model, and the eigenvalues of its Hessian 2/n X^T X, the largest first."""
    x, y = randn(rows, columns), randn(rows, 1, seed=1)
    loss = WeightLoss(nn.Linear(columns, 1, bias=False).double(), lambda net: (net(x) - y).square().mean())
    return loss, torch.linalg.eigvalsh(2 / rows * x.T @ x).flip(0).numpy()


class Stretch(nn.Module):
    """The field dx/dt = a x, column by column."""

    def __init__(self, rates):
        super().__init__()
        self.rates = nn.Parameter(torch.tensor(rates))

    def forward(self, t, x, context=None):
        return x * self.rates


class Affine(nn.Module):
    """The field dx/dt = A x + b."""

    def __init__(self, size):
        super().__init__()
        self.matrix, self.shift = nn.Parameter(0.3 * randn(size, size)), nn.Parameter(randn(size, seed=1))

    def forward(self, t, x, context=None):
        return x @ self.matrix.T + self.shift


@pytest.fixture(scope="module")
def deep():
    """A network of 2,000 weights, and its whole Hessian."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 4)).double()
    x, y = randn(64, 4), randn(64, 4, seed=1)
    loss = WeightLoss(net, lambda model: (model(x) - y).square().mean())
    return loss, hessian_matrix(loss)


@pytest.mark.parametrize("columns", [5, 60])
def test_the_spectrum_of_least_squares_is_that_of_the_rows(columns):
    loss, expected = least_squares(100, columns)
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian_matrix(loss).numpy())[::-1], expected, rtol=1e-8)
    found = top_eigenvalues(loss, 3, tolerance=1e-10)
    np.testing.assert_allclose(found.values, expected[:3], rtol=1e-8)
    lowest = top_eigenvalues(loss, 2, end="smallest", tolerance=1e-10)
    np.testing.assert_allclose(lowest.values, expected[::-1][:2], rtol=1e-8)


def test_the_spectrum_of_a_linear_flow_is_its_closed_form():
    """dx/dt = a x gives NLL = sum of a + exp(-2a) <x^2> / 2 + a constant, and a diagonal Hessian."""
    rates, x = [0.3, -0.2, 0.5], 2 * randn(50, 3)
    flow = Flow([CNF(Stretch(rates), (3,))])
    objective = MaximumLikelihood(solver=FixedSolver("rk4", 200))
    found = top_eigenvalues(WeightLoss.of(flow, Batch(x), objective), 3)
    exact_rates = torch.tensor(rates).double()  # as float32 holds them
    expected = (2 * torch.exp(-2 * exact_rates) * x.square().mean(0)).sort(descending=True).values
    np.testing.assert_allclose(found.values, expected.numpy(), rtol=1e-8)


def test_the_hessian_of_an_affine_flow_is_that_of_the_exact_solution():
    field, x = Affine(2), randn(40, 2, seed=2)
    flow = Flow([CNF(field, (2,))])
    loss = WeightLoss.of(flow, Batch(x), MaximumLikelihood(solver=FixedSolver("rk4", 200)))

    def exact(weights):
        matrix = torch.cat([torch.cat([weights[:4].reshape(2, 2), weights[4:, None]], 1), torch.zeros(1, 3).double()])
        z = (torch.cat([x, torch.ones(40, 1).double()], 1) @ torch.matrix_exp(-matrix).T)[:, :2]
        return 0.5 * z.square().sum(1).mean() + weights[0] + weights[3]

    expected = torch.func.hessian(exact)(weight_vector(flow))
    torch.testing.assert_close(hessian_matrix(loss), expected, rtol=1e-8, atol=1e-8)


def test_lanczos_agrees_with_the_whole_matrix_of_two_thousand_weights(deep):
    loss, matrix = deep
    assert loss.size == 2004
    expected = np.linalg.eigvalsh(matrix.numpy())
    found = top_eigenvalues(loss, 5)
    np.testing.assert_allclose(found.values, expected[::-1][:5], rtol=1e-4)
    assert found.products < 200
    lowest = top_eigenvalues(loss, 2, end="smallest")
    np.testing.assert_allclose(lowest.values, expected[:2], rtol=1e-4)
    assert (found.errors < 1e-2 * found.values).all()
    residuals = matrix @ found.vectors.T - found.vectors.T * torch.as_tensor(found.values.copy())
    np.testing.assert_allclose(found.errors, residuals.norm(dim=0).numpy(), atol=1e-10)


def test_the_spectral_density_and_the_trace_lie_within_their_errors(deep):
    loss, matrix = deep
    spectrum = spectral_density(loss, steps=30, vectors=20)
    values = np.linalg.eigvalsh(matrix.numpy())
    assert spectrum.products == 600
    trace, error = spectrum.trace
    assert abs(trace - values.sum()) < 4 * error and error < 0.2 * values.sum()
    squares, error = spectrum.sum_of(spectrum.nodes**2)
    assert abs(squares - np.square(values).sum()) < 4 * error
    width = 0.05 * values.max()
    grid = np.linspace(values.min(), values.max(), 30)
    density, errors = spectrum.density(grid, width)
    bells = np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2).mean(1) / (width * np.sqrt(2 * np.pi))
    assert (np.abs(density - bells) < 4 * errors + 0.02 * bells.max()).all()


def test_equal_eigenvalues_are_all_found_and_lanczos_ends_where_its_space_is_closed():
    """The Hessian is 2 times the identity: one node, a trace without error."""
    loss = WeightLoss(nn.Linear(50, 1, bias=False).double(), lambda net: net.weight.square().sum())
    np.testing.assert_allclose(top_eigenvalues(loss, 3).values, 2.0, rtol=1e-10)
    spectrum = spectral_density(loss, vectors=3)
    assert spectrum.products == 3
    np.testing.assert_allclose(spectrum.trace, (100.0, 0.0), atol=1e-10)


def test_a_loss_without_curvature_has_a_hessian_of_zero():
    loss = WeightLoss(nn.Linear(3, 1).double(), lambda net: net.weight.sum() + net.bias.sum())
    assert top_eigenvalues(loss, 2).values.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("objective", [None, FlowMatching(), MaximumLikelihood(HutchinsonTrace())])
def test_products_are_differences_of_the_gradient_for_every_loss_of_a_flow(objective):
    x = 3 + 2 * randn(30, 2)
    flow = Flow([CNF(ConcatDynamics((2,), hidden=(8,)), (2,))], preprocess=[Standardize.of(x)])
    loss = WeightLoss.of(flow, Batch(x), objective)
    direction, step = randn(loss.size, seed=3), 1e-5
    above, below = (loss.gradient(loss.weights + sign * step * direction) for sign in (1, -1))
    torch.testing.assert_close(loss.hessian_product(direction), (above - below) / (2 * step), rtol=1e-5, atol=1e-7)
    loss.check_smooth()


def test_products_go_through_a_latent_ode():
    rng = np.random.default_rng(0)
    times = [np.sort(rng.uniform(0, 6, 10)) for _ in range(8)]
    model = LatentODE(latent_dim=2, hidden=4, max_steps=3, random_state=0).fit([(t, np.sin(t)) for t in times])
    loss = model.weight_loss()
    loss.check_smooth()
    assert np.isfinite(loss.value()) and bool(loss.hessian_product(loss.weights).any())


def test_the_loss_of_a_flow_is_its_negative_log_likelihood_behind_the_preprocessing():
    x = randn(30, 2)
    flow = Flow([CNF(ConcatDynamics((2,), hidden=(8,)), (2,))])
    expected = -flow.double().log_prob(x, solver=FixedSolver("rk4", 16)).mean().detach()
    assert WeightLoss.of(flow, Batch(x)).value() == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("adjoint", ["checkpointed", "adjoint"])
def test_gradients_that_save_memory_are_replaced_by_those_through_the_steps(adjoint):
    flow = Flow([CNF(ConcatDynamics((2,), hidden=(8,)), (2,), solver=FixedSolver("rk4", 4, adjoint=adjoint))])
    batch = Batch(randn(20, 2))
    fixed = MaximumLikelihood(solver=FixedSolver("rk4", 4, adjoint=adjoint))
    plain = MaximumLikelihood(solver=FixedSolver("rk4", 4))
    vector = randn(WeightLoss.of(flow, batch).size)
    products = [WeightLoss.of(flow, batch, each).hessian_product(vector) for each in (fixed, plain)]
    torch.testing.assert_close(*products)


def test_the_model_and_its_gradients_stay_as_they_are():
    net = nn.Linear(2, 1)
    before = net.weight.detach().clone()
    loss = WeightLoss(net, lambda model: model.weight.square().sum())
    loss.at(loss.weights + 1).gradient()
    assert torch.equal(net.weight, before) and net.weight.grad is None


def test_bad_input_is_refused_in_one_line():
    x = randn(200, 2)
    with pytest.raises(ValueError, match="expected a model with parameters; got Identity without any"):
        WeightLoss(nn.Identity(), lambda net: torch.zeros(()))
    with pytest.raises(ValueError, match="expected a model with parameters; got Flow"):
        WeightLoss.of(Flow([Standardize.of(x)]), Batch(x))
    with pytest.raises(ValueError, match="expected an objective"):
        WeightLoss.of(nn.Linear(2, 1), Batch(x))
    loss = least_squares(10, 3)[0]
    with pytest.raises(ValueError, match="expected 3 weights, as the model has"):
        loss.at(torch.zeros(4))
    with pytest.raises(ValueError, match="at most 3 eigenvalues"):
        top_eigenvalues(loss, 4)
    with pytest.raises(ValueError, match="end must be one of largest"):
        top_eigenvalues(loss, end="top")
    with pytest.raises(ValueError, match="tolerance must be"):
        top_eigenvalues(loss, tolerance=0)
    with pytest.raises(ValueError, match="vectors must be a whole number"):
        spectral_density(loss, vectors=0)


class FirstDerivativeOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


def test_a_loss_that_is_not_twice_differentiable_is_refused():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1)).double(), randn(500, 2)
    kinked = WeightLoss(net, lambda model: (model(x) - x.prod(1, keepdim=True)).abs().mean())
    with pytest.raises(ValueError, match="twice differentiable; its gradient changes otherwise"):
        top_eigenvalues(kinked)
    assert np.isfinite(top_eigenvalues(kinked, check=False).values).all()
    once = WeightLoss(nn.Linear(2, 1).double(), lambda model: FirstDerivativeOnly.apply(model.weight).sum())
    with pytest.raises(ValueError, match="expected a loss that is twice differentiable"):
        spectral_density(once)
