"""The hyper-parameters of the estimators: each once, with its default, its help and its choices.

The constructors of FFJORD and ImageFFJORD, the options of the command line and a run's config.json are made from these
fields. Fields that are small languages hold structured values, e.g. schedule=[("flow_matching", 4000), ("mle", "60s")].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, NamedTuple

from ffjord_kit.words import (
    ACTIVATIONS,
    ADJOINTS,
    BASES,
    CLOCKS,
    COMPILE_MODES,
    COUPLINGS,
    DENSITIES,
    DYNAMICS,
    IMAGE_DYNAMICS,
    IMAGE_SCALINGS,
    METHODS,
    OBJECTIVES,
    OPTIMIZERS,
    PRECISIONS,
    REGULARIZERS,
    SCALINGS,
    TIME_DENSITIES,
    TRACE_ESTIMATORS,
    WATCHES,
    ZUKO_TRANSFORMS,
)  # fmt: skip

HEADINGS = ("Main", "Table", "Network", "Training", "Likelihood training", "Validation", "Accuracy", "Machine")
OPEN = ("auto", None)  # values of a field that is left open
FREE = ("random_state",)  # checked by data.seed_from
KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "str": (str, "text"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "True or False"),
    "tuple[int, ...]": (Sequence, "widths"),
    "None": (type(None), "None"),
}

Schedule = str | Sequence[Any]
Transforms = Sequence[tuple[str, int]] | None
Regularizers = Mapping[str, float] | None
Support = str | Sequence[Any] | Mapping[str, Any]
Missing = Sequence[float | str] | None
Dequantize = str | Sequence[str] | Mapping[str, float | None] | None
Columns = Mapping[Any, Any] | None
Network = Any  # a word, or a network of the user's own
BaseChoice = Any  # a word, or a base of the user's own


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
        "auto",
        "Main",
        "auto, or phases of training in steps or seconds, e.g. flow_matching 4000, mle 60s; steps 60s ends with few "
        "exact steps",
    )
    max_seconds: float | None = option(
        None, "Main", "seconds allowed to schedule auto, as counted by clock (default: counted steps)"
    )
    time_density: str = option(
        "auto", "Training", "density of t in flow matching; auto: tried out", ("auto", *TIME_DENSITIES)
    )
    coupling: str = option(
        "auto",
        "Training",
        "pairing of base points and rows in flow matching; auto: independent, but optimal_transport where schedule "
        "auto fits up to 5 columns, or more than 32, without contexts or weights",
        ("auto", *COUPLINGS),
    )
    hidden: tuple[int, ...] | None = option(
        None,
        "Network",
        "widths of the hidden layers, e.g. 128,128 (default: three of 64 for up to 3 columns, else of 128; of 256 "
        "for more than 32 with many rows and two minutes); of a U-Net its channels, from fine to coarse",
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
    optimizer: str = option(
        "auto",
        "Training",
        "optimizer: adamw, or muon, which learns many rows of more than 3 columns sooner (auto: adamw; schedule auto: "
        "muon for these)",
        ("auto", *OPTIMIZERS),
    )
    weight_decay: float | None = option(
        None,
        "Training",
        "weight decay of matrices (default: 0; schedule auto: up to 0.3 with contexts, 1 for few rows)",
    )
    warmup_steps: int = option(200, "Training", "steps of warm-up, at most a tenth of a phase")
    clip_norm: float = option(1.0, "Training", "largest norm of the gradient")
    ema_decay: float = option(0.999, "Training", "decay of the moving average of the weights")
    validation_fraction: float = option(
        0.1, "Validation", "part of the rows held out for validation (at most 2000 rows)"
    )
    validate_every: int = option(500, "Validation", "most steps between validations, in a phase of steps")
    patience: int = option(
        10,
        "Validation",
        "validations without improvement that end a phase, but not flow matching whose weight_decay schedule auto set",
    )
    trace: str = option(
        "auto", "Likelihood training", "trace while training; auto: exact up to 8 columns", ("auto", *TRACE_ESTIMATORS)
    )
    probes: int = option(1, "Likelihood training", "noise vectors of a stochastic trace")
    regularizers: Regularizers = option(
        None, "Likelihood training", "weights of costs along the path in mle, e.g. kinetic 0.01, jacobian 0.01"
    )
    robust: float | None = option(
        None,
        "Likelihood training",
        "train mle on the worst point within so much of each row, in units of the scaled columns, e.g. 0.1",
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
        "how gradients run back (default: backprop; images checkpointed); adjoint, seminorm, reversible: little memory",
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
    density: str = option(
        "auto",
        "Accuracy",
        "density that reports: the continuous flow's, with an error, or that of few exact steps, with a receipt; "
        "auto: the steps' where they hold and are as good",
        ("auto", *DENSITIES),
    )
    max_nfe: int = option(10_000, "Accuracy", "largest number of evaluations of one solve")
    device: str = option("auto", "Machine", "auto, cpu, cuda or mps")
    random_state: int | None = option(None, "Main", "seed of everything")
    clock: str = option(
        "cpu",
        "Machine",
        "seconds that limits count: cpu (of all threads that train; on a GPU wall time) or wall",
        CLOCKS,
    )
    verbose: bool = option(False, "Machine", "show a progress bar")


@dataclass(eq=False, repr=False)
class TableFields(CommonFields):
    """Fields of FFJORD, the estimator of tables."""

    dynamics: Network = option("auto", "Network", "network of the velocity field (auto: residual)", ("auto", *DYNAMICS))
    fourier_features: int | None = option(
        None, "Network", "octaves of sines and cosines fed to 'residual' (default: tried out, up to 3 columns)"
    )
    input_scales: int = option(
        1, "Network", "scales 1, 2, 4, .. at which equal parts of the first layer of 'residual' see a row (MscaleDNN)"
    )
    transforms: Transforms = option(
        None, "Network", "exact transforms before the continuous ones, e.g. maf 3 or nsf 2, maf 2 (by zuko)"
    )
    scaling: str = option("auto", "Network", "fitted scaling of the columns; auto: tried out", ("auto", *SCALINGS))
    base: BaseChoice = option(
        "auto",
        "Network",
        "base distribution (auto: normal, or a mixture where a small table gains by it, or kernels where places on a "
        "sphere cluster); "
        "student: heavy tails, each column with a power of its own",
        ("auto", *BASES),
    )
    dequantize: Dequantize = option(
        None, "Table", "columns of equal steps that get noise as wide: auto, or names, e.g. age, score 0.5"
    )
    support: Support = option(
        "real",
        "Table",
        "where the data live: real, positive, or bounded with two bounds; one for all columns, one each, or by name",
    )
    columns: Columns = option(
        None, "Table", "types of columns by name: positive, bounded, integer, circle, sphere (a pair), category or date"
    )
    subsets: bool | None = option(
        None,
        "Table",
        "learn every question: the density of any columns, given any others; cells may be missing "
        "(open: where cells are missing)",
    )
    missing: Missing = option(
        None, "Table", "marks of missing cells beside NaN and, in files, empty cells and NA, e.g. -999"
    )
    watch: str | None = option(
        None, "Validation", f"what validations record, for plot: {', '.join(WATCHES)}; several with commas"
    )


@dataclass(eq=False, repr=False)
class ImageFields(CommonFields):
    """Fields of ImageFFJORD, the estimator of images."""

    dynamics: str = option("auto", "Network", "network of the velocity field (auto: unet)", ("auto", *IMAGE_DYNAMICS))
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
        value, kinds = _plain(getattr(fields, each.name)), str(each.type).split(" | ")
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


def _plain(value: Any) -> Any:
    """Return a NumPy number or truth value as Python's; anything else as it is."""
    return value.item() if hasattr(value, "item") and not hasattr(value, "__len__") else value


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
    if isinstance(pairs, (str, Mapping)) or any(word not in ZUKO_TRANSFORMS for word, _ in result):
        words = ", ".join(ZUKO_TRANSFORMS)
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
        word in REGULARIZERS and isinstance(weight, Real) and float(weight) >= 0 for word, weight in weights.items()
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


def positive(name: str, value: float | None) -> float:
    """Check that a number is positive.

    Args:
        name: Its name, for the message.
        value: The number.

    Returns:
        The number.

    Raises:
        ValueError: If it is not positive.
    """
    if value is None or not value > 0:
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
    counted = isinstance(steps, Integral) and not isinstance(steps, bool) and int(steps) > 0
    timed = isinstance(seconds, Real) and not isinstance(seconds, bool) and 0 < float(seconds) < math.inf
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
