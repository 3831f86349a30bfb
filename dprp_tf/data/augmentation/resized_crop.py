"""Random parts of an image at a common size, as ImageNet's networks are trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["ResizedCrop"]

_ATTEMPTS = 10


@dataclass(frozen=True)
class ResizedCrop:
    """Which part of an image to cut out before it is resized, and whether to mirror it.

    It is drawn while an image is decoded, from its own size, so it belongs to images that are
    read from disk one by one (`dprp_tf.data.StreamedImages`).

    Args:
        area: Least and largest share of the image's area, 0 to 1. Defaults to (0.08, 1).
        ratio: Least and largest width / height. Defaults to (3/4, 4/3).
        flip: Whether to mirror half of the images. Defaults to True.

    Raises:
        ValueError: If a pair is not in ascending order within its range.

    Source: Szegedy et al., "Going deeper with convolutions", 2015, section 6.

    Example:

    >>> top, left, height, width, mirrored = ResizedCrop().draw(100, 80, seed=(0, 0, 7))
    >>> 0 <= top <= 100 - height and 0 <= left <= 80 - width
    True
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        for name, bound in (("area", 1.0), ("ratio", math.inf)):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] <= bound:
                raise ValueError(
                    f"`{name}` must hold two numbers above 0{' up to 1' * (name == 'area')}, the "
                    f"lesser first. Received: {name}={value}."
                )

    def draw(self, height: int, width: int, seed: Sequence[int]) -> tuple[int, int, int, int, bool]:
        """Return the part of an image to use.

        The area is uniform, the logarithm of the ratio too. If ten attempts do not fit into the
        image, the largest part in its middle whose ratio is allowed is taken.

        Args:
            height: Height of the image in pixels.
            width: Its width.
            seed: Whole numbers that decide the outcome, such as (seed, epoch, index).

        Returns:
            Top, left, height, width in pixels and whether to mirror.
        """
        random = np.random.default_rng(tuple(int(part) for part in seed))
        mirrored = bool(random.integers(2)) and self.flip
        low, high = (math.log(ratio) for ratio in self.ratio)
        for _ in range(_ATTEMPTS):
            area = random.uniform(*self.area) * height * width
            ratio = math.exp(random.uniform(low, high))
            part_width, part_height = (
                round(math.sqrt(area * ratio)),
                round(math.sqrt(area / ratio)),
            )
            if 0 < part_width <= width and 0 < part_height <= height:
                top = int(random.integers(height - part_height + 1))
                left = int(random.integers(width - part_width + 1))
                return top, left, part_height, part_width, mirrored
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        part_width = max(1, min(width, round(height * ratio)))
        part_height = max(1, min(height, round(width / ratio)))
        return (
            (height - part_height) // 2,
            (width - part_width) // 2,
            part_height,
            part_width,
            mirrored,
        )
