"""Small random rotations, scalings, shifts and changes of brightness, for traffic signs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from dprp_tf.data.augmentation.base import Augmentation
from dprp_tf.data.augmentation.draws import mix, uniform

__all__ = ["Warp"]


@dataclass(frozen=True)
class Warp(Augmentation):
    """Turn, scale, shift and brighten every image a little; never mirror it.

    Output pixel p, counted from the middle of the image, is image(R(-a) (p - t) / z) * g, with
    angle a, scale z, shift t and brightness g uniform in their ranges. Values between pixels
    are interpolated linearly, and outside the image its border goes on. Whole-number images are
    rounded and kept within 0 to 255.

    Args:
        rotation: Largest angle in degrees, 0 to 180. Defaults to 15.
        scale: Largest change of size as a share, 0 to below 1. Defaults to 0.1.
        shift: Largest shift as a share of height and width, 0 to 1. Defaults to 1/16, which is
            2 of 32 pixels.
        brightness: Largest change of brightness as a share, 0 to 1. Defaults to 0.2; the source
            has none of it.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Sermanet and LeCun, "Traffic sign recognition with multi-scale convolutional
    networks", 2011: shifts of 2 pixels, scales of 0.9 to 1.1 and angles of 15 degrees.

    Example:

    >>> import numpy as np
    >>> images = np.full((2, 8, 8, 3), 9.0, "float32")
    >>> bool((Warp(brightness=0)(images, seed=0) == 9.0).numpy().all())
    True
    """

    rotation: float = 15.0
    scale: float = 0.1
    shift: float = 1 / 16
    brightness: float = 0.2

    def __post_init__(self) -> None:
        bounds = {"rotation": 180, "scale": 1, "shift": 1, "brightness": 1}
        for name, bound in bounds.items():
            value = getattr(self, name)
            if not 0 <= value <= bound or (name == "scale" and value == 1):
                raise ValueError(
                    f"`{name}` must lie from 0 to {'below ' if name == 'scale' else ''}{bound}. "
                    f"Received: {name}={value}."
                )

    def _apply(self, ops: SimpleNamespace, images: Any, seed: Any, index: Any) -> Any:
        _, height, width, channels = images.shape
        key = mix(ops, seed)
        counter = ops.cast(index, "uint32") * ops.cast(5, "uint32")

        def between(number: int, largest: float, middle: float = 0.0) -> Any:
            place = counter + ops.cast(number, "uint32")
            # (b,) -> (b, 1, 1)
            return uniform(ops, key, place, middle - largest, middle + largest)[:, None, None]

        angle = between(0, math.radians(self.rotation))
        scale = between(1, self.scale, 1.0)
        down, right = between(2, self.shift * height), between(3, self.shift * width)
        gain = between(4, self.brightness, 1.0)

        middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
        rows = ops.cast(ops.arange(height), "float32")[None, :, None] - middle_row - down
        columns = ops.cast(ops.arange(width), "float32")[None, None, :] - middle_column - right
        cosine, sine = ops.cos(angle) / scale, ops.sin(angle) / scale
        # (b, h, 1) and (b, 1, w) -> (b, h, w)
        row = ops.clip(cosine * rows + sine * columns + middle_row, 0.0, height - 1.0)
        column = ops.clip(cosine * columns - sine * rows + middle_column, 0.0, width - 1.0)
        upper, left = ops.floor(row), ops.floor(column)
        below, beside = (row - upper)[..., None], (column - left)[..., None]

        # (b, h, w, c) -> one row of c values per pixel
        pixels = ops.reshape(images, [-1, channels])
        top = ops.cast(upper, "int32")
        first = ops.cast(left, "int32")
        bottom = ops.clip(top + 1, 0, height - 1)
        last = ops.clip(first + 1, 0, width - 1)
        start = (ops.arange(ops.length(images)) * (height * width))[:, None, None]

        def at(line: Any, place: Any) -> Any:
            where = ops.reshape(start + line * width + place, [-1])
            values = ops.reshape(ops.take(pixels, where), [-1, height, width, channels])
            return ops.cast(values, "float32")

        above = at(top, first) * (1 - beside) + at(top, last) * beside
        under = at(bottom, first) * (1 - beside) + at(bottom, last) * beside
        result = (above * (1 - below) + under * below) * gain[..., None]
        dtype = _name(images.dtype)
        if "float" not in dtype:
            result = ops.floor(ops.clip(result, 0.0, 255.0) + 0.5)
        return ops.cast(result, dtype)


def _name(dtype: Any) -> str:
    return str(getattr(dtype, "name", dtype))
