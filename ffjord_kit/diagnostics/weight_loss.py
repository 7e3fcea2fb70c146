r"""A loss as a function of a model's weights alone, L(w), with its gradient and products with its Hessian.

Rows and noise stay the same from call to call, so that L is one function, whose shape can be looked at. The weights are
one vector, all trained parameters in the order of `model.parameters()`. The model is copied and stays as it is.

A product with the Hessian is the gradient of <grad L, v> for a fixed v (Pearlmutter 1994): it costs about as much as
two gradients and never forms the matrix.

References:
    Pearlmutter 1994, Fast exact multiplication by the Hessian, Neural Computation 6.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ffjord_kit.data import Batch
from ffjord_kit.diagnostics.examination import preprocessed
from ffjord_kit.flow import Flow
from ffjord_kit.noise import keyed_generator
from ffjord_kit.objectives import MaximumLikelihood, Objective, SolvedObjective
from ffjord_kit.ode import FixedSolver, SolveError
from ffjord_kit.trace import ExactTrace

SOLVER = FixedSolver("rk4", steps=16)  # adaptive steps would change with the weights, and L would not be smooth
SHIFT, LARGEST_ERROR = 1e-3, 0.1  # of the check that L is twice differentiable, both relative


class WeightLoss:
    """A loss of a model as a function of its weights.

    Args:
        model: Model; a frozen one counts as trained as a whole.
        value: Function from a model to its loss, (), the same at each call; it is given a copy of the model, in
            evaluation mode. A model in float64 gives eigenvalues to many digits.
        weights: Point w, shape (p,), at which derivatives are taken; the model's own weights if None.

    Raises:
        ValueError: If the model has no parameters, or the weights are not as many as the model's.

    Example:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> line = nn.Linear(1, 1, bias=False)
        >>> loss = WeightLoss(line, lambda model: model(x).square().mean())  # 5 w^2
        >>> loss.hessian_product(torch.ones(1)).tolist()
        [10.0]
    """

    def __init__(self, model: nn.Module, value: Callable[[Any], Tensor], weights: Tensor | None = None) -> None:
        self.closure = _Closure(_ready(model), value)
        trained = [(name, p) for name, p in self.closure.named_parameters() if p.requires_grad]
        if not trained:
            raise ValueError(f"expected a model with parameters; got {type(model).__name__} without any")
        self.names, self.shapes = [name for name, _ in trained], [p.shape for _, p in trained]
        own = torch.cat([p.detach().reshape(-1) for _, p in trained])
        self.weights = own if weights is None else weights.detach().to(own)
        if self.weights.shape != own.shape:
            raise ValueError(f"expected {len(own)} weights, as the model has; got shape {tuple(self.weights.shape)}")
        self.slope: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(
        cls, model: nn.Module, batch: Batch, objective: Objective[Any] | None = None, *, seed: int = 0
    ) -> WeightLoss:
        """Return an objective on a batch as a function of the weights, in float64.

        Args:
            model: A flow, or what else the objective takes.
            batch: Rows in the units of the data, and contexts or targets.
            objective: Objective; by default the negative log-likelihood of a flow, by the exact trace and 16 steps of
                rk4. Likelihoods are in nats and the units of the data. An objective with a solver keeps its steps; its
                gradients go through them.
            seed: Seed of the objective's noise, which is the same at each call.

        Returns:
            The loss.

        Raises:
            ValueError: If the model has no parameters, the rows do not fit it, or an objective is missing.

        Example:
            >>> from ffjord_kit import CNF, ConcatDynamics
            >>> flow = Flow([CNF(ConcatDynamics((2,), hidden=(4,)), (2,))])
            >>> loss = WeightLoss.of(flow, Batch(torch.randn(8, 2)))
            >>> loss.size, loss.gradient().shape
            (28, torch.Size([28]))
        """
        model, units = _ready(model).double(), 0.0
        if isinstance(model, Flow):
            model.check(batch.x, batch.context)
            batch, log_det = preprocessed(model, _in_double(batch))
            if isinstance(objective or MaximumLikelihood(), SolvedObjective):
                units = float(log_det.mean())
        elif objective is None:
            raise ValueError("expected an objective for a model that is no flow, e.g. CrossEntropy(); got none")
        steady = _steady(objective or MaximumLikelihood(ExactTrace()))
        rows = _in_double(batch)

        def value(current: nn.Module) -> Tensor:
            inner = current.inner if isinstance(current, Flow) else current
            return steady.loss(inner, rows, keyed_generator(rows.x.device, seed, "weight loss")).value - units

        return cls(model, value)

    @property
    def size(self) -> int:
        """Number p of weights."""
        return len(self.weights)

    def at(self, weights: Tensor) -> WeightLoss:
        """Return the same loss at other weights.

        Args:
            weights: Weights, shape (p,).

        Returns:
            The loss, whose derivatives are taken there.
        """
        return WeightLoss(self.closure.model, self.closure.value, weights)

    @torch.no_grad()
    def value(self, weights: Tensor | None = None) -> float:
        """Return the loss.

        Args:
            weights: Weights, shape (p,); the point's own if None.

        Returns:
            L(w); NaN where a solve cannot go on.
        """
        try:
            return float(self._evaluate(self.weights if weights is None else weights.to(self.weights)))
        except SolveError:
            return math.nan

    def gradient(self, weights: Tensor | None = None) -> Tensor:
        """Return the gradient.

        Args:
            weights: Weights, shape (p,); the point's own if None.

        Returns:
            grad L(w), shape (p,).
        """
        point = (self.weights if weights is None else weights).detach().clone().requires_grad_()
        with torch.inference_mode(False), torch.enable_grad():
            return _gradient(self._evaluate(point), point, create_graph=False)

    def hessian_product(self, vector: Tensor) -> Tensor:
        """Return the product of the Hessian at the point's weights and a vector.

        The first call records the gradient's graph, which stays in memory; each further one is a way back through it.

        Args:
            vector: Vector v, shape (p,).

        Returns:
            H v, shape (p,).

        Raises:
            ValueError: If the loss cannot be differentiated twice.
        """
        with torch.inference_mode(False), torch.enable_grad():
            if self.slope is None:
                point = self.weights.clone().requires_grad_()
                self.slope = point, _gradient(self._evaluate(point), point, create_graph=True)
            point, slope = self.slope
            if not slope.requires_grad:  # L is linear in the weights
                return torch.zeros_like(vector)
            try:
                (product,) = torch.autograd.grad(slope, point, vector, retain_graph=True, allow_unused=True)
            except RuntimeError as error:
                raise ValueError(f"expected a loss that is twice differentiable: {_line(error)}") from error
            return torch.zeros_like(vector) if product is None else product.detach()

    def check_smooth(self, seed: int = 0) -> None:
        """Refuse a loss whose Hessian, as autograd takes it, is not the change of its gradient.

        The product along a random direction is compared with a difference of gradients. They differ where activations
        have kinks (relu), where a solver's steps change with the weights, and where a way back is approximate.

        Args:
            seed: Seed of the direction.

        Raises:
            ValueError: If they differ by more than a tenth.
        """
        direction = random_vector(self, seed)
        step = SHIFT * float(self.weights.norm().clamp(min=1e-3))
        product = self.hessian_product(direction)
        above, below = (self.gradient(self.weights + sign * step * direction) for sign in (1, -1))
        change = (above - below) / (2 * step)
        error = float((change - product).norm() / (change.norm() + product.norm()).clamp(min=1e-300))
        if error > LARGEST_ERROR:
            raise ValueError(
                "expected a loss that is twice differentiable; its gradient changes otherwise than its Hessian says, "
                f"by {100 * error:.0f} % (kinks as of relu, adaptive steps, approximate ways back): use a smooth "
                "activation and fixed steps with adjoint='backprop', or pass check=False"
            )

    def _evaluate(self, weights: Tensor) -> Tensor:
        parts = weights.split([shape.numel() for shape in self.shapes])
        named = {name: part.reshape(s) for name, part, s in zip(self.names, parts, self.shapes, strict=True)}
        return cast(Tensor, torch.func.functional_call(self.closure, named, ()))


def weight_vector(model: nn.Module) -> Tensor:
    """Return the trained parameters of a model as one vector, as a `WeightLoss` has them.

    Args:
        model: Model; a frozen one counts as trained as a whole.

    Returns:
        A copy, shape (p,).

    Raises:
        ValueError: If the model has no parameters.
    """
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad] or parameters
    if not trained:
        raise ValueError(f"expected a model with parameters; got {type(model).__name__} without any")
    return torch.cat([p.detach().reshape(-1) for p in trained]).clone()


def random_vector(loss: WeightLoss, seed: int) -> Tensor:
    """Return a random direction in the space of the weights.

    Args:
        loss: Loss of p weights.
        seed: Seed.

    Returns:
        A vector of length one, shape (p,).
    """
    noise = torch.randn(loss.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise / noise.norm()).to(loss.weights)


class _Closure(nn.Module):
    """A loss as a module without inputs, whose parameters are the model's."""

    def __init__(self, model: nn.Module, value: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.value = model, value

    def forward(self) -> Tensor:
        """Return the loss, ()."""
        return self.value(self.model)


def _ready(model: nn.Module) -> nn.Module:
    """Copy a model in evaluation mode; a frozen copy is made free as a whole."""
    copied = copy.deepcopy(model).eval()
    return copied if any(p.requires_grad for p in copied.parameters()) else copied.requires_grad_(True)


def _steady(objective: Objective[Any]) -> Objective[Any]:
    """Return an objective whose solver takes steps that do not depend on the weights, and is differentiable twice."""
    if not isinstance(objective, SolvedObjective):
        return objective
    solver = objective.solver or SOLVER
    return objective.with_solver(replace(cast(Any, solver), adjoint="backprop"))


def _in_double(batch: Batch) -> Batch:
    """Return floating numbers in float64; classes stay whole numbers."""
    context = batch.context
    if context is not None and context.is_floating_point():
        context = context.detach().double()
    return Batch(batch.x.detach().double(), context)


def _gradient(value: Tensor, point: Tensor, *, create_graph: bool) -> Tensor:
    if not value.requires_grad:
        raise ValueError("expected a loss that depends on the weights; got one that does not")
    (gradient,) = torch.autograd.grad(value, point, create_graph=create_graph)
    return gradient if create_graph else gradient.detach()


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0]
