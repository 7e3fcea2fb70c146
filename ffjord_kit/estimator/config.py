"""The hyper-parameters, each once with its default, help and choices, and the settled configuration made of them.

The constructors of FFJORD and ImageFFJORD, the options of the command line and a run's config.json are made from the
fields. `resolve` checks them and turns them into one frozen `Config` of solvers, objectives and phases, which
everything else reads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ffjord_kit.distributions import BASES
from ffjord_kit.estimator.data import Domain
from ffjord_kit.nn import ACTIVATIONS, DYNAMICS, IMAGE_DYNAMICS
from ffjord_kit.objectives import (
    COUPLINGS, OBJECTIVES, TIME_DENSITIES, FlowMatching, MaximumLikelihood, Objective, TransformsLikelihood,
)  # fmt: skip
from ffjord_kit.ode import ADJOINTS, METHODS, AdaptiveSolver, PerRowSolver, Solver, make_solver
from ffjord_kit.precision import COMPILE_MODES, PRECISIONS, check_compile_mode
from ffjord_kit.regularizers import REGULARIZERS
from ffjord_kit.trace import TRACE_ESTIMATORS, ExactTrace, TraceEstimator
from ffjord_kit.training import Phase, TrainConfig
from ffjord_kit.training.distributed import current_workers
from ffjord_kit.transforms import IMAGE_SCALINGS, SCALINGS
from ffjord_kit.transforms.cnf import SolveOptions
from ffjord_kit.transforms.zuko import DISCRETE

HEADINGS = ("Main", "Network", "Training", "Likelihood training", "Validation", "Accuracy", "Machine")
OPEN = ("auto", None)  # values of a field that is left open
EXACT_TRACE_UP_TO = 8  # elements of an event, in training
FREE = ("random_state",)  # checked by data.seed_from
KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "str": (str, "text"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": ((bool, np.bool_), "True or False"),
    "tuple[int, ...]": (Sequence, "widths"),
    "None": (type(None), "None"),
}

Schedule = str | Sequence[Any]
Transforms = Sequence[tuple[str, int]] | None
Regularizers = Mapping[str, float] | None
Support = str | Sequence[Any]
Dequantize = str | Sequence[str] | Mapping[str, float | None] | None


def option(default: Any, heading: str, text: str, choices: Iterable[str] = ()) -> Any:
    """Return a field with the help that the command line shows.

    Args:
        default: Default value.
        heading: Heading of HEADINGS under which the help lists the field.
        text: Help.
        choices: Words that the value may be; none for any value.

    Returns:
        The field of a dataclass.
    """
    return field(default=default, metadata={"help": text, "choices": tuple(choices), "heading": heading})


@dataclass(eq=False, repr=False)
class CommonFields:
    """Fields of every estimator; they are stored as they come, and checked by `check_kinds` and `resolve`."""

    schedule: Schedule = option(
        "auto", "Main", "auto, or phases of training in steps or seconds, e.g. flow_matching 4000, mle 60s"
    )
    max_seconds: float | None = option(
        None, "Main", "seconds of work (CPU time; on a GPU wall time) allowed to schedule auto (default: counted steps)"
    )
    time_density: str = option(
        "auto", "Training", "density of t in flow matching; auto: tried out", ("auto", *TIME_DENSITIES)
    )
    coupling: str = option("independent", "Training", "pairing of base points and rows in flow matching", COUPLINGS)
    hidden: tuple[int, ...] | None = option(
        None,
        "Network",
        "widths of the hidden layers, e.g. 128,128 (default: three of 64 for up to 3 columns, else of 128); of a U-Net "
        "its channels, from fine to coarse",
    )
    activation: str | None = option(None, "Network", "activation (default: the network's own)", ACTIVATIONS)
    blocks: int = option(1, "Network", "number of continuous transforms in a row")
    end_time: float = option(1.0, "Network", "end time of each continuous transform")
    learn_end_time: bool = option(False, "Network", "learn the end time, starting from end_time")
    learning_rate: float | None = option(
        None, "Training", "peak learning rate of flow matching (default: 8e-3; images 2e-3)"
    )
    mle_learning_rate: float = option(2e-3, "Likelihood training", "peak learning rate of maximum likelihood")
    batch_size: int | None = option(None, "Training", "rows in a step (default: 512; images 64)")
    micro_batches: int | None = option(
        None, "Machine", "equal parts of a batch, computed in turn or by several workers (default: one a worker)"
    )
    weight_decay: float = option(0.0, "Training", "weight decay of AdamW")
    warmup_steps: int = option(200, "Training", "steps of warm-up, at most a tenth of a phase")
    clip_norm: float = option(1.0, "Training", "largest norm of the gradient")
    ema_decay: float = option(0.999, "Training", "decay of the moving average of the weights")
    validation_fraction: float = option(
        0.1, "Validation", "part of the rows held out for validation (at most 2000 rows)"
    )
    validate_every: int = option(500, "Validation", "most steps between validations, in a phase of steps")
    patience: int = option(10, "Validation", "validations without improvement that end a phase")
    trace: str = option(
        "auto", "Likelihood training", "trace while training; auto: exact up to 8 columns", ("auto", *TRACE_ESTIMATORS)
    )
    probes: int = option(1, "Likelihood training", "noise vectors of a stochastic trace")
    regularizers: Regularizers = option(
        None, "Likelihood training", "weights of costs along the path in mle, e.g. kinetic 0.01, jacobian 0.01"
    )
    steer: float = option(
        0.0, "Likelihood training", "half-width of the random end time of mle, as a part of it (STEER), e.g. 0.5"
    )
    solver: str | None = option(
        None, "Likelihood training", "method of integration in mle (default: dopri5; images rk4 in 4 steps)", METHODS
    )
    train_tolerance: float = option(1e-3, "Likelihood training", "tolerance of an adaptive solver in mle")
    solver_steps: int | None = option(None, "Likelihood training", "steps of a fixed-step solver in mle")
    adjoint: str | None = option(
        None,
        "Likelihood training",
        "how gradients run back (default: backprop; images checkpointed); adjoint, seminorm need little memory",
        ADJOINTS,
    )
    compile: str | None = option(
        None, "Machine", "mode of torch.compile for the dynamics in training (pays on a GPU, if at all)", COMPILE_MODES
    )
    precision: str = option(
        "float32", "Machine", "numbers of the network in training; state and trace stay float32", PRECISIONS
    )
    guard: float = option(
        0.1, "Likelihood training", "largest solver error in mle, as a share of the loss's noise; 0: unchecked"
    )
    tolerance: float = option(1e-5, "Accuracy", "tolerance of every reported likelihood and of samples")
    max_nfe: int = option(10_000, "Accuracy", "largest number of evaluations of one solve")
    device: str = option("auto", "Machine", "auto, cpu, cuda or mps")
    random_state: int | None = option(None, "Main", "seed of everything")
    verbose: bool = option(False, "Main", "show a progress bar")


@dataclass(eq=False, repr=False)
class TableFields(CommonFields):
    """Fields of FFJORD, the estimator of tables."""

    dynamics: str = option(
        "auto", "Network", "network of the velocity field (auto: residual)", ("auto", *DYNAMICS)
    )
    fourier_features: int | None = option(
        None, "Network", "octaves of sines and cosines fed to 'residual' (default: tried out, up to 3 columns)"
    )
    transforms: Transforms = option(
        None, "Network", "exact transforms before the continuous ones, e.g. maf 3 or nsf 2, maf 2 (by zuko)"
    )
    scaling: str = option("auto", "Network", "fitted scaling of the columns; auto: tried out", ("auto", *SCALINGS))
    base: str = option("normal", "Network", "base distribution; student: heavy tails, degrees of freedom learned", BASES)
    dequantize: Dequantize = option(
        None, "Main", "columns of equal steps that get noise as wide: auto, or names, e.g. age, score 0.5"
    )
    support: Support = option(
        "real", "Main", "where the data live: real, positive or bounded LOW HIGH; one for all columns, or one each"
    )


@dataclass(eq=False, repr=False)
class ImageFields(CommonFields):
    """Fields of ImageFFJORD, the estimator of images."""

    dynamics: str = option(
        "auto", "Network", "network of the velocity field (auto: unet)", ("auto", *IMAGE_DYNAMICS)
    )
    scaling: str = option("auto", "Network", "scaling of grey levels (auto: logit)", ("auto", *IMAGE_SCALINGS))
    bits: int = option(8, "Main", "bits of the grey levels, 1 to 8; fewer make them coarser")
    alpha: float = option(1e-6, "Network", "margin of the logit of grey levels")
    scales: int = option(1, "Network", "scales of a multi-scale flow, trained by mle alone")
    flip: bool = option(False, "Training", "flip images left to right at random in training")
    context_dropout: float = option(
        0.0, "Training", "share of images whose class is hidden in flow matching, for guided sampling, e.g. 0.1"
    )
    channels_last: bool = option(False, "Machine", "memory layout with channels last, for tensor cores of a GPU")


def check_kinds(fields: CommonFields) -> None:
    """Check the types of all fields.

    Args:
        fields: Fields.

    Raises:
        ValueError: If a field has a value of another type than it may have; the first one is named.
    """
    for each in dataclasses.fields(kind_of(fields)):
        value, kinds = getattr(fields, each.name), str(each.type).split(" | ")
        if each.name in FREE or kinds[0] not in KINDS:
            continue
        wrong = isinstance(value, bool) and "bool" not in kinds
        if wrong or not any(isinstance(value, KINDS[kind][0]) for kind in kinds):
            raise ValueError(f"{each.name} must be {' or '.join(KINDS[kind][1] for kind in kinds)}; got {value!r}")


def kind_of(fields: CommonFields) -> type[TableFields] | type[ImageFields]:
    """Return the class of fields that an estimator has.

    Args:
        fields: Fields, or an estimator.

    Returns:
        TableFields or ImageFields.
    """
    return TableFields if isinstance(fields, TableFields) else ImageFields


class PhaseSpec(NamedTuple):
    """A phase of a schedule: the word of its objective, and its end by steps or by seconds, infinite if unlimited."""

    objective: str
    steps: float = math.inf
    seconds: float = math.inf

    def __str__(self) -> str:
        """Return the phase as the command line writes it, e.g. 'mle:60s'."""
        return "{}:{}".format(*self.value)

    @property
    def value(self) -> tuple[str, int | str]:
        """The phase as a schedule holds it, e.g. ("mle", "60s")."""
        return self.objective, f"{self.seconds:g}s" if self.steps == math.inf else int(self.steps)


@dataclass(frozen=True)
class Config:
    """The settled configuration: every field checked, and the objects that it names.

    Attributes:
        fields: Fields, with the open ones settled.
        train: Options of the training loop.
        objectives: Objectives and their peak learning rates, by word.
        phases: Schedule of training.
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
    transforms: tuple[tuple[str, int], ...]
    network: Callable[..., nn.Module]
    solver: Solver
    reporting: SolveOptions
    validation: SolveOptions
    device: torch.device


