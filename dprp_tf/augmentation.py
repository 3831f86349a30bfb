"""Random crops and flips of a whole batch at once, the same on every backend."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["crop_and_flip_in_tensorflow", "random_crop_and_flip"]


def random_crop_and_flip(images: Any, seed: Any, padding: int = 4, flip: bool = True) -> Any:
    """Shift every image by up to `padding` pixels and mirror half of them, in `keras.ops` alone.

    Each image is padded with `padding` zeros on all four sides and a window of its own size is
    cut at a random place, `(2 padding + 1) ** 2` of them equally likely; then it is mirrored
    left to right with probability 1/2. Numbers come from an integer hash of
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

    Source: He et al., "Deep Residual Learning for Image Recognition", section 4.2.

    Example:

    >>> import numpy as np
    >>> images = np.ones((2, 8, 8, 3), "float32")
    >>> tuple(random_crop_and_flip(images, seed=0).shape)
    (2, 8, 8, 3)
    """
    if isinstance(seed, (int, np.integer)) and not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must lie from 0 to 2**32 - 1. Received: seed={seed}.")
    images = keras.ops.convert_to_tensor(images)
    return _random_crop_and_flip(_KERAS, images, seed, padding, flip)


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
    ops = _tensorflow()
    key = ops.cast(0, "uint32")
    for part in seed:
        key = _mix(ops, ops.bitwise_xor(key, ops.cast(part, "uint32")))
    return _random_crop_and_flip(ops, images, key, padding, flip)


def _random_crop_and_flip(
    ops: SimpleNamespace, images: Any, seed: Any, padding: int, flip: bool
) -> Any:
    if len(images.shape) != 4:
        raise ValueError(
            "`images` must have the shape (batch, height, width, channels). Received: "
            f"shape={tuple(images.shape)}. Add an axis for single or gray images."
        )
    if padding < 0:
        raise ValueError(f"`padding` must be at least 0. Received: padding={padding}.")
    if padding == 0 and not flip:
        return images
    _, height, width, channels = images.shape
    batch = ops.length(images)
    index = ops.cast(ops.arange(batch), "uint32") * _uint32(ops, 3)
    key = _mix(ops, ops.cast(seed, "uint32"))
    shifts = 2 * padding + 1
    top = _draw(ops, key, index, shifts)
    left = _draw(ops, key, index + _uint32(ops, 1), shifts)
    mirrored = _draw(ops, key, index + _uint32(ops, 2), 2) == 1

    # (b, h, w, c) -> (b, h + 2p, w + 2p, c) -> one row of c values per pixel
    padded = ops.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    padded_height, padded_width = height + 2 * padding, width + 2 * padding
    pixels = ops.reshape(padded, [-1, channels])
    rows = top[:, None] + ops.arange(height)[None, :]
    columns = left[:, None] + ops.arange(width)[None, :]
    if flip:
        columns = ops.where(mirrored[:, None], columns[:, ::-1], columns)
    first = ops.arange(batch) * (padded_height * padded_width)
    # (b, 1, 1) + (b, h, 1) + (b, 1, w) -> (b, h, w)
    where = first[:, None, None] + rows[:, :, None] * padded_width + columns[:, None, :]
    crops = ops.take(pixels, ops.reshape(where, [-1]))
    return ops.reshape(crops, [-1, height, width, channels])


def _draw(ops: SimpleNamespace, key: Any, counter: Any, choices: int) -> Any:
    """Whole numbers from 0 to `choices - 1`, one per entry of `counter`, as int32."""
    bits = ops.right_shift(_mix(ops, ops.bitwise_xor(key, _mix(ops, counter))), 16)
    return ops.cast(ops.right_shift(bits * _uint32(ops, choices), 16), "int32")


def _mix(ops: SimpleNamespace, x: Any) -> Any:
    """A bijection of the 32-bit numbers in which every input bit sways every output bit."""
    x = x + _uint32(ops, 0x9E3779B9)
    x = ops.bitwise_xor(x, ops.right_shift(x, 16)) * _uint32(ops, 0x21F0AAAD)
    x = ops.bitwise_xor(x, ops.right_shift(x, 15)) * _uint32(ops, 0x735A2D97)
    return ops.bitwise_xor(x, ops.right_shift(x, 15))


def _uint32(ops: SimpleNamespace, value: int) -> Any:
    return ops.cast(value, "uint32")


def _keras_cast(x: Any, dtype: str) -> Any:
    if isinstance(x, (int, np.integer)):
        return keras.ops.convert_to_tensor(x, dtype=dtype)
    return keras.ops.cast(x, dtype)


_KERAS = SimpleNamespace(
    arange=lambda stop: keras.ops.arange(stop, dtype="int32"),
    bitwise_xor=keras.ops.bitwise_xor,
    cast=_keras_cast,
    length=lambda x: keras.ops.shape(x)[0],
    pad=keras.ops.pad,
    reshape=keras.ops.reshape,
    right_shift=lambda x, bits: keras.ops.right_shift(x, _keras_cast(bits, "uint32")),
    take=lambda x, indices: keras.ops.take(x, indices, axis=0),
    where=keras.ops.where,
)


def _tensorflow() -> SimpleNamespace:
    """The same operations in TensorFlow, for tf.data pipelines under any Keras backend."""
    import tensorflow as tf

    return SimpleNamespace(
        arange=tf.range,
        bitwise_xor=tf.bitwise.bitwise_xor,
        cast=lambda x, dtype: (
            tf.constant(x, dtype) if isinstance(x, (int, np.integer)) else tf.cast(x, dtype)
        ),
        length=lambda x: tf.shape(x)[0],
        pad=tf.pad,
        reshape=tf.reshape,
        right_shift=lambda x, bits: tf.bitwise.right_shift(x, tf.constant(bits, "uint32")),
        take=tf.gather,
        where=tf.where,
    )
