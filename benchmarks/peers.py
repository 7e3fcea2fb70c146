"""Every method of the benchmarks behind one interface: train for so many seconds, then score rows exactly.

zuko's CNF is trained by its own log-density with Hutchinson's trace at its default tolerances, and zuko's discrete
flows by theirs. "paper FFJORD" is the network and the recipe of Grathwohl et al. 2019: concat-squash 64-64-64 with
tanh, dopri5 at 1e-5 with the adjoint, batches of 100, Adam at 1e-3, no decay; its trace is analytic where it is exact,
which is cheaper than the paper's. All peers work on standardised columns, and answer in the units of the rows.

Continuous peers are judged by a converged likelihood: exact trace, dopri5 at 1e-5, float64. A method whose rate is
constant is `anytime`: one run serves several budgets.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from clock import Clock
from fitting import Progress, Recipe, train
from sets import Split
from torch import Tensor, nn

from ffjord_kit import CNF, FFJORD, AdaptiveSolver, Flow, Standardize, metrics
from ffjord_kit.nn import ConcatSquashDynamics
from ffjord_kit.trace import ExactTrace, HutchinsonTrace
from ffjord_kit.training.optim import assign
from ffjord_kit.transforms import SCALINGS, Transform

CHUNK_ELEMENTS = 16_384
NARROW = (64, 64, 64)  # hidden layers of ours where scoring is to be cheap
SKLEARN_ROWS = 20_000  # most rows for scikit-learn's estimators: a mixture of 100,000 rows takes an hour
MOST_EVALUATIONS = 20_000  # of one batch by zuko, whose solver never ends where its field is NaN
DISCRETE = Recipe()
TUNED = Recipe(average=0.999)
TUNED_SCALINGS, TUNED_RATES, TUNED_SHARE = ("standardize", "whiten", "gaussianize"), (1e-3, 3e-3, 3e-4), 0.06
CONTINUOUS = Recipe(cosine=False, clip=None, validate=0.1, patience=None, validation_rows=500)
PAPER = Recipe(batch=100, cosine=False, clip=None, validate=None, patience=None)
CONVERGED = AdaptiveSolver("dopri5", 1e-5, 1e-5)


class Fitted(NamedTuple):
    """A density: `score` maps rows (n, d) to log-densities (n,); `budget` is what was asked for, None without one.

    `model` is what was trained: the estimator, or a peer's frozen float64 network on scaled columns. `quick` scores in
    float32, for timings.
    """

    score: Callable[[np.ndarray], np.ndarray]
    budget: float | None
    facts: dict[str, Any]
    model: Any = None
    quick: Callable[[np.ndarray], np.ndarray] | None = None


Fit = Callable[[Split, Sequence[float], int, str], Iterator[Fitted]]


class Method(NamedTuple):
    """A name, how to fit it (split, budgets, seed, device), and whether one run serves several budgets."""

    name: str
    fit: Fit
    anytime: bool = False
    budgeted: bool = True

    def fits(self, split: Split, budgets: Sequence[float], *, seed: int, device: str) -> Iterator[Fitted]:
        """One fit for each budget, or the states of one run; one without budgets has a single fit."""
        if self.anytime or not self.budgeted:
            yield from self.fit(split, sorted(budgets), seed, device)
        else:
            for budget in budgets:
                yield from self.fit(split, [budget], seed, device)


def ours(budgeted: Callable[[float], dict[str, Any]]) -> Fit:
    """FFJORD with the fields of a budget in seconds; it holds out a tenth of the rows for itself."""

    def fit(split: Split, budgets: Sequence[float], seed: int, device: str) -> Iterator[Fitted]:
        (budget,) = budgets
        clock = Clock(device)
        model = FFJORD(**budgeted(budget), random_state=seed, device=device)
        x, context = split.parts(np.concatenate([split.train, split.validation]))
        model.fit(x, context=context)
        log = [record["event"] for record in model.history_.records if "event" in record]
        facts = _facts(clock, model.history_.step, model.flow_, log=log)
        yield Fitted(partial(_score_ours, model, split), budget, facts, model)

    return fit


def _score_ours(model: FFJORD, split: Split, rows: np.ndarray) -> np.ndarray:
    x, context = split.parts(rows)
    return model.score_samples(x, context=context)


class Peer(NamedTuple):
    """A network, the loss of a batch that trains it, and the exact log-density that a frozen float64 copy gives."""

    model: nn.Module
    loss: Callable[[Tensor], Tensor]
    log_prob: Callable[[nn.Module, Tensor], Tensor]


def peer(make: Callable[..., Peer], recipe: Recipe) -> Fit:
    """Train what `make` gives for a number of columns, and of contexts if any, on standardised rows in float32."""

    def fit(split: Split, budgets: Sequence[float], seed: int, device: str) -> Iterator[Fitted]:
        clock = Clock(device)
        torch.manual_seed(seed)
        scaling = Standardize.of(torch.tensor(split.train))
        rows, validation = (scaling.to_base(torch.tensor(x))[0].float().to(device) for x in split[:2])
        made = make(rows.shape[1] - split.contexts, *filter(None, [split.contexts]))
        parameters = list(made.model.to(device).parameters())
        states = train(
            made.loss, parameters, rows, validation, marks=budgets, recipe=recipe, clock=clock, seed=seed
        )  # fmt: skip
        for budget, progress in states:
            frozen = copy.deepcopy(made.model).double().requires_grad_(False).eval()
            score = partial(_score, partial(made.log_prob, frozen), scaling, split, device)
            yield Fitted(score, budget, _facts(clock, progress.steps, made.model, note=progress.note), frozen)

    return fit


def tuned(make: Callable[..., Peer], recipe: Recipe) -> Fit:
    """Train what `make` gives, with what schedule auto has: scaling and rate by short trials, and a moving average."""

    def fit(split: Split, budgets: Sequence[float], seed: int, device: str) -> Iterator[Fitted]:
        (budget,), clock = budgets, Clock(device)
        best: tuple[float, str, float] | None = None
        settings = [(word, TUNED_RATES[0]) for word in TUNED_SCALINGS[: 1 if split.contexts else None]]
        for word, rate in [*settings, *(("best", rate) for rate in TUNED_RATES[1:])]:
            word = best[1] if word == "best" and best else word
            mark, trial = TUNED_SHARE * budget, dataclasses.replace(recipe, rate=rate, patience=None)
            value = _trained_peer(make, split, word, trial, mark, Clock(device), seed, device)[0].best
            best = min(best or (math.inf, word, rate), (value, word, rate))
        _, word, rate = best
        left = dataclasses.replace(recipe, rate=rate)
        rest = Clock(device)
        progress, made, scaling = _trained_peer(
            make, split, word, left, max(0.1 * budget, budget - clock.seconds()), rest, seed, device
        )  # fmt: skip
        frozen = copy.deepcopy(made.model).double().requires_grad_(False).eval()
        single = copy.deepcopy(made.model).float().requires_grad_(False).eval()
        score = partial(_score, partial(made.log_prob, frozen), scaling, split, device)
        quick = partial(_score, lambda z: made.log_prob(single, z.float()), scaling, split, device)
        note = "; ".join(filter(None, [f"{word}, rate {rate:g}", progress.note]))
        yield Fitted(score, budget, _facts(clock, progress.steps, made.model, note=note), frozen, quick)

    return fit


def _trained_peer(
    make: Callable[..., Peer],
    split: Split,
    word: str,
    recipe: Recipe,
    seconds: float,
    clock: Clock,
    seed: int,
    device: str,
) -> tuple[Progress, Peer, Transform]:
    """A peer trained on rows scaled by a word of SCALINGS; its validation is in the units of the split."""
    torch.manual_seed(seed)
    scaling = SCALINGS[word][0](torch.tensor(split.train))
    (rows, _), (validation, log_det) = (scaling.to_base(torch.tensor(x)) for x in split[:2])
    made = make(rows.shape[1] - split.contexts, *filter(None, [split.contexts]))
    parameters = list(made.model.to(device).parameters())
    ((_, progress),) = train(
        made.loss, parameters, rows.float().to(device), validation.float().to(device), marks=[seconds], recipe=recipe,
        clock=clock, seed=seed,
    )  # fmt: skip
    if progress.weights:
        assign(parameters, progress.weights)
    progress.best -= float(log_det.mean())
    return progress, made, scaling


def zuko_discrete(kind: str, **options: Any) -> Callable[[int], Peer]:
    """A discrete flow of zuko, by its name there."""

    def make(dimensions: int, contexts: int = 0) -> Peer:
        model = getattr(_zuko(), kind)(dimensions, contexts, **options)

        def log_prob(model: nn.Module, rows: Tensor) -> Tensor:
            given = rows[:, dimensions:] if contexts else None
            return model(given).log_prob(rows[:, :dimensions])

        return Peer(model, lambda rows: -log_prob(model, rows).mean(), log_prob)

    return make


def zuko_cnf(dimensions: int) -> Peer:
    """zuko's CNF with its defaults, but for the trace: an estimate while training, exact when it is judged."""
    model = _zuko().CNF(dimensions, exact=False)
    counted = Counted()
    model.transform.ode.register_forward_hook(counted)

    def loss(x: Tensor) -> Tensor:
        counted.calls = 0
        return -model().log_prob(x).mean()

    def score(frozen: nn.Module, z: Tensor) -> Tensor:
        frozen.transform.ode._forward_hooks.clear()  # the count is of a batch of training
        return as_flow(frozen).log_prob(z)

    return Peer(model, loss, score)