def resolve(
    fields: CommonFields, domain: Domain, *, seed: int = 0, chosen: Mapping[str, Any] | None = None
) -> Config:
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
    now = settle(fields, domain, chosen or {})
    solver = _training_solver(now)
    transforms = transform_counts(now.transforms) if isinstance(now, TableFields) else ()
    objectives = _objectives(now, domain, solver)
    return Config(
        fields=now,
        train=_train_config(now, seed),
        objectives=objectives,
        phases=_phases(fields.schedule == "auto", phase_specs(now.schedule), objectives, domain, transforms),
        transforms=transforms,
        network=_network(now, domain),
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


def phase_specs(schedule: Any) -> list[PhaseSpec]:
    """Read a schedule.

    Args:
        schedule: Phases such as ("flow_matching", 4000), ("mle", "60s"), or mappings with the keys "objective" and
            "steps" or "seconds".

    Returns:
        The phases.

    Raises:
        ValueError: If a phase cannot be read.
    """
    if isinstance(schedule, str) or not isinstance(schedule, Sequence) or not len(schedule):
        raise _schedule_error(schedule)
    return [_phase_spec(schedule, phase) for phase in schedule]


def transform_counts(transforms: Any) -> tuple[tuple[str, int], ...]:
    """Read a list of exact transforms.

    Args:
        transforms: Pairs (word, count) such as ("maf", 3), or None.

    Returns:
        The pairs.

    Raises:
        ValueError: If a word is unknown, or a count is no positive whole number.
    """
    pairs = () if transforms is None else transforms
    try:
        result = tuple((word, whole("count", count)) for word, count in pairs)
    except (TypeError, ValueError):
        result = (("", 0),)
    if isinstance(pairs, (str, Mapping)) or any(word not in DISCRETE for word, _ in result):
        words = ", ".join(DISCRETE)
        raise ValueError(f"transforms must be pairs such as [('maf', 3), ('nsf', 2)] ({words}); got {transforms!r}")
    return result


def regularizer_weights(regularizers: Any) -> dict[str, float]:
    """Read the weights of costs along the path.

    Args:
        regularizers: Weights by words of REGULARIZERS, or None.

    Returns:
        Weights by words.

    Raises:
        ValueError: If a word is unknown, or a weight is no number >= 0.
    """
    weights = {} if regularizers is None else regularizers
    if not isinstance(weights, Mapping) or not all(
        word in REGULARIZERS and isinstance(weight, Real) and weight >= 0 for word, weight in weights.items()
    ):
        words = ", ".join(REGULARIZERS)
        raise ValueError(
            f"regularizers must be weights >= 0 such as {{'kinetic': 0.01}} ({words}); got {regularizers!r}"
        )
    return dict(weights)


def choice(name: str, word: str, menu: Mapping[str, Any]) -> Any:
    """Return an entry of a menu.

    Args:
        name: Field that names it, for the message.
        word: Word of the menu.
        menu: Entries by words.

    Returns:
        The entry.

    Raises:
        ValueError: If the word is not there; the message lists the words.
    """
    if not isinstance(word, str) or word not in menu:
        raise ValueError(f"{name} must be one of {', '.join(menu)}; got {word!r}")
    return menu[word]


def positive(name: str, value: float) -> float:
    """Check that a number is positive.

    Args:
        name: Its name, for the message.
        value: The number.

    Returns:
        The number.

    Raises:
        ValueError: If it is not positive.
    """
    if not value > 0:
        raise ValueError(f"{name} must be positive; got {value}")
    return value


def whole(name: str, value: Any) -> int:
    """Check that a value is a whole number, at least 1.

    Args:
        name: Its name, for the message.
        value: The value.

    Returns:
        The number.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number, at least 1; got {value!r}")
    return int(value)


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


def _check_limit(fields: CommonFields) -> None:
    """Refuse a limit in time that is not positive, or that the schedule does not keep."""
    if fields.max_seconds is None:
        return
    if fields.schedule != "auto":
        raise ValueError(
            f"max_seconds is for schedule='auto': give the seconds in the schedule, "
            f"e.g. ('mle', '{fields.max_seconds:g}s')"
        )
    if not 0 < fields.max_seconds < math.inf:
        raise ValueError(f"max_seconds must be positive and finite; got {fields.max_seconds}")


def _phase_spec(schedule: Any, phase: Any) -> PhaseSpec:
    """Read one phase of a schedule."""
    if isinstance(phase, PhaseSpec):
        return phase
    parts: dict[str, Any] = {"steps": math.inf, "seconds": math.inf}
    if isinstance(phase, Mapping):
        parts |= phase
    elif isinstance(phase, Sequence) and not isinstance(phase, str) and len(phase) == 2:
        timed = isinstance(phase[1], str) and phase[1].endswith("s")
        parts |= {"objective": phase[0], **({"seconds": _number(phase[1][:-1])} if timed else {"steps": phase[1]})}
    if set(parts) != {"objective", "steps", "seconds"}:
        raise _schedule_error(schedule)
    return _checked_spec(schedule, **parts)


def _checked_spec(schedule: Any, objective: Any, steps: Any, seconds: Any) -> PhaseSpec:
    """Check the word and the lengths of a phase."""
    counted = isinstance(steps, Integral) and not isinstance(steps, bool) and steps > 0
    timed = isinstance(seconds, Real) and not isinstance(seconds, bool) and 0 < seconds < math.inf
    known = isinstance(objective, str) and objective in OBJECTIVES
    if not known or not (counted or steps == math.inf) or not (timed or seconds == math.inf) or not (counted or timed):
        raise _schedule_error(schedule)
    return PhaseSpec(objective, int(steps) if counted else math.inf, float(seconds))


def _schedule_error(schedule: Any) -> ValueError:
    return ValueError(
        f"schedule must be 'auto', or a list such as [('flow_matching', 4000), ('mle', '60s')], steps or seconds "
        f"({', '.join(OBJECTIVES)}); got {schedule!r}"
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _phases(
    auto: bool,
    specs: Sequence[PhaseSpec],
    objectives: Mapping[str, tuple[Objective, float]],
    domain: Domain,
    transforms: Sequence[tuple[str, int]],
) -> tuple[Phase, ...]:
    """Make the phases of training; under schedule auto maximum likelihood is a trial, which may be of no help."""
    domain.check_schedule([spec.objective for spec in specs])
    if not transforms and any(spec.objective == "transforms" for spec in specs):
        raise ValueError(
            "the schedule has a phase 'transforms', but no transforms to train: pass transforms=[('maf', 3)], or drop it"
        )
    return tuple(
        Phase(*objectives[spec.objective][:1], spec.steps, objectives[spec.objective][1], spec.seconds,
              trial=auto and spec.objective == "mle")
        for spec in specs
    )  # fmt: skip


def _objectives(fields: CommonFields, domain: Domain, solver: Solver) -> dict[str, tuple[Objective, float]]:
    """Make every objective with its peak learning rate, so that a wrong field is refused at once."""
    choice("time_density", fields.time_density, TIME_DENSITIES)
    choice("coupling", fields.coupling, COUPLINGS)
    weights = regularizer_weights(fields.regularizers)
    if "hjb" in weights and fields.dynamics != "potential":
        raise ValueError(f"regularizer 'hjb' needs dynamics='potential'; got dynamics={fields.dynamics!r}")
    likelihood = MaximumLikelihood(_training_trace(fields, domain), weights, solver, fields.steer)
    matching = domain.matching(FlowMatching(fields.time_density, fields.coupling))
    rate = positive("mle_learning_rate", fields.mle_learning_rate)
    return {
        "flow_matching": (matching, positive("learning_rate", fields.learning_rate)),
        "mle": (likelihood, rate),
        "transforms": (TransformsLikelihood(), rate),
    }


def _train_config(fields: CommonFields, seed: int) -> TrainConfig:
    """Check and collect the options of the training loop."""
    if not 0 <= fields.ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1); got {fields.ema_decay}")
    for name in ("weight_decay", "warmup_steps"):
        if not getattr(fields, name) >= 0:
            raise ValueError(f"{name} must not be negative; got {getattr(fields, name)}")
    if not fields.guard >= 0:
        raise ValueError(f"guard must be at least 0, the share of the loss's noise; got {fields.guard}")
    choice("precision", fields.precision, dict.fromkeys(PRECISIONS))
    return TrainConfig(
        batch_size=whole("batch_size", fields.batch_size),
        weight_decay=fields.weight_decay,
        warmup=fields.warmup_steps,
        clip_norm=positive("clip_norm", fields.clip_norm),
        ema_decay=fields.ema_decay,
        validate_every=whole("validate_every", fields.validate_every),
        patience=whole("patience", fields.patience),
        guard=fields.guard,
        precision=fields.precision,
        micro_batches=None if fields.micro_batches is None else whole("micro_batches", fields.micro_batches),
        seed=seed,
    )


def _network(fields: TableFields | ImageFields, domain: Domain) -> Callable[..., nn.Module]:
    """Choose the network, and the options that it is made with."""
    hidden = tuple(fields.hidden) if isinstance(fields.hidden, Sequence) else ()
    if not hidden or any(not isinstance(width, Integral) or width < 1 for width in hidden):
        raise ValueError(f"hidden must be one or more positive widths; got {fields.hidden}")
    network, options = choice("dynamics", fields.dynamics, domain.networks), {}
    if fields.activation is not None:
        if fields.dynamics == "unet":
            raise ValueError(f"dynamics='unet' has its own activation: leave activation={fields.activation!r} out")
        choice("activation", fields.activation, ACTIVATIONS)
        options["activation"] = fields.activation
    if isinstance(fields, TableFields) and fields.fourier_features:
        if fields.dynamics != "residual":
            raise ValueError(f"fourier_features are inputs of dynamics='residual'; got dynamics={fields.dynamics!r}")
        options["fourier_features"] = whole("fourier_features", fields.fourier_features)
    return partial(network, hidden=hidden, **options)


def _training_trace(fields: CommonFields, domain: Domain) -> TraceEstimator:
    if fields.trace == "auto":
        word = "exact" if domain.size <= EXACT_TRACE_UP_TO else "rademacher"
        return TRACE_ESTIMATORS[word](whole("probes", fields.probes))
    return choice("trace", fields.trace, {"auto": None, **TRACE_ESTIMATORS})(fields.probes)


def _training_solver(fields: CommonFields) -> Solver:
    """Make the solver of maximum likelihood."""
    tolerance = _tolerance("train_tolerance", fields.train_tolerance, torch.float32)
    solver = make_solver(
        fields.solver, tolerance=tolerance, steps=fields.solver_steps, adjoint=fields.adjoint, max_nfe=fields.max_nfe
    )
    if solver.method == "scipy_solver" and not solver.uses_adjoint_equation:
        raise ValueError("method 'scipy_solver' is not differentiable: pass adjoint='adjoint'")
    return solver


def _reporting(fields: CommonFields, domain: Domain) -> SolveOptions:
    """Make the solve of reports: each row by adaptive steps of its own, by the domain's trace."""
    tolerance = _tolerance("tolerance", fields.tolerance, domain.dtype)
    return SolveOptions(domain.trace(reported=True), PerRowSolver(tolerance, tolerance, max_nfe=fields.max_nfe))


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
    return value
