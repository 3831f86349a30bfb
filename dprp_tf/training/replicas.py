"""What the parts of one training must agree on: values of the first replica, of the chief worker.

Replicas compute the same from the same, as long as their processors do. Where rounding can decide
(a basis of nearly equal singular values, a rank), one of them computes and the others take over.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from dprp_tf.keras_internals.strategies import distribute_strategy

__all__ = [
    "chief_arrays",
    "chief_bytes",
    "chief_value",
    "from_chief",
    "from_first_replica",
    "mean_over_replicas",
    "replica_count",
    "worker_values",
]

# Two bytes are exact in a float32, the one type that every collective on every device sums.
_CHUNK = 4 * 1024 * 1024


def replica_count() -> int:
    """Return how many replicas share a step: Keras scales each replica's loss by 1 / that.

    Returns:
        1 outside of a `tf.distribute.Strategy` and on other backends, whose replicas are no
        business of the code inside a step.

    Example:

    >>> replica_count()
    1
    """
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def from_first_replica(tensors: Sequence[Any]) -> list[Any]:
    """Return the first replica's tensors on every replica; for use inside a step.

    Args:
        tensors: This replica's floating point tensors, of the same shapes on all.

    Returns:
        As many tensors, equal on all replicas to the last bit.

    Example:

    >>> [float(value) for value in from_first_replica([keras.ops.ones(())])]
    [1.0]
    """
    context = _exchange(tensors)
    if context is None:
        return list(tensors)
    import tensorflow as tf

    is_first = tf.equal(context.replica_id_in_sync_group, 0)
    own = [tf.where(is_first, tensor, tf.zeros_like(tensor)) for tensor in tensors]
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, own))


def mean_over_replicas(tensors: Sequence[Any]) -> list[Any]:
    """Return the means of all replicas' tensors on every replica; for use inside a step.

    Args:
        tensors: This replica's floating point tensors, of the same shapes on all.

    Returns:
        As many tensors; themselves with one replica.

    Example:

    >>> [float(value) for value in mean_over_replicas([keras.ops.ones(())])]
    [1.0]
    """
    context = _exchange(tensors)
    if context is None:
        return list(tensors)
    import tensorflow as tf

    return list(context.all_reduce(tf.distribute.ReduceOp.MEAN, list(tensors)))


def _exchange(tensors: Sequence[Any]) -> Any:
    """What replicas exchange tensors by; None where there is nobody or nothing to exchange."""
    if replica_count() == 1 or not tensors:
        return None
    import tensorflow as tf

    return tf.distribute.get_replica_context()


def from_chief(model: keras.Model, value: Any) -> Any:
    """Return the chief worker's value on every worker; for use in a callback, by all workers.

    Args:
        model: A model; the strategy it was made under tells the workers.
        value: What JSON can hold; the others' is ignored.

    Returns:
        The chief's value, which with one worker is `value` itself.

    Example:

    >>> from_chief(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), {"rank": 3})
    {'rank': 3}
    """
    strategy = _workers(model)
    if strategy is None:
        return value
    return chief_value(strategy, value)


def chief_value(strategy: Any, value: Any) -> Any:
    """Return the chief worker's value on every worker, by their strategy.

    Args:
        strategy: A `tf.distribute.MultiWorkerMirroredStrategy`; every worker must call this.
        value: What JSON can hold; the others' is ignored.

    Returns:
        The chief's value.
    """
    return json.loads(chief_bytes(strategy, json.dumps(value).encode()))


def chief_arrays(model: keras.Model, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the chief worker's arrays on every worker; for use in a callback, by all workers.

    Args:
        model: A model; the strategy it was made under tells the workers.
        arrays: Arrays of the same shapes and types on all workers.

    Returns:
        The chief's, which with one worker are `arrays` themselves.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> chief_arrays(model, [np.ones(2)])
    [array([1., 1.])]
    """
    strategy = _workers(model)
    if strategy is None:
        return list(arrays)
    content = io.BytesIO(chief_bytes(strategy, b"".join(a.tobytes() for a in arrays)))
    return [
        np.frombuffer(content.read(array.nbytes), array.dtype).reshape(array.shape)
        for array in arrays
    ]


def chief_bytes(strategy: Any, content: bytes) -> bytes:
    """Return the chief worker's bytes on every worker.

    Args:
        strategy: A `tf.distribute.MultiWorkerMirroredStrategy`; every worker must call this.
        content: What the chief sends; the others' is ignored.

    Returns:
        The chief's content.
    """
    is_chief = strategy.cluster_resolver.task_id == 0
    own = content if is_chief else b""
    lengths = np.frombuffer(np.int64(len(own)).tobytes(), np.uint16)
    sizes = _sum(strategy, lengths.astype(np.float32))
    size = int(np.frombuffer(sizes.astype(np.uint16).tobytes(), np.int64)[0])
    pairs = np.zeros((size + 1) // 2, np.uint16)
    pairs.view(np.uint8)[: len(own)] = np.frombuffer(own, np.uint8)
    parts = [
        _sum(strategy, pairs[first : first + _CHUNK].astype(np.float32))
        for first in range(0, len(pairs), _CHUNK)
    ]
    whole = np.concatenate([part.astype(np.uint16) for part in parts] or [pairs])
    return whole.tobytes()[:size]


def worker_values(model: keras.Model, values: Sequence[float]) -> np.ndarray:
    """Return every worker's values; for use in a callback, by all workers.

    Args:
        model: A model; the strategy it was made under tells the workers.
        values: As many numbers on each worker, exact in float32.

    Returns:
        float32 array of shape (workers, values).

    Example:

    >>> worker_values(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), [3.0])
    array([[3.]], dtype=float32)
    """
    row = np.asarray(values, np.float32)
    strategy = _workers(model)
    if strategy is None:
        return row[None]
    resolver = strategy.cluster_resolver
    table = np.zeros((resolver.cluster_spec().num_tasks(resolver.task_type), len(row)), np.float32)
    table[resolver.task_id] = row
    return _sum(strategy, table)


def _workers(model: keras.Model) -> Any:
    """The strategy of a model that several workers train; None for any other."""
    strategy = distribute_strategy(model)
    resolver = getattr(strategy, "cluster_resolver", None)
    if resolver is None or resolver.task_type is None:
        return None
    return strategy if resolver.cluster_spec().num_tasks(resolver.task_type) > 1 else None


def _sum(strategy: Any, own: np.ndarray) -> np.ndarray:
    """The sum of the workers' arrays, on all of them."""
    import tensorflow as tf

    def share(context: Any) -> tf.Tensor:
        # One replica of each worker speaks for it.
        per_worker = context.num_replicas_in_sync // workers
        first = context.replica_id_in_sync_group % per_worker == 0
        return tf.constant(own if first else np.zeros_like(own))

    resolver = strategy.cluster_resolver
    workers = resolver.cluster_spec().num_tasks(resolver.task_type)
    values = strategy.experimental_distribute_values_from_function(share)
    result: np.ndarray = strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None).numpy()
    return result
