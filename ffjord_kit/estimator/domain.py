"""Domain: the one place where kinds of data differ.

It checks data, fits the preprocessing and the base, gives the defaults of open fields, and brings draws back to the
form of the data.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ffjord_kit.distributions import Base
from ffjord_kit.estimator.data import Arrays, TrainingData, check_context
from ffjord_kit.estimator.forms import Forms
from ffjord_kit.flow import Flow
from ffjord_kit.objectives import FlowMatching, Objective
from ffjord_kit.trace import TraceEstimator
from ffjord_kit.transforms import CNF, ContextScaling, Transform


class Domain(Forms):
    """A kind of data: how it is checked, preprocessed, trained on, reported and given back.

    Attributes:
        noun: Name of the data in messages.
        networks: Networks by their words.
        dtype: Type in which tolerances of reports must be resolved.
        certify_probes: Least number of probes of log-densities with errors; None for the exact trace.
    """

    noun: ClassVar[str]
    networks: ClassVar[Mapping[str, Callable[..., nn.Module]]]
    dtype: ClassVar[torch.dtype]
    certify_probes: ClassVar[int | None]

    @property
    @abstractmethod
    def event_shape(self) -> tuple[int, ...]:
        """Shape of a row or an image."""

    @property
    def size(self) -> int:
        """Number of columns, or of pixels."""
        return math.prod(self.event_shape)

    @property
    def residual_options(self) -> dict[str, Any]:
        """Options of a residual network that the domain decides."""
        return {}

    @property
    @abstractmethod
    def few_columns(self) -> bool:
        """Whether a solve with the exact trace is cheap."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Return what a run's config keeps of the domain.

        Returns:
            Entries of config.json.
        """

    @abstractmethod
    def defaults(self) -> dict[str, Any]:
        """Return the values of open fields where nothing is tried out.

        Returns:
            Values by field.
        """

    @abstractmethod
    def search_options(self, data: TrainingData, seconds: float) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Yield the fields that schedule auto may try out, and the values to try, the likelier first.

        Args:
            data: Training data.
            seconds: Seconds allowed; may be infinite.

        Yields:
            Fields and values.
        """

    def untrained_bases(self, data: TrainingData) -> tuple[str, ...]:
        """Return the words of bases that may be likelier as they are than a flow that is trained.

        Args:
            data: Training data.

        Returns:
            Words of BASES.
        """
        return ()

    @abstractmethod
    def is_small(self, rows: int) -> bool:
        """Say whether all rows must judge in schedule auto, by cross-validation.

        Args:
            rows: Effective number of rows to train on.

        Returns:
            Whether a part of them would judge badly.
        """

    def fold(self, data: TrainingData, rows: Tensor, judges: Tensor) -> TrainingData:
        """Return a fold of cross-validation, to which all that is fitted is fitted anew.

        Args:
            data: Training data in memory.
            rows: Indices of the rows to train on.
            judges: Indices of those to judge by.

        Returns:
            The fold.
        """
        part = data.fitting[rows]
        return replace(
            data, x=part.x, context=part.context, fitting=part, held_out=data.fitting[judges], conditional=None,
            weight=part.weight, noise=part.noise,
        )  # fmt: skip

    @abstractmethod
    def reason_not_to_search(self) -> str:
        """Return why schedule auto tries nothing out.

        Returns:
            The reason; empty if it does.
        """

    @abstractmethod
    def reason_not_to_step(self) -> str:
        """Return why the flow is not trained in few explicit steps.

        Returns:
            The reason; empty if it is.
        """

    @abstractmethod
    def check_schedule(self, objectives: Sequence[str]) -> None:
        """Check that the flow can be trained by some objectives.

        Args:
            objectives: Words of OBJECTIVES.

        Raises:
            ValueError: If it cannot.
        """

    @abstractmethod
    def matching(self, objective: FlowMatching) -> Objective:
        """Return flow matching as it suits the data.

        Args:
            objective: Flow matching.

        Returns:
            The objective.
        """

    def asked(self, objective: Objective[Any]) -> Objective[Any]:
        """Return an objective of likelihood as it suits the data.

        Args:
            objective: Objective.

        Returns:
            The objective.
        """
        return objective

    @abstractmethod
    def trace(self, *, reported: bool) -> TraceEstimator:
        """Return the trace of reports, or of validations.

        Args:
            reported: Whether a report is made.

        Returns:
            The estimator.
        """

    @abstractmethod
    def training_data(self, arrays: Arrays, fraction: float, seed: int) -> TrainingData:
        """Check data for training, add their noise, and hold some of them out.

        Args:
            arrays: Data.
            fraction: Part of the rows to hold out, in [0, 1).
            seed: Seed of the noise and of the rows held out.

        Returns:
            Training data.

        Raises:
            ValueError: If no density can be fitted to the data, or the fraction is out of range.
        """

    @abstractmethod
    def split(self, x: Any, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the rows that a fit trains on, and of those that it holds out.

        Args:
            x: Data of the fit, shape (n, ...).
            fraction: Part of the rows to hold out.
            seed: Seed of the fit.

        Returns:
            Two arrays of indices.
        """

    @abstractmethod
    def preprocess(self, data: TrainingData, scaling: str) -> list[Transform]:
        """Fit the preprocessing.

        Args:
            data: Training data.
            scaling: Word of the scaling.

        Returns:
            Transforms, from data to base.

        Raises:
            ValueError: If the word is unknown, or the data do not suit it.
        """

    @abstractmethod
    def blank_preprocess(self, scaling: str, context_dim: int) -> list[Transform]:
        """Return the preprocessing before any data, to load weights into.

        Args:
            scaling: Word of the scaling.
            context_dim: Length of a context.

        Returns:
            Transforms, from data to base.
        """

    @abstractmethod
    def base(self, z: Tensor | None, fields: Any, weight: Tensor | None = None) -> Base:
        """Return the base distribution.

        Args:
            z: Preprocessed rows to fit it to, shape (n, *event); None for one to load weights into.
            fields: Settled fields.
            weight: Weights of the rows, shape (n,), or None.

        Returns:
            The base.
        """

    @abstractmethod
    def continuous(
        self, network: Callable[[tuple[int, ...]], nn.Module], blocks: int, options: Mapping[str, Any]
    ) -> list[CNF]:
        """Make the continuous transforms.

        Args:
            network: Maker of a network for an event's shape.
            blocks: Number of transforms in a row.
            options: Options of each CNF.

        Returns:
            Transforms, from data to base.
        """

    @abstractmethod
    def largest_weight(self, hidden: Sequence[int], inputs: int, context_dim: int) -> int:
        """Return a lower bound of the elements of the network's largest weight, by the fields alone.

        Args:
            hidden: Widths.
            inputs: Times that each element of the event enters the network.
            context_dim: Length of a context.

        Returns:
            Number of elements.
        """

    @property
    def depth_factor(self) -> int:
        """Number of groups of continuous transforms."""
        return 1

    def lay_out(self, flow: Flow) -> Flow:
        """Return a flow in the memory layout that the fields name.

        Args:
            flow: The flow.

        Returns:
            The same flow.
        """
        return flow

    @abstractmethod
    def rows(self, x: Any) -> tuple[Tensor, np.ndarray]:
        """Check data to be scored.

        Args:
            x: Data, shape (n, ...), in the form of the fit's.

        Returns:
            The rows within the support in float64, shape (k, *event), and a mask of these among all, shape (n,).

        Raises:
            ValueError: If the data are not of the domain.
        """

    def contexts(self, context: Any, rows: int, dim: int | None) -> np.ndarray | None:
        """Check contexts.

        Args:
            context: One context for all, or one for each row; labels of classes where the fit was given labels.
            rows: Number of rows.
            dim: Length of a context; None before the fit.

        Returns:
            Contexts, shape (rows, dim), or None.

        Raises:
            ValueError: If they do not fit.
        """
        return check_context(context, rows, dim)

    def implied_context(self, x: Any) -> np.ndarray | None:
        """Return the contexts that rows imply, where none are passed.

        Args:
            x: Data, shape (n, ...).

        Returns:
            Contexts, shape (n, context_dim), or None.
        """
        return None

    def context_preprocess(
        self, scaling: ContextScaling | None, preprocess: Sequence[Transform]
    ) -> tuple[Transform | ContextScaling | None, int]:
        """Return the scaling of a flow's contexts, and their length.

        Args:
            scaling: Scaling that was fitted to them; None where there are none.
            preprocess: Transforms next to the data.

        Returns:
            The scaling, and the length of a context.
        """
        return scaling, 0 if scaling is None else len(scaling.mean)

    def context_names(self, dim: int) -> list[str]:
        """Return the names of the contexts for messages.

        Args:
            dim: Length of a context.

        Returns:
            The names; c0, c1, ... where they have none.
        """
        return [f"c{i}" for i in range(dim)]

    def frame(self, x: np.ndarray) -> np.ndarray:
        """Give states the axes of the data.

        Args:
            x: States, shape (..., *event).

        Returns:
            The states.
        """
        return x

    def add_noise(self, x: np.ndarray, seed: int) -> np.ndarray:
        """Add the noise that makes a density of discrete columns.

        Args:
            x: Rows, shape (n, d).
            seed: Seed of the noise.

        Returns:
            Rows with noise.
        """
        return x

    @property
    def curved(self) -> str:
        """Names of the columns that are a circle, a sphere or a category; empty where there are none."""
        return ""

    def require_real(self, verb: str, alternative: str) -> None:
        """Refuse a request that circles, spheres and categories do not suit.

        Args:
            verb: The method's name.
            alternative: Advice.

        Raises:
            ValueError: If the data have any.
        """
        if self.curved:
            raise ValueError(
                f"{verb} is for real columns, and {self.curved} is a circle, a sphere or a category: {alternative}"
            )

    def require_table(self, verb: str, alternative: str) -> None:
        """Refuse a request that is for tables alone.

        Args:
            verb: The method's name.
            alternative: Advice.

        Raises:
            ValueError: If the data are images, or categories alone.
        """
        if len(self.event_shape) != 1:
            raise ValueError(f"{verb} is for tables, and this model is of images: {alternative}")
        if not self.size:
            raise ValueError(
                f"{verb} is for columns of numbers, and all columns are categories: their probabilities are exact, so "
                "score rows instead"
            )
