"""Squeeze: space for channels. Each 2 by 2 square of pixels becomes four channels (RealNVP, Dinh et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ffjord_kit.layers import Layer


def squeeze(x: Tensor) -> Tensor:
    """(batch, c, h, w) as (batch, 4 c, h / 2, w / 2), a channel's four pixels side by side.

    Raises ValueError for an odd height or width.
    """
    batch, channels, height, width = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"squeeze needs an even height and width; got {height} x {width}: crop or pad the images")
    parts = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return parts.permute(0, 1, 3, 5, 2, 4).reshape(batch, 4 * channels, height // 2, width // 2)


def unsqueeze(x: Tensor) -> Tensor:
    """The way back, (batch, 4 c, h, w) as (batch, c, 2 h, 2 w). Raises ValueError for channels that are not fours."""
    batch, channels, height, width = x.shape
    if channels % 4:
        raise ValueError(f"unsqueeze needs four channels, or a multiple; got {channels}")
    parts = x.reshape(batch, channels // 4, 2, 2, height, width)
    return parts.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels // 4, 2 * height, 2 * width)


class Squeeze(Layer):
    """Squeeze as a layer: images (c, h, w) on the data's side, (4 c, h / 2, w / 2) on the base's."""

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = event_shape
        self.event_shape = (4 * channels, height // 2, width // 2)

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return squeeze(x), x.new_zeros(len(x))

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return unsqueeze(z), z.new_zeros(len(z))
