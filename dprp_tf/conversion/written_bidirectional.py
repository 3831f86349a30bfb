"""Bidirectional layers written out: one recurrent layer each way, and how they are joined."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import keras
from keras import ops

from dprp_tf.keras_internals.free_names import free_name
from dprp_tf.keras_internals.given_kernels import copy_unnamed_settings
from dprp_tf.keras_internals.graphs import mask_of
from dprp_tf.keras_internals.layer_copies import copy_state, own_objects
from dprp_tf.keras_internals.layer_kinds import RECURRENT

__all__ = ["WrittenBidirectional", "unwritten_bidirectional"]

_JOINS = {
    "concat": keras.layers.Concatenate,
    "sum": keras.layers.Add,
    "ave": keras.layers.Average,
    "mul": keras.layers.Multiply,
}


def unwritten_bidirectional(layer: keras.layers.Bidirectional, node: Any) -> str | None:
    """Say why a bidirectional layer is not written out; None if it is.

    Args:
        layer: The layer, built.
        node: A call of it.

    Returns:
        The reason.
    """
    parts = (layer.forward_layer, layer.backward_layer)
    if any(type(part) not in RECURRENT for part in parts):
        return "it goes both ways with a layer that is no LSTM, GRU or SimpleRNN"
    if layer.stateful:
        return "it keeps its state from batch to batch"
    if mask_of(node.input_tensors[0]) is not None:
        return "its inputs carry masks, as behind a Masking layer"
    if len(node.input_tensors) > 1 or len(node.arguments.args) > 1:
        return "it is given a state or a mask"
    if layer.activity_regularizer is not None:
        return "its outputs are regularized as they are joined"
    return None


class WrittenBidirectional:
    """A bidirectional layer as two recurrent ones, called as the layer is.

    Args:
        layer: The layer, built; see `unwritten_bidirectional`.
        taken: Names that its parts must not have. Default: none.

    Example:

    >>> layer = keras.layers.Bidirectional(keras.layers.GRU(4), name="both")
    >>> x = keras.Input((5, 3))
    >>> _ = layer(x)
    >>> WrittenBidirectional(layer)(x).shape
    (None, 8)
    """

    def __init__(self, layer: keras.layers.Bidirectional, taken: Collection[str] = ()) -> None:
        self._layer = layer
        self._parts = []
        # Its activations may be functions that their names alone don't find.
        with keras.saving.custom_object_scope(own_objects(layer)):
            for way, part in zip(("forward", "backward"), self._held(), strict=True):
                name = free_name(f"{layer.name}_{way}", taken)
                own = type(part).from_config({**part.get_config(), "name": name})
                copy_unnamed_settings(part, own)
                self._parts.append(own)
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
                copy_state(part, own)
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
