r"""The Hessian of a loss by the weights: its largest eigenvalues, its spectral density and its trace.

The matrix H, (p, p), is known by its products H v alone (see `weight_loss`).

    eigenvalues   Lanczos' method with restarts (ARPACK); stated with the residual |H v - lambda v|, within which an
                  eigenvalue of H lies
    density       phi(s) = 1/p sum_i delta(s - lambda_i) by stochastic Lanczos quadrature: m steps of Lanczos' method
                  from a random vector v of length one give nodes s_j and weights tau_j with sum_j tau_j f(s_j) =
                  v^T f(H) v exactly for polynomials f up to degree 2 m - 1; the mean over n random vectors is phi,
                  their scatter its error
    trace         p times the mean of v^T H v over the same vectors

References:
    Yao, Gholami, Keutzer & Mahoney 2020, PyHessian, https://arxiv.org/abs/1912.07145.
    Yao, Gholami, Lei, Keutzer & Mahoney 2018, Hessian-based analysis of large batch training and robustness to
        adversaries, https://arxiv.org/abs/1802.08241.
    Lehoucq, Sorensen & Yang 1998, ARPACK users' guide; Ubaru, Chen & Saad 2017, SIAM J. Matrix Anal. Appl. 38(4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from ffjord_kit.diagnostics.weight_loss import WeightLoss, random_vector

ENDS = {"largest": "LA", "smallest": "SA", "magnitude": "LM", "both": "BE"}
SMALL = 32  # weights, up to which the whole matrix is formed
LOST = 1e-10  # relative norm of a Lanczos vector in which nothing but rounding is left


@dataclass(frozen=True)
class Eigenvalues:
    """Eigenvalues of a Hessian from an end of its spectrum, the outermost first; from both ends, in ascending order.

    Attributes:
        values: Eigenvalues, shape (k,).
        vectors: Eigenvectors of length one, shape (k, p).
        errors: Largest error of each eigenvalue: |H v - lambda v|, shape (k,).
        products: Number of products with the Hessian that this took.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> loss = WeightLoss(model, lambda net: (net.weight**2 * torch.tensor([1.0, 3.0])).sum())
        >>> found = top_eigenvalues(loss, 2)
        >>> found.values.tolist(), found.vectors.shape
        ([6.0, 2.0], torch.Size([2, 2]))
    """

    values: np.ndarray
    vectors: Tensor
    errors: np.ndarray
    products: int


@dataclass(frozen=True)
class SpectralDensity:
    """The distribution of a Hessian's eigenvalues, by stochastic Lanczos quadrature.

    Attributes:
        nodes: Nodes s of each random vector, shape (n, m).
        weights: Their weights, which sum to one, shape (n, m).
        size: Number p of eigenvalues.
        products: Number of products with the Hessian that this took.

    Example:
        >>> found = SpectralDensity(np.array([[-1.0, 2.0]] * 2), np.array([[0.25, 0.75]] * 2), 8, 4)
        >>> found.trace  # 8 eigenvalues, a quarter of them -1 and the others 2
        (10.0, 0.0)
    """

    nodes: np.ndarray
    weights: np.ndarray
    size: int
    products: int

    @property
    def trace(self) -> tuple[float, float]:
        """The trace, and its standard error."""
        return self.sum_of(self.nodes)

    def sum_of(self, values: np.ndarray) -> tuple[float, float]:
        """Return the sum over all eigenvalues of a function of them.

        Args:
            values: The function at the nodes, shape (n, m).

        Returns:
            The sum, and its standard error over the random vectors; NaN for one vector.

        Example:
            Eigenvalues above zero:

            >>> spectrum = SpectralDensity(np.array([[-1.0, 2.0]] * 2), np.array([[0.25, 0.75]] * 2), 8, 4)
            >>> spectrum.sum_of(spectrum.nodes > 0)
            (6.0, 0.0)
        """
        sums = self.size * (self.weights * values).sum(1)
        return float(sums.mean()), _standard_error(sums)

    def density(self, grid: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the density, each eigenvalue made a normal distribution.

        Args:
            grid: Points s, shape (g,).
            width: Standard deviation of the normal distributions.

        Returns:
            The density and its standard error, shape (g,); NaN for one random vector.
        """
        distance = (np.asarray(grid)[:, None, None] - self.nodes) / width
        bells = np.exp(-0.5 * distance**2) / (width * math.sqrt(2 * math.pi))
        each = (bells * self.weights).sum(-1)
        return each.mean(1), np.array([_standard_error(row) for row in each])


