"""From the fields of FFJORD to the objects that they name: flow, solvers, schedule, device."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ffjord_kit.activations import ACTIVATIONS
from ffjord_kit.base import Base
from ffjord_kit.cnf import CNF, Integration
from ffjord_kit.couplings import COUPLINGS
from ffjord_kit.discrete import discrete_layer
from ffjord_kit.dynamics import DYNAMICS
from ffjord_kit.estimator.fields import Fields
from ffjord_kit.estimator.words import choice, layers_of, regularizers_of, schedule_of, support_of
from ffjord_kit.flow import Flow
from ffjord_kit.heavy_tails import BASES
from ffjord_kit.layers import Layer, Logit, Softplus
from ffjord_kit.objectives import TIME_DENSITIES, FlowMatching, LayersLikelihood, MaximumLikelihood, Objective
from ffjord_kit.scalings import SCALINGS
from ffjord_kit.solver import Solver
from ffjord_kit.trace import TRACE_ESTIMATORS, TraceEstimator
from ffjord_kit.training import Guard, Optimization, Phase

EXACT_TRACE_UP_TO = 8
OPEN = ("auto", None)
FEW_COLUMNS = 3
SLOW = 2.0  # angular frequency of time
NARROW, WIDE = (64, 64, 64), (128, 128, 128)


def defaults(dimensions: int, base: str = "normal") -> dict[str, Any]:
    """What a field that is left open is where nothing is tried out, for so many columns."""
    hidden = NARROW if dimensions <= FEW_COLUMNS else WIDE
    scaling = "robust" if base == "student" else "standardize"
    words = {"schedule": "flow_matching:4000", "time_density": "uniform", "scaling": scaling}
    return {**words, "octaves": 0, "hidden": hidden}


def settled(fields: Fields, chosen: Mapping[str, Any], dimensions: int) -> Fields:
    """The fields with those that were left open as `chosen`, or as the defaults for so many columns."""
    words = {f.name: getattr(fields, f.name) for f in dataclasses.fields(Fields)}
    left_open = {
        name: word for name, word in {**defaults(dimensions, fields.base), **chosen}.items() if words[name] in OPEN
    }
    return Fields(**{**words, **left_open})


def check_open(fields: Fields) -> None:
    """Raise ValueError for a limit in time that is not positive, or that no schedule keeps."""
    if fields.max_seconds is None:
        return
    if fields.schedule != "auto":
        raise ValueError(
            f"max_seconds is for schedule='auto': give the seconds in the schedule, e.g. 'mle:{fields.max_seconds:g}s'"
        )
    if not 0 < fields.max_seconds < math.inf:
        raise ValueError(f"max_seconds must be positive and finite; got {fields.max_seconds}")


def build_flow(
    fields: Fields, exact: list[Layer], base: Base, context_layer: Layer | None, dimensions: int, seed: int
) -> Flow:
    """An untrained flow: the exact layers, discrete and continuous ones whose weights the seed draws, and the base.

    The global state of torch is left as it was.
    """
    context_dim = 0 if context_layer is None else context_layer.event_shape[0]
    with _drawn_by(seed):
        words = layers_of(fields.layers)
        discrete = [discrete_layer(word, count, dimensions, context_dim) for word, count in words]
        blocks = _blocks(fields, dimensions, context_dim)
    return Flow([*exact, *discrete, *blocks], base=base, context_dim=context_dim, context_layer=context_layer)


def slow_layers(fields: Fields, dimensions: int, context_dim: int, seed: int) -> list[CNF]:
    """The continuous layers alone, untrained, for fields that hardly change in time.

    The global state of torch is left as it was.
    """
    with _drawn_by(seed):
        return _blocks(fields, dimensions, context_dim, {"highest": SLOW} if fields.dynamics == "residual" else {})


def fitted_layers(fields: Fields, x: Tensor) -> list[Layer]:
    """The exact layers for data x (n, d) in float64: support first, then scaling."""
    layers = _support_layers(fields, x.shape[1])
    for layer in layers:
        x, _ = layer.to_base(x)
    return [*layers, *[make(x) for make in _scaling(fields)[:1]]]


def blank_layers(fields: Fields, dimensions: int) -> list[Layer]:
    """The same layers before any data, to load weights into."""
    zeros = torch.zeros(dimensions, dtype=torch.float64)
    return [*_support_layers(fields, dimensions), *[make(zeros) for make in _scaling(fields)[1:]]]


def fitted_base(fields: Fields, exact: list[Layer], x: Tensor) -> Base:
    """The base for data x (n, d) in float64 that exact layers have brought near it."""
    for layer in exact:
        x, _ = layer.to_base(x)
    return choice("base", fields.base, BASES)[0](x)


def blank_base(fields: Fields, dimensions: int) -> Base:
    """The same before any data, to load weights into."""
    return choice("base", fields.base, BASES)[1]((dimensions,))


def build_schedule(fields: Fields, dimensions: int) -> list[Phase]:
    """The phases of training that `schedule` names. Raises ValueError for a phase 'layers' without such layers."""
    parts, objectives = schedule_of(fields.schedule), build_objectives(fields, dimensions)
    if not layers_of(fields.layers) and any(part.word == "layers" for part in parts):
        raise ValueError("the schedule has a phase 'layers', but no layers to train: pass layers='maf:3', or drop it")
    return [Phase(objectives[word][0], steps, objectives[word][1], seconds) for word, steps, seconds in parts]


def build_objectives(fields: Fields, dimensions: int) -> dict[str, tuple[Objective, float]]:
    """Every objective and its peak learning rate; all are made, so that a wrong field never waits."""
    choice("time_density", fields.time_density, TIME_DENSITIES)
    choice("coupling", fields.coupling, COUPLINGS)
    costs, solver = regularizers_of(fields.regularizers), training_solver(fields)
    if "hjb" in costs and fields.dynamics != "potential":
        raise ValueError(f"regularizer 'hjb' needs dynamics='potential'; got dynamics={fields.dynamics!r}")
    mle = MaximumLikelihood(_trace(fields, dimensions), costs, solver, fields.steer)
    matching = FlowMatching(fields.time_density, fields.coupling)
    mle_rate = _positive("mle_learning_rate", fields.mle_learning_rate)
    return {
        "flow_matching": (matching, _positive("learning_rate", fields.learning_rate)),
        "mle": (mle, mle_rate),
        "layers": (LayersLikelihood(), mle_rate),
    }


def check_dimensions(dimensions: int, context_dim: int) -> None:
    """Raise ValueError unless a flow can have so many columns and context columns."""
    _whole("the number of columns", dimensions)
    _whole("context_dim + 1", context_dim + 1)


def training_options(fields: Fields, dimensions: int) -> dict[str, Any]:
    """The keyword options of `training.fit` that the fields name, for so many columns."""
    return {
        "batch_size": _whole("batch_size", fields.batch_size),
        "optimization": _optimization(fields),
        "validate_every": _whole("validate_every", fields.validate_every),
        "patience": _whole("patience", fields.patience),
        "evaluation": validating(fields, dimensions),
        "guard": Guard(fields.guard).share,
    }


def training_solver(fields: Fields) -> Solver:
    """The solver of the likelihood's gradient: the method, tolerance or steps that the fields name."""
    tolerance = _tolerance("train_tolerance", fields.train_tolerance, torch.float32)
    solver = Solver(fields.solver, tolerance, tolerance, fields.steps, fields.gradient, fields.max_nfe)
    if solver.method == "scipy_solver" and not solver.by_adjoint:
        raise ValueError("method 'scipy_solver' is not differentiable: pass gradient='adjoint'")
    return solver


