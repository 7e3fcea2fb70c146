r"""The latent ODE (Chen et al. 2018, section 5; Rubanova et al. 2019): a variational autoencoder of irregular series.

    z(0) ~ N(0, I),    dz/dt = f(z),    x_c(t_i) ~ N(g_c(z(t_i)), sigma_c^2)    where channel c was seen

    q(z(0) | x) = N(m, s^2), m and s from a network that reads the series backwards in time

With a flow as prior, z(0) is the end at s = 1 of du/ds = h(u), which begins at u(0) ~ N(0, I); recognition gives the
posterior of u(0). A divergence does not change along a flow: prior and posterior of z(0) are both carried by it, and no
trace is needed. In what follows, "start" is u(0), which without a flow is z(0) itself.

With events, channel c is seen at the points of a Poisson process of intensity lambda_c(t) = r_c exp(u_c(z(t))): a
series watched from 0 to the end T of its window has, beside the values,

    log p(times | z) = sum_c ( sum_i log lambda_c(t_i)  -  integral_0^T lambda_c dt ).

What is seen at the first time of a series opens its window, and is not counted as an event.

The time of the network runs in units of the longest series of the fit, the channels are standardized; log-likelihoods
are in the units of the data. sigma is learned, at least 0.001 of a channel's standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ffjord_kit.models.dense import State, solve_at
from ffjord_kit.models.residual import Residual
from ffjord_kit.models.series import lengths

LEAST_NOISE = 1e-3  # of the standard deviation of a channel
LEAST_TURN = 1.0  # radians in the duration of the longest series
PRIOR_STEPS = 8  # Runge-Kutta steps of the prior's flow
LEAST_CORRELATION = 0.5  # of a value and the next one, below which a channel counts as noise
LOG_2PI = math.log(2 * math.pi)

Push = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # from values and tangents to both


def mlp(inputs: int, hidden: int, outputs: int, layers: int = 1) -> nn.Sequential:
    """Return a network of tanh layers.

    Args:
        inputs: Number of inputs.
        hidden: Width.
        outputs: Number of outputs.
        layers: Number of hidden layers.

    Returns:
        The network.
    """
    widths = [inputs, *[hidden] * layers]
    parts = [part for a, b in zip(widths[:-1], widths[1:], strict=True) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*parts, nn.Linear(hidden, outputs))


def pushed(network: nn.Sequential, x: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs of a network of tanh layers, and its derivatives along directions.

    Args:
        network: The network.
        x: Inputs, shape (..., inputs).
        tangents: Directions, shape (..., k, inputs).

    Returns:
        Outputs, shape (..., outputs), and derivatives, shape (..., k, outputs).
    """
    for layer in network:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            tangents = tangents @ layer.weight.T
        else:
            tangents = tangents * (1 - x.square())[..., None, :]
    return x, tangents