def paper(dimensions: int) -> Peer:
    """FFJORD as its paper trains it on the toys."""
    dynamics = ConcatSquashDynamics((dimensions,), hidden=(64, 64, 64), activation="tanh")
    flow = Flow([CNF(dynamics, (dimensions,), solver=_by_adjoint(CONVERGED))])
    trace, noise = ExactTrace() if dimensions == 2 else HutchinsonTrace(), torch.Generator().manual_seed(0)
    return Peer(
        flow,
        lambda x: -flow.log_prob(x, trace=trace, generator=noise).mean(),
        lambda frozen, z: frozen.log_prob(z, solver=CONVERGED),
    )


class ZukoField(nn.Module):
    """The vector field of zuko's CNF in our own time: its data stand at t = 0, ours at t = 1."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return -self.transform.f(1 - t, x)


def as_flow(model: nn.Module, solver: AdaptiveSolver = CONVERGED) -> Flow:
    """zuko's CNF as a Flow, which scores it with the exact trace."""
    dimensions = model.transform.ode[-1].out_features
    return Flow([CNF(ZukoField(model.transform), (dimensions,), solver=solver)])


class Counted:
    """A hook that ends a solve which would never end."""

    calls = 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.calls > MOST_EVALUATIONS:
            raise ArithmeticError(f"more than {MOST_EVALUATIONS} evaluations for one batch")