def reporting(fields: Fields) -> Integration:
    """How every reported likelihood is integrated: exact trace, adaptive, each row with steps of its own."""
    tolerance = _tolerance("tolerance", fields.tolerance, torch.float64)
    return Integration(solver=Solver("dopri5_by_row", tolerance, tolerance, max_nfe=fields.max_nfe))


def validating(fields: Fields, dimensions: int) -> Integration:
    """How training is validated: exact trace, adaptive, as fine as a choice needs and so many columns allow."""
    tolerance = max(fields.tolerance, 1e-4 if dimensions <= FEW_COLUMNS else 1e-3)
    return Integration(solver=Solver("dopri5", tolerance, tolerance, max_nfe=fields.max_nfe))


def build_device(name: str) -> torch.device:
    """The device: 'auto' takes CUDA, then MPS, then the CPU. Raises ValueError for one that is not there."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, here in present.items() if here))
    kind = name.partition(":")[0]
    if not present.get(kind, False):
        here = ", ".join(kind for kind, there in present.items() if there)
        raise ValueError(f"device must be 'auto' or one that this machine has ({here}); got {name!r}")
    return torch.device(name)


def on_device(flow: Flow, device: torch.device) -> Flow:
    """The flow with its base and what it learns moved; fitted layers stay in float64, which not every device has."""
    flow.base.to(device)
    for layer in flow.layers:
        if isinstance(layer, CNF) or list(layer.parameters()):
            layer.to(device)
    return flow


def reporting_dtype(device: torch.device) -> torch.dtype:
    """float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _scaling(fields: Fields) -> tuple[Callable[[Tensor], Layer], ...]:
    """How to make the scaling layer: from data, and blank from zeros (d,); nothing for 'none'."""
    return choice("scaling", fields.scaling, SCALINGS)


