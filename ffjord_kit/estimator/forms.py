"""The forms of data: as a user holds them, as an array, and as the flow has them.

    a user's rows  --coded-->  an array  --rows, joined-->  rows and contexts of the flow  --drawn, presented-->  back

Only tables with columns of texts, truth values or dates have more than one form.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow


class Forms(ABC):
    """The forms of data that have one form."""

    @property
    def code_dim(self) -> int:
        """Number of elements at the end of the flow's contexts that are codes of categories."""
        return 0

    def coded(self, x: Any) -> Any:
        """Return rows with numbers in the place of texts, truth values and dates.

        Args:
            x: Rows; a frame may have such columns.

        Returns:
            The rows; what has none comes back as it is.
        """
        return x

    def coded_context(self, context: Any) -> Any:
        """Return contexts with codes in the place of categories.

        Args:
            context: Contexts; a frame may have columns of texts.

        Returns:
            The contexts; what has none comes back as it is.
        """
        return context

    def presented(self, draws: np.ndarray) -> Any:
        """Return draws as a user holds the data: a frame where columns are of text or of dates.

        Args:
            draws: Draws in the form of the data.

        Returns:
            The draws.
        """
        return draws

    @property
    def cells(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        """Functions that turn a column's numbers into the texts, truth values or dates they stand for, by column."""
        return {}

    def joined(self, batch: Batch) -> Batch:
        """Bring checked rows with the user's contexts into the form of the flow's.

        Args:
            batch: Rows as `rows` returns them, and contexts.

        Returns:
            Rows and contexts of the flow.
        """
        return batch

    @property
    def found(self) -> str:
        """Types of the columns that were found by looking, in words; empty where all are numbers."""
        return ""

    @property
    def has_categories(self) -> bool:
        """Whether columns are categories."""
        return False

    def with_drawn_categories(
        self, flow: Flow, context: Tensor | None, n: int, generator: torch.Generator
    ) -> Tensor | None:
        """Return the contexts of draws with the codes of drawn categories.

        Args:
            flow: Flow to draw from.
            context: Contexts, shape (n, c), or None.
            n: Number of draws.
            generator: Source of the draws.

        Returns:
            Contexts of the flow; without categories as they are.

        Raises:
            ValueError: If contexts are missing.
        """
        return context

    def given_categories(self, flow: Flow) -> Flow:
        """Return a flow without the probability of categories: the density of the other columns, given these.

        Args:
            flow: Flow.

        Returns:
            The flow, or the same one without categories; modules that learn are shared.
        """
        return flow

    def drawn(self, x: np.ndarray, context: Tensor | None) -> np.ndarray:
        """Return draws of the flow in the form of the data.

        Args:
            x: Draws, shape (n, *event).
            context: Contexts of the flow that they were drawn for.

        Returns:
            Data.
        """
        return self.restore(x)

    @abstractmethod
    def restore(self, x: np.ndarray) -> np.ndarray:
        """Bring draws to the form of the data: to their grid, or to grey levels.

        Args:
            x: Draws, shape (n, *event).

        Returns:
            Data.
        """
