"""The settled configuration, made once from the fields, and the untrained flow that it describes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import nn

from ffjord_kit.accuracy import MAX_STEP
from ffjord_kit.diagnostics.watch import watch_words
from ffjord_kit.distributions import Base
from ffjord_kit.estimator.data import TrainingData
from ffjord_kit.estimator.domain import Domain
from ffjord_kit.estimator.fields import (
    OPEN,
    CommonFields,
    ImageFields,
    PhaseSpec,
    TableFields,
    choice,
    kind_of,
    phase_specs,
    positive,
    regularizer_weights,
    transform_counts,
    whole,
)  # fmt: skip
from ffjord_kit.estimator.tables.own import is_own, network_maker
from ffjord_kit.flow import Flow
from ffjord_kit.memory import check_fits
from ffjord_kit.nn import ACTIVATIONS
from ffjord_kit.nn.mlp import set_reach
from ffjord_kit.objectives import (
    COUPLINGS,
    TIME_DENSITIES,
    FlowMatching,
    MaximumLikelihood,
    Objective,
    SolvedObjective,
    SteppedLikelihood,
    TransformsLikelihood,
    made_robust,
)  # fmt: skip
from ffjord_kit.ode import AdaptiveSolver, PerRowSolver, Solver, make_solver
from ffjord_kit.precision import check_compile_mode
from ffjord_kit.trace import TRACE_ESTIMATORS, TraceEstimator
from ffjord_kit.training import Phase, TrainConfig
from ffjord_kit.training.discretize import LEARNING_RATE
from ffjord_kit.training.distributed import current_workers
from ffjord_kit.transforms import CNF, ContextScaling, Transform
from ffjord_kit.transforms.cnf import SolveOptions
from ffjord_kit.transforms.zuko import zuko_transform
from ffjord_kit.words import CLOCKS, DENSITIES

EXACT_TRACE_UP_TO = 8  # elements of an event, in training
WEIGHT_BYTES = 7 * 4  # of a weight, its gradient, its average, two moments, and the good and the best one, in float32
SLOW_FREQUENCY = 2.0  # largest angular frequency of time in a field that hardly changes with it


@dataclass(frozen=True)
class Config:
    """The settled configuration: every field checked, and the objects that it names.

    Attributes:
        fields: Fields, with the open ones settled.
        train: Options of the training loop.
        objectives: Objectives and their peak learning rates, by word.
        phases: Schedule of training of the continuous flow; none of a flow without weights to learn.
        steps: Phase in which the flow in few explicit steps is trained; None for none.
        transforms: Exact transforms with weights, (word, count).
        network: Maker of a network, from an event's shape and `context_dim`.
        solver: Solver of maximum likelihood.
        reporting: Solve of every reported likelihood and sample.
        validation: Solve of validations.
        device: Device of the flow.
    """

    fields: TableFields | ImageFields
    train: TrainConfig
    objectives: Mapping[str, tuple[Objective, float]]
    phases: tuple[Phase, ...]
    steps: Phase | None
    transforms: tuple[tuple[str, int], ...]
    network: Callable[..., nn.Module]
    solver: Solver
    reporting: SolveOptions
    validation: SolveOptions
    device: torch.device

    def judged_at_the_end(self) -> Config:
        """Return the configuration with one validation a phase, for lengths that are chosen already.

        Returns:
            The new configuration.
        """
        return dataclasses.replace(self, phases=tuple(dataclasses.replace(each, validations=1) for each in self.phases))


def resolve(fields: CommonFields, domain: Domain, *, seed: int = 0, chosen: Mapping[str, Any] | None = None) -> Config:
    """Settle the open fields, check all of them, and make what they name.

    Args:
        fields: Fields, whose types `check_kinds` has checked.
        domain: Domain of the data.
        seed: Seed of training.
        chosen: Values of open fields that the search has chosen.

    Returns:
        The configuration.

    Raises:
        ValueError: If a value cannot be used.
    """
    _check_limit(fields)
    check_compile_mode(fields.compile)
    watch_words(fields.watch if isinstance(fields, TableFields) else None)
    now = settle(fields, domain, chosen or {})
    solver = _training_solver(now)
    transforms = transform_counts(now.transforms) if isinstance(now, TableFields) else ()
    objectives, network = _objectives(now, domain, solver), _network(now, domain)
    _check_network_fits(now, domain, transforms)
    auto, decays = fields.schedule == "auto", fields.weight_decay in OPEN and bool(now.weight_decay)
    phases = _phases(phase_specs(now.schedule), objectives, domain, transforms, auto=auto, decays=decays)
    phases = phases if domain.size else ()  # without columns of numbers nothing is to be trained
    return Config(
        fields=now,
        train=_train_config(now, seed),
        objectives=objectives,
        phases=tuple(phase for phase in phases if phase.objective.name != "steps"),
        steps=next((phase for phase in phases if phase.objective.name == "steps"), None),
        transforms=transforms,
        network=network,
        solver=solver,
        reporting=_reporting(now, domain),
        validation=_validation(now, domain),
        device=find_device(now.device),
    )


def settle(fields: CommonFields, domain: Domain, chosen: Mapping[str, Any]) -> TableFields | ImageFields:
    """Return the fields with the open ones as chosen, or at the defaults of the domain.

    Args:
        fields: Fields.
        domain: Domain of the data.
        chosen: Values of open fields that take the place of the defaults.

    Returns:
        The settled fields.
    """
    kind = kind_of(fields)
    values = {each.name: getattr(fields, each.name) for each in dataclasses.fields(kind)}
    defaults = {**domain.defaults(), **chosen}
    if fields.solver is not None:
        defaults.pop("solver_steps", None)  # the default number of steps belongs to the default solver
    return kind(**{**values, **{name: value for name, value in defaults.items() if values[name] in OPEN}})


def find_device(name: str) -> torch.device:
    """Return the device of a name; "auto" takes CUDA (a worker its own), then MPS, then the CPU.

    Args:
        name: "auto", or a device of torch.

    Returns:
        The device.

    Raises:
        ValueError: If this machine has no such device.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return current_workers().device(torch.device(next(kind for kind, here in present.items() if here)))
    if not present.get(name.partition(":")[0], False):
        here = ", ".join(kind for kind, there in present.items() if there)
        raise ValueError(f"device must be 'auto' or one that this machine has ({here}); got {name!r}")
    return current_workers().device(torch.device(name))


