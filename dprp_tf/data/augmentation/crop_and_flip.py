"""Random shifts by whole pixels and mirroring, as CIFAR's networks are trained."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from dprp_tf.data.augmentation.base import Augmentation
from dprp_tf.data.augmentation.draws import draw, mix
from dprp_tf.files.arguments import check_integer

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["CropAndFlip", "crop_and_flip_in_tensorflow", "random_crop_and_flip"]


@dataclass(frozen=True)
class CropAndFlip(Augmentation):
    """Shift every image by up to `padding` pixels and mirror half of them.

    Each image is padded with `padding` zeros on all four sides and a window of its own size is
    cut at a random place, `(2 padding + 1) ** 2` of them equally likely; then it is mirrored
    left to right with probability 1/2.

    Args:
        padding: Largest shift in pixels, at least 0. Defaults to 4.
        flip: Whether to mirror. Defaults to True.

    Raises:
        ValueError: If `padding` is negative.

    Source: He et al., "Deep Residual Learning for Image Recognition", section 4.2.

    Example:

    >>> import numpy as np
    >>> tuple(CropAndFlip(padding=2)(np.ones((2, 8, 8, 3), "float32"), seed=0).shape)
    (2, 8, 8, 3)
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", check_integer("padding", self.padding, minimum=0))

    def _apply(self, ops: SimpleNamespace, images: Any, seed: Any, index: Any) -> Any:
        padding = self.padding
        if padding == 0 and not self.flip:
            return images
        _, height, width, channels = images.shape
        batch = ops.length(images)
        counter = ops.cast(index, "uint32") * ops.cast(3, "uint32")
        key = mix(ops, seed)
        shifts = 2 * padding + 1
        top = draw(ops, key, counter, shifts)
        left = draw(ops, key, counter + ops.cast(1, "uint32"), shifts)
        mirrored = draw(ops, key, counter + ops.cast(2, "uint32"), 2) == 1

        # (b, h, w, c) -> (b, h + 2p, w + 2p, c) -> one row of c values per pixel
        padded = ops.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
        padded_height, padded_width = height + 2 * padding, width + 2 * padding
        pixels = ops.reshape(padded, [-1, channels])
        rows = top[:, None] + ops.arange(height)[None, :]
        columns = left[:, None] + ops.arange(width)[None, :]
        if self.flip:
            columns = ops.where(mirrored[:, None], columns[:, ::-1], columns)
        first = ops.arange(batch) * (padded_height * padded_width)
        # (b, 1, 1) + (b, h, 1) + (b, 1, w) -> (b, h, w)
        where = first[:, None, None] + rows[:, :, None] * padded_width + columns[:, None, :]
        crops = ops.take(pixels, ops.reshape(where, [-1]))
        return ops.reshape(crops, [-1, height, width, channels])


def random_crop_and_flip(images: Any, seed: Any, padding: int = 4, flip: bool = True) -> Any:
    """Shift every image by up to `padding` pixels and mirror half of them, in `keras.ops` alone.

    Short for `CropAndFlip(padding, flip)(images, seed)`. Numbers come from an integer hash of
    `(seed, image index)`: a seed gives the same crops on every backend, eager or compiled, and
    `seed` may be a traced tensor, which `keras.random` does not take.

    Args:
        images: `(batch, height, width, channels)`, any dtype. Height, width and channels must
            be known.
        seed: Whole number from 0 to 2**32 - 1, or a scalar integer tensor. Use another for
            every batch.
        padding: Largest shift in pixels, at least 0. Defaults to 4.
        flip: Whether to mirror. Defaults to True.

    Returns:
        A tensor like `images`.

    Raises:
        ValueError: If `images` has not four axes, or `seed` or `padding` is outside its range.

    Example:

    >>> import numpy as np
    >>> images = np.ones((2, 8, 8, 3), "float32")
    >>> tuple(random_crop_and_flip(images, seed=0).shape)
    (2, 8, 8, 3)
    """
    return CropAndFlip(padding, flip)(images, seed)


def crop_and_flip_in_tensorflow(
    images: tf.Tensor, seed: tuple[Any, ...], padding: int, flip: bool
) -> tf.Tensor:
    """Do what `random_crop_and_flip` does inside a tf.data pipeline, under any Keras backend.

    Args:
        images: `(batch, height, width, channels)`.
        seed: Whole numbers or integer tensors, such as (seed, epoch, step), hashed into one.
        padding: Largest shift in pixels, at least 0.
        flip: Whether to mirror.

    Returns:
        A tensor like `images`.
    """
    return CropAndFlip(padding, flip).in_pipeline(images, seed)
