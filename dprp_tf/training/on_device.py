"""`fit` with the data on the device: gather, augmentation and several steps in one dispatch.

Keras' own loop feeds batches from the host, one dispatch per step; on an accelerator a small
network waits for that most of the time. Here the images lie on the device, a dispatch gets row
numbers, and the compiled function gathers, augments and takes its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from dprp_tf.data import Dataset, StreamedImages
from dprp_tf.data.augmentation import Augmentation, adjust
from dprp_tf.files.arguments import check_integer
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.training.divergence import DivergenceGuard

__all__ = ["epoch_order", "fit_on_device"]

_DISPATCHES_PER_LOOK = 8


def epoch_order(
    count: int, batch_size: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers and the augmentation seeds of every step of an epoch.

    Both depend on `(seed, epoch)` alone, so a resumed run sees what an uninterrupted one saw.

    Args:
        count: Training images.
        batch_size: Images per step; a last batch that is not full is left out.
        seed: Seed of the run.
        epoch: Epoch, counted from 0.

    Returns:
        int32 rows of shape (steps, batch_size) and uint32 seeds of shape (steps,).

    Example:

    >>> rows, seeds = epoch_order(10, 4, seed=0, epoch=3)
    >>> rows.shape, seeds.shape
    ((2, 4), (2,))
    """
    rng = np.random.default_rng((seed, epoch))
    steps = count // batch_size
    rows = rng.permutation(count)[: steps * batch_size].reshape(steps, batch_size)
    return rows.astype(np.int32), rng.integers(0, 2**32, steps, dtype=np.uint32)