def build_flow(config: Config, domain: Domain, data: TrainingData, seed: int) -> Flow:
    """Return an untrained flow, its preprocessing and base fitted to data, on the device of the configuration.

    Args:
        config: Configuration.
        domain: Domain of the data.
        data: Training data.
        seed: Seed of the weights.

    Returns:
        The flow.

    Raises:
        ValueError: If the data do not suit the fields.
    """
    preprocess = domain.preprocess(data, config.fields.scaling)
    z = data.fitting.x
    for transform in preprocess:
        z, _ = transform.to_base(z, data.scaled_context)
    base = domain.base(z, config.fields, data.fitting.weight)
    flow = _assemble(config, domain, preprocess, base, data.context_scaling, seed)
    set_reach(flow, z)
    return flow


def blank_flow(config: Config, domain: Domain, context_dim: int, seed: int) -> Flow:
    """Return a flow that was fitted to nothing, to load weights into.

    Args:
        config: Configuration.
        domain: Domain of the data.
        context_dim: Length of a context.
        seed: Seed of the weights.

    Returns:
        The flow.
    """
    zeros = torch.zeros(context_dim, dtype=torch.float64)
    scaling = ContextScaling.blank(zeros) if context_dim else None
    preprocess = domain.blank_preprocess(config.fields.scaling, context_dim)
    return _assemble(config, domain, preprocess, domain.base(None, config.fields), scaling, seed)


