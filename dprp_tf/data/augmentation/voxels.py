"""Random turns about the vertical axis, mirrorings and shifts of voxel grids."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from dprp_tf.data.augmentation.base import Augmentation
from dprp_tf.data.augmentation.draws import draw, mix
from dprp_tf.files.arguments import check_integer

__all__ = ["TurnAndShift"]


@dataclass(frozen=True)
class TurnAndShift(Augmentation):
    """Turn every voxel grid about its vertical axis, mirror half of them and shift them.

    The grid is turned by one of `rotations` angles 360 k / `rotations` degrees about its middle,
    mirrored along a horizontal axis with probability 1/2, and shifted by up to `shift` voxels
    along all three axes. Each voxel takes the value of the nearest one, so occupancy stays 0 or
    1; quarter turns are exact, others cut the corners off. What comes from outside is 0.

    Args:
        rotations: Number of angles, 1 to 65536; 1 turns nothing, for data which hold each object
            in several poses. Defaults to 12.
        flip: Whether to mirror. Defaults to True.
        shift: Largest shift in voxels, 0 to 32767. Defaults to 2.
        vertical_axis: Which of the grid's three axes points up, 0 to 2. Defaults to 2.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Maturana and Scherer, "VoxNet: a 3D convolutional neural network for real-time object
    recognition", 2015: 12 turns, mirroring and shifts of 2 voxels. There the objects are turned
    before they become voxels.

    Example:

    >>> import numpy as np
    >>> grids = np.ones((2, 4, 4, 4, 1), "uint8")
    >>> tuple(TurnAndShift()(grids, seed=0).shape)
    (2, 4, 4, 4, 1)
    """

    axes: ClassVar[tuple[str, ...]] = ("batch", "depth", "height", "width", "channels")

    rotations: int = 12
    flip: bool = True
    shift: int = 2
    vertical_axis: int = 2

    def __post_init__(self) -> None:
        bounds = {"rotations": (1, 65536), "shift": (0, 32767), "vertical_axis": (0, 2)}
        for name, (low, high) in bounds.items():
            check_integer(name, getattr(self, name), low, high)

    def _apply(self, ops: SimpleNamespace, images: Any, seed: Any, index: Any) -> Any:
        sizes, channels = tuple(images.shape[1:4]), images.shape[4]
        key = mix(ops, seed)
        counter = ops.cast(index, "uint32") * ops.cast(5, "uint32")

        def pick(number: int, choices: int) -> Any:
            chosen = draw(ops, key, counter + ops.cast(number, "uint32"), choices)
            return ops.reshape(chosen, [-1, 1, 1, 1])  # (b,) -> (b, 1, 1, 1)

        # From each voxel of the outcome back to where it comes from, along axis k: (b, ..n_k.., )
        places = []
        for axis, size in enumerate(sizes):
            shape = [1, 1, 1, 1]
            shape[axis + 1] = size
            shifted = pick(axis, 2 * self.shift + 1) - self.shift
            places.append(ops.reshape(ops.arange(size), shape) - shifted)
        first, second = (axis for axis in range(3) if axis != self.vertical_axis)
        if self.flip:
            turned = sizes[first] - 1 - places[first]
            places[first] = ops.where(pick(3, 2) == 1, turned, places[first])
        if self.rotations > 1:
            angles = [2 * math.pi * k / self.rotations for k in range(self.rotations)]
            which = pick(4, self.rotations)
            cosine, sine = (
                # Rounded, so that quarter turns are exact.
                ops.take(ops.constant(np.round(f(angles), 7).astype(np.float32)), which)
                for f in (np.cos, np.sin)
            )
            middles = (sizes[first] - 1) / 2, (sizes[second] - 1) / 2
            u = ops.cast(places[first], "float32") - middles[0]
            v = ops.cast(places[second], "float32") - middles[1]
            # (b, n, 1, 1) and (b, 1, n, 1) -> (b, n, n, 1)
            nearest = (
                ops.floor(cosine * u + sine * v + (middles[0] + 0.5)),
                ops.floor(cosine * v - sine * u + (middles[1] + 0.5)),
            )
            places[first], places[second] = (ops.cast(place, "int32") for place in nearest)

        inside: Any = True
        where = ops.reshape(ops.arange(ops.length(images)), [-1, 1, 1, 1])
        for place, size in zip(places, sizes, strict=True):
            inside = (place >= 0) & (place < size) & inside
            where = where * size + ops.clip(place, 0, size - 1)
        # (b, d, h, w, c) -> one row of c values per voxel -> (b d h w, c)
        voxels = ops.take(ops.reshape(images, [-1, channels]), ops.reshape(where, [-1]))
        voxels = ops.reshape(voxels, [-1, *sizes, channels])
        # (b, d, h, w) -> (b, d, h, w, 1)
        return voxels * ops.cast(inside[..., None], images.dtype)
