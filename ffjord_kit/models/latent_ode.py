"""`LatentODE`: irregular series in; reconstructions, extrapolations, imputed values and samples with bands out."""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ffjord_kit.data import Batch
from ffjord_kit.diagnostics import WeightLoss
from ffjord_kit.models.elbo import ELBO, ELBOValidation, elbo, fit_noise, fit_residual
from ffjord_kit.models.fields import LatentODEFields, check_fields
from ffjord_kit.models.latent_network import LatentNetwork, Scales
from ffjord_kit.models.latent_runs import KIND, open_run, opened_run, record_to_resume
from ffjord_kit.models.posterior import Posterior, laplace
from ffjord_kit.models.series import Series, channel_names, check_series, check_times, digest, padded
from ffjord_kit.noise import keyed_generator, standard_normal
from ffjord_kit.progress import training_progress
from ffjord_kit.run import Run, claimed
from ffjord_kit.threads import faster_threads
from ffjord_kit.training import History, Phase, TensorData, TrainConfig, fit
from ffjord_kit.training.runtime import pass_on

FEWEST_HELD_OUT = 5  # series; fewer say too little
LEAST_SHARE = 4  # times as many must there be, for them to be held out
NEVER = 10**9  # validations without improvement that end a fit: the bound of few series stands still for long
ROWS_PER_STEP, MOST_BY_ROWS, STEPS_PER_RADIAN, FEWEST_STEPS, MOST_STEPS = 4, 32, 3, 16, 64
COARSE = 0.1  # of the noise: a difference from a solve of twice the steps that calls for a warning
MOST_DURATIONS = 20  # of the longest series of the fit, to which a prediction may reach
# Of 1,000 spirals at 30 points one fit of 300 s has an error of 0.09 to 0.39 by five seeds, three of them, of which the
# held-out bound chooses one, 0.10, 0.11 and 0.10 by three seeds, and three of 100 s 0.16 to 0.20 by four.
SECONDS_PER_FIT, MOST_FITS = 300, 3
CHUNK = 16  # series that are predicted at once


class Bands(NamedTuple):
    """A prediction for one series.

    Attributes:
        times: Times, shape (T,).
        mean: Mean, shape (T, channels).
        low: Lower end of the band, shape (T, channels).
        high: Upper end, shape (T, channels).

    Example:
        >>> Bands(np.arange(3.0), *np.zeros((3, 3, 1))).mean.shape
        (3, 1)
    """

    times: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(eq=False)
