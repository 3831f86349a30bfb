"""Batches through tf.data: shuffled and augmented to train on, as they are to evaluate on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dprp_tf.data.augmentation import Augmentation, ResizedCrop, adjust
from dprp_tf.data.dataset import Dataset
from dprp_tf.data.streaming import StreamedImages
from dprp_tf.files.arguments import check_integer

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["batches", "evaluation_batches"]


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    augment: bool = True,
    padding: int | None = None,
    flip: bool | None = None,
    shuffle: bool = True,
    drop_remainder: bool = False,
    seed: int = 0,
    epoch: int = 0,
    endless: bool = False,
) -> tf.data.Dataset:
    """Stream the training split as shuffled, augmented float32 batches through tf.data.

    Each pass over the result is the next epoch: the first pass yields epoch `epoch`, the second
    `epoch + 1`, ... The order depends on `(seed, epoch)` alone, and what is done to an image on
    `(seed, epoch, its number)`, so a run resumed at epoch k with `epoch=k` sees what the
    uninterrupted run saw. (Keras' JAX trainer peeks at the first batch before it trains a new
    model, which costs one pass in either run.) A whole batch in memory is gathered and augmented
    by a handful of operations; `StreamedImages` are decoded one by one, several at a time. Pass
    `shuffle=False` to `fit`, which otherwise warns that it can't shuffle a pipeline.

    Args:
        dataset: Where the training split comes from.
        batch_size: Images per batch, at least 1.
        augment: Whether to augment, in the data set's own way. Defaults to True.
        padding: Largest shift in pixels, at least 0, where that way is `CropAndFlip`. Defaults
            to None: the data set's.
        flip: Whether to mirror half of the images. Defaults to None: as the data set has it.
        shuffle: Whether to shuffle, differently in each epoch. Defaults to True.
        drop_remainder: Whether to leave out a last batch that is not full. Defaults to False.
        seed: Seed of everything random, from 0 to 2**31 - 1. Defaults to 0.
        epoch: Epoch of the first pass, at least 0. Defaults to 0.
        endless: Whether one pass yields epoch after epoch without end and each pass begins anew
            at `epoch`, for `fit(steps_per_epoch=...)`: then a pass begun and given up costs
            nothing. Defaults to False.

    Returns:
        A dataset of known length (if not endless) that yields `(images, labels)`: `(batch,
        height, width, channels)` float32 of the range the images had, or grids likewise, and
        `(batch,)` int32.

    Raises:
        ValueError: If an argument is outside its range.

    Example:

    >>> from dprp_tf.data import load
    >>> len(batches(load("digits"), 128))
    12
    """
    import tensorflow as tf

    check_integer("batch_size", batch_size)
    if padding is not None:
        check_integer("padding", padding, minimum=0)
    check_integer("seed", seed, 0, 2**31 - 1)
    check_integer("epoch", epoch, minimum=0)
    count = len(dataset.x_train)
    steps = count // batch_size if drop_remainder else -(-count // batch_size)
    if steps == 0:
        raise ValueError(
            f"`batch_size` must be at most the {count} training images with drop_remainder=True. "
            f"Received: batch_size={batch_size}."
        )
    augmentation = adjust(dataset.augmentation, augment=augment, padding=padding, flip=flip)
    make = _streamed if isinstance(dataset.x_train, StreamedImages) else _in_memory
    # On the host: the pipeline runs there whatever trains.
    with tf.device("CPU"):
        ordered = make(dataset, batch_size, drop_remainder, augmentation, seed)
        next_epoch = tf.Variable(epoch, dtype=tf.int64, trainable=False)

    def one_epoch(current: tf.Tensor) -> tf.data.Dataset:
        if shuffle:
            keys = tf.random.stateless_uniform(
                [count], seed=tf.stack([tf.constant(seed, tf.int64), current])
            )
            order = tf.argsort(keys, stable=True)
        else:
            order = tf.range(count)
        return ordered(order, current)

    if endless:
        return tf.data.Dataset.range(epoch, 2**31).flat_map(one_epoch).prefetch(4)
    stream = tf.data.Dataset.from_tensors(0)
    stream = stream.flat_map(lambda _: one_epoch(next_epoch.assign_add(1) - 1))
    return stream.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(4)


def evaluation_batches(dataset: Dataset, batch_size: int) -> tf.data.Dataset:
    """Stream the test split in its order, as it is.

    Args:
        dataset: Where the test split comes from.
        batch_size: Images per batch, at least 1.

    Returns:
        A dataset of known length that yields `(images, labels)`, float32 and int32.

    Raises:
        ValueError: If `batch_size` is below 1.

    Example:

    >>> from dprp_tf.data import load
    >>> len(evaluation_batches(load("digits"), 100))
    4
    """
    import tensorflow as tf

    check_integer("batch_size", batch_size)
    images, labels = dataset.x_test, dataset.y_test.astype(np.int32)
    with tf.device("CPU"):
        if isinstance(images, StreamedImages):
            stream = tf.data.Dataset.range(len(images))
            stream = stream.map(_reader(images), num_parallel_calls=tf.data.AUTOTUNE)
            stream = tf.data.Dataset.zip(stream, tf.data.Dataset.from_tensor_slices(labels))
        else:
            stream = tf.data.Dataset.from_tensor_slices((images, labels))
        stream = stream.batch(batch_size).map(lambda x, y: (tf.cast(x, tf.float32), y))
        return stream.prefetch(2)


def _in_memory(
    dataset: Dataset,
    batch_size: int,
    drop_remainder: bool,
    augmentation: Augmentation | ResizedCrop | None,
    seed: int,
) -> Any:
    import tensorflow as tf

    images = tf.constant(dataset.x_train)
    labels = tf.constant(dataset.y_train.astype(np.int32))
    count = len(dataset.x_train)
    steps = count // batch_size if drop_remainder else -(-count // batch_size)

    def ordered(order: tf.Tensor, epoch: tf.Tensor) -> tf.data.Dataset:
        def one_batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            chosen = order[step * batch_size : (step + 1) * batch_size]
            if drop_remainder:
                chosen = tf.ensure_shape(chosen, [batch_size])
            x, y = tf.gather(images, chosen), tf.gather(labels, chosen)
            if isinstance(augmentation, Augmentation):
                x = augmentation.in_pipeline(x, (seed, epoch), chosen)
            return tf.cast(x, tf.float32), y

        return tf.data.Dataset.range(steps).map(one_batch)

    return ordered


def _streamed(
    dataset: Dataset,
    batch_size: int,
    drop_remainder: bool,
    augmentation: Augmentation | ResizedCrop | None,
    seed: int,
) -> Any:
    import tensorflow as tf

    assert isinstance(dataset.x_train, StreamedImages)
    crop = augmentation if isinstance(augmentation, ResizedCrop) else None
    read = _reader(dataset.x_train, crop, seed)
    labels = tf.constant(dataset.y_train.astype(np.int32))

    def ordered(order: tf.Tensor, epoch: tf.Tensor) -> tf.data.Dataset:
        def finish(x: tf.Tensor, chosen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            if isinstance(augmentation, Augmentation):
                x = augmentation.in_pipeline(x, (seed, epoch), chosen)
            return tf.cast(x, tf.float32), tf.gather(labels, chosen)

        stream = tf.data.Dataset.from_tensor_slices(order)
        stream = stream.map(
            lambda index: (read(index, epoch), index), num_parallel_calls=tf.data.AUTOTUNE
        )
        return stream.batch(batch_size, drop_remainder=drop_remainder).map(finish)

    return ordered


def _reader(images: StreamedImages, crop: ResizedCrop | None = None, seed: int = 0) -> Any:
    """A function (index[, epoch]) -> image, for a pipeline."""
    import tensorflow as tf

    def read_in_python(index: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        return images.read_noting_errors(int(index), crop, (seed, int(epoch)))

    def read(index: tf.Tensor, epoch: tf.Tensor | int = 0) -> tf.Tensor:
        image = tf.numpy_function(read_in_python, [index, epoch], tf.as_dtype(images.dtype))
        return tf.ensure_shape(image, images.shape[1:])

    return read