class Dynamics(nn.Module):
    """The right-hand side f(z) = A z + net(z), where A begins as turns of the pairs (z_1, z_2), (z_3, z_4), ...

    Their angular frequencies rise evenly up to twice that of the series. A network that begins slow does not find fast
    dynamics, and a fit then ends with a flat mean; one that begins fast does not extrapolate slow ones well.

    Args:
        latent_dim: Dimension of z.
        hidden: Width.
        turn: Angular frequency of the series.
    """

    def __init__(self, latent_dim: int, hidden: int, turn: float) -> None:
        super().__init__()
        self.linear, self.net = nn.Linear(latent_dim, latent_dim, bias=False), mlp(latent_dim, hidden, latent_dim, 2)
        turns = torch.zeros(latent_dim, latent_dim)
        pairs = torch.arange(latent_dim // 2)
        turns[2 * pairs, 2 * pairs + 1] = 2 * turn * (1.0 + pairs) / max(1, len(pairs))
        self.linear.weight = nn.Parameter(turns - turns.T)

    def forward(self, z: Tensor) -> Tensor:
        """Return dz/dt, shape (..., latent_dim)."""
        return self.linear(z) + self.net(z)

    def pushed(self, z: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return dz/dt and its derivatives along directions (..., k, latent_dim); see `pushed`."""
        velocity, change = pushed(self.net, z, tangents)
        return self.linear(z) + velocity, self.linear(tangents) + change


class GRURecognition(nn.Module):
    """Read a series backwards by a GRU that is given the gaps and the masks.

    Args:
        channels: Number of channels.
        hidden: Width.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(2 * channels + 1, hidden, batch_first=True)

    def forward(self, values: Tensor, seen: Tensor, times: Tensor, gaps: Tensor) -> Tensor:
        """Return the state after the first row, shape (n, hidden).

        Args:
            values: Standardized values, 0 where missing, shape (n, T, channels).
            seen: 1 where a value was seen, else 0, shape (n, T, channels).
            times: Times, shape (n, T).
            gaps: Gap to the next row, in mean gaps, shape (n, T).

        Returns:
            The state.
        """
        count, rows = lengths(times)[:, None], torch.arange(times.shape[1], device=times.device)
        backwards = (count - 1 - rows).clamp(min=0)[..., None]  # what follows a series is not looked at
        inputs = torch.cat([values, seen, gaps[..., None]], dim=2)
        states, _ = self.gru(inputs.gather(1, backwards.expand(-1, -1, inputs.shape[2])))
        return states[torch.arange(len(states), device=states.device), count[:, 0] - 1]


class ODERNNRecognition(nn.Module):
    """Read a series backwards by an ODE-RNN, whose state moves on between the rows, by one Euler step for each gap.

    Args:
        channels: Number of channels.
        hidden: Width.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(2 * channels, hidden)
        self.dynamics = mlp(hidden, hidden, hidden)

    def forward(self, values: Tensor, seen: Tensor, times: Tensor, gaps: Tensor) -> Tensor:
        """Return the state after the first row; see `GRURecognition.forward`."""
        inputs, any_seen = torch.cat([values, seen], dim=2), seen.any(dim=2, keepdim=True)
        state = values.new_zeros(len(values), self.cell.hidden_size)
        for row in reversed(range(times.shape[1])):
            state = state - gaps[:, row, None] * self.dynamics(state)
            state = torch.where(any_seen[:, row], self.cell(inputs[:, row], state), state)
        return state


RECOGNITIONS: dict[str, Callable[[int, int], nn.Module]] = {"gru": GRURecognition, "ode_rnn": ODERNNRecognition}


class Scales(NamedTuple):
    """The units of a network.

    Attributes:
        location: Mean of each channel, shape (channels,).
        scale: Standard deviation of each channel, shape (channels,).
        rate: Events of each channel per unit of the network's time, shape (channels,).
        duration: Unit of time: the duration of the longest series, ().
        gap: Mean gap between two rows, in units of `duration`, ().
        turn: Angular frequency of the fastest channel, per `duration`, ().
    """

    location: Tensor
    scale: Tensor
    rate: Tensor
    duration: Tensor
    gap: Tensor
    turn: Tensor

    @classmethod
    def blank(cls, channels: int) -> Scales:
        """Return scales of 1, to load others into.

        Args:
            channels: Number of channels.

        Returns:
            The scales.
        """
        one, ones = torch.ones((), dtype=torch.float64), torch.ones(channels, dtype=torch.float64)
        return cls(0 * ones, ones, ones.clone(), one, one.clone(), one.clone())

    @classmethod
    def of(cls, values: Tensor, times: Tensor) -> Scales:
        """Return the scales of padded series; a constant channel keeps its unit.

        Args:
            values: Values, NaN where missing, shape (n, T, channels).
            times: Times since the first, shape (n, T).

        Returns:
            The scales.
        """
        location = values.nanmean(dim=(0, 1))
        spread = (values - location).square().nanmean(dim=(0, 1)).sqrt()
        duration, watched = times[:, -1].max(), times[:, -1].sum()
        events = (~values[:, 1:].isnan()).sum(dim=(0, 1)).clamp(min=1)
        gap = watched / (lengths(times) - 1).sum() / duration
        spread = torch.where(spread > 0, spread, 1.0)
        turn = math.pi * _crossings((values - location) / spread) / watched * duration
        return cls(location, spread, events / watched * duration, duration, gap, turn.clamp(min=LEAST_TURN))


def _crossings(values: Tensor) -> Tensor:
    """Return how often standardized values go from one side of 0 to the other, in the channel that does so most, ().

    Noise does not count: a value within half a standard deviation has no side, and a channel whose values say little of
    the next ones has no crossings.
    """
    values = values.permute(0, 2, 1)
    before, seen = _held(values.nan_to_num(), ~values.isnan())[:, :, :-1], ~values[:, :, 1:].isnan()
    product, square = ((before * other).nansum((0, 2)) for other in (values[:, :, 1:], torch.where(seen, before, 0.0)))
    sides = torch.where(values.abs() > 0.5, values.sign(), 0.0)
    held = _held(sides, sides != 0)
    counts = (held[:, :, 1:] * held[:, :, :-1] < 0).sum(dim=(0, 2))
    return torch.where(product > LEAST_CORRELATION * square, counts, 0).max()


def _held(values: Tensor, seen: Tensor) -> Tensor:
    """Return values in which each one that was not seen repeats the last one that was, or is 0 before the first."""
    rows = torch.arange(values.shape[2], device=values.device)
    last = torch.where(seen, rows, -1).cummax(dim=2).values
    return torch.where(last < 0, 0.0, values.gather(2, last.clamp(min=0)))


class LatentNetwork(nn.Module):
    """The latent ODE of series.

    Args:
        scales: Units of the series.
        latent_dim: Dimension of z.
        hidden: Width of all networks.
        recognition: Word of RECOGNITIONS.
        events: Whether the times at which channels are seen are modelled too.
        prior: "normal" or "flow".
        steps: Number of Runge-Kutta steps over the longest series.
        residual: Whether predictions add what the dynamics leave over (`residual.py`).

    Example:
        >>> network = LatentNetwork(Scales.blank(2), latent_dim=3, hidden=8, steps=8)
        >>> values, times = torch.randn(5, 4, 2).double(), torch.rand(5, 4).double().cumsum(1)
        >>> mean, scale = network.posterior(values, times)
        >>> network.decode(network.path(mean, times)).shape
        torch.Size([5, 4, 2])
    """

    location: Tensor
    scale: Tensor
    rate: Tensor
    duration: Tensor
    gap: Tensor
    turn: Tensor

    def __init__(
        self,
        scales: Scales,
        *,
        latent_dim: int,
        hidden: int,
        recognition: str = "gru",
        events: bool = False,
        prior: str = "normal",
        steps: int = 32,
        residual: bool = False,
    ) -> None:
        super().__init__()
        channels = len(scales.location)
        self.steps, self.latent_dim, self.channels = steps, latent_dim, channels
        for name, value in scales._asdict().items():
            self.register_buffer(name, value.clone())
        self.recognition = RECOGNITIONS[recognition](channels, hidden)
        self.head = nn.Linear(hidden, 2 * latent_dim)
        self.dynamics = Dynamics(latent_dim, hidden, float(scales.turn))
        self.prior = mlp(latent_dim, hidden, latent_dim) if prior == "flow" else None
        self.decoder = mlp(latent_dim, hidden, channels)
        self.log_noise = nn.Parameter(torch.full((channels,), math.log(0.5)))
        self.intensity = mlp(latent_dim, hidden, channels) if events else None
        self.residual = Residual(channels) if residual else None

    @property
    def noise(self) -> Tensor:
        """Standard deviation of the observations in the units of the data, shape (channels,)."""
        return self.log_noise.exp().clamp(min=LEAST_NOISE) * self.scale.to(self.log_noise)

    def posterior(self, values: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of q(z(0) | series).

        Args:
            values: Values, NaN where missing, shape (n, T, channels).
            times: Times since the first, shape (n, T).

        Returns:
            Mean and standard deviation, shape (n, latent_dim) each.
        """
        seen = ~values.isnan()
        gaps = torch.nn.functional.pad(times.diff(dim=1), (0, 1)) / self.duration / self.gap
        scaled = torch.where(seen, (values - self.location) / self.scale, 0.0)
        dtype = self.log_noise.dtype
        state = self.recognition(scaled.to(dtype), seen.to(dtype), times, gaps.to(dtype))
        mean, log_scale = self.head(state).chunk(2, dim=1)
        return mean, log_scale.clamp(-8, 4).exp()

    def path(self, start: Tensor, times: Tensor) -> Tensor:
        """Return z at each row's own times.

        Args:
            start: Starts, shape (n, latent_dim).
            times: Times since the first, shape (n, T).

        Returns:
            z, shape (n, T, latent_dim).
        """
        return self._solve(lambda state: (self.dynamics(state[0]),), (self.carried(start),), times)[0]

    def carried(self, start: Tensor) -> Tensor:
        """Return z(0), where the flow of the prior carries a start.

        Args:
            start: Starts, shape (n, latent_dim).

        Returns:
            z(0), shape (n, latent_dim).
        """
        if (field := self.prior) is None:
            return start
        end = start.new_ones(len(start), 1)
        return solve_at(lambda state: (field(state[0]),), (start,), end, steps=PRIOR_STEPS)[0][:, 0]

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of the channels in the units of the data.

        Args:
            z: Latent states, shape (..., latent_dim).

        Returns:
            Means, shape (..., channels).
        """
        return self.decoder(z) * self.scale.to(z) + self.location.to(z)

    def log_rate(self, z: Tensor) -> Tensor:
        """Return the logarithm of the intensities, events per unit of the data's time.

        Args:
            z: Latent states, shape (..., latent_dim).

        Returns:
            Logarithms, shape (..., channels).

        Raises:
            ValueError: If the network has no intensities.
        """
        if self.intensity is None:
            raise ValueError("this model has no intensities: fit it with events=True")
        return self.intensity(z) + (self.rate / self.duration).log().to(z)

    def log_likelihood(self, start: Tensor, values: Tensor, times: Tensor) -> Tensor:
        """Return log p(series | z(0)) of each series, nats, in the units of the data.

        Args:
            start: Starts, shape (n, latent_dim).
            values: Values, NaN where missing, shape (n, T, channels).
            times: Times since the first, shape (n, T).

        Returns:
            Log-likelihoods, shape (n,).
        """
        return self.log_likelihood_and_path(start, values, times)[0]

    def log_likelihood_and_path(self, start: Tensor, values: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(series | z(0)) of each series, nats, in the units of the data, and z at its times.

        Args:
            start: Starts, shape (n, latent_dim).
            values: Values, NaN where missing, shape (n, T, channels).
            times: Times since the first, shape (n, T).

        Returns:
            Log-likelihoods, shape (n,), and z, shape (n, T, latent_dim).
        """
        if self.intensity is None:
            z = self.path(start, times)
            return self._of_values(z, values), z
        z, expected = self._solve(
            self._with_events, (self.carried(start), start.new_zeros(len(start), self.channels)), times
        )
        seen = ~values[:, 1:].isnan()
        events = torch.where(seen, self.log_rate(z[:, 1:]), 0.0).sum(dim=(1, 2)) - expected[:, -1].sum(1)
        return self._of_values(z, values) + events, z

    def slopes(self, start: Tensor, values: Tensor, times: Tensor) -> Tensor:
        """Return the derivatives by the start of all that the likelihood compares with what was seen.

        These are the means in units of the noise, and the logarithms of the intensities at events: in both, one unit
        has the information 1. Derivatives follow the solve as d S/dt = (df/dz) S.

        Args:
            start: Starts, shape (n, latent_dim).
            values: Values, NaN where missing, shape (n, T, channels).
            times: Times since the first, shape (n, T).

        Returns:
            Derivatives, 0 where nothing was seen, shape (n, T, latent_dim, channels), or with events twice as many
            channels.
        """
        size, seen = self.latent_dim, ~values.isnan()[:, :, None]

        def moved(push: Push) -> Callable[[State], State]:
            def rhs(state: State) -> State:
                velocity, change = push(state[0], state[1].unflatten(1, (size, size)))
                return velocity, change.flatten(1)

            return rhs

        state: State = (start, torch.eye(size).to(start).flatten().expand(len(start), -1))
        if (field := self.prior) is not None:
            ends = solve_at(moved(partial(pushed, field)), state, start.new_ones(len(start), 1), steps=PRIOR_STEPS)
            state = tuple(each[:, 0] for each in ends)
        z, s = self._solve(moved(self.dynamics.pushed), state, times)
        s = s.unflatten(2, (size, size))
        means = torch.where(seen, pushed(self.decoder, z, s)[1] * self.scale.to(z) / self.noise, 0.0)
        if self.intensity is None:
            return means
        rates = torch.where(seen, pushed(self.intensity, z, s)[1], 0.0)
        rates[:, 0] = 0.0  # what is seen first is no event
        return torch.cat([means, rates], dim=3)

    def _of_values(self, z: Tensor, values: Tensor) -> Tensor:
        seen, noise = ~values.isnan(), self.noise
        error = torch.where(seen, values - self.decode(z), 0.0).to(noise) / noise
        density = torch.where(seen, -0.5 * error.square() - noise.log() - 0.5 * LOG_2PI, 0.0)
        return density.sum(dim=(1, 2))

    def _with_events(self, state: State) -> State:
        return self.dynamics(state[0]), self.log_rate(state[0]).exp() * self.duration.to(state[0])

    def _solve(self, rhs: Callable[[State], State], start: State, times: Tensor) -> State:
        return solve_at(rhs, start, times / self.duration, steps=self.steps)