def fit_on_device(
    model: keras.Model,
    dataset: Dataset,
    *,
    batch_size: int,
    epochs: int,
    initial_epoch: int = 0,
    steps_per_dispatch: int = 16,
    augment: bool = True,
    padding: int | None = None,
    flip: bool | None = None,
    seed: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    validation_batch_size: int = 500,
) -> keras.callbacks.History:
    """Train a compiled model on a data set that fits on the device, as `fit` would.

    Works on the TensorFlow and the JAX backend with any callback, `RankPruning` included: the
    compiled function is made anew when, and only when, shapes or the model's settings change.

    Args:
        model: A compiled model.
        dataset: Its data; the training split is copied to the device once.
        batch_size: Images per step.
        epochs: Epoch to stop after.
        initial_epoch: Epochs done before.
        steps_per_dispatch: Steps per compiled call, 1 or more. Default 16.
        augment: Whether to augment, in the data set's own way.
        padding: Largest shift in pixels; None for the data set's.
        flip: Whether to mirror; None for the data set's.
        seed: Seed of order and augmentation.
        callbacks: Keras callbacks. Batch callbacks are called once per dispatch.
        validation_batch_size: Images per evaluation step.

    Returns:
        The history.

    Raises:
        ValueError: If the backend is another one, a batch is larger than the data set, or the
            images stay on disk.

    Example:

    >>> fit_on_device.__name__
    'fit_on_device'
    """
    backend = keras.backend.backend()
    if backend not in ("tensorflow", "jax"):
        raise ValueError(
            f"`fit_on_device` needs the TensorFlow or the JAX backend. Received: {backend}"
        )
    count = len(dataset.x_train)
    check_integer("batch_size", batch_size, 1, count)
    check_integer("steps_per_dispatch", steps_per_dispatch)
    if isinstance(dataset.x_train, StreamedImages) or isinstance(dataset.x_test, StreamedImages):
        raise ValueError(
            "`dataset` must be in memory to be copied to the device. Received: "
            f"{dataset.name}, whose images are read from disk. Train with on_device=False."
        )
    augmentation = adjust(dataset.augmentation, augment=augment, padding=padding, flip=flip)
    images = ops.convert_to_tensor(dataset.x_train)
    labels = ops.convert_to_tensor(dataset.y_train.astype(np.int32))

    def batch(rows: Any, key: Any) -> tuple[Any, Any]:
        x = ops.take(images, rows, axis=0)
        if isinstance(augmentation, Augmentation):
            x = augmentation(x, key)
        return ops.cast(x, "float32"), ops.take(labels, rows, axis=0)

    _build(model, dataset)
    own = getattr(model, "training_callbacks", list)
    steps = count // batch_size
    every = keras.callbacks.CallbackList(
        own(list(callbacks)), add_history=True, model=model, epochs=epochs, steps=steps
    )
    history = next(c for c in every.callbacks if isinstance(c, keras.callbacks.History))
    guard = next((c for c in every.callbacks if isinstance(c, DivergenceGuard)), None)
    dispatch: Callable[[np.ndarray, np.ndarray], None] | None = None
    shapes: Any = None
    model.stop_training = False
    every.on_train_begin()
    logs: dict[str, Any] = {}
    for epoch in range(initial_epoch, epochs):
        model.reset_metrics()
        every.on_epoch_begin(epoch)
        rows, keys = epoch_order(count, batch_size, seed, epoch)
        present = (
            [tuple(variable.shape) for variable in model.trainable_variables],
            getattr(model, "settings", None),
            getattr(model, "pressure", None),
        )
        if dispatch is None or present != shapes:
            dispatch, shapes = _MAKERS[backend](model, batch), present
        for first in range(0, steps, steps_per_dispatch):
            every.on_train_batch_begin(first)
            chunk = slice(first, first + steps_per_dispatch)
            dispatch(rows[chunk], keys[chunk])
            every.on_train_batch_end(min(first + steps_per_dispatch, steps) - 1)
            # Looking waits for the device: seldom, and the epoch's end looks anyway.
            if guard is not None and (first // steps_per_dispatch + 1) % _DISPATCHES_PER_LOOK == 0:
                guard.check()
        logs = {name: float(value) for name, value in model.get_metrics_result().items()}
        validation = model.evaluate(
            dataset.x_test,
            dataset.y_test,
            batch_size=validation_batch_size,
            callbacks=every,
            return_dict=True,
        )
        logs.update({f"val_{name}": float(value) for name, value in validation.items()})
        every.on_epoch_end(epoch, logs)
        if model.stop_training:
            break
    every.on_train_end(logs)
    return history


def _build(model: keras.Model, dataset: Dataset) -> None:
    """Let Keras make metrics and optimizer slots, without a training step."""
    model.test_on_batch(dataset.x_train[:2].astype(np.float32), dataset.y_train[:2])
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    model.reset_metrics()


def _tensorflow_dispatch(model: keras.Model, batch: Any) -> Callable[[Any, Any], None]:
    import tensorflow as tf

    @tf.function(jit_compile=bool(model.jit_compile), reduce_retracing=True)
    def steps(rows: tf.Tensor, keys: tf.Tensor) -> None:
        for step in tf.range(tf.shape(rows)[0]):
            chosen = tf.ensure_shape(rows[step], [rows.shape[1]])
            model.train_step(batch(chosen, keys[step]))

    def dispatch(rows: np.ndarray, keys: np.ndarray) -> None:
        steps(tf.constant(rows), tf.constant(keys))

    return dispatch


def _jax_dispatch(model: keras.Model, batch: Any) -> Callable[[Any, Any], None]:
    import jax

    def one(state: Any, inputs: Any) -> tuple[Any, None]:
        _, state = model.train_step(state, batch(*inputs))
        return tuple(list(part) for part in state), None

    @jax.jit
    def steps(state: Any, rows: Any, keys: Any) -> Any:
        return jax.lax.scan(one, state, (rows, keys))[0]

    def dispatch(rows: np.ndarray, keys: np.ndarray) -> None:
        sync(model)
        groups = (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
        state = tuple([variable.value for variable in group] for group in groups)
        for group, values in zip(groups, steps(state, rows, keys), strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)

    return dispatch


_MAKERS = {"tensorflow": _tensorflow_dispatch, "jax": _jax_dispatch}
