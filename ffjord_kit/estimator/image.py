"""Images: grey levels of 8 bits, (n, h, w) or (n, channels, h, w), with noise that makes a density of them.

Levels are brought to the whole line by a logit, or by plain scaling, and each channel to mean 0 and variance 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ffjord_kit.data import Batch, Pixels, Subset
from ffjord_kit.distributions import Base, StandardNormal
from ffjord_kit.estimator.data import Arrays, TrainingData, check_context, held_out_count, tensor
from ffjord_kit.estimator.domain import Domain
from ffjord_kit.estimator.fields import ImageFields, choice, whole
from ffjord_kit.flow import Flow
from ffjord_kit.nn import IMAGE_DYNAMICS
from ffjord_kit.objectives import DropContext, FlowMatching, Objective, one_hot
from ffjord_kit.rows import as_rows, shared_tensor
from ffjord_kit.trace import PerRowTrace, TraceEstimator
from ffjord_kit.transforms import CNF, IMAGE_SCALINGS, Standardize, Transform, multi_scale

# Default channels of a U-Net by the larger side of an image, up to 8, up to 32, and above.
UNET_CHANNELS: tuple[tuple[float, tuple[int, ...]], ...] = (
    (8, (32, 48)), (32, (32, 64, 64)), (float("inf"), (32, 64, 128, 128)),
)  # fmt: skip
REPORT_PROBES = 2
FITTED_ELEMENTS, FITTED_IMAGES = 4_000_000, 5_000  # of the pixels that preprocessing is fitted to
VALIDATION_ELEMENTS, VALIDATION_IMAGES = 25_000, 64  # fewer images where an image is large: each is solved for
MOST_CHANNELS, MOST_CLASSES = 4, 1000


@dataclass(frozen=True)
class ImageDomain(Domain):
    """Images of one shape.

    Args:
        shape: Shape (c, h, w).
        channels: Whether the data come with an axis of channels.
        bits: Bits of the grey levels.
        classes: Number of classes that label the images; 0 if a context is none of labels.
        alpha: Margin of the logit.
        scales: Scales of a multi-scale flow.
        flip: Whether images are flipped at random in training.
        context_dropout: Share of images whose context is hidden in flow matching.
        channels_last: Whether the memory layout has channels last.
    """

    noun: ClassVar[str] = "images"
    networks: ClassVar[Mapping[str, Callable[..., nn.Module]]] = IMAGE_DYNAMICS
    dtype: ClassVar[torch.dtype] = torch.float32
    certify_probes: ClassVar[int | None] = 4  # the exact trace has as many products as there are pixels

    shape: tuple[int, int, int]
    channels: bool
    bits: int
    classes: int
    alpha: float
    scales: int
    flip: bool
    context_dropout: float
    channels_last: bool

    @classmethod
    def of(cls, fields: ImageFields, x: np.ndarray, context: Any) -> ImageDomain:
        """Return the domain of images to be fitted.

        Args:
            fields: Fields.
            x: Images, shape (n, h, w) or (n, c, h, w).
            context: Labels, shape (n,), contexts of another kind, or None.

        Returns:
            The domain.

        Raises:
            ValueError: If labels are no whole numbers from 0.
        """
        shape = (1, *x.shape[1:]) if x.ndim == 3 else x.shape[1:]
        classes = 0 if context is None else count_classes(context, len(x))
        return cls._with(fields, shape=shape, channels=x.ndim == 4, classes=classes)

    @classmethod
    def from_record(cls, fields: ImageFields, record: Mapping[str, Any]) -> ImageDomain:
        """Return the domain that a run keeps.

        Args:
            fields: Fields of the run.
            record: Config of the run.

        Returns:
            The domain.

        Raises:
            ValueError: If the record makes no sense.
        """
        images = record["images"]
        domain = cls._with(fields, images["shape"], channels=images["channels"], classes=images["classes"])
        if min(domain.shape) < 1 or not 1 <= images["bits"] <= 8 or domain.classes < 0:
            raise ValueError(f"images must have a shape (c, h, w), 1 to 8 bits and classes; got {images}")
        if images["bits"] != domain.bits or domain.classes not in (0, record["context_dim"]):
            raise ValueError(f"images {images} fit neither the bits {domain.bits} nor the context")
        return domain

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape (c, h, w) of an image."""
        return self.shape

    @property
    def few_columns(self) -> bool:
        """Whether a solve with the exact trace is cheap: not of images."""
        return False

    @property
    def depth_factor(self) -> int:
        """Number of scales, each of which has continuous transforms."""
        return self.scales

    def record(self) -> dict[str, Any]:
        images = {"shape": self.shape, "channels": self.channels, "bits": self.bits, "classes": self.classes}
        return {"columns": (), "images": images}

    def defaults(self) -> dict[str, Any]:
        channels = next(widths for side, widths in UNET_CHANNELS if max(self.shape[1:]) <= side)
        return {
            "schedule": [("flow_matching", 4000)] if self.scales == 1 else [("mle", 2000)],
            "time_density": "likelihood", "coupling": "independent", "scaling": "logit", "dynamics": "unet",
            "solver": "rk4", "adjoint": "checkpointed", "learning_rate": 2e-3, "batch_size": 64, "solver_steps": 4,
            "hidden": channels, "optimizer": "adamw", "weight_decay": 0.0,
        }  # fmt: skip

    def search_options(self, data: TrainingData, seconds: float) -> Iterator[tuple[str, tuple[Any, ...]]]:
        yield from ()

    def is_small(self, rows: int) -> bool:
        return False

    def reason_not_to_search(self) -> str:
        return "images have settings that suit them"

    def reason_not_to_step(self) -> str:
        return "images have too many pixels"

    def check_schedule(self, objectives: Sequence[str]) -> None:
        if self.scales > 1 and "flow_matching" in objectives:
            raise ValueError(
                "flow matching moves every pixel to the end, and scales leave some behind: train them by 'mle'"
            )
        if "transforms" in objectives:
            raise ValueError("a phase 'transforms' is for tables; images have no exact transforms to train")
        if "steps" in objectives:
            raise ValueError("a phase 'steps' is for tables: it would carry a tangent for each pixel of an image")

    def matching(self, objective: FlowMatching) -> Objective:
        return DropContext(objective, self.context_dropout) if self.context_dropout else objective

    def trace(self, *, reported: bool) -> TraceEstimator:
        return PerRowTrace(REPORT_PROBES) if reported else PerRowTrace()

    def training_data(self, arrays: Arrays, fraction: float, seed: int) -> TrainingData:
        pixels, generator = Pixels(shared_tensor(arrays.x), self.bits), torch.Generator().manual_seed(seed)
        train, held_out = self.split(arrays.x, fraction, seed)
        some = train[_spread(len(train), self.size)]
        judges = None
        if len(held_out):
            judges = Batch(pixels.fetch(torch.from_numpy(held_out), generator), arrays.contexts(held_out))
        fitting = Batch(pixels.fetch(torch.from_numpy(some), generator), arrays.contexts(some))
        rows = Subset(pixels, torch.from_numpy(train), self.flip)
        return TrainingData(rows, arrays.contexts(train), fitting, judges)

    def split(self, x: Any, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        count = held_out_count(len(x), fraction, max(VALIDATION_IMAGES, VALIDATION_ELEMENTS // self.size))
        order = np.random.default_rng(seed).permutation(len(x))
        return np.sort(order[count:]), np.sort(order[:count])

    def preprocess(self, data: TrainingData, scaling: str) -> list[Transform]:
        opened, x = self._opening(scaling), data.fitting.x
        z, _ = opened.to_base(x)
        sizes = z.transpose(0, 1).flatten(1)
        mean, scale = (part[:, None, None].expand(x.shape[1:]).clone() for part in (sizes.mean(1), sizes.std(1)))
        return [opened, Standardize(mean, torch.where(scale > 0, scale, 1.0))]

    def blank_preprocess(self, scaling: str, context_dim: int) -> list[Transform]:
        zeros = torch.zeros(self.shape, dtype=torch.float64)
        return [self._opening(scaling), Standardize(zeros, torch.ones_like(zeros))]

    def base(self, z: Tensor | None, fields: Any, weight: Tensor | None = None) -> Base:
        return StandardNormal(self.shape)

    def continuous(
        self, network: Callable[[tuple[int, ...]], nn.Module], blocks: int, options: Mapping[str, Any]
    ) -> list[CNF]:
        if self.scales == 1:
            return [CNF(network(self.shape), self.shape, **options) for _ in range(blocks)]
        return multi_scale(self.shape, network, scales=self.scales, blocks=blocks, **options)

    def largest_weight(self, hidden: Sequence[int], inputs: int, context_dim: int) -> int:
        return max(context_dim * hidden[0], self.shape[0] * hidden[0], *(width**2 for width in hidden))

    def lay_out(self, flow: Flow) -> Flow:
        layout: dict[str, Any] = {"memory_format": torch.channels_last} if self.channels_last else {}
        return flow.to(**layout) if layout else flow

    def rows(self, x: Any) -> tuple[Tensor, np.ndarray]:
        pixels = Pixels(self.images(x), self.bits)
        return pixels.fetch(slice(None)), np.ones(len(pixels), bool)

    def contexts(self, context: Any, rows: int, dim: int | None) -> np.ndarray | None:
        if not self.classes:
            return check_context(context, rows, dim)
        return self._one_hot(context, rows)

    def restore(self, x: np.ndarray) -> np.ndarray:
        levels = np.clip(np.floor(x), 0, 2**self.bits - 1).astype(np.uint8) << (8 - self.bits)
        return self.frame(levels)

    def frame(self, x: np.ndarray) -> np.ndarray:
        return x if self.channels else x[..., 0, :, :]

    def images(self, x: Any) -> Tensor:
        """Check images, and give them the axis of channels.

        Args:
            x: Images, in the form of the fit's.

        Returns:
            Images, shape (n, c, h, w), on the same memory where its strides allow.

        Raises:
            ValueError: If they are not of the fit's type or shape.
        """
        x = np.asarray(as_rows(x, "images"))
        expected = self.shape if self.channels else self.shape[1:]
        if self.shape[0] == 1 and x.ndim == (3 if self.channels else 4):  # one channel, with its axis or without
            expected = (1, *expected) if not self.channels else expected[1:]
        if x.dtype != np.uint8:
            raise ValueError(
                f"images must be whole grey levels, uint8 of 0 to 255; got {x.dtype}: scale them to 0 .. 255, round "
                "them, and pass X.astype('uint8')"
            )
        if x.ndim != len(expected) + 1 or x.shape[1:] != expected or not x.size:
            raise ValueError(f"images must have shape (n >= 1, {', '.join(map(str, expected))}); got {x.shape}")
        if self.shape[0] > MOST_CHANNELS:
            raise ValueError(
                f"images must have shape (n, h, w) or (n, channels, h, w), up to {MOST_CHANNELS} channels; got "
                f"{x.shape}: if the channels come last, pass X.transpose(0, 3, 1, 2)"
            )
        return shared_tensor(x.reshape(-1, *self.shape) if min(x.strides) > 0 else x.reshape(-1, *self.shape).copy())

    @classmethod
    def _with(cls, fields: ImageFields, shape: Sequence[int], *, channels: bool, classes: int) -> ImageDomain:
        """Return the domain with the settings of the fields."""
        c, h, w = shape
        return cls(
            (int(c), int(h), int(w)), channels, fields.bits, classes, fields.alpha, whole("scales", fields.scales),
            fields.flip, fields.context_dropout, fields.channels_last,
        )  # fmt: skip

    def _opening(self, scaling: str) -> Transform:
        """Return the transform of grey levels to the whole line."""
        return choice("scaling", scaling, IMAGE_SCALINGS)(self.shape, bits=self.bits, alpha=self.alpha)

    def _one_hot(self, labels: Any, rows: int) -> np.ndarray:
        """Return labels, one for each row or one for all, as contexts (rows, classes)."""
        expected = f"context must be a label, or {rows} of them, whole numbers from 0 to {self.classes - 1}"
        if labels is None:
            raise ValueError(f"{expected}; got none")
        labels = np.asarray(labels)
        labels = labels[:, 0] if labels.shape == (rows, 1) else labels
        if labels.shape not in ((), (1,), (rows,)) or labels.dtype.kind not in "buif" or (labels % 1).any():
            raise ValueError(f"{expected}; got {labels.dtype} of shape {labels.shape}")
        if labels.min() < 0 or labels.max() >= self.classes:
            raise ValueError(f"{expected}; got {labels.min():g} to {labels.max():g}")
        return one_hot(tensor(np.broadcast_to(labels, (rows,)).astype(np.int64)), self.classes).numpy()


def count_classes(context: Any, rows: int) -> int:
    """Return the number of classes that a context labels.

    Args:
        context: Context of a fit.
        rows: Number of images.

    Returns:
        The number; 0 for a context that is none of labels.

    Raises:
        ValueError: If labels are words, negative, or too many.
    """
    labels = np.asarray(context)
    if labels.dtype.kind not in "buif":
        raise ValueError(
            f"labels must be whole numbers from 0; got {labels.dtype}: pass np.unique(labels, return_inverse=True)[1]"
        )
    if labels.shape not in ((rows,), (rows, 1)) or not len(labels) or (labels % 1).any():
        return 0
    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
        raise ValueError(f"labels must be 0 to {MOST_CLASSES - 1}; got {labels.min():g} to {labels.max():g}")
    return int(labels.max()) + 1


def _spread(count: int, size: int) -> np.ndarray:
    """Return the indices of some images, spread over all, to fit preprocessing to."""
    most = max(2, min(count, FITTED_IMAGES, FITTED_ELEMENTS // size))
    return torch.linspace(0, count - 1, most, dtype=torch.float64).long().numpy()