def _support_layers(fields: Fields, dimensions: int) -> list[Layer]:
    bounds = torch.tensor(support_of(fields.support, dimensions), dtype=torch.float64)
    lower, upper = bounds.unbind(1)
    bounded, positive = upper.isfinite(), lower.isfinite() & ~upper.isfinite()
    layers: list[Layer] = []
    if bool(bounded.any()):
        layers.append(Logit(torch.where(bounded, lower, -math.inf), upper))
    if bool(positive.any()):
        layers.append(Softplus(torch.where(positive, lower, -math.inf)))
    return layers


@contextmanager
def _drawn_by(seed: int) -> Iterator[None]:
    """Weights made here are drawn by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _blocks(
    fields: Fields, dimensions: int, context_dim: int, special: Mapping[str, Any] = MappingProxyType({})
) -> list[CNF]:
    """The continuous layers, their networks made with `special` options too."""
    return [_block(fields, dimensions, context_dim, special) for _ in range(_whole("blocks", fields.blocks))]


def _block(fields: Fields, dimensions: int, context_dim: int, special: Mapping[str, Any]) -> CNF:
    hidden = tuple(fields.hidden) if isinstance(fields.hidden, Sequence) else ()
    if not hidden or any(not isinstance(width, Integral) or width < 1 for width in hidden):
        raise ValueError(f"hidden must be one or more positive widths; got {fields.hidden}")
    options = {} if fields.activation is None else {"activation": fields.activation}
    if options:
        choice("activation", fields.activation, ACTIVATIONS)
    if fields.octaves:
        if fields.dynamics != "residual":
            raise ValueError(f"octaves are inputs of dynamics='residual'; got dynamics={fields.dynamics!r}")
        options["octaves"] = _whole("octaves", fields.octaves)
    network = choice("dynamics", fields.dynamics, DYNAMICS)
    dynamics = network((dimensions,), context_dim=context_dim, hidden=hidden, **options, **special)
    return CNF(
        dynamics, (dimensions,), solver=training_solver(fields), end_time=fields.end_time,
        learn_end_time=fields.learn_end_time,
    )  # fmt: skip


def _optimization(fields: Fields) -> Optimization:
    if not 0 <= fields.ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1); got {fields.ema_decay}")
    if fields.weight_decay < 0:
        raise ValueError(f"weight_decay must not be negative; got {fields.weight_decay}")
    if fields.warmup_steps < 0:
        raise ValueError(f"warmup_steps must not be negative; got {fields.warmup_steps}")
    clip_norm = _positive("clip_norm", fields.clip_norm)
    return Optimization(fields.weight_decay, fields.warmup_steps, clip_norm, fields.ema_decay)


def _trace(fields: Fields, dimensions: int) -> TraceEstimator:
    if fields.trace == "auto":
        word = "exact" if dimensions <= EXACT_TRACE_UP_TO else "rademacher"
        return TRACE_ESTIMATORS[word](_whole("probes", fields.probes))
    return choice("trace", fields.trace, {"auto": None, **TRACE_ESTIMATORS})(fields.probes)


def _tolerance(name: str, value: float, dtype: torch.dtype) -> float:
    finest = 4 * torch.finfo(dtype).eps
    if _positive(name, value) < finest:
        raise ValueError(f"{name} must be at least {finest:.1g}, what {dtype} resolves; got {value:g}")
    return value


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be positive; got {value}")
    return value


def _whole(name: str, value: int) -> int:
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number, at least 1; got {value!r}")
    return int(value)
