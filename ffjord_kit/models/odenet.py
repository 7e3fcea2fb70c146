"""ODENetClassifier and ODENetRegressor: scikit-learn's face of an ODE-Net and of the networks beside it."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.diagnostics import Attack, WeightLoss, attack
from ffjord_kit.diagnostics.corrections import Corrections, class_judge, correct
from ffjord_kit.diagnostics.judgment import Allowed
from ffjord_kit.models.blocks import BLOCKS
from ffjord_kit.models.networks import ODENet
from ffjord_kit.objectives import CrossEntropy, Neighbourhood, Objective, SquaredError, SupervisedLoss, made_robust
from ffjord_kit.ode import ADJOINTS, FINEST_SINGLE, FixedSolver, Solver
from ffjord_kit.training import Phase, TensorData, TrainConfig, fit
from ffjord_kit.training.runtime import pass_on

ROWS_AT_ONCE = 1000
STEADY = FixedSolver("rk4", 16)  # steps that do not depend on the weights
READING: dict[str, Any] = {"dtype": [np.float64, np.float32], "allow_nd": True}  # how scikit-learn checks X
WHOLE_NUMBERS = {"width": 1, "augmented": 0, "layers": 1, "epochs": 1, "batch_size": 1}  # and their least values
NUMBERS = {"tolerance": FINEST_SINGLE, "learning_rate": 1e-10, "weight_decay": 0.0}


class CostPoint(NamedTuple):
    """A score, and what it costs.

    Attributes:
        solver: The solver in a few words.
        nfe: Evaluations of the block's field for a batch, the mean over batches.
        score: Accuracy, or R^2.

    Example:
        >>> point = CostPoint("rk4", 16.0, 0.97)
        >>> print(f"{point.solver}: {point.nfe:g} evaluations, score {point.score}")
        rk4: 16 evaluations, score 0.97
    """

    solver: str
    nfe: float
    score: float


class _ODENetEstimator(BaseEstimator):
    """The verbs of both estimators."""

    def __init__(
        self,
        block: str = "ode",
        *,
        width: int = 64,
        augmented: int = 4,
        layers: int = 6,
        tolerance: float = 1e-3,
        adjoint: str = "backprop",
        epochs: int = 60,
        batch_size: int = 128,
        learning_rate: float = 1e-2,
        weight_decay: float = 0.0,
        robust: float | None = None,
        random_state: Any = None,
        device: str = "cpu",
    ) -> None:
        self.block = block
        self.width = width
        self.augmented = augmented
        self.layers = layers
        self.tolerance = tolerance
        self.adjoint = adjoint
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.robust = robust
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any) -> Any:
        """Learn from rows and their targets.

        Args:
            X: Table (n, columns), or images (n, channels, height, width).
            y: Labels of classes, shape (n,), of a classifier; numbers, shape (n,) or (n, k), of a regressor.

        Returns:
            The estimator itself.

        Raises:
            ValueError: If the data or a parameter cannot be used.
            TrainingDiverged: If numbers are not finite, and lower learning rates do not help.
            KeyboardInterrupt: If Ctrl-C ended the fit; the estimator holds what was reached.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, **READING, **self._reading_targets())
        self.event_shape_ = _event_shape(X)
        targets, outputs = self._encode(np.asarray(y))
        over = (0, *range(2, X.ndim))  # all but the column, or the channel
        self.mean_, deviation = X.mean(over, keepdims=True), X.std(over, keepdims=True)
        self.scale_ = np.where(deviation > 0, deviation, 1.0)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.net_ = self._network(outputs, seed)
        data = TensorData(Batch(self._tensor(X), targets.to(self.device)))
        batch = min(self.batch_size, len(X))
        phase = Phase(self._objective(), max(1, self.epochs * len(X) // batch), self.learning_rate)
        config = TrainConfig(batch_size=batch, weight_decay=self.weight_decay, ema_decay=0.98, seed=seed)
        self.history_ = fit(self.net_, data, [phase], config=config)
        if self.history_.interrupted:
            pass_on(self.history_.signal)
        return self

    def evaluate(self, X: Any, y: Any, *, solver: Solver | None = None) -> CostPoint:
        """Return the score, and what it costs.

        Args:
            X: Rows like the fit's.
            y: Their targets.
            solver: Solver of the trained block; its own if None.

        Returns:
            The score, and the evaluations of the field.

        Raises:
            ValueError: If the data do not fit, or the block is no ODE and a solver is passed.
        """
        outputs, nfe = self._outputs(X, solver)
        label = self.block if solver is None else solver.label
        return CostPoint(label, nfe, float(self._score(np.asarray(y), self._decoded(outputs))))

    def cost_curve(self, X: Any, y: Any, solvers: Sequence[Solver]) -> list[CostPoint]:
        """Return scores against cost: the trained network with other tolerances or numbers of steps.

        Args:
            X: Rows like the fit's.
            y: Their targets.
            solvers: Solvers of the trained block.

        Returns:
            A point for each solver, in their order.

        Raises:
            ValueError: If the data do not fit, or the block is no ODE.
        """
        return [self.evaluate(X, y, solver=solver) for solver in solvers]

    def weight_loss(self, X: Any, y: Any, *, solver: Solver | None = None) -> WeightLoss:
        """Return the loss as a function of the weights, to look at its landscape and Hessian.

        Args:
            X: Rows like the fit's, all of which are computed at once.
            y: Their targets.
            solver: Solver of an ODE; 16 steps of rk4 if None, the block's own steps for separate layers.

        Returns:
            The loss; see `ffjord_kit.diagnostics.WeightLoss`.

        Raises:
            ValueError: If the data do not fit.
        """
        x, targets = self._checked(X).double(), self._checked_targets(y)
        targets = targets.double() if targets.is_floating_point() else targets
        steps, loss = self._steady_solver(solver), self._plain_objective()
        return WeightLoss(copy.deepcopy(self.net_).double(), lambda net: loss.compare(net(x, steps)[0], targets))

    def attack(
        self, X: Any, y: Any, eps: float, *, steps: int = 1, norm: str = "inf", starts: int = 0, seed: int = 0
    ) -> Attack:
        """Search rows near given ones that are predicted as badly as can be.

        Args:
            X: Rows like the fit's.
            y: Their targets.
            eps: Largest move of a row, in standard deviations of each column, or channel, of the fit's rows.
            steps: Steps up the gradient: 1 for the fast gradient sign method, more for projected gradients.
            norm: "inf" for a move of each element by at most eps, "2" for the length of the whole move.
            starts: Number of further searches, each from a random start.
            seed: Seed of the random starts.

        Returns:
            The worst rows found, and their losses; `predict` tells what the estimator makes of them.

        Raises:
            ValueError: If a number makes no sense, or the data do not fit.
        """
        x, targets, solver, loss = self._checked(X), self._checked_targets(y), self._steady_solver(), self._row_loss
        net = copy.deepcopy(self.net_).eval()
        found = attack(
            lambda rows: loss(net(rows, solver)[0], targets), x, Neighbourhood(eps, steps, norm), starts=starts,
            seed=seed,
        )  # fmt: skip
        return replace(found, x=found.x * self.scale_ + self.mean_)

    def predict(self, X: Any) -> np.ndarray:
        """Return predictions.

        Args:
            X: Rows like the fit's.

        Returns:
            Labels, shape (n,), or numbers of the shape of the fit's targets.
        """
        return self._decoded(self._outputs(X)[0])

    @property
    def weight_count(self) -> int:
        """Number of trained weights."""
        check_is_fitted(self, "net_")
        return sum(parameter.numel() for parameter in self.net_.parameters())

    @abstractmethod
    def _encode(self, y: np.ndarray) -> tuple[Tensor, int]:
        """Return targets as the loss takes them, and the number of outputs."""

    @abstractmethod
    def _decoded(self, outputs: Tensor) -> np.ndarray:
        """Return predictions from outputs (n, k)."""

    @abstractmethod
    def _targets(self, y: np.ndarray) -> Tensor:
        """Return targets of a fitted estimator as the loss takes them."""

    @abstractmethod
    def _plain_objective(self) -> SupervisedLoss:
        """Return the loss of the rows as they are."""

    @staticmethod
    @abstractmethod
    def _row_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each row, (n,)."""

    def _objective(self) -> Objective[Any]:
        """Return the loss to train by."""
        plain = self._plain_objective()
        return plain if self.robust is None else made_robust(plain, self.robust)

    @staticmethod
    @abstractmethod
    def _score(y: np.ndarray, predicted: np.ndarray) -> float:
        """Return the score of predictions."""

    def _check_parameters(self) -> None:
        _check_word("block", self.block, BLOCKS)
        _check_word("adjoint", self.adjoint, ADJOINTS)
        for name, least in WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}")
        for name, lowest in NUMBERS.items():
            value = getattr(self, name)
            if not isinstance(value, Real) or not float(value) >= lowest:
                raise ValueError(f"{name} must be a number of at least {lowest:g}; got {value!r}")
        if self.block == "ode" and self.adjoint == "reversible":
            raise ValueError("adjoint 'reversible' walks back by fixed steps: pass block='rk', or adjoint='adjoint'")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            text = f"device must be one that torch has here, e.g. 'cpu' or 'cuda'; got {self.device!r}"
            raise ValueError(text) from error

    def _reading_targets(self) -> dict[str, Any]:
        """Return options of scikit-learn's check of targets."""
        return {}

    def _network(self, outputs: int, seed: int) -> ODENet:
        block, options = BLOCKS[self.block], (self.layers, self.tolerance, self.adjoint)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = ODENet(
                self.event_shape_, outputs, lambda make: block(make, *options), width=self.width,
                augmented=self.augmented,
            )  # fmt: skip
        return net.to(self.device)

    def _tensor(self, X: np.ndarray) -> Tensor:
        return torch.as_tensor((X - self.mean_) / self.scale_, dtype=torch.float32, device=self.device)

    def _checked(self, X: Any) -> Tensor:
        """Return rows like the fit's, standardised."""
        check_is_fitted(self, "net_")
        X = validate_data(self, X, reset=False, **READING)
        if _event_shape(X) != self.event_shape_:
            expected = ", ".join(map(str, ("n", *self.event_shape_)))
            raise ValueError(f"expected X of shape ({expected}), as in the fit; got {X.shape}")
        return self._tensor(X)

    def _checked_targets(self, y: Any) -> Tensor:
        return self._targets(np.asarray(y)).to(self.device)

    def _steady_solver(self, solver: Solver | None = None) -> Solver | None:
        """Return a solver whose steps do not depend on the weights, and whose gradients go through them."""
        own = {"ode": STEADY, "rk": FixedSolver("rk4", self.layers)}
        return solver or own.get(self.block)

    @torch.no_grad()
    def _outputs(self, X: Any, solver: Solver | None = None) -> tuple[Tensor, float]:
        """Return outputs (n, k) in float64 on the CPU, and the mean number of evaluations for a batch."""
        found = [self.net_(rows, solver) for rows in self._checked(X).split(ROWS_AT_ONCE)]
        return torch.cat([outputs for outputs, _ in found]).cpu().double(), float(np.mean([s.nfe for _, s in found]))


class ODENetClassifier(ClassifierMixin, _ODENetEstimator):
    """A classifier whose middle is an ODE, or one of the residual networks beside it.

    Args:
        block: "ode" (adaptive steps), "rk" (fixed rk4 steps), "resnet" or "lm" (layers with weights of their own).
        width: Width of the two hidden layers of the field; of images, the channels.
        augmented: Columns or channels of zeros beside the data; 0 for the plain ODE-Net, which cannot take a class out
            of another that surrounds it.
        layers: Layers of "resnet" and "lm", steps of "rk".
        tolerance: Relative and absolute tolerance of "ode"; the rows of a batch share their steps, so that predictions
            depend on the other rows within it.
        adjoint: Way back of the gradients of "ode" and "rk", a word of ADJOINTS; "adjoint" ("ode") or "reversible"
            ("rk") for memory that does not grow with the steps.
        epochs: Passes over the rows.
        batch_size: Rows of a step.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay of matrices, as AdamW has it.
        robust: Train on the worst point within so much of each row, in standard deviations of the columns; None for the
            rows as they are.
        random_state: Seed, a `numpy.random.RandomState`, or None.
        device: Device of torch, e.g. "cuda".

    Attributes:
        classes_: Labels of the classes, shape (k,).
        net_: The network.
        history_: History of the fit, with the evaluations of the field.

    Example:
        >>> X = np.array([[-1.0], [-2.0], [1.0], [2.0]])
        >>> model = ODENetClassifier(width=8, epochs=40, random_state=0).fit(X, ["a", "a", "b", "b"])
        >>> model.predict(X).tolist()
        ['a', 'a', 'b', 'b']

    References:
        Chen et al. 2018, https://arxiv.org/abs/1806.07366; Dupont et al. 2019, https://arxiv.org/abs/1904.01681.
    """

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the classes.

        Args:
            X: Rows like the fit's.

        Returns:
            Probabilities in the order of `classes_`, shape (n, k).
        """
        return self._outputs(X)[0].softmax(1).numpy()

    def explain(
        self,
        X: Any,
        wanted: Any,
        *,
        reference: Any,
        allow: Sequence[str | int] | None = None,
        stable: float = 0.05,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        **options: Any,
    ) -> Corrections:
        """Find the smallest stable changes of rows after which they are of another class.

        See `ffjord_kit.diagnostics.corrections`; the margin is the output of the wanted class less the highest other
        one.

        Args:
            X: Rows of a table like the fit's.
            wanted: The class that they should be of, or one for each row.
            reference: Rows that set scales and bounds, e.g. those of the fit.
            allow: Columns that may change, by name or number; all if None.
            stable: Distance e, in scales of the columns, within which all changes lead to the class.
            bounds: Least and greatest value of some allowed columns; by default those of the reference rows.
            **options: Those of `ffjord_kit.diagnostics.correct`: draws, confidence, seed, on_progress.

        Returns:
            A correction for each row.

        Raises:
            ValueError: If the data are images, a class or column is not there, or a number is out of range.
        """
        check_is_fitted(self, "net_")
        X, known = (validate_data(self, each, reset=False, **READING) for each in (X, reference))
        if len(self.event_shape_) != 1:
            raise ValueError(f"explain is for tables; this model is of images {self.event_shape_}")
        unknown = [label for label in np.unique(wanted) if label not in self.classes_]
        if unknown:
            raise ValueError(f"no class {str(unknown[0])!r}; the classes are {', '.join(map(str, self.classes_))}")
        places = torch.as_tensor(np.searchsorted(self.classes_, np.broadcast_to(wanted, len(X))))
        names = getattr(self, "feature_names_in_", [f"x{i}" for i in range(X.shape[1])])
        allowed = Allowed.of(known, list(names), allow, bounds)
        return correct(class_judge(self._logits, places), X, allowed, known, stable=stable, **options)

    def _logits(self, points: Tensor) -> Tensor:
        """Return the outputs at points in the units of the data, differentiable."""
        mean, scale = (torch.as_tensor(part, dtype=points.dtype) for part in (self.mean_, self.scale_))
        return self.net_(((points - mean) / scale).float().to(self.device))[0].cpu().double()

    def _encode(self, y: np.ndarray) -> tuple[Tensor, int]:
        kind = type_of_target(y, input_name="y")
        if kind not in ("binary", "multiclass"):
            raise ValueError(
                f"Unknown label type: expected labels of classes, whole numbers or texts, shape (n,); got {kind}: "
                "round them, or use ODENetRegressor"
            )
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"expected labels of two or more classes; got one class, {self.classes_[0]}: add others")
        return self._targets(y), len(self.classes_)

    def _targets(self, y: np.ndarray) -> Tensor:
        known = np.isin(y, self.classes_)
        if y.ndim != 1 or not known.all():
            raise ValueError(f"expected labels of the fit's classes, shape (n,); got {y[~known][:1] or y.shape}")
        return torch.as_tensor(np.searchsorted(self.classes_, y))

    def _decoded(self, outputs: Tensor) -> np.ndarray:
        return self.classes_[outputs.argmax(1).numpy()]

    def _plain_objective(self) -> SupervisedLoss:
        return CrossEntropy()

    @staticmethod
    def _row_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    @staticmethod
    def _score(y: np.ndarray, predicted: np.ndarray) -> float:
        return accuracy_score(y, predicted)


class ODENetRegressor(RegressorMixin, _ODENetEstimator):
    """A regressor whose middle is an ODE, or one of the residual networks beside it.

    It takes the parameters of `ODENetClassifier`. The targets are standardised for training.

    Example:
        >>> X = np.linspace(-1, 1, 20)[:, None]
        >>> model = ODENetRegressor(width=16, epochs=100, random_state=0).fit(X, X[:, 0] ** 2)
        >>> bool(model.score(X, X[:, 0] ** 2) > 0.9)
        True
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _reading_targets(self) -> dict[str, Any]:
        return {"multi_output": True, "y_numeric": True}

    def _encode(self, y: np.ndarray) -> tuple[Tensor, int]:
        self.target_mean_, deviation = y.mean(0), y.std(0)
        self.target_scale_ = np.where(deviation > 0, deviation, 1.0)
        self.target_shape_ = y.shape[1:]
        scaled = self._targets(y)
        return scaled, scaled.shape[1]

    def _targets(self, y: np.ndarray) -> Tensor:
        if y.shape[1:] != self.target_shape_:
            raise ValueError(f"expected targets like the fit's, (n, *{self.target_shape_}); got {y.shape}")
        scaled = (y - self.target_mean_) / self.target_scale_
        return torch.as_tensor(scaled, dtype=torch.float32).reshape(len(y), -1)

    def _decoded(self, outputs: Tensor) -> np.ndarray:
        return outputs.numpy().reshape(len(outputs), *self.target_shape_) * self.target_scale_ + self.target_mean_

    def _plain_objective(self) -> SupervisedLoss:
        return SquaredError()

    @staticmethod
    def _row_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(1)

    @staticmethod
    def _score(y: np.ndarray, predicted: np.ndarray) -> float:
        return r2_score(y, predicted)


def _check_word(name: str, word: Any, known: Collection[str]) -> None:
    if word not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {word!r}")


def _event_shape(X: np.ndarray) -> tuple[int, ...]:
    if X.ndim not in (2, 4):
        raise ValueError(
            "expected X to be a table (n, columns) or images (n, channels, height, width); got shape "
            f"{X.shape}: images of one channel are X[:, None], one column is X.reshape(-1, 1)"
        )
    return tuple(X.shape[1:])