def mixture(split: Split, budgets: Sequence[float], seed: int, device: str) -> Iterator[Fitted]:
    """scikit-learn's Gaussian mixture, its components and covariance chosen on the validation rows."""
    clock = Clock()
    model = metrics.best_gaussian_mixture(split.train[:SKLEARN_ROWS], split.validation, seed=seed)
    note = f"{model.n_components} {model.covariance_type}"
    yield Fitted(model.score_samples, None, {"seconds": clock.seconds(), "note": note})


def kernels(split: Split, budgets: Sequence[float], seed: int, device: str) -> Iterator[Fitted]:
    """scikit-learn's kernel density estimate, its bandwidth chosen on the validation rows."""
    clock = Clock()
    model = metrics.best_kde(split.train[:SKLEARN_ROWS], split.validation)
    yield Fitted(model.score_samples, None, {"seconds": clock.seconds(), "note": f"bandwidth {model.bandwidth:.3g}"})


def _score(
    log_prob: Callable[[Tensor], Tensor], scaling: Transform, split: Split, device: str, rows: np.ndarray
) -> np.ndarray:
    """Log-densities (n,) in the units of the rows (n, d), in chunks; the scale of contexts is not counted."""
    size = max(1, CHUNK_ELEMENTS // rows.shape[1])
    parts = []
    for chunk in torch.tensor(rows).split(size):
        z, log_det = scaling.to_base(chunk)
        if split.contexts:
            log_det = log_det + cast(Standardize, scaling).scale[-split.contexts :].log().sum()
        with torch.no_grad():
            parts.append(log_prob(z.to(device)).cpu() + log_det)
    return torch.cat(parts).numpy()


def _facts(clock: Clock, steps: int, model: nn.Module, **more: Any) -> dict[str, Any]:
    count = sum(p.numel() for p in model.parameters())
    return {"seconds": round(clock.seconds(), 2), "steps": steps, "parameters": count, **more}


def _by_adjoint(solver: AdaptiveSolver) -> AdaptiveSolver:
    """The same solver with gradients by the adjoint equation."""
    return dataclasses.replace(solver, adjoint="adjoint")


def _zuko() -> ModuleType:
    """zuko's flows, loaded only where they are used."""
    try:
        from zuko import flows
    except ImportError:
        raise ValueError(
            'this method needs zuko: pip install "ffjord-kit[benchmarks]", or leave it out (--only)'
        ) from None
    return flows


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("auto", ours(lambda budget: {"max_seconds": budget})),
        Method("auto 64", ours(lambda budget: {"max_seconds": budget, "hidden": NARROW})),
        Method("mle", ours(lambda budget: {"schedule": [("mle", f"{budget:g}s")]})),
        Method("zuko CNF", peer(zuko_cnf, CONTINUOUS), anytime=True),
        Method("zuko NSF", peer(zuko_discrete("NSF", transforms=4, hidden_features=(64, 64)), DISCRETE)),
        Method("tuned NSF", tuned(zuko_discrete("NSF", transforms=4, hidden_features=(64, 64), randperm=True), TUNED)),
        Method("tuned MAF", tuned(zuko_discrete("MAF", transforms=5, hidden_features=(64, 64), randperm=True), TUNED)),
        Method("zuko MAF", peer(zuko_discrete("MAF", transforms=5, hidden_features=(64, 64)), DISCRETE)),
        Method("paper FFJORD", peer(paper, PAPER), anytime=True),
        Method("mixture", mixture, budgeted=False),
        Method("KDE", kernels, budgeted=False),
    )
}