class LatentODE(LatentODEFields):
    """A latent ODE for irregular series with missing values (Chen et al. 2018; Rubanova et al. 2019).

    A series is a pair of times (T,) and values (T, channels), NaN where a value is missing, or a `Series`. The series
    need not share times. Wherever `series` may be None, those of the fit are meant. A band holds a new observation with
    the probability `level`: it has the uncertainty of the latent state and of what the dynamics leave over, and the
    noise of the observations.

    Args:
        latent_dim: Dimension of the latent state.
        hidden: Width of all networks.
        recognition: "gru", or "ode_rnn", whose state moves on between observations.
        prior: "normal", or "flow": prior and posterior of the first state are carried by a continuous flow.
        events: Whether the times at which channels are seen are modelled too, by a Poisson process.
        residual: Whether predictions add what the dynamics leave over at the values that were seen, by a Gaussian
            process of each channel; not with events.
        max_seconds: CPU seconds of training.
        max_steps: Largest number of training steps of each fit, or None.
        n_init: Number of fits from weights of their own, which share the seconds, and of which the one with the best
            bound of held-out series is kept; None for one for every 300 seconds, up to three. Some weights lead to
            dynamics that say little beyond the last row.
        steps: Runge-Kutta steps over the longest series; None for three for each radian that the series turn in it, up
            to 64, or one for every four of its rows, from 16 to 32.
        batch_size: Series of a training step.
        learning_rate: Peak learning rate.
        validation_fraction: Share of the series that are held out to choose the weights.
        random_state: Seed of everything random.
        verbose: Whether to show a progress bar.

    Attributes:
        network_: The fitted network.
        history_: History of the fit.
        channels_: Names of the channels.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> times = [np.sort(rng.uniform(0, 6, 10)) for _ in range(20)]
        >>> series = [(t, np.sin(t)) for t in times]
        >>> model = LatentODE(latent_dim=2, hidden=8, max_steps=5, random_state=0).fit(series)
        >>> model.extrapolate([7.0, 8.0], series[:2])[1].mean.shape
        (2, 1)
    """

    def fit(
        self,
        series: Sequence[Any],
        *,
        channels: Sequence[str] | None = None,
        run: str | Path | None = None,
        force: bool = False,
        resume: bool = False,
        data: Mapping[str, Any] | None = None,
    ) -> LatentODE:
        """Learn the dynamics of series.

        Args:
            series: Series, or pairs of times and values.
            channels: Names of the channels; x0, x1, ... if None.
            run: Folder to keep log, model and checkpoints in; None for no run.
            force: Whether to replace a run that is there.
            resume: Whether to go on from the run's last checkpoint.
            data: Note on the data, kept in the run's config.

        Returns:
            The model itself.

        Raises:
            ValueError: If a series or a field cannot be used.
            TrainingDiverged: If numbers are not finite, and lower learning rates do not help.
            RunError: If the run folder cannot be used.
            KeyboardInterrupt: If Ctrl-C ended the fit; the model holds what was reached, as does its run.
        """
        check_fields(self)
        self.series_ = check_series(series)
        self.channels_ = channel_names(channels, self.series_)
        self.record_ = self._record(run, data or {}, resume=resume)
        fitting, held_out = self._split(self.record_["seed"])
        self.network_ = self._network(fitting)
        schedule = self._schedule(self._fits(judged=held_out is not None))
        with opened_run(run, self.record_, force=force, resume=resume) as folder:
            self.history_ = self._train(schedule, fitting, held_out, folder, resume=resume)
            self.network_.requires_grad_(False)
            if held_out is not None:
                fit_noise(self.network_, held_out)
            fit_residual(self.network_, fitting if held_out is None else held_out)
            if folder is not None:
                folder.save_model(self.network_)
        self._warn_of_coarse_steps()
        if self.history_.interrupted:
            pass_on(self.history_.signal)
        return self

    def reconstruct(
        self, series: Sequence[Any] | None = None, *, level: float = 0.9, draws: int = 256, random_state: int = 0
    ) -> list[Bands]:
        """Predict series at their own times, from all that was seen of them.

        Args:
            series: Series, or None.
            level: Probability of the bands.
            draws: Draws of the latent state.
            random_state: Seed of the draws.

        Returns:
            A prediction for each series.

        Raises:
            ValueError: If a series cannot be used.
        """
        given = self._given(series)
        return self._bands(given, [item.clock for item in given], level, draws, random_state)

    def extrapolate(
        self,
        times: Any,
        series: Sequence[Any] | None = None,
        *,
        level: float = 0.9,
        draws: int = 256,
        random_state: int = 0,
    ) -> list[Bands]:
        """Predict series at any times from their first one on.

        Args:
            times: Times in the units of the series, shape (T,), or a list of such, one for each series.
            series: Series, or None.
            level: Probability of the bands.
            draws: Draws of the latent state.
            random_state: Seed of the draws.

        Returns:
            A prediction for each series.

        Raises:
            ValueError: If a series cannot be used, or a time is before its first.
        """
        given = self._given(series)
        return self._bands(given, _clocks(times, given), level, draws, random_state)

    def impute(
        self, series: Sequence[Any] | None = None, *, draws: int = 256, random_state: int = 0
    ) -> list[np.ndarray]:
        """Fill in missing values by their mean; `reconstruct` gives the bands.

        Args:
            series: Series, or None.
            draws: Draws of the latent state.
            random_state: Seed of the draws.

        Returns:
            The values of each series, shape (T, channels); those that were seen stay as they are.

        Raises:
            ValueError: If a series cannot be used.
        """
        given = self._given(series)
        means = [bands.mean for bands in self.reconstruct(given, draws=draws, random_state=random_state)]
        return [np.where(np.isnan(s.values), mean, s.values) for s, mean in zip(given, means, strict=True)]

    def sample(self, times: Any, n_samples: int = 1, *, random_state: int | None = None) -> np.ndarray:
        """Draw new series, with the noise of observations.

        Args:
            times: Times since the beginning of a series, shape (T,), at least 0.
            n_samples: Number of series.
            random_state: Seed of the draws; None for a random one.

        Returns:
            Values, shape (n_samples, T, channels).

        Raises:
            ValueError: If the times cannot be used.
        """
        network = self._fitted()
        clock = check_times(times, Series(np.array([0.0, 1.0]), np.zeros(2), "new"))
        _check_reach(float(clock.max()), float(network.duration))
        generator = _generator(random_state)
        with torch.no_grad():
            start = standard_normal((n_samples, network.latent_dim), network.log_noise, generator)
            x = network.decode(network.path(start, torch.from_numpy(clock).expand(n_samples, -1)))
            return (x + network.noise * standard_normal(tuple(x.shape), x, generator)).double().numpy()

    def intensity(
        self,
        times: Any,
        series: Sequence[Any] | None = None,
        *,
        level: float = 0.9,
        draws: int = 256,
        random_state: int = 0,
    ) -> list[Bands]:
        """Predict the rates at which channels are seen, events per unit of time.

        Args:
            times: Times in the units of the series, shape (T,), or a list of such, one for each series.
            series: Series, or None.
            level: Probability of the bands, which are those of the rate, not of a count.
            draws: Draws of the latent state.
            random_state: Seed of the draws.

        Returns:
            A prediction for each series.

        Raises:
            ValueError: If the model was fitted without events, or a series or a time cannot be used.
        """
        given = self._given(series)
        if self._fitted().intensity is None:
            raise ValueError("this model has no intensities: fit it with events=True")
        return self._bands(given, _clocks(times, given), level, draws, random_state, rates=True)

    def score_samples(
        self, series: Sequence[Any] | None = None, *, draws: int = 64, random_state: int = 0
    ) -> np.ndarray:
        """Return the evidence lower bound of each series, nats, in the units of the data.

        Args:
            series: Series, or None.
            draws: Draws of the latent state.
            random_state: Seed of the draws.

        Returns:
            Bounds, shape (n,), each at most the log-likelihood, but for the noise of the draws.

        Raises:
            ValueError: If a series cannot be used.
        """
        network, batch = self._fitted(), _batch(self._given(series))
        return elbo(network, batch, laplace(network, batch), draws=draws, seed=random_state).numpy()

    def weight_loss(self, series: Sequence[Any] | None = None, *, seed: int = 0) -> WeightLoss:
        """Return minus the evidence lower bound as a function of the weights, to look at its landscape and Hessian.

        Args:
            series: Series, all of which are computed at once, or None.
            seed: Seed of the draws of the latent states, one for each series.

        Returns:
            The loss, the mean over series; see `ffjord_kit.diagnostics.WeightLoss`.

        Raises:
            ValueError: If a series cannot be used.
        """
        return WeightLoss.of(
            self._fitted(), _batch(self._given(series)), ELBO(least_share=1.0, consistency=0.0), seed=seed
        )

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the fitted model as a run folder.

        Args:
            path: Folder.
            force: Whether to replace a run that is there.

        Raises:
            RunError: If the folder cannot be used.
        """
        network = self._fitted()
        with claimed(path), closing(Run.create(path, self.record_, force=force)) as run:
            for entry in self.history_.records:
                run.record(entry)
            run.save_model(network)

    @classmethod
    def load(cls, path: str | Path) -> LatentODE:
        """Read a fitted model; it does not hold the series of the fit.

        Args:
            path: Run folder.

        Returns:
            The model.

        Raises:
            RunError: If there is none, or it is damaged.
        """
        run, model = open_run(path), unfitted(path)
        with run.explained("config.json"):
            model.record_, model.channels_ = run.config, [str(name) for name in run.config["channels"]]
            model.network_ = model._blank(Scales.blank(len(model.channels_)))
        run.load_model(model.network_)
        model.network_.requires_grad_(False)
        model.history_ = History(model.record_["seed"], records=run.records())
        return model

    def _record(self, path: str | Path | None, data: Mapping[str, Any], *, resume: bool) -> dict[str, Any]:
        """Return the config of a new run, or that of the run to resume."""
        values = {each.name: getattr(self, each.name) for each in fields(LatentODEFields)}
        seed = secrets.randbits(31) if self.random_state is None else int(self.random_state)
        steps = self.steps or _steps(_batch(self.series_))
        about = {"channels": list(self.channels_), "series": len(self.series_), "sha256": digest(self.series_)}
        record = {"model": KIND, "fields": values, "seed": seed, "steps": steps, **about, "data": dict(data)}
        return record_to_resume(path, record) if resume else record

    def _split(self, seed: int) -> tuple[Batch, Batch | None]:
        """Return the series to fit, and those held out, if they are enough."""
        count = round(self.validation_fraction * len(self.series_))
        if self.validation_fraction and len(self.series_) >= LEAST_SHARE * FEWEST_HELD_OUT:
            count = max(count, FEWEST_HELD_OUT)
        order = np.random.default_rng(seed).permutation(len(self.series_)).tolist()
        if count < FEWEST_HELD_OUT:
            return _batch(self.series_), None
        held_out, fitting = ([self.series_[i] for i in sorted(part)] for part in (order[:count], order[count:]))
        return _batch(fitting), _batch(held_out)

    def _network(self, fitting: Batch) -> LatentNetwork:
        values, times = fitting.x, _times(fitting)
        unseen = values.isnan().flatten(0, 1).all(dim=0)
        for name, missing in zip(self.channels_, unseen.tolist(), strict=True):
            if missing:
                raise ValueError(f"channel {name!r} has no value in any series of the fit: leave it out")
        return self._blank(Scales.of(values, times))

    def _blank(self, scales: Scales, number: int = 0) -> LatentNetwork:
        """Return a network whose weights the seed and a number draw; the global state of torch stays as it is."""
        with torch.random.fork_rng(devices=[]):
            seed = self.record_["seed"]
            torch.manual_seed(
                keyed_generator(torch.device("cpu"), seed, "fit", number).initial_seed() if number else seed
            )
            return LatentNetwork(
                scales, latent_dim=self.latent_dim, hidden=self.hidden, recognition=self.recognition,
                events=self.events, prior=self.prior,
                steps=self.record_["steps"], residual=self.residual and not self.events,
            )  # fmt: skip

    def _fits(self, *, judged: bool) -> int:
        """Return the number of fits from weights of their own; without held-out series nobody could choose one."""
        if (self.n_init or 1) > 1 and not judged:
            raise ValueError(
                f"n_init={self.n_init} needs series held out, which choose a fit: give at least "
                f"{LEAST_SHARE * FEWEST_HELD_OUT} series and a validation_fraction, or n_init=1"
            )
        if self.n_init is not None or self.max_steps is not None or not judged:
            return self.n_init or 1
        return min(MOST_FITS, max(1, int(self.max_seconds / SECONDS_PER_FIT)))

    def _schedule(self, fits: int) -> list[Phase]:
        """Return a phase for each fit; all share the seconds, and each begins with weights of its own."""
        steps, seconds = self.max_steps or math.inf, self.max_seconds / fits

        def weights(number: int) -> list[Tensor]:
            return list(self._blank(Scales.blank(self.network_.channels), number).parameters())

        initial = [None, *(partial(weights, number) for number in range(1, fits))]
        return [Phase(ELBO(), steps, self.learning_rate, seconds, initial=each) for each in initial]

    def _train(
        self, schedule: Sequence[Phase], fitting: Batch, held_out: Batch | None, run: Run | None, *, resume: bool
    ) -> History:
        config = TrainConfig(batch_size=self.batch_size, ema_decay=0.99, patience=NEVER, seed=self.record_["seed"])
        validate = None if held_out is None else ELBOValidation(self.network_, held_out)

        def train_once() -> None:
            generator = keyed_generator(torch.device("cpu"), "threads")
            with torch.enable_grad():
                ELBO().loss(self.network_, fitting[: self.batch_size], generator).value.backward()
            self.network_.zero_grad(set_to_none=True)

        threads = faster_threads(train_once, torch.device("cpu"), (KIND, self.hidden, self.batch_size))
        count = len(schedule)
        titles = [f"fit {number}/{count}" for number in range(1, count + 1)] if count > 1 else None
        with training_progress(schedule, shown=self.verbose, titles=titles) as bars, threads:
            history = fit(
                self.network_, TensorData(fitting), schedule, config=config, validate=validate, run=run, resume=resume,
                on_step=bars.on_step,
            )  # fmt: skip
            bars.finish(history.interrupted)
        return history

    @torch.no_grad()
    def _warn_of_coarse_steps(self) -> None:
        """Compare some reconstructions with those of twice the steps."""
        network, batch = self.network_, _batch(self.series_[:FEWEST_HELD_OUT])
        start, times = network.posterior(batch.x, _times(batch))[0], _times(batch)
        coarse = network.decode(network.path(start, times))
        network.steps *= 2
        error = float(((network.decode(network.path(start, times)) - coarse) / network.noise).abs().max())
        network.steps //= 2
        if error > COARSE:
            warnings.warn(
                f"{network.steps} steps are coarse: twice as many change a reconstruction by {error:.2g} of the noise; "
                f"fit again with steps={2 * network.steps}",
                stacklevel=3,
            )

    def _fitted(self) -> LatentNetwork:
        if "network_" not in vars(self):
            raise ValueError("this LatentODE is not fitted yet: call fit(series), or LatentODE.load(run)")
        return self.network_

    def _given(self, series: Sequence[Any] | None) -> list[Series]:
        network = self._fitted()
        if series is None and "series_" not in vars(self):
            raise ValueError("a loaded model does not hold the series of its fit: pass series=")
        return check_series(self.series_ if series is None else series, network.channels)

    @torch.no_grad()
    def _bands(
        self,
        series: Sequence[Series],
        clocks: Sequence[np.ndarray],
        level: float,
        draws: int,
        seed: int,
        *,
        rates: bool = False,
    ) -> list[Bands]:
        """Return the bands of each series at some times since its first."""
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, a probability; got {level}")
        network, batch = self._fitted(), _batch(series)
        _check_reach(max(float(clock.max()) for clock in clocks), float(network.duration))
        posterior = laplace(network, batch)
        found: list[Bands] = []
        for first in range(0, len(series), CHUNK):
            part, generator = slice(first, first + CHUNK), keyed_generator(torch.device("cpu"), seed, "bands", first)
            start = Posterior(*(each[part] for each in posterior)).draw(draws, generator)
            x, noisy = self._predictions(start, series[part], clocks[part], generator, rates=rates)
            ends = [noisy.quantile((1 + sign * level) / 2, dim=0).numpy() for sign in (-1, 1)]
            arrays = zip(series[part], clocks[part], x.mean(0).numpy(), *ends, strict=True)
            found += [Bands(t + item.times[0], *(each[: len(t)] for each in rest)) for item, t, *rest in arrays]
        return found

    def _predictions(
        self,
        start: Tensor,
        series: Sequence[Series],
        clocks: Sequence[np.ndarray],
        generator: torch.Generator,
        *,
        rates: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return draws (draws, n, T, channels) of what is predicted, without and with the noise of observations."""
        network = self._fitted()
        z = self._paths(start, _times(padded([t[:, None] for t in clocks], clocks)))
        if rates:
            return (x := network.log_rate(z).exp().double()), x
        x = network.decode(z)
        shift, noise = self._left_over(start, series, clocks, x)
        white = standard_normal(tuple(x.shape), x, generator)
        return (x + shift).double(), (x + shift + noise * white).double()

    def _paths(self, start: Tensor, times: Tensor) -> Tensor:
        """Return z (draws, n, T, latent_dim) at times (n, T), from starts (draws, n, latent_dim)."""
        z = self._fitted().path(start.flatten(0, 1), times.repeat(len(start), 1))
        return z.unflatten(0, start.shape[:2])

    def _left_over(
        self, start: Tensor, series: Sequence[Series], clocks: Sequence[np.ndarray], x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean of the residual, shape of `x`, and the deviation of a new value from it (n, T, channels)."""
        network, noise = self._fitted(), self._fitted().noise.expand(x.shape[1:]).clone()
        shift, residual = torch.zeros_like(x), network.residual
        if residual is None or not residual.found.any():
            return shift, noise
        batch = _batch(series)
        errors = batch.x - network.decode(self._paths(start, _times(batch)))
        for i, (item, clock) in enumerate(zip(series, clocks, strict=True)):
            rows = len(item.times)
            times, at = torch.from_numpy(item.clock), torch.from_numpy(clock)
            mean, variance = residual.kriged(times, errors[:, i, :rows].double(), at)
            shift[:, i, : len(at)] = mean.to(x)
            deviation = (variance + residual.white).sqrt().to(x)
            noise[i, : len(at)] = torch.where(residual.found, deviation, noise[i, : len(at)])
        return shift, noise


def unfitted(path: str | Path) -> LatentODE:
    """Return the model of a run without its weights, e.g. to resume it.

    Args:
        path: Run folder.

    Returns:
        The model, with the fields of the run.

    Raises:
        RunError: If the run is damaged.
    """
    run = open_run(path)
    with run.explained("config.json"):
        model = LatentODE(**run.config["fields"])
        check_fields(model)
    return model


def _steps(batch: Batch) -> int:
    """Return a number of Runge-Kutta steps that follows the rows and the turns of series."""
    turn = float(Scales.of(batch.x, _times(batch)).turn)
    wanted = max(math.ceil(STEPS_PER_RADIAN * turn), min(MOST_BY_ROWS, batch.x.shape[1] // ROWS_PER_STEP))
    return min(MOST_STEPS, max(FEWEST_STEPS, wanted))


def _clocks(times: Any, series: Sequence[Series]) -> list[np.ndarray]:
    """Return times since the first one of each series, from common times or a list for each."""
    own = len(times) == len(series) and all(np.ndim(part) == 1 for part in times)
    return [check_times(times[i] if own else times, item) for i, item in enumerate(series)]


def _check_reach(longest: float, duration: float) -> None:
    if longest > MOST_DURATIONS * duration:
        raise ValueError(
            f"expected times within {MOST_DURATIONS} times the longest series of the fit, {duration:g}; got "
            f"{longest:g} after the first time: ask for nearer times"
        )


def _batch(series: Sequence[Series]) -> Batch:
    return padded([item.values for item in series], [item.clock for item in series])


def _times(batch: Batch) -> Tensor:
    return batch.context if batch.context is not None else batch.x.new_zeros(batch.x.shape[:2])


def _generator(seed: int | None) -> torch.Generator:
    return keyed_generator(torch.device("cpu"), secrets.randbits(31) if seed is None else seed, "sample")
