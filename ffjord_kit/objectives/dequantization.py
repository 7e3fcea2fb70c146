r"""Dequantisers: the law q(u | k) of the noise that is laid on whole grey levels k, to make a density's events of them.

For any q on [0, 1)^D, with D pixels and p the density (Ho et al. 2019, Flow++; K draws: Burda et al. 2016),

    log P(k) >= E_q[log p(k + u) - log q(u | k)],    log P(k) >= E_q[log (1/K) sum_i p(k + u_i) / q(u_i | k)],

tight where q is p's own law of u within its cell. The uniform law has log q = 0. The variational one is a flow,

    u = sigmoid(w_n),    w_j = w_(j-1) exp(s_j) + m_j on one half of the pixels of a chequerboard,    w_0 logistic,

whose s_j and m_j are convolutions of the other half and of the image. Then

    log q(u | k) = log l(w_0) - sum_j s_j - log l(w_n),    l(w) = sigmoid(w) sigmoid(-w), the logistic density.

At first s_j = m_j = 0, and u is uniform: training begins at what uniform noise gives. The image is seen as its levels
and the sines and cosines of 2 pi k / 2^i, i = 1 .. bits: where a density is narrow, the next level needs another law.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffjord_kit.data import Batch
from ffjord_kit.flow import Flow
from ffjord_kit.objectives.base import Loss, SolvedObjective
from ffjord_kit.objectives.likelihood import MaximumLikelihood
from ffjord_kit.ode import Solver

LARGEST = 2.0  # of |s_j|
HALF_A_DIGIT = 2.0**-54  # of torch.rand in float64, which may be 0


class Dequantizer(ABC):
    """The law of the noise on grey levels."""

    name: str

    @abstractmethod
    def draw(self, levels: Tensor, share: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise u, 0 <= u < 1, that uniform noise `share` becomes, and log q(u | k), (batch,), in nats.

        Shapes: levels k, share and u (batch, *event), k whole numbers of a floating type, which is that of what is
        returned, share in float64; context (batch, context_dim), as the flow is given it.
        """


