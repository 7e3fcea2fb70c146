r"""Dequantization: distributions q(u | k) of the noise that is added to grey levels k, and the bound that they give.

For any q on [0, 1)^D, with D pixels and p the density (Ho et al. 2019, Flow++; K draws: Burda et al. 2016),

    log P(k) >= E_q[log p(k + u) - log q(u | k)],    log P(k) >= E_q[log (1/K) sum_i p(k + u_i) / q(u_i | k)],

with equality where q is the conditional distribution of u under p. Uniform noise has log q = 0. Variational noise comes
from a flow,

    u = sigmoid(w_n),    w_j = w_(j-1) exp(s_j) + m_j on one half of the pixels of a chequerboard,    w_0 logistic,

whose s_j and m_j are convolutions of the other half and of the image. Then

    log q(u | k) = log l(w_0) - sum_j s_j - log l(w_n),    l(w) = sigmoid(w) sigmoid(-w), the logistic density.

Initially s_j = m_j = 0, and u is uniform, so training starts from uniform noise. The features of the image are its
levels and the sines and cosines of 2 pi k / 2^i, i = 1 .. bits: where a density is narrow, neighbouring levels need
different noise.

References:
    Theis et al. 2016, https://arxiv.org/abs/1511.01844 (uniform noise).
    Burda et al. 2016, Importance weighted autoencoders, https://arxiv.org/abs/1509.00519.
    Ho et al. 2019, Flow++, https://arxiv.org/abs/1902.00275.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.objectives.base import Loss, SolvedObjective
from ffjord_kit.objectives.likelihood import MaximumLikelihood
from ffjord_kit.ode import Solver

MAX_LOG_SCALE = 2.0  # bound of |s_j|
HALF_RESOLUTION = 2.0**-54  # half the spacing of torch.rand in float64, which may give 0


class Dequantizer(ABC):
    """A distribution q(u | k) of the noise on grey levels.

    Attributes:
        name: Word for reports.
    """

    name: str

    @abstractmethod
    def draw(self, levels: Tensor, uniform: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Turn uniform noise into noise on grey levels.

        Args:
            levels: Grey levels k, whole numbers of a floating type, shape (batch, *event).
            uniform: Uniform noise on [0, 1) in float64, shape (batch, *event).
            context: Contexts in the units of the data, shape (batch, context_dim), or None.

        Returns:
            Noise u, 0 <= u < 1, shape (batch, *event), and log q(u | k), shape (batch,), nats, of the type of `levels`.
        """


