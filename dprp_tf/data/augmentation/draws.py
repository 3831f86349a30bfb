"""Random numbers from an integer hash, the same in `keras.ops` on every backend and in tf.data."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

__all__ = ["KERAS", "batch_index", "draw", "mix", "seed_key", "tensorflow", "uniform"]


def mix(ops: SimpleNamespace, x: Any) -> Any:
    """Apply a bijection of the 32-bit numbers in which every input bit sways every output bit.

    Args:
        ops: `KERAS`, or what `tensorflow()` returns.
        x: uint32 tensor.

    Returns:
        A uint32 tensor like `x`.

    Example:

    >>> int(mix(KERAS, keras.ops.convert_to_tensor(1, "uint32")))
    1580013426
    """
    x = x + _uint32(ops, 0x9E3779B9)
    x = ops.bitwise_xor(x, ops.right_shift(x, 16)) * _uint32(ops, 0x21F0AAAD)
    x = ops.bitwise_xor(x, ops.right_shift(x, 15)) * _uint32(ops, 0x735A2D97)
    return ops.bitwise_xor(x, ops.right_shift(x, 15))


def seed_key(ops: SimpleNamespace, seed: Iterable[Any]) -> Any:
    """Hash several whole numbers, such as (seed, epoch), into one.

    Args:
        ops: `KERAS`, or what `tensorflow()` returns.
        seed: Whole numbers or scalar integer tensors.

    Returns:
        A scalar uint32 tensor.
    """
    key = ops.cast(0, "uint32")
    for part in seed:
        key = mix(ops, ops.bitwise_xor(key, ops.cast(part, "uint32")))
    return key


def batch_index(ops: SimpleNamespace, images: Any) -> Any:
    """Number the examples of a batch.

    Args:
        ops: `KERAS`, or what `tensorflow()` returns.
        images: A tensor whose first axis is the batch.

    Returns:
        0, 1, ... as int32, `(batch,)`.
    """
    return ops.arange(ops.length(images))


def draw(ops: SimpleNamespace, key: Any, counter: Any, choices: int) -> Any:
    """Draw whole numbers from 0 to `choices - 1`, equally likely.

    Args:
        ops: `KERAS`, or what `tensorflow()` returns.
        key: Scalar uint32 tensor, a hashed seed.
        counter: uint32 tensor; each value of it gives a number of its own.
        choices: How many numbers there are, 1 to 65536.

    Returns:
        An int32 tensor of the shape of `counter`.
    """
    bits = ops.right_shift(mix(ops, ops.bitwise_xor(key, mix(ops, counter))), 16)
    return ops.cast(ops.right_shift(bits * _uint32(ops, choices), 16), "int32")


def uniform(ops: SimpleNamespace, key: Any, counter: Any, low: float, high: float) -> Any:
    """Draw numbers from `low` to `high` out of 2**24 equidistant ones.

    Args:
        ops: `KERAS`, or what `tensorflow()` returns.
        key: Scalar uint32 tensor, a hashed seed.
        counter: uint32 tensor; each value of it gives a number of its own.
        low: Least value.
        high: Bound that is not reached, `low` or more.

    Returns:
        A float32 tensor of the shape of `counter`.
    """
    bits = ops.right_shift(mix(ops, ops.bitwise_xor(key, mix(ops, counter))), 8)
    share = ops.cast(ops.cast(bits, "int32"), "float32") * (1.0 / (1 << 24))
    return low + share * (high - low)


def _uint32(ops: SimpleNamespace, value: int) -> Any:
    return ops.cast(value, "uint32")


def _keras_cast(x: Any, dtype: str) -> Any:
    if isinstance(x, (int, np.integer)):
        return keras.ops.convert_to_tensor(x, dtype=dtype)
    return keras.ops.cast(x, dtype)


KERAS = SimpleNamespace(
    arange=lambda stop: keras.ops.arange(stop, dtype="int32"),
    bitwise_xor=keras.ops.bitwise_xor,
    cast=_keras_cast,
    clip=keras.ops.clip,
    constant=lambda x: keras.ops.convert_to_tensor(x),
    cos=keras.ops.cos,
    floor=keras.ops.floor,
    length=lambda x: keras.ops.shape(x)[0],
    pad=keras.ops.pad,
    reshape=keras.ops.reshape,
    right_shift=lambda x, bits: keras.ops.right_shift(x, _keras_cast(bits, "uint32")),
    sin=keras.ops.sin,
    take=lambda x, indices: keras.ops.take(x, indices, axis=0),
    where=keras.ops.where,
)
"""The operations an augmentation is written in, from `keras.ops`."""


def tensorflow() -> SimpleNamespace:
    """Return the operations of `KERAS` in TensorFlow, for tf.data pipelines under any backend.

    Returns:
        A namespace with the names of `KERAS`.

    Example:

    >>> set(vars(tensorflow())) == set(vars(KERAS))
    True
    """
    import tensorflow as tf

    return SimpleNamespace(
        arange=tf.range,
        bitwise_xor=tf.bitwise.bitwise_xor,
        cast=lambda x, dtype: (
            tf.constant(x, dtype) if isinstance(x, (int, np.integer)) else tf.cast(x, dtype)
        ),
        clip=tf.clip_by_value,
        constant=tf.constant,
        cos=tf.cos,
        floor=tf.floor,
        length=lambda x: tf.shape(x)[0],
        pad=tf.pad,
        reshape=tf.reshape,
        right_shift=lambda x, bits: tf.bitwise.right_shift(x, tf.constant(bits, "uint32")),
        sin=tf.sin,
        take=tf.gather,
        where=tf.where,
    )