@dataclass(frozen=True)
class UniformDequantizer(Dequantizer):
    """Uniform noise, whatever the image (Theis et al. 2016)."""

    name: str = "uniform"

    def draw(self, levels: Tensor, share: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _below_one(share.to(levels)), levels.new_zeros(len(levels))


class VariationalDequantizer(nn.Module, Dequantizer):
    """Noise whose law is learned: affine couplings on a chequerboard, which see the image.

    Each of `couplings` moves one half of the pixels, in turn; `hidden` channels; `bits` as those of the pixels. The
    networks may be in float32: the bookkeeping is in the type of the levels. Raises ValueError for fewer than one
    coupling, an event that is no image (c, h, w), or levels and contexts of other shapes. Source: Ho et al. 2019.
    """

    name = "variational"

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
        self.inward = nn.Conv2d((1 + 2 * bits) * event_shape[0], hidden, 3, padding=1)
        self.features = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.side = nn.Linear(context_dim, hidden) if context_dim else None
        self.couplings = nn.ModuleList(Coupling(event_shape, hidden, odd=bool(i % 2)) for i in range(couplings))

    def draw(self, levels: Tensor, share: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.noise(_logit(share.clamp(min=HALF_A_DIGIT)).to(levels), levels, context)

    def noise(self, w: Tensor, levels: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The noise u that logistic numbers w become, and log q(u | k), (batch,).

        Shapes: w, levels and u (batch, c, h, w), context (batch, context_dim).
        """
        seen, moved, log_det = self._seen(levels, context), w, w.new_zeros(len(w))
        for coupling in self.couplings:
            moved, step = coupling(moved, seen)
            log_det = log_det + step
        return _below_one(moved.sigmoid()), (_log_logistic(w) - _log_logistic(moved)).flatten(1).sum(1) - log_det

    def log_prob(self, u: Tensor, levels: Tensor, context: Tensor | None = None) -> Tensor:
        """log q(u | k), (batch,), for noise 0 <= u < 1; shapes as in `noise`."""
        seen, log_det = self._seen(levels, context), u.new_zeros(len(u))
        moved = w = _logit(_below_one(u).clamp(min=torch.finfo(u.dtype).tiny))
        for coupling in reversed(self.couplings):
            w, step = coupling.inverse(w, seen)
            log_det = log_det + step
        return (_log_logistic(w) - _log_logistic(moved)).flatten(1).sum(1) - log_det

    def _seen(self, levels: Tensor, context: Tensor | None) -> Tensor:
        """What the couplings see of the image and its context, (batch, hidden, h, w)."""
        if tuple(levels.shape[1:]) != self.event_shape:
            expected = ", ".join(map(str, ("batch", *self.event_shape)))
            raise ValueError(f"levels must have shape ({expected}); got {tuple(levels.shape)}")
        given, asked = None if context is None else tuple(context.shape), (len(levels), self.context_dim)
        if self.context_dim and given != asked:
            raise ValueError(f"this dequantiser sees a context of shape {asked}; got {given}")
        h = self.inward(self._waves(levels.to(self.inward.weight)))
        if self.side is not None:
            h = h + self.side(context.to(h))[..., None, None]
        return F.silu(self.features(F.silu(h)))

    def _waves(self, levels: Tensor) -> Tensor:
        """The levels, scaled to -1 .. 1, and their sines and cosines, (batch, (1 + 2 bits) c, h, w)."""
        scaled, angles = (levels + 0.5) / 2 ** (self.bits - 1) - 1, 2 * math.pi * levels / self.periods
        return torch.cat([scaled[None], angles.sin(), angles.cos()]).transpose(0, 1).flatten(1, 2)


class Coupling(nn.Module):
    """An affine map of one half of an image's elements, by the other half and by features; at first the identity.

    The halves are those of a chequerboard that goes on through the channels (RealNVP, Dinh et al. 2017).
    """

    def __init__(self, event_shape: Sequence[int], hidden: int, *, odd: bool) -> None:
        super().__init__()
        places = sum(torch.meshgrid(*map(torch.arange, event_shape), indexing="ij"))
        self.register_buffer("moves", places % 2 == int(odd))
        self.first = nn.Conv2d(event_shape[0] + hidden, hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, 2 * event_shape[0], 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, w: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The map of w (batch, c, h, w), beside features (batch, hidden, h, w), and log|det|, (batch,)."""
        log_scale, shift = self._scale_and_shift(w, seen)
        return w * log_scale.exp() + shift, log_scale.flatten(1).sum(1)

    def inverse(self, w: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The way back, and log|det| of the way forward, (batch,)."""
        log_scale, shift = self._scale_and_shift(w, seen)
        return (w - shift) * (-log_scale).exp(), log_scale.flatten(1).sum(1)

    def _scale_and_shift(self, w: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithm of the scale, and the shift, both 0 where nothing moves, of the type of w."""
        moves = self.moves.to(w.device)
        kept = torch.where(moves, 0.0, torch.tanh(w / 2))
        raw = self.second(F.silu(self.first(torch.cat([kept.to(seen), seen], dim=1)))).to(w)
        log_scale, shift = torch.where(moves, raw.unflatten(1, (2, -1)).transpose(0, 1), 0.0)
        return LARGEST * torch.tanh(log_scale / LARGEST), shift


class DequantizedFlow(nn.Module):
    """A flow over grey levels with noise, and the dequantizer that draws the noise.

    Args:
        flow: Flow in the units of grey levels.
        dequantizer: Law of the noise.
    """

    def __init__(self, flow: Flow, dequantizer: VariationalDequantizer) -> None:
        super().__init__()
        self.flow, self.dequantizer = flow, dequantizer


@dataclass(frozen=True)
class DequantizationBound(SolvedObjective):
    """The bound on the negative log-probability of grey levels that a dequantizer q gives for a flow p.

    The loss is E_k E_q[log q(u | k) - log p(k + u)]. Its gradient runs through the noise u, and so through the solve.

    Args:
        likelihood: How log p is solved for.
        name: Word for logs.
    """

    likelihood: MaximumLikelihood
    name: str = "dequantizer"

    @property
    def solver(self) -> Solver | None:
        """Solver of all continuous transforms; their own if None."""
        return self.likelihood.solver

    def loss(self, model: DequantizedFlow, batch: Batch, generator: torch.Generator) -> Loss:
        inner, log_q, log_det = self._dequantized(model, batch, generator)
        found = self.likelihood.loss(model.flow.inner, inner, generator)
        value = found.value + (log_q.to(log_det) - log_det).mean().to(found.value)
        return Loss(value, {"bits": value / (math.log(2) * math.prod(batch.x.shape[1:]))}, found.stats)

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
        x, log_det = model.flow.preprocess.to_base(batch.x + u)
        like = model.flow.like
        context = model.flow.preprocess.scale_context(batch.context, like)
        return Batch(x.to(like.device, like.dtype), context), log_q, log_det


def _logit(u: Tensor) -> Tensor:
    return u.log() - torch.log1p(-u)


def _log_logistic(w: Tensor) -> Tensor:
    return F.logsigmoid(w) + F.logsigmoid(-w)


def _below_one(u: Tensor) -> Tensor:
    return u.clamp(max=1 - torch.finfo(u.dtype).eps / 2)