@dataclass(frozen=True)
class UniformDequantizer(Dequantizer):
    """Uniform noise, q(u | k) = 1.

    Args:
        name: Word for reports.

    Example:
        >>> u, log_q = UniformDequantizer().draw(torch.tensor([[7.0]]), torch.tensor([[0.25]]))
        >>> u, log_q
        (tensor([[0.2500]]), tensor([0.]))

    References:
        Theis et al. 2016, https://arxiv.org/abs/1511.01844.
    """

    name: str = "uniform"

    def draw(self, levels: Tensor, uniform: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _below_one(uniform.to(levels)), levels.new_zeros(len(levels))


class VariationalDequantizer(nn.Module, Dequantizer):
    r"""Learned noise, by affine couplings on a chequerboard that see the image; it starts uniform.

        u = sigmoid(w_n),    w_j = w_(j-1) exp(s_j) + m_j on one half of the pixels,    w_0 logistic

    The networks may be in float32; log q is computed in the type of the levels.

    Args:
        event_shape: Shape (c, h, w) of an image.
        bits: Bits of the grey levels.
        context_dim: Length of the context vectors; 0 for none.
        couplings: Number n of couplings, which move the two halves of the pixels in turn.
        hidden: Channels of the hidden layers.

    Raises:
        ValueError: If there is no coupling or the event is no image; from `draw`, if a shape does not fit.

    Example:
        >>> k, noise = torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.25, dtype=torch.float64)
        >>> u, log_q = VariationalDequantizer((1, 4, 4)).draw(k, noise)
        >>> torch.allclose(u, noise.float()), log_q.tolist()
        (True, [0.0, 0.0])

    References:
        Ho et al. 2019, Flow++, https://arxiv.org/abs/1902.00275.
    """

    name = "variational"
    periods: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        bits: int = 8,
        context_dim: int = 0,
        couplings: int = 4,
        hidden: int = 32,
    ) -> None:
        super().__init__()
        if couplings < 1 or len(event_shape) != 3:
            raise ValueError(
                f"a dequantiser has couplings >= 1 and an event (c, h, w); got {couplings} and {tuple(event_shape)}"
            )
        self.event_shape, self.bits, self.context_dim = tuple(event_shape), bits, context_dim
        self.register_buffer("periods", 2.0 ** torch.arange(1, bits + 1).reshape(-1, 1, 1, 1, 1))
        self.input_layer = nn.Conv2d((1 + 2 * bits) * event_shape[0], hidden, 3, padding=1)
        self.hidden_layer = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.context_layer = nn.Linear(context_dim, hidden) if context_dim else None
        halves = [AffineCoupling(event_shape, hidden, odd=bool(i % 2)) for i in range(couplings)]
        self.couplings = cast(Sequence[AffineCoupling], nn.ModuleList(halves))

    def draw(self, levels: Tensor, uniform: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.from_logistic(_logit(uniform.clamp(min=HALF_RESOLUTION)).to(levels), levels, context)

    def from_logistic(self, w: Tensor, levels: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Turn logistic noise into noise on grey levels.

        Args:
            w: Logistic noise w_0, shape (batch, c, h, w).
            levels: Grey levels k, shape (batch, c, h, w).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            Noise u, shape (batch, c, h, w), and log q(u | k), shape (batch,), nats.
        """
        features, moved, log_det = self._features(levels, context), w, w.new_zeros(len(w))
        for coupling in self.couplings:
            moved, step = coupling(moved, features)
            log_det = log_det + step
        return _below_one(moved.sigmoid()), (_log_logistic(w) - _log_logistic(moved)).flatten(1).sum(1) - log_det

    def log_prob(self, u: Tensor, levels: Tensor, context: Tensor | None = None) -> Tensor:
        """Return log q(u | k).

        Args:
            u: Noise, 0 <= u < 1, shape (batch, c, h, w).
            levels: Grey levels k, shape (batch, c, h, w).
            context: Contexts, shape (batch, context_dim), or None.

        Returns:
            Log-densities, shape (batch,), nats.
        """
        features, log_det = self._features(levels, context), u.new_zeros(len(u))
        moved = w = _logit(_below_one(u).clamp(min=torch.finfo(u.dtype).tiny))
        for coupling in reversed(self.couplings):
            w, step = coupling.inverse(w, features)
            log_det = log_det + step
        return (_log_logistic(w) - _log_logistic(moved)).flatten(1).sum(1) - log_det

    def _features(self, levels: Tensor, context: Tensor | None) -> Tensor:
        """Return features of the image and its context, which the couplings see, (batch, hidden, h, w)."""
        if tuple(levels.shape[1:]) != self.event_shape:
            expected = ", ".join(map(str, ("batch", *self.event_shape)))
            raise ValueError(f"levels must have shape ({expected}); got {tuple(levels.shape)}")
        shape, expected_shape = None if context is None else tuple(context.shape), (len(levels), self.context_dim)
        if self.context_dim and shape != expected_shape:
            raise ValueError(f"this dequantizer needs a context of shape {expected_shape}; got {shape}")
        h = self.input_layer(self._level_features(levels.to(self.input_layer.weight)))
        if self.context_layer is not None and context is not None:
            h = h + self.context_layer(context.to(h))[..., None, None]
        return F.silu(self.hidden_layer(F.silu(h)))

    def _level_features(self, levels: Tensor) -> Tensor:
        """Return the levels, scaled to -1 .. 1, and their sines and cosines, (batch, (1 + 2 bits) c, h, w)."""
        scaled, angles = (levels + 0.5) / 2 ** (self.bits - 1) - 1, 2 * math.pi * levels / self.periods
        return torch.cat([scaled[None], angles.sin(), angles.cos()]).transpose(0, 1).flatten(1, 2)


class AffineCoupling(nn.Module):
    """An affine map of one half of an image's elements, given the other half and features; initially the identity.

    The halves are those of a chequerboard that continues through the channels.

    Args:
        event_shape: Shape (c, h, w) of an image.
        hidden: Channels of the features and of the hidden layer.
        odd: Which half moves.

    Example:
        >>> w = torch.ones(2, 1, 4, 4)
        >>> moved, log_det = AffineCoupling((1, 4, 4), 8, odd=False)(w, torch.zeros(2, 8, 4, 4))
        >>> torch.equal(moved, w), log_det.tolist()
        (True, [0.0, 0.0])

    References:
        Dinh et al. 2017, RealNVP, https://arxiv.org/abs/1605.08803.
    """

    mask: Tensor

    def __init__(self, event_shape: Sequence[int], hidden: int, *, odd: bool) -> None:
        super().__init__()
        parity = torch.stack(torch.meshgrid(*map(torch.arange, event_shape), indexing="ij")).sum(0)
        self.register_buffer("mask", parity % 2 == int(odd))
        self.first_conv = nn.Conv2d(event_shape[0] + hidden, hidden, 3, padding=1)
        self.second_conv = nn.Conv2d(hidden, 2 * event_shape[0], 3, padding=1)
        for parameter in self.second_conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, w: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the map.

        Args:
            w: Values, shape (batch, c, h, w).
            features: Features, shape (batch, hidden, h, w).

        Returns:
            Mapped values, shape (batch, c, h, w), and log|det|, shape (batch,).
        """
        log_scale, shift = self._scale_and_shift(w, features)
        return w * log_scale.exp() + shift, log_scale.flatten(1).sum(1)

    def inverse(self, w: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the inverse map.

        Args:
            w: Values, shape (batch, c, h, w).
            features: Features, shape (batch, hidden, h, w).

        Returns:
            Mapped values, shape (batch, c, h, w), and log|det| of the forward map, shape (batch,).
        """
        log_scale, shift = self._scale_and_shift(w, features)
        return (w - shift) * (-log_scale).exp(), log_scale.flatten(1).sum(1)

    def _scale_and_shift(self, w: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithm of the scale and the shift, both 0 on the fixed half, of the type of w."""
        mask = self.mask.to(w.device)
        fixed = torch.where(mask, 0.0, torch.tanh(w / 2))
        raw = self.second_conv(F.silu(self.first_conv(torch.cat([fixed.to(features), features], dim=1)))).to(w)
        log_scale, shift = torch.where(mask, raw.unflatten(1, (2, -1)).transpose(0, 1), 0.0)
        return MAX_LOG_SCALE * torch.tanh(log_scale / MAX_LOG_SCALE), shift


class DequantizedFlow(nn.Module):
    """A flow over grey levels with noise, and the dequantizer that draws the noise, as one module to train.

    Args:
        flow: Flow in the units of grey levels.
        dequantizer: Distribution of the noise.

    Example:
        >>> from ffjord_kit.transforms.bounded import pixel_scaling
        >>> model = DequantizedFlow(Flow([pixel_scaling((1, 4, 4))]), VariationalDequantizer((1, 4, 4)))
    """

    def __init__(self, flow: Flow, dequantizer: VariationalDequantizer) -> None:
        super().__init__()
        self.flow, self.dequantizer = flow, dequantizer


@dataclass(frozen=True)
class DequantizationBound(SolvedObjective):
    """The bound on the negative log-probability of grey levels that a dequantizer q gives for a flow p.

    The loss is E_k E_q[log q(u | k) - log p(k + u)]. Its gradient runs through the noise u, and so through the solve.

    Args:
        likelihood: Objective that gives log p, with its trace and solver.
        name: Word for logs.

    Example:
        >>> from ffjord_kit.transforms.bounded import pixel_scaling
        >>> model = DequantizedFlow(Flow([pixel_scaling((1, 4, 4))]), VariationalDequantizer((1, 4, 4)))
        >>> batch, generator = Batch(torch.full((2, 1, 4, 4), 127.0)), torch.Generator().manual_seed(0)
        >>> loss = DequantizationBound(MaximumLikelihood()).loss(model, batch, generator)
        >>> print(f"{loss.value.item() / (16 * math.log(2)):.2f} bits per pixel")
        8.33 bits per pixel

    References:
        Ho et al. 2019, Flow++, https://arxiv.org/abs/1902.00275.
    """

    likelihood: MaximumLikelihood
    name: str = "dequantizer"

    @property
    def solver(self) -> Solver | None:
        """Solver of all continuous transforms; their own if None."""
        return self.likelihood.solver

    def loss(self, model: DequantizedFlow, batch: Batch, generator: torch.Generator) -> Loss:
        inner, log_q, log_det = self._dequantized(model, batch, generator)
        nll = self.likelihood.loss(model.flow.inner, inner, generator)
        value = nll.value + (log_q.to(log_det) - log_det).mean().to(nll.value)
        return Loss(value, {"bits": value / (math.log(2) * math.prod(batch.x.shape[1:]))}, nll.stats)

    def row_losses(self, model: DequantizedFlow, batch: Batch, generator: torch.Generator, solver: Solver) -> Tensor:
        inner, log_q, log_det = self._dequantized(model, batch, generator)
        nll = self.likelihood.row_losses(model.flow.inner, inner, generator, solver)
        return nll + (log_q.to(log_det) - log_det).to(nll)

    def with_solver(self, solver: Solver) -> DequantizationBound:
        return replace(self, likelihood=self.likelihood.with_solver(solver))

    def _dequantized(
        self, model: DequantizedFlow, batch: Batch, generator: torch.Generator
    ) -> tuple[Batch, Tensor, Tensor]:
        """Return preprocessed rows k + u, log q(u | k), and the preprocessing's log-determinant, each (batch,)."""
        noise = torch.rand(batch.x.shape, generator=generator, device=generator.device, dtype=torch.float64)
        u, log_q = model.dequantizer.draw(batch.x, noise.to(batch.x.device), batch.context)
        x, log_det = model.flow.preprocess.to_base(batch.x + u, batch.context)
        like = model.flow.like
        context = model.flow.preprocess.scale_context(batch.context, like)
        return Batch(x.to(like.device, like.dtype), context), log_q, log_det


def _logit(u: Tensor) -> Tensor:
    return u.log() - torch.log1p(-u)


def _log_logistic(w: Tensor) -> Tensor:
    return F.logsigmoid(w) + F.logsigmoid(-w)


def _below_one(u: Tensor) -> Tensor:
    return u.clamp(max=1 - torch.finfo(u.dtype).eps / 2)