def top_eigenvalues(
    loss: WeightLoss,
    count: int = 1,
    *,
    end: str = "largest",
    tolerance: float = 1e-4,
    seed: int = 0,
    check: bool = True,
) -> Eigenvalues:
    """Return the outermost eigenvalues of the Hessian with their eigenvectors.

    Args:
        loss: Loss, at the weights that it was made at.
        count: Number k of eigenvalues.
        end: "largest", "smallest", "magnitude", or "both" for half of them from each end.
        tolerance: Relative error of the eigenvalues at which the iteration ends.
        seed: Seed of the first vector.
        check: Whether to refuse a loss that is not twice differentiable.

    Returns:
        Eigenvalues, each with its error, and the number of products.

    Raises:
        ValueError: If the loss is not twice differentiable, an option makes no sense, or the iteration does not end.

    Example:
        >>> points = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> loss = WeightLoss(model, lambda net: net(points).square().sum() / 2)
        >>> top_eigenvalues(loss).values.tolist()
        [4.0]
    """
    _check_options(loss, count, end, tolerance)
    if check:
        loss.check_smooth(seed)
    if loss.size <= max(SMALL, count + 1):
        return _of_the_whole(loss, count, end)
    product = _CountedProduct(loss)
    operator = LinearOperator((loss.size, loss.size), matvec=product, dtype=np.float64)
    start = random_vector(loss, seed).double().cpu().numpy()
    try:
        values, vectors = eigsh(operator, count, which=ENDS[end], tol=tolerance, v0=start)
    except ArpackNoConvergence as error:
        raise ValueError(
            f"the eigenvalues did not settle to {tolerance:g} in {product.count} products: pass a larger tolerance, or "
            "a model in float64"
        ) from error
    chosen = _outermost(values, count, end)
    values, vectors = values[chosen], vectors[:, chosen].T
    errors = [np.linalg.norm(product(v) - value * v) for value, v in zip(values, vectors, strict=True)]
    return Eigenvalues(values, torch.as_tensor(vectors.copy()).to(loss.weights), np.array(errors), product.count)