def slow_transforms(config: Config, domain: Domain, context_dim: int, seed: int) -> list[CNF]:
    """Return the continuous transforms alone, untrained, for fields that hardly change with time.

    Fast sinusoids of time would leave ripples in such a field, which a solver has to follow.

    Args:
        config: Configuration.
        domain: Domain of the data.
        context_dim: Length of a context.
        seed: Seed of the weights.

    Returns:
        Transforms, from data to base.
    """
    timed = config.fields.dynamics in ("residual", "unet")
    with _weights_drawn_by(seed):
        return _continuous(config, domain, context_dim, {"max_frequency": SLOW_FREQUENCY} if timed else {})


def report_dtype(device: torch.device) -> torch.dtype:
    """Return the type in which a device reports: float64, where it has it.

    Args:
        device: The device.

    Returns:
        The type.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def _check_limit(fields: CommonFields) -> None:
    """Refuse a limit in time that is not positive, or that the schedule does not keep."""
    if fields.max_seconds is None:
        return
    if fields.schedule != "auto":
        raise ValueError(
            f"max_seconds is for schedule='auto': give the seconds in the schedule, "
            f"e.g. mle:{fields.max_seconds:g}s (in Python ('mle', '{fields.max_seconds:g}s'))"
        )
    if not 0 < fields.max_seconds < math.inf:
        raise ValueError(f"max_seconds must be positive and finite; got {fields.max_seconds}")


def _phases(
    specs: Sequence[PhaseSpec],
    objectives: Mapping[str, tuple[Objective, float]],
    domain: Domain,
    transforms: Sequence[tuple[str, int]],
    *,
    auto: bool,
    decays: bool,
) -> tuple[Phase, ...]:
    """Make the phases of training; under schedule auto maximum likelihood is a trial, which may be of no help.

    Flow matching with a weight decay that auto has chosen goes on to its end: on wine_red it stopped after a third of
    300 s for no better validation, and at its end has an NLL of 6.90 in place of 6.99.
    """
    words = [spec.objective for spec in specs]
    domain.check_schedule(words)
    if "steps" in words[:-1] or words == ["steps"]:
        raise ValueError(
            "the phase 'steps' trains the fitted flow on, in few explicit steps: it comes once, after the others; "
            f"got {', '.join(words)}"
        )
    if not transforms and any(spec.objective == "transforms" for spec in specs):
        raise ValueError(
            "the schedule has a phase 'transforms', but no transforms to train: pass transforms=[('maf', 3)], or drop "
            "the phase"
        )
    return tuple(
        Phase(*objectives[spec.objective][:1], spec.steps, objectives[spec.objective][1], spec.seconds,
              trial=spec.objective == "steps" or (auto and spec.objective == "mle"),
              from_start=spec.objective == "steps",
              patient=auto and decays and spec.objective == "flow_matching")
        for spec in specs
    )  # fmt: skip


def _objectives(
    fields: TableFields | ImageFields, domain: Domain, solver: Solver
) -> dict[str, tuple[Objective, float]]:
    """Make every objective with its peak learning rate, so that a wrong field is refused at once."""
    choice("density", fields.density, dict.fromkeys(("auto", *DENSITIES)))
    choice("time_density", fields.time_density, TIME_DENSITIES)
    choice("coupling", fields.coupling, COUPLINGS)
    weights = regularizer_weights(fields.regularizers)
    if "hjb" in weights and fields.dynamics != "potential":
        raise ValueError(f"regularizer 'hjb' needs dynamics='potential'; got dynamics={fields.dynamics!r}")
    likelihood = _likelihood(fields, MaximumLikelihood(_training_trace(fields, domain), weights, solver, fields.steer))
    matching = domain.matching(FlowMatching(fields.time_density, fields.coupling))
    rate = positive("mle_learning_rate", fields.mle_learning_rate)
    return {
        "flow_matching": (matching, positive("learning_rate", fields.learning_rate)),
        "mle": (domain.asked(likelihood), rate),
        "transforms": (TransformsLikelihood(), rate),
        "steps": (domain.asked(SteppedLikelihood()), LEARNING_RATE),
    }


def _likelihood(fields: CommonFields, plain: MaximumLikelihood) -> SolvedObjective[Flow]:
    """Return the objective of maximum likelihood, robust where that is asked for."""
    if fields.robust is None:
        return plain
    if fields.schedule == "auto" or all(spec.objective != "mle" for spec in phase_specs(fields.schedule)):
        raise ValueError(
            "robust is for a schedule with a phase of maximum likelihood, e.g. flow_matching:2000,mle:60s (in Python "
            f"[('flow_matching', 2000), ('mle', '60s')]); got schedule={fields.schedule!r}"
        )
    return made_robust(plain, positive("robust", fields.robust))


def _train_config(fields: CommonFields, seed: int) -> TrainConfig:
    """Check and collect the options of the training loop."""
    if not 0 <= fields.ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1); got {fields.ema_decay}")
    for name in ("weight_decay", "warmup_steps"):
        if not getattr(fields, name) >= 0:
            raise ValueError(f"{name} must not be negative; got {getattr(fields, name)}")
    return TrainConfig(
        batch_size=whole("batch_size", fields.batch_size),
        optimizer=fields.optimizer,
        weight_decay=fields.weight_decay or 0.0,
        warmup=fields.warmup_steps,
        clip_norm=positive("clip_norm", fields.clip_norm),
        ema_decay=fields.ema_decay,
        validate_every=whole("validate_every", fields.validate_every),
        patience=whole("patience", fields.patience),
        guard=fields.guard,
        precision=fields.precision,
        clock=choice("clock", fields.clock, {word: word for word in CLOCKS}),
        micro_batches=None if fields.micro_batches is None else whole("micro_batches", fields.micro_batches),
        seed=seed,
    )


def _network(fields: TableFields | ImageFields, domain: Domain) -> Callable[..., nn.Module]:
    """Choose the network, and the options that it is made with."""
    hidden = tuple(fields.hidden) if isinstance(fields.hidden, Sequence) else ()
    if not hidden or any(not isinstance(width, Integral) or width < 1 for width in hidden):
        raise ValueError(f"hidden must be one or more positive widths; got {fields.hidden}")
    own = is_own(fields.dynamics)
    network = network_maker(fields.dynamics) if own else choice("dynamics", fields.dynamics, domain.networks)
    options = dict(domain.residual_options) if fields.dynamics == "residual" else {}
    if fields.activation is not None:
        if fields.dynamics == "unet":
            raise ValueError(f"dynamics='unet' has its own activation: leave activation={fields.activation!r} out")
        choice("activation", fields.activation, ACTIVATIONS)
        options["activation"] = fields.activation
    if isinstance(fields, TableFields) and fields.fourier_features:
        if fields.dynamics != "residual":
            raise ValueError(f"fourier_features are inputs of dynamics='residual'; got dynamics={fields.dynamics!r}")
        options["fourier_features"] = whole("fourier_features", fields.fourier_features)
    if isinstance(fields, TableFields) and whole("input_scales", fields.input_scales) > 1:
        if fields.dynamics != "residual":
            raise ValueError(
                f"input_scales are for dynamics='residual'; got dynamics={fields.dynamics!r}: leave it out"
            )
        if fields.input_scales > hidden[0]:
            raise ValueError(f"input_scales must be at most the first width, {hidden[0]}; got {fields.input_scales}")
        options["input_scales"] = fields.input_scales
    return partial(network, hidden=hidden, **options)


def _check_network_fits(
    fields: TableFields | ImageFields, domain: Domain, transforms: Sequence[tuple[str, int]]
) -> None:
    """Refuse a network whose weights the memory cannot hold, by a lower bound of their number."""
    if is_own(fields.dynamics):
        return  # its size is known to the user alone
    inputs = 1 + 2 * (fields.fourier_features or 0) if isinstance(fields, TableFields) else 1
    blocks = whole("blocks", fields.blocks) * domain.depth_factor
    weights = blocks * domain.largest_weight(tuple(map(int, fields.hidden or ())), inputs, 0)
    weights += domain.size * sum(count for _, count in transforms)
    check_fits(
        "the weights of the flow and what trains them would take", weights * WEIGHT_BYTES,
        "choose smaller or fewer ones (hidden, blocks, transforms, fourier_features)",
    )  # fmt: skip


def _training_trace(fields: CommonFields, domain: Domain) -> TraceEstimator:
    if fields.trace == "auto":
        word = "exact" if domain.size <= EXACT_TRACE_UP_TO else "rademacher"
        return TRACE_ESTIMATORS[word](whole("probes", fields.probes))
    return choice("trace", fields.trace, {"auto": None, **TRACE_ESTIMATORS})(fields.probes)


def _training_solver(fields: CommonFields) -> Solver:
    """Make the solver of maximum likelihood."""
    tolerance = _tolerance("train_tolerance", fields.train_tolerance, torch.float32)
    solver = make_solver(
        str(fields.solver),
        tolerance=tolerance,
        steps=fields.solver_steps,
        adjoint=str(fields.adjoint),
        max_nfe=fields.max_nfe,
    )
    if solver.method == "scipy_solver" and not solver.uses_adjoint_equation:
        raise ValueError("method 'scipy_solver' is not differentiable: pass adjoint='adjoint'")
    return solver


def _reporting(fields: CommonFields, domain: Domain) -> SolveOptions:
    """Make the solve of reports: each row by adaptive steps of its own, by the domain's trace."""
    tolerance = _tolerance("tolerance", fields.tolerance, domain.dtype)
    return SolveOptions(
        domain.trace(reported=True), PerRowSolver(tolerance, tolerance, max_nfe=fields.max_nfe, max_step=MAX_STEP)
    )


