"""From a run folder to the estimator that it keeps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from ffjord_kit.estimator import build
from ffjord_kit.estimator.defaults import is_image
from ffjord_kit.estimator.dequantize import Grid
from ffjord_kit.estimator.edges import blank_aligning, blank_base, blank_layers
from ffjord_kit.estimator.few_steps import solver_of
from ffjord_kit.estimator.fields import Fields, check_kinds
from ffjord_kit.estimator.images import Images
from ffjord_kit.estimator.networks import build_flow, with_middle
from ffjord_kit.estimator.words import layers_of
from ffjord_kit.layers import Standardize
from ffjord_kit.objectives import split
from ffjord_kit.runs import Run, RunError
from ffjord_kit.training import History

if TYPE_CHECKING:
    from ffjord_kit.estimator.ffjord import FFJORD


def loaded(kind: type[FFJORD], run: Run) -> FFJORD:
    """The fitted model of a run. Raises RunError where it is damaged, or without weights yet."""
    model = configured(kind, run)
    event, context_dim = model.event_shape_, model.config_["context_dim"]
    with run.explained("config.json"):
        now = model.settled
    _check_size(run, now, event, context_dim)
    zeros = torch.zeros(context_dim, dtype=torch.float64)
    scaling = Standardize(zeros, torch.ones_like(zeros)) if context_dim else None
    with run.explained("config.json"):
        exact, base = blank_layers(now, event), blank_base(now, event)
        flow = build_flow(now, exact, base, scaling, event, model.seed_)
        aligning = blank_aligning(model.config_, event)
        solver_of(model, "rk4", 1)  # the place of few steps can be one
        model.flow_ = with_middle(flow, [*aligning, *split(flow)[1]]) if aligning else flow
    run.load_model(model.flow_)
    model.history_ = History(model.seed_, records=run.records())
    model.settle()
    return model


def configured(kind: type[FFJORD], run: Run) -> FFJORD:
    """An estimator with a run's fields and no weights. Raises RunError where the fields are not an estimator's."""
    config = run.config
    with run.explained("config.json"):
        hidden = config["estimator"]["hidden"]
        model = kind(**{**config["estimator"], "hidden": None if hidden is None else tuple(hidden)})
        check_kinds(model)
        model.config_, model.seed_ = config, int(config["seed"])
        images = Images.kept(config.get("images"))
        model.event_shape_ = (len(config["columns"]),) if images is None else images.shape
        model.n_features_in_ = math.prod(model.event_shape_)
        if images is not None and images.classes not in (0, config["context_dim"]):
            raise ValueError(f"images have {images.classes} classes, and contexts {config['context_dim']}")
        Grid.kept(config.get("grid"), len(config["columns"]))
        if config["named"]:
            model.feature_names_in_ = np.array(config["columns"], dtype=object)
        build.check_dimensions(model.n_features_in_, config["context_dim"])
    return model


def _check_size(run: Run, fields: Fields, event: tuple[int, ...], context_dim: int) -> None:
    """Refuse a config that describes a larger flow than the weights are, before any of it is built."""
    shapes = run.model_shapes()
    count, elements = len(shapes), sum(math.prod(shape) for shape in shapes.values())
    with run.explained("config.json"):
        hidden = tuple(map(int, fields.hidden))
        inputs = (event[0] + context_dim) * (1 + 2 * (fields.octaves or 0))
        layers = sum(number for _, number in layers_of(fields.layers))
        widest = max(a * b for a, b in zip((inputs, *hidden), (*hidden, event[0]), strict=True))
        if is_image(event):
            widest = max(context_dim * hidden[0], event[0] * hidden[0], *(width**2 for width in hidden))
    if max(fields.blocks * fields.scales, len(hidden), layers) > count or max(widest, math.prod(event)) > elements:
        raise RunError(f"{run.path / 'model.safetensors'} does not fit config.json (it is smaller than that says)")
