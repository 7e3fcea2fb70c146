"""From the fields of FFJORD to the objects that they name: solvers, schedule, device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ffjord_kit.cnf import CNF, Integration
from ffjord_kit.couplings import COUPLINGS
from ffjord_kit.estimator.defaults import FEW_COLUMNS, is_image
from ffjord_kit.estimator.fields import Fields
from ffjord_kit.estimator.words import choice, layers_of, positive, regularizers_of, schedule_of, whole
from ffjord_kit.flow import Flow
from ffjord_kit.images import DropContext
from ffjord_kit.objectives import TIME_DENSITIES, FlowMatching, LayersLikelihood, MaximumLikelihood, Objective
from ffjord_kit.solver import Solver
from ffjord_kit.trace import TRACE_ESTIMATORS, OwnTrace, TraceEstimator
from ffjord_kit.training import Guard, Optimization, Phase
from ffjord_kit.training.precision import PRECISIONS
from ffjord_kit.training.workers import found

EXACT_TRACE_UP_TO = 8
IMAGE_PROBES = 2  # of a reported likelihood


def build_schedule(fields: Fields, event: Sequence[int]) -> list[Phase]:
    """The phases of training that `schedule` names. Raises ValueError for a phase 'layers' without such layers."""
    parts, objectives = schedule_of(fields.schedule), build_objectives(fields, event)
    if fields.scales > 1 and any(part.word == "flow_matching" for part in parts):
        raise ValueError(
            "flow matching moves every pixel to the end, and scales leave some behind: train them by 'mle'"
        )
    if not layers_of(fields.layers) and any(part.word == "layers" for part in parts):
        raise ValueError("the schedule has a phase 'layers', but no layers to train: pass layers='maf:3', or drop it")
    return [Phase(objectives[word][0], steps, objectives[word][1], seconds) for word, steps, seconds in parts]


def build_objectives(fields: Fields, event: Sequence[int]) -> dict[str, tuple[Objective, float]]:
    """Every objective and its peak learning rate; all are made, so that a wrong field never waits."""
    choice("time_density", fields.time_density, TIME_DENSITIES)
    choice("coupling", fields.coupling, COUPLINGS)
    costs, solver = regularizers_of(fields.regularizers), training_solver(fields)
    if "hjb" in costs and fields.dynamics != "potential":
        raise ValueError(f"regularizer 'hjb' needs dynamics='potential'; got dynamics={fields.dynamics!r}")
    mle = MaximumLikelihood(_trace(fields, event), costs, solver, fields.steer)
    matching: Objective = FlowMatching(fields.time_density, fields.coupling)
    if fields.context_dropout:
        matching = DropContext(matching, fields.context_dropout)
    mle_rate = positive("mle_learning_rate", fields.mle_learning_rate)
    return {
        "flow_matching": (matching, positive("learning_rate", fields.learning_rate)),
        "mle": (mle, mle_rate),
        "layers": (LayersLikelihood(), mle_rate),
    }


def check_dimensions(dimensions: int, context_dim: int) -> None:
    """Raise ValueError unless a flow can have so many columns and context columns."""
    whole("the number of columns", dimensions)
    whole("context_dim + 1", context_dim + 1)


def training_options(fields: Fields, event: Sequence[int]) -> dict[str, Any]:
    """The keyword options of `training.fit` that the fields name, for events of this shape."""
    return {
        "batch_size": whole("batch_size", fields.batch_size),
        "optimization": _optimization(fields),
        "validate_every": whole("validate_every", fields.validate_every),
        "patience": whole("patience", fields.patience),
        "evaluation": validating(fields, event),
        "guard": Guard(fields.guard).share,
        "precision": choice("precision", fields.precision, dict.fromkeys(PRECISIONS, fields.precision)),
        "micro_batches": None if fields.micro_batches is None else whole("micro_batches", fields.micro_batches),
    }


def training_solver(fields: Fields) -> Solver:
    """The solver of the likelihood's gradient: the method, tolerance or steps that the fields name."""
    tolerance = _tolerance("train_tolerance", fields.train_tolerance, torch.float32)
    solver = Solver(fields.solver, tolerance, tolerance, fields.steps, fields.gradient, fields.max_nfe)
    if solver.method == "scipy_solver" and not solver.by_adjoint:
        raise ValueError("method 'scipy_solver' is not differentiable: pass gradient='adjoint'")
    return solver


def reporting(fields: Fields, event: Sequence[int]) -> Integration:
    """How every reported likelihood is integrated: adaptive, each row with steps of its own, by the exact trace.

    The trace of images is Hutchinson's, by probes that each has of its own.
    """
    kind = torch.float32 if is_image(event) else torch.float64
    tolerance = _tolerance("tolerance", fields.tolerance, kind)
    solver = Solver("dopri5_by_row", tolerance, tolerance, max_nfe=fields.max_nfe)
    return Integration(OwnTrace(IMAGE_PROBES), solver) if is_image(event) else Integration(solver=solver)


def validating(fields: Fields, event: Sequence[int]) -> Integration:
    """How training is validated: exact trace, adaptive, as fine as a choice needs and so many columns allow.

    Images by one probe each, the same at every validation.
    """
    few = not is_image(event) and event[0] <= FEW_COLUMNS
    tolerance = max(fields.tolerance, 1e-4 if few else 1e-3)
    solver = Solver("dopri5", tolerance, tolerance, max_nfe=fields.max_nfe)
    return Integration(OwnTrace(), solver) if is_image(event) else Integration(solver=solver)


def build_device(name: str) -> torch.device:
    """The device: 'auto' takes CUDA, a worker its own, then MPS, then the CPU. Raises ValueError for one not there."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return found().device(torch.device(next(kind for kind, here in present.items() if here)))
    kind = name.partition(":")[0]
    if not present.get(kind, False):
        here = ", ".join(kind for kind, there in present.items() if there)
        raise ValueError(f"device must be 'auto' or one that this machine has ({here}); got {name!r}")
    return found().device(torch.device(name))


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


def _optimization(fields: Fields) -> Optimization:
    if not 0 <= fields.ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1); got {fields.ema_decay}")
    if fields.weight_decay < 0:
        raise ValueError(f"weight_decay must not be negative; got {fields.weight_decay}")
    if fields.warmup_steps < 0:
        raise ValueError(f"warmup_steps must not be negative; got {fields.warmup_steps}")
    clip_norm = positive("clip_norm", fields.clip_norm)
    return Optimization(fields.weight_decay, fields.warmup_steps, clip_norm, fields.ema_decay)


def _trace(fields: Fields, event: Sequence[int]) -> TraceEstimator:
    if fields.trace == "auto":
        word = "exact" if math.prod(event) <= EXACT_TRACE_UP_TO else "rademacher"
        return TRACE_ESTIMATORS[word](whole("probes", fields.probes))
    return choice("trace", fields.trace, {"auto": None, **TRACE_ESTIMATORS})(fields.probes)


def _tolerance(name: str, value: float, dtype: torch.dtype) -> float:
    finest = 4 * torch.finfo(dtype).eps
    if positive(name, value) < finest:
        raise ValueError(f"{name} must be at least {finest:.1g}, what {dtype} resolves; got {value:g}")
    return value
