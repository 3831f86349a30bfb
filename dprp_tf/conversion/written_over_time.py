"""Layers that are applied to each step of a sequence, applied to all steps at once."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from dprp_tf.keras_internals.graphs import graph_of, mask_of
from dprp_tf.keras_internals.layer_copies import copy_state, own_objects
from dprp_tf.keras_internals.layer_kinds import CONVOLUTIONS, DEPTHWISE, SEPARABLE, TRANSPOSED
from dprp_tf.keras_internals.rewriting import rewrite
from dprp_tf.keras_internals.same_settings import is_of_keras

__all__ = ["WrittenOverTime", "unwritten_over_time"]

_APPLIED = (
    keras.layers.Dense,
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    *CONVOLUTIONS,
    *TRANSPOSED,
    *DEPTHWISE,
    *SEPARABLE,
)


def unwritten_over_time(layer: keras.layers.TimeDistributed, node: Any) -> str | None:
    """Say why a layer that is applied to each step is not written out; None if it is.

    Args:
        layer: The `TimeDistributed` layer, built.
        node: A call of it.

    Returns:
        The reason.
    """
    inner = layer.layer
    # A function of someone's own may look at the batch.
    plain = is_of_keras(inner) and not isinstance(inner, keras.layers.Lambda)
    known = type(inner) in _APPLIED or (plain and not inner.weights)
    if not known and graph_of(inner) is None:
        return f"it applies a {type(inner).__name__} to each step"
    if type(inner) is keras.layers.Dense:
        return None
    (sequence,) = node.input_tensors[:1]
    if len(node.input_tensors) > 1 or mask_of(sequence) is not None:
        return "it is given a mask"
    if None in sequence.shape[1:]:
        return "its steps are of unknown number or size"
    if graph_of(inner) is not None and len(graph_of(inner).outputs) > 1:
        return "it applies a model of several outputs to each step"
    return None


class WrittenOverTime:
    """What a wrapper applies to each step, applied to all of them as to a larger batch.

    A batch normalization inside then goes, while it trains, by the statistics of all steps at once.

    Args:
        layer: The `TimeDistributed` layer, built; see `unwritten_over_time`.

    Example:

    >>> layer = keras.layers.TimeDistributed(keras.layers.Conv1D(4, 3), name="each")
    >>> x = keras.Input((5, 8, 2))
    >>> _ = layer(x)
    >>> WrittenOverTime(layer)(x).shape
    (None, 5, 6, 4)
    """

    def __init__(self, layer: keras.layers.TimeDistributed) -> None:
        self._source, self._name = layer.layer, layer.name
        self._own: Any = None

    def __call__(self, x: Any, **_: Any) -> Any:
        """Apply it.

        Args:
            x: A sequence (b, t, ...).

        Returns:
            The outputs (b, t, ...).
        """
        if type(self._source) is keras.layers.Dense:
            # Keras applies it along the last axis as it is.
            return self._applied(x)
        steps, *inside = x.shape[1:]
        outputs = self._applied(ops.reshape(x, (-1, *inside)))
        return ops.reshape(outputs, (-1, steps, *outputs.shape[1:]))

    def _applied(self, x: Any) -> Any:
        if self._own is not None:
            return self._own(x)
        if graph_of(self._source) is not None:
            # Its layers keep their names, by which the whole model knows them.
            self._own = rewrite(self._source, lambda operation: None)
            return self._own(x)
        # Its activation may be a function that its name alone doesn't find.
        with keras.saving.custom_object_scope(own_objects(self._source)):
            config = {**self._source.get_config(), "name": self._name}
            self._own = type(self._source).from_config(config)
        outputs = self._own(x)
        copy_state(self._source, self._own)
        return outputs
