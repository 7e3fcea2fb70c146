r"""Frequency principle: which scales of a density, or of a function, a network has learned.

The spectrum of a density is its characteristic function; a direction u and a frequency k give one value of it,

    phi(k u) = E exp(i k u^T y),    y = (x - mean) / deviation, column by column.

A structure of width s (in standard deviations) shows at k = 2 pi / s. Networks learn low frequencies first, so the
relative error of phi, over k and over training, tells which scales are still to come:

    e(k)^2 = sum_u |phi_learned(k u) - phi_reference(k u)|^2 / sum_u |phi_reference(k u)|^2.

Where phi is a mean over n rows, its square has an error of 1/n, which is subtracted; frequencies at which the reference
does not stand out of this noise say nothing, and are left out. In the plane, `plane_spectrum` takes all directions at
once from a density on a grid, by FFT.

References:
    Xu, Zhang, Luo, Xiao & Ma 2020, Frequency principle, https://arxiv.org/abs/1901.06523.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ffjord_kit.diagnostics.findings import GOOD, UNSURE, Finding, grade
from ffjord_kit.flow import Flow
from ffjord_kit.ode import AdaptiveSolver, Solver
from ffjord_kit.transforms.cnf import SolveOptions

FREQUENCIES = torch.logspace(-0.5, 5.5, 25, base=2.0, dtype=torch.float64)  # per standard deviation, four an octave
DIRECTIONS, SAMPLES = 16, 8_000
LEARNED, HALF_LEARNED = 0.1, 0.5  # relative errors
STANDS_OUT = 3.0  # least ratio of the reference to the noise
NOISE_FACTOR = 2.0  # of the noise that an error may have for nothing
SOLVER = AdaptiveSolver("dopri5", 1e-4, 1e-4)

LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DensitySpectrum:
    """Size and error of a learned density's spectrum.

    Attributes:
        frequencies: Frequencies k, in radians per standard deviation (per unit in the plane), shape (K,).
        size: Root mean square of the reference's |phi| over directions, shape (K,).
        error: Root mean square of |phi_learned - phi_reference|, shape (K,).
        noise: Error that noise alone leaves after the subtraction of its mean, shape (K,); 0 where both are exact.

    Example:
        >>> half = torch.tensor([1.0, 0.5])
        >>> spectrum = DensitySpectrum(torch.tensor([1.0, 2.0]), half, 0.1 * half, torch.tensor([0.0, 1.0]))
        >>> spectrum.visible.tolist(), spectrum.record()["errors"]
        ([True, False], [0.1, None])
    """

    frequencies: Tensor
    size: Tensor
    error: Tensor
    noise: Tensor

    @property
    def visible(self) -> Tensor:
        """Whether the reference stands out of the noise, shape (K,)."""
        return self.size > STANDS_OUT * self.noise

    @property
    def relative_error(self) -> Tensor:
        """Error over size; NaN where the reference does not stand out of the noise, shape (K,)."""
        return torch.where(self.visible, self.error / self.size, math.nan)

    @property
    def unlearned(self) -> Tensor:
        """Whether a visible frequency has an error above a tenth that its noise does not explain, shape (K,)."""
        return self.visible & (self.error > LEARNED * self.size + NOISE_FACTOR * self.noise)

    def record(self) -> dict[str, list[float | None]]:
        """Return frequencies and relative errors as plain numbers for the log.

        Returns:
            Lists by name; None where the reference does not stand out of the noise.
        """
        errors = [round(value, 4) if math.isfinite(value) else None for value in self.relative_error.tolist()]
        return {"frequencies": [round(k, 4) for k in self.frequencies.tolist()], "errors": errors}


def characteristic_function(x: Tensor, directions: Tensor, frequencies: Tensor) -> Tensor:
    """Return the mean of exp(i k u^T x) over rows.

    Args:
        x: Rows, shape (n, d).
        directions: Unit vectors u, shape (D, d).
        frequencies: Frequencies k, shape (K,).

    Returns:
        Complex values, shape (D, K).

    Example:
        >>> characteristic_function(torch.zeros(5, 2), torch.eye(2), torch.ones(1)).real.tolist()
        [[1.0], [1.0]]
    """
    projected = x @ directions.T
    angles = (projected * k for k in frequencies)
    return torch.stack([torch.complex(angle.cos().mean(0), angle.sin().mean(0)) for angle in angles], dim=1)


def unit_directions(size: int, count: int = DIRECTIONS, *, seed: int = 0) -> Tensor:
    """Return directions to look along: evenly spread in the plane, else the columns and random ones.

    Args:
        size: Number of columns d.
        count: Number of directions.
        seed: Seed of the random ones.

    Returns:
        Unit vectors in float64, shape (count, d); a single one for a single column.

    Example:
        >>> unit_directions(2, 2)
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if size == 2:
        angles = torch.arange(count, dtype=torch.float64) * (math.pi / count)
        return torch.stack([angles.cos(), angles.sin()], dim=1).round(decimals=15) + 0.0
    columns = torch.eye(size, dtype=torch.float64)[:count]
    drawn = torch.randn(max(0, count - size), size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.cat([columns, drawn / drawn.norm(dim=1, keepdim=True)])


def sample_spectrum(
    samples: Tensor, reference: Tensor, *, directions: Tensor | None = None, frequencies: Tensor | None = None
) -> DensitySpectrum:
    """Compare the spectra of two sets of rows.

    Args:
        samples: Samples of the learned density, shape (m, d).
        reference: Rows of the data, or of the truth, shape (n, d); their means and deviations give the units, but for
            constant columns, which keep their own.
        directions: Unit vectors, shape (D, d); 16 if None.
        frequencies: Frequencies, radians per standard deviation, shape (K,); 0.7 to 45 if None.

    Returns:
        The spectrum.

    Raises:
        ValueError: If the shapes do not fit, or there are fewer than two rows.

    Example:
        >>> rows = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> bool((sample_spectrum(rows, rows).error == 0).all())
        True
    """
    if samples.ndim != 2 or reference.ndim != 2 or samples.shape[1] != reference.shape[1]:
        raise ValueError(
            f"expected rows (m, d) and (n, d) of the same columns; got {tuple(samples.shape)} and "
            f"{tuple(reference.shape)}"
        )
    if min(len(samples), len(reference)) < 2:
        raise ValueError(f"expected two rows or more; got {len(samples)} and {len(reference)}")
    samples, reference = samples.double(), reference.double()
    mean, deviation = reference.mean(0), reference.std(0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    directions = unit_directions(reference.shape[1]) if directions is None else directions.double()
    frequencies = FREQUENCIES if frequencies is None else frequencies.double()
    learned, expected = (
        characteristic_function((rows - mean) / deviation, directions, frequencies) for rows in (samples, reference)
    )
    noises = 1 / len(reference), 1 / len(samples) + 1 / len(reference)
    return _compared(frequencies, learned, expected, *noises)


@torch.no_grad()
def density_spectrum(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    directions: Tensor | None = None,
    frequencies: Tensor | None = None,
    samples: int = SAMPLES,
    solver: Solver = SOLVER,
    seed: int = 0,
) -> DensitySpectrum:
    """Compare the spectrum of a flow, by its samples, with that of rows.

    Args:
        flow: Flow of events with one axis.
        x: Rows in the units of the data, shape (n, d).
        context: Contexts, shape (n, context_dim), for which samples are drawn in turn; or None.
        directions: Unit vectors, shape (D, d); 16 if None.
        frequencies: Frequencies, radians per standard deviation, shape (K,); 0.7 to 45 if None.
        samples: Number of samples.
        solver: Solver that draws them.
        seed: Seed of the samples.

    Returns:
        The spectrum.

    Raises:
        ValueError: If rows or contexts do not fit the flow.

    Example:
        >>> from ffjord_kit.transforms import Standardize
        >>> rows = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> spectrum = density_spectrum(Flow([Standardize.of(rows)]), rows)
        >>> check_spectrum(spectrum).verdict
        'good'
    """
    flow.check(x, context)
    contexts = None if context is None else context[torch.arange(samples) % len(context)]
    z = flow.base.sample(samples, torch.Generator().manual_seed(seed))
    drawn, _ = flow.to_data(z, contexts, options=SolveOptions(trace=None, solver=solver))
    return sample_spectrum(drawn.flatten(1), x.flatten(1), directions=directions, frequencies=frequencies)


@torch.no_grad()
def plane_spectrum(
    log_prob: LogDensity, reference: LogDensity | Tensor, bounds: Sequence[Sequence[float]], *, size: int = 128
) -> DensitySpectrum:
    """Compare the spectra of densities in the plane in all directions, by FFT on a grid of cells.

    The bounds should hold nearly all mass: what lies outside is missing from the spectrum. Frequencies of a ring, of
    the width of a step of the grid of frequencies, are taken together.

    Args:
        log_prob: Log-density of points (n, 2), shape (n,).
        reference: The true log-density, or rows of the data, shape (n, 2).
        bounds: Limits ((x0, x1), (y0, y1)), whose sides are of equal length.
        size: Cells a side.

    Returns:
        The spectrum, in radians per unit.

    Raises:
        ValueError: If the sides differ in length.

    Example:
        >>> normal = torch.distributions.Normal(0.0, 1.0)
        >>> spectrum = plane_spectrum(lambda x: normal.log_prob(x).sum(1), lambda x: normal.log_prob(x).sum(1),
        ...                           ((-6, 6), (-6, 6)), size=32)
        >>> float(spectrum.error.max())
        0.0
    """
    (x0, x1), (y0, y1) = ((float(low), float(high)) for low, high in bounds)
    length = x1 - x0
    if not (length > 0 and math.isclose(length, y1 - y0)):
        raise ValueError(f"expected bounds of a square, ((x0, x1), (y0, y1)) of one length; got {bounds}")
    start = torch.tensor([x0, y0], dtype=torch.float64)
    modes = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    learned, noise = _grid_transform(log_prob, start, length, size), 0.0
    if isinstance(reference, Tensor):
        expected, noise = _rows_transform(reference.double(), modes * (2 * math.pi / length)), 1 / len(reference)
    else:
        expected = _grid_transform(reference, start, length, size)
    radius = torch.hypot(modes[:, None], modes[None, :]).round().long()
    rings = [radius == ring for ring in range(1, size // 2)]
    parts = [_compared(torch.ones(1), learned[r][:, None], expected[r][:, None], noise, noise) for r in rings]
    frequencies = torch.arange(1, size // 2, dtype=torch.float64) * (2 * math.pi / length)
    names = ("size", "error", "noise")
    return DensitySpectrum(frequencies, *(torch.cat([getattr(part, name) for part in parts]) for name in names))


def mode_errors(predicted: Tensor, target: Tensor, periods: Sequence[int]) -> Tensor:
    """Return the relative errors of the sines of a function on an interval.

    Args:
        predicted: Values on a uniform grid of the interval, its end left out, shape (..., n).
        target: Values of the target, shape (n,).
        periods: Numbers p of periods in the interval.

    Returns:
        |c_p - c*_p| / |c*_p| with c_p the Fourier coefficient, shape (..., len(periods)).

    Raises:
        ValueError: If the target has nothing at one of the periods, or the grid is too coarse.

    Example:
        >>> grid = torch.arange(64) / 64
        >>> target = (2 * math.pi * grid).sin() + (6 * math.pi * grid).sin()
        >>> [round(error, 4) for error in mode_errors(0.5 * target, target, [1, 3]).tolist()]
        [0.5, 0.5]
    """
    if max(periods) > target.shape[-1] // 2:
        raise ValueError(f"{max(periods)} periods need {2 * max(periods)} points or more; got {target.shape[-1]}")
    chosen = list(periods)
    found, expected = (torch.fft.rfft(values.double())[..., chosen] for values in (predicted, target))
    if bool((expected.abs() <= 1e-8 * target.abs().sum()).any()):
        raise ValueError(f"the target has no part of some of {chosen} periods: leave these out")
    return (found - expected).abs() / expected.abs()


def steps_to_learn(steps: Sequence[float], errors: Tensor, level: float = LEARNED) -> Tensor:
    """Return the steps from which on errors stay below a level.

    Args:
        steps: Steps, or seconds, of the measurements, shape (T,).
        errors: Relative errors, shape (T, K).
        level: The level.

    Returns:
        The first such step of each frequency, shape (K,); infinite where there is none.

    Example:
        >>> steps_to_learn([10, 20, 30], torch.tensor([[0.5], [0.05], [0.02]])).tolist()
        [20.0]
    """
    above = errors >= level
    last = torch.where(above, torch.arange(len(errors))[:, None], -1).amax(0)
    times = torch.tensor([*steps, math.inf], dtype=torch.float64)
    return times[last + 1]


def check_spectrum(spectrum: DensitySpectrum) -> Finding:
    """Report the scales that are not learned yet.

    Args:
        spectrum: Spectrum of `density_spectrum` or `sample_spectrum`.

    Returns:
        The finding.

    Example:
        >>> k, one, zero = torch.tensor([1.0, 2.0]), torch.ones(2), torch.zeros(2)
        >>> check_spectrum(DensitySpectrum(k, one, torch.tensor([0.01, 0.9]), zero)).verdict
        'bad'
    """
    name, errors = "scales", spectrum.relative_error
    if not bool(spectrum.visible.any()):
        return Finding(name, UNSURE, "no frequency stands out of the noise of so few rows", "pass more rows")
    finest = float(spectrum.frequencies[spectrum.visible].max())
    if not bool(spectrum.unlearned.any()):
        return Finding(name, GOOD, f"learned down to {2 * math.pi / finest:.2g} standard deviations, the finest seen")
    first = float(spectrum.frequencies[spectrum.unlearned].min())
    worst = float(errors[spectrum.unlearned].max())
    measured = (
        f"structure of {2 * math.pi / first:.2g} standard deviations is not learned yet: its spectrum is off by up to "
        f"{worst:.0%}"
    )
    advice = "train longer, or, up to three columns, with fourier_features=2"
    return Finding(name, grade(worst, good=LEARNED, fair=HALF_LEARNED), measured, advice)


def _compared(
    frequencies: Tensor, learned: Tensor, expected: Tensor, noise: float, noise_of_difference: float
) -> DensitySpectrum:
    """Take root mean squares over directions, values of shape (D, K), less the squares of their noise.

    The square of the noise is exponentially distributed in one direction; neighbouring directions share half of it.
    """
    size, error = (
        (values.abs().square().mean(0) - square).clamp(min=0).sqrt()
        for values, square in ((expected, noise), (learned - expected, noise_of_difference))
    )
    left = math.sqrt(noise_of_difference) / max(1.0, len(learned) / 2) ** 0.25
    return DensitySpectrum(frequencies, size, error, torch.full_like(size, left))


def _grid_transform(log_prob: LogDensity, start: Tensor, length: float, size: int) -> Tensor:
    """Return the integral of p(x) exp(i w^T x) over a square, at the frequencies of an FFT, shape (size, size)."""
    cell = length / size
    ticks = (torch.arange(size, dtype=torch.float64) + 0.5) * cell
    points = torch.cartesian_prod(ticks, ticks) + start
    density = log_prob(points).double().exp().reshape(size, size)
    w = torch.fft.fftfreq(size, cell, dtype=torch.float64) * (2 * math.pi)
    phase = (w[:, None] * (start[0] + cell / 2)) + (w[None, :] * (start[1] + cell / 2))
    return torch.fft.ifft2(density) * length**2 * torch.exp(1j * phase)


def _rows_transform(x: Tensor, w: Tensor) -> Tensor:
    """Return the mean of exp(i w^T x) over rows x (n, 2), for all pairs of frequencies w, shape (len(w), len(w))."""
    first, second = (torch.exp(1j * torch.outer(column, w)) for column in x.unbind(1))
    return first.T @ second / len(x)
