"""The configuration: every hyper-parameter once, with its default, its help, and the words that it may be.

The constructor of FFJORD, the options of the command line and config.json are made from these fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

import numpy as np

from ffjord_kit.activations import ACTIVATIONS
from ffjord_kit.couplings import COUPLINGS
from ffjord_kit.dynamics import DYNAMICS
from ffjord_kit.heavy_tails import BASES
from ffjord_kit.images import IMAGE_DYNAMICS, IMAGE_SCALINGS
from ffjord_kit.objectives import TIME_DENSITIES
from ffjord_kit.scalings import SCALINGS
from ffjord_kit.solver import GRADIENTS, METHODS
from ffjord_kit.trace import TRACE_ESTIMATORS
from ffjord_kit.training.compiled import MODES
from ffjord_kit.training.precision import PRECISIONS

KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "str": (str, "text"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": ((bool, np.bool_), "True or False"),
    "tuple[int, ...]": (Sequence, "widths"),
    "None": (type(None), "None"),
}
FREE = ("random_state",)  # of what scikit-learn takes for one


def option(default: Any, text: str, choices: Iterable[str] = ()) -> Any:
    """A field with the help, and the choices, that the command line shows."""
    return field(default=default, metadata={"help": text, "choices": tuple(choices)})


@dataclass(eq=False, repr=False)
class Fields:
    """The fields of FFJORD; they are stored as they come and checked where they are used."""

    schedule: str = option(
        "auto", "auto, or phases of training in steps or seconds, e.g. flow_matching:4000,mle:60s; mle: plain FFJORD"
    )
    max_seconds: float | None = option(
        None, "CPU seconds (on a GPU: on the wall) that auto may work (default: a fixed number of steps)"
    )
    time_density: str = option("auto", "density of t in flow matching; auto: tried out", ("auto", *TIME_DENSITIES))
    coupling: str = option("independent", "which base point a row is carried from, in flow matching", COUPLINGS)
    dynamics: str = option(
        "auto", "the network that gives dx/dt (auto: residual; of images unet)", ("auto", *DYNAMICS, *IMAGE_DYNAMICS)
    )
    hidden: tuple[int, ...] | None = option(
        None,
        "widths of its hidden layers, e.g. 128,128 (default: three of 64 for up to 3 columns, else of 128); "
        "of a U-Net its channels, from fine to coarse",
    )
    activation: str | None = option(None, "its activation (default: the network's own)", ACTIVATIONS)
    octaves: int | None = option(
        None, "octaves of sines and cosines among the inputs of 'residual' (default: tried out, up to 3 columns)"
    )
    blocks: int = option(1, "continuous layers in a row")
    end_time: float = option(1.0, "where the time of each continuous layer ends")
    learn_end_time: bool = option(False, "learn that time, beginning there")
    layers: str = option("", "layers between scaling and the continuous ones, e.g. maf:3 or nsf:2,maf:2 (by zuko)")
    scaling: str = option(
        "auto", "fitted layer next to the data; auto: tried out; of images logit", ("auto", *SCALINGS, *IMAGE_SCALINGS)
    )
    base: str = option("normal", "law at the base; student: heavy tails, their degrees of freedom learned", BASES)
    dequantize: str = option(
        "", "columns of whole numbers or equal steps, to be given noise as wide: auto, or names, e.g. age,score:0.5"
    )
    support: str = option("real", "where the data live: real, positive or bounded:LOW:HIGH; one word, or one a column")
    bits: int = option(8, "bits of grey levels that a flow of images models; fewer make them coarser")
    alpha: float = option(1e-6, "margin of the logit of grey levels")
    scales: int = option(1, "scales of a flow of images, half of the channels left behind at each; by mle alone")
    flip: bool = option(False, "flip images left to right at random while training")
    context_dropout: float = option(
        0.0, "share of rows whose context is left out in flow matching, for guided sampling, e.g. 0.1"
    )
    learning_rate: float | None = option(None, "peak learning rate of flow matching (default: 8e-3; of images 2e-3)")
    mle_learning_rate: float = option(2e-3, "peak learning rate of maximum likelihood")
    batch_size: int | None = option(None, "rows in a step (default: 512; of images 64)")
    micro_batches: int | None = option(
        None,
        "parts that a batch is made in, one after another or over workers (default: one a worker)",
    )
    weight_decay: float = option(0.0, "weight decay of AdamW")
    warmup_steps: int = option(200, "steps of warm-up, at most a tenth of a phase")
    clip_norm: float = option(1.0, "largest norm of the gradient")
    ema_decay: float = option(0.999, "decay of the moving average of the weights")
    validation_fraction: float = option(0.1, "part of the rows held out for validation (at most 2000 rows)")
    validate_every: int = option(500, "most steps between validations, of a phase of steps")
    patience: int = option(10, "validations without a better one that end a phase")
    trace: str = option("auto", "trace while training; auto: exact up to 8 columns", ("auto", *TRACE_ESTIMATORS))
    probes: int = option(1, "noise vectors of a stochastic trace")
    regularizers: str = option("", "costs along the path in mle, e.g. kinetic:0.01,jacobian:0.01")
    steer: float = option(0.0, "part of the end time by which mle draws it anew each step (STEER), e.g. 0.5")
    solver: str | None = option(
        None, "method of integration while training by mle (default: dopri5; of images rk4 in 4 steps)", METHODS
    )
    train_tolerance: float = option(1e-3, "tolerance of that method")
    steps: int | None = option(None, "steps of that method, if it is one of fixed steps")
    gradient: str | None = option(
        None,
        "the way back (default: backprop; of images checkpointed); adjoint, seminorm need little memory",
        GRADIENTS,
    )
    compile: str | None = option(
        None, "mode of torch.compile for the field while training (it pays on a GPU, if at all)", MODES
    )
    precision: str = option(
        "float32", "numbers of the network while training; the state and the trace stay float32", PRECISIONS
    )
    channels_last: bool = option(False, "lay images out channels last in memory, for the tensor cores of a GPU")
    guard: float = option(0.1, "largest share of the loss's noise that mle leaves to the solver's error; 0: no guard")
    tolerance: float = option(1e-5, "tolerance of every reported likelihood and of samples")
    max_nfe: int = option(10_000, "most evaluations that one solve may take")
    device: str = option("auto", "auto, cpu, cuda or mps")
    random_state: int | None = option(None, "seed of everything")
    verbose: bool = option(False, "show a progress bar")


def check_kinds(given: Fields) -> None:
    """Raise ValueError for the first field whose value is of another kind than it may be."""
    for each in fields(Fields):
        value, kinds = getattr(given, each.name), str(each.type).split(" | ")
        wrong = isinstance(value, bool) and "bool" not in kinds
        if each.name not in FREE and (wrong or not any(isinstance(value, KINDS[kind][0]) for kind in kinds)):
            raise ValueError(f"{each.name} must be {' or '.join(KINDS[kind][1] for kind in kinds)}; got {value!r}")