def _validation(fields: CommonFields, domain: Domain) -> SolveOptions:
    """Make the solve of validations: adaptive, as fine as a choice needs and so many columns allow."""
    tolerance = max(fields.tolerance, 1e-4 if domain.few_columns else 1e-3)
    return SolveOptions(
        domain.trace(reported=False), AdaptiveSolver("dopri5", tolerance, tolerance, max_nfe=fields.max_nfe)
    )


def _tolerance(name: str, value: float, dtype: torch.dtype) -> float:
    finest = 4 * torch.finfo(dtype).eps
    if positive(name, value) < finest:
        raise ValueError(f"{name} must be at least {finest:.1g}, the resolution of {dtype}; got {value:g}")
    return float(value)


def _assemble(
    config: Config,
    domain: Domain,
    preprocess: Sequence[Transform],
    base: Base,
    scaling: ContextScaling | None,
    seed: int,
) -> Flow:
    """Draw the weights, and put the parts together."""
    context_preprocess, context_dim = domain.context_preprocess(scaling, preprocess)
    with _weights_drawn_by(seed):
        exact = [zuko_transform(word, count, domain.size, context_dim) for word, count in config.transforms]
        continuous = _continuous(config, domain, context_dim, {})
    flow = Flow(
        [*exact, *continuous], base=base, preprocess=preprocess, context_dim=context_dim,
        context_preprocess=context_preprocess,
    )  # fmt: skip
    return domain.lay_out(flow).to(config.device)


def _continuous(config: Config, domain: Domain, context_dim: int, extra: dict[str, Any]) -> list[CNF]:
    """Make the continuous transforms, their networks with extra options."""
    fields = config.fields
    network: Callable[[tuple[int, ...]], nn.Module] = partial(config.network, context_dim=context_dim, **extra)
    options = {"solver": config.solver, "end_time": fields.end_time, "learn_end_time": fields.learn_end_time}
    return domain.continuous(network, whole("blocks", fields.blocks), options)


@contextmanager
def _weights_drawn_by(seed: int) -> Iterator[None]:
    """Let a seed draw the weights that are made meanwhile; torch's global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
