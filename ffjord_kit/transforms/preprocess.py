"""Preprocessing: the fitted, exact transforms next to the data, in float64 wherever the rest of the flow lives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn

from ffjord_kit.transforms.base import Transform
from ffjord_kit.transforms.contexts import ContextScaling


class Preprocess(nn.Module):
    """Transforms without weights to learn, and one of the context, computed in float64 on the CPU.

    Moves and casts of the flow that it belongs to leave it alone, so log-determinants keep all their digits, and every
    device gets the same numbers.

    Args:
        transforms: Exact transforms, from data to base; they are copied.
        context: Scaling or transform of the context; None to leave it as it is.

    Raises:
        ValueError: If a transform has parameters: it belongs among the flow's own transforms.

    Example:
        >>> import torch
        >>> from ffjord_kit.transforms import Standardize
        >>> rows = torch.tensor([[1.0], [3.0]])
        >>> z, log_det = Preprocess([Standardize.of(rows)]).to_base(rows)
        >>> z.flatten().tolist(), log_det.tolist()
        ([-1.0, 1.0], [0.0, 0.0])
    """

    def __init__(self, transforms: Sequence[Transform] = (), context: Transform | ContextScaling | None = None) -> None:
        super().__init__()
        for transform in (*transforms, *([] if context is None else [context])):
            if list(transform.parameters()):
                raise ValueError(
                    f"preprocessing is fitted before training and has nothing to learn; got {type(transform).__name__} "
                    "with parameters: put it among the flow's transforms"
                )
        copies = [copy.deepcopy(transform).cpu().double() for transform in transforms]
        self.transforms = cast(Sequence[Transform], nn.ModuleList(copies))
        self.context = None if context is None else copy.deepcopy(context).cpu().double()

    @property
    def identity(self) -> bool:
        """Whether there is nothing to do."""
        return not len(self.transforms) and self.context is None

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data towards the base; gradients go through.

        Args:
            x: Data, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            Preprocessed rows, shape (batch, *event), and log|det|, shape (batch,), in float64 on the CPU.
        """
        x, context = x.cpu().double(), self._scaled(context)
        log_det = x.new_zeros(len(x))
        for transform in self.transforms:
            x, step = transform.to_base(x, context)
            log_det = log_det + step
        return x, log_det

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map preprocessed rows back to data; gradients go through.

        Args:
            z: Preprocessed rows, shape (batch, *event).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            Data, shape (batch, *event), and log|det|, shape (batch,), in float64 on the CPU.
        """
        z, context = z.cpu().double(), self._scaled(context)
        log_det = z.new_zeros(len(z))
        for transform in reversed(self.transforms):
            z, step = transform.to_data(z, context)
            log_det = log_det + step
        return z, log_det

    def scale_context(self, context: Tensor | None, like: Tensor) -> Tensor | None:
        """Map contexts to the units of the flow's transforms.

        Args:
            context: Contexts, shape (batch, context_dim), or None.
            like: Tensor whose dtype and device the contexts get.

        Returns:
            Scaled contexts, shape (batch, context_dim), or None.
        """
        scaled = self._scaled(context)
        return None if scaled is None else scaled.to(like.device, like.dtype)

    def _scaled(self, context: Tensor | None) -> Tensor | None:
        """Return scaled contexts in float64 on the CPU."""
        if context is None:
            return None
        context = context.cpu().double()
        if isinstance(self.context, Transform):
            return self.context.to_base(context)[0]
        return context if self.context is None else self.context(context)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Preprocess:
        """Ignore moves and casts."""
        return self
