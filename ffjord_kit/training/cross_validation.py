"""Choice among settings and lengths of training by cross-validation, for sets too small to judge by one split.

Each setting is fitted at growing lengths, on every fold. A setting leaves the race when its score rises with the
length, or when it is clearly worse than the best at the same length: by more than two standard errors of the difference
over folds. The best of all, at the best length, wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

LENGTHS = (1, 100, 300, 1000, 3000)  # steps; the first shows the flow as it begins
FINER = 3**0.5  # ratio of the lengths that are tried next to the best one
TRAINED = 100  # steps; before, scores may rise for a while
CLEARLY = 2.0  # standard errors

Settings = Mapping[str, Any]
Score = Callable[[Settings, int, int], float]  # of settings, fold and steps: validation NLL, nats


@dataclass
class Race:
    """A race of settings.

    Args:
        score: Fits settings on a fold for some steps, and scores them; lower is better.
        seconds_left: Returns the seconds that are left; infinite without a limit.
        longest: Largest number of steps.
        folds: Number of folds.

    Example:
        >>> race = Race(lambda settings, fold, steps: abs(steps - settings["best"]) + fold, lambda: math.inf, 1000, 5)
        >>> race.run([{"best": 90}, {"best": 5000}])
        >>> race.best()
        ({'best': 90}, 100)
    """

    score: Score
    seconds_left: Callable[[], float]
    longest: int
    folds: int
    results: list[tuple[Settings, int, list[float]]] = field(default_factory=list)
    seconds_per_step: float = 0.0  # of all folds, as last measured

    def run(self, settings: Sequence[Settings]) -> None:
        """Let settings race.

        Args:
            settings: Settings.
        """
        under_way = list(settings)
        for steps in (length for length in LENGTHS if length <= self.longest):
            under_way = [each for each in under_way if self.add(each, steps)]
            under_way = [each for each in under_way if self._is_promising(each, steps)]

    def refine(self) -> None:
        """Try lengths next to the best one."""
        settings, steps = self.best()
        for near in (round(steps / FINER), round(steps * FINER)):
            if TRAINED / 2 <= near <= self.longest:
                self.add(settings, near)

    def add(self, settings: Settings, steps: int) -> bool:
        """Score settings at a length, if the time suffices.

        Args:
            settings: Settings.
            steps: Steps of training.

        Returns:
            Whether it did.
        """
        before = self.seconds_left()
        if self.results and self._predicted(steps) >= before:
            return False
        scores = [self.score(settings, fold, steps) for fold in range(self.folds)]
        self.results.append((settings, steps, scores))
        if steps > 1 and before < math.inf:
            self.seconds_per_step = (before - self.seconds_left()) / steps
        return True

    def _predicted(self, steps: int) -> float:
        """Return the seconds that all folds and the final fit will take."""
        return self.seconds_per_step * steps * (1 + 1 / self.folds)

    def best(self) -> tuple[Settings, int]:
        """Return the best settings and length so far.

        Returns:
            Settings and steps.

        Raises:
            ValueError: If nothing was scored.
        """
        settings, steps, _ = min(self.results, key=lambda result: fmean(result[2]))
        return settings, steps

    @property
    def lowest(self) -> float:
        """Mean score of the best settings at the best length."""
        return min(fmean(scores) for _, _, scores in self.results)

    def has(self, settings: Settings, steps: int) -> bool:
        """Say whether settings were scored at a length.

        Args:
            settings: Settings.
            steps: Steps of training.

        Returns:
            Whether they were.
        """
        return any((each, length) == (settings, steps) for each, length, _ in self.results)

    def _is_promising(self, settings: Settings, steps: int) -> bool:
        if steps < TRAINED:
            return True
        mine = [scores for each, length, scores in self.results if each == settings and length >= TRAINED]
        rose = len(mine) > 1 and fmean(mine[-1]) > fmean(mine[-2])
        rivals = [scores for _, length, scores in self.results if length == steps]
        return not rose and not any(_clearly_worse(mine[-1], rival) for rival in rivals)


def split_folds(rows: int, folds: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Divide rows into folds at random.

    Args:
        rows: Number of rows.
        folds: Number of folds.
        seed: Seed of the division.

    Returns:
        For each fold the indices of the rows to train on, and of those to validate on.

    Example:
        >>> [(len(train), len(held_out)) for train, held_out in split_folds(10, 5, seed=0)][:2]
        [(8, 2), (8, 2)]
    """
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    parts = order.chunk(folds)
    return [(torch.cat([*parts[:i], *parts[i + 1 :]]), part) for i, part in enumerate(parts)]


def _clearly_worse(scores: Sequence[float], rival: Sequence[float]) -> bool:
    differences = [a - b for a, b in zip(scores, rival, strict=True)]
    return fmean(differences) > CLEARLY * stdev(differences) / len(differences) ** 0.5
