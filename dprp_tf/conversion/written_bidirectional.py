"""Bidirectional layers written out: one recurrent layer each way, and how they are joined."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from dprp_tf.keras_internals.layer_kinds import RECURRENT

__all__ = ["WrittenBidirectional", "unwritten_bidirectional"]

_JOINS = {
    "concat": keras.layers.Concatenate,
    "sum": keras.layers.Add,
    "ave": keras.layers.Average,
    "mul": keras.layers.Multiply,
}


def unwritten_bidirectional(layer: keras.layers.Bidirectional, kwargs: Any) -> str | None:
    """Say why a bidirectional layer is not written out; None if it is.

    Args:
        layer: The layer, built.
        kwargs: What it is called with by name.

    Returns:
        The reason.

    Example:

    >>> layer = keras.layers.Bidirectional(keras.layers.GRU(4, stateful=True))
    >>> unwritten_bidirectional(layer, {})
    'it keeps its state from batch to batch'
    """
    parts = (layer.forward_layer, layer.backward_layer)
    if any(type(part) not in RECURRENT for part in parts):
        return "it goes both ways with a layer that is no LSTM, GRU or SimpleRNN"
    if layer.stateful:
        return "it keeps its state from batch to batch"
    if any(kwargs.get(name) is not None for name in ("initial_state", "mask")):
        return "it is given a state or a mask"
    if layer.activity_regularizer is not None:
        return "its outputs are regularized as they are joined"
    return None


class WrittenBidirectional:
    """A bidirectional layer as two recurrent ones, called as the layer is.

    Args:
        layer: The layer, built; see `unwritten_bidirectional`.

    Example:

    >>> layer = keras.layers.Bidirectional(keras.layers.GRU(4), name="both")
    >>> x = keras.Input((5, 3))
    >>> _ = layer(x)
    >>> WrittenBidirectional(layer)(x).shape
    (None, 8)
    """

    def __init__(self, layer: keras.layers.Bidirectional) -> None:
        self._layer = layer
        self._parts = [
            type(part).from_config({**part.get_config(), "name": f"{layer.name}_{way}"})
            for way, part in (("forward", layer.forward_layer), ("backward", layer.backward_layer))
        ]
        for own, part in zip(self._parts, self._held(), strict=True):
            own.trainable = part.trainable and layer.trainable
        self._calls = 0

    def _held(self) -> tuple[keras.layers.Layer, keras.layers.Layer]:
        return self._layer.forward_layer, self._layer.backward_layer

    def __call__(self, sequences: Any, training: Any = None, **_: Any) -> Any:
        """Apply it.

        Args:
            sequences: Inputs (b, t, d).
            training: Whether in training. Default: as the model is called.

        Returns:
            The outputs, with the states behind them if the layer returns these.
        """
        self._calls += 1
        layer, call = self._layer, "" if self._calls == 1 else f"_{self._calls}"
        outputs: list[Any] = []
        states: list[Any] = []
        for own, part in zip(self._parts, self._held(), strict=True):
            fresh = not own.built
            found = own(sequences, training=training)
            if fresh:
                values = part.get_weights()
                own.set_weights([np.array(value) for value in values])
            found = found if layer.return_state else [found]
            outputs.append(found[0])
            states += found[1:]
        if layer.return_sequences:
            outputs[1] = ops.flip(outputs[1], axis=1)
        if layer.merge_mode is None:
            return (*outputs, *states)
        options: dict[str, Any] = {"dtype": layer.dtype_policy, "name": f"{layer.name}{call}"}
        joined = _JOINS[layer.merge_mode](**options)(outputs)
        return (joined, *states) if states else joined