def hessian_matrix(loss: WeightLoss) -> Tensor:
    """Return the whole Hessian, by p products; for models of some thousand weights at most.

    Args:
        loss: Loss of p weights.

    Returns:
        The matrix, shape (p, p).

    Raises:
        ValueError: If the loss cannot be differentiated twice.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> hessian_matrix(WeightLoss(model, lambda net: net.weight[0, 0] * net.weight[0, 1])).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    rows = [loss.hessian_product(basis) for basis in torch.eye(loss.size).to(loss.weights)]
    return torch.stack(rows)


def spectral_density(
    loss: WeightLoss, *, steps: int = 40, vectors: int = 8, seed: int = 0, check: bool = True
) -> SpectralDensity:
    """Return the distribution of the Hessian's eigenvalues, and its trace, with errors.

    Args:
        loss: Loss, at the weights that it was made at.
        steps: Steps m of Lanczos' method from each random vector; one is enough for the trace.
        vectors: Number n of random vectors.
        seed: Seed of the vectors.
        check: Whether to refuse a loss that is not twice differentiable.

    Returns:
        The spectral density.

    Raises:
        ValueError: If the loss is not twice differentiable, or a number is not a positive whole one.

    Example:
        >>> model = torch.nn.Linear(3, 1, bias=False).double()
        >>> spectrum = spectral_density(WeightLoss(model, lambda net: net.weight.square().sum()), steps=1)
        >>> [round(value, 6) for value in spectrum.trace]  # three eigenvalues of 2, without a standard error
        [6.0, 0.0]
    """
    for name, value in (("steps", steps), ("vectors", vectors)):
        _check_whole(name, value)
    if check:
        loss.check_smooth(seed)
    product = _CountedProduct(loss)
    steps = min(steps, loss.size)
    pairs = [_quadrature(product, start, steps) for start in _signs(loss.size, vectors, seed)]
    nodes, weights = (np.stack(parts) for parts in zip(*pairs, strict=True))
    return SpectralDensity(nodes, weights, loss.size, product.count)


class _CountedProduct:
    """Products with the Hessian as numpy takes them, counted."""

    def __init__(self, loss: WeightLoss) -> None:
        self.loss, self.count = loss, 0

    def __call__(self, vector: np.ndarray) -> np.ndarray:
        self.count += 1
        product = self.loss.hessian_product(torch.as_tensor(vector.reshape(-1)).to(self.loss.weights))
        if not bool(product.isfinite().all()):
            raise ValueError("expected finite second derivatives; the Hessian has others at these weights")
        return product.double().cpu().numpy()


def _of_the_whole(loss: WeightLoss, count: int, end: str) -> Eigenvalues:
    """Decompose the whole matrix of a small model."""
    matrix = hessian_matrix(loss).double().cpu().numpy()
    values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    chosen = _outermost(values, count, end)
    values, rows = values[chosen], vectors[:, chosen].T
    errors = np.linalg.norm(rows @ matrix - values[:, None] * rows, axis=1)
    return Eigenvalues(values, torch.as_tensor(rows.copy()).to(loss.weights), errors, loss.size)


def _outermost(values: np.ndarray, count: int, end: str) -> np.ndarray:
    """Return the places of the outermost eigenvalues at an end of the spectrum."""
    keys = {"largest": -values, "smallest": values, "magnitude": -np.abs(values), "both": values}
    order = np.argsort(keys[end], kind="stable")
    return order[:count] if end != "both" else np.append(order[: count // 2], order[count // 2 - count :])


def _quadrature(product: _CountedProduct, start: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of one random vector, (steps,) each; nodes that are not needed weigh nothing."""
    diagonal, beside = _lanczos(product, start / np.linalg.norm(start), steps)
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    missing = steps - len(values)
    return np.pad(values, (0, missing)), np.pad(vectors[0] ** 2, (0, missing))


def _lanczos(product: _CountedProduct, start: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the diagonal and the one beside it of the Lanczos matrix; it ends early where its space is closed."""
    basis, diagonal, beside = start[None], np.zeros(0), np.zeros(0)
    while True:
        image = product(basis[-1])
        diagonal = np.append(diagonal, basis[-1] @ image)
        size = np.linalg.norm(image)
        for _ in range(2):  # twice is enough to keep the basis orthogonal
            image = image - basis.T @ (basis @ image)
        left = np.linalg.norm(image)
        if len(diagonal) == steps or left <= LOST * size:
            return diagonal, beside
        beside, basis = np.append(beside, left), np.vstack([basis, image / left])


def _signs(size: int, count: int, seed: int) -> np.ndarray:
    """Return random vectors of ones and minus ones, (count, size)."""
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=(count, size))


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _check_options(loss: WeightLoss, count: int, end: str, tolerance: float) -> None:
    _check_whole("count", count)
    if count > loss.size:
        raise ValueError(f"expected at most {loss.size} eigenvalues, as many as weights; got count={count}")
    if end not in ENDS:
        raise ValueError(f"end must be one of {', '.join(ENDS)}; got {end!r}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be between 0 and 1, a relative error; got {tolerance}")


def _check_whole(name: str, value: int) -> None:
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number, at least 1; got {value!r}")
