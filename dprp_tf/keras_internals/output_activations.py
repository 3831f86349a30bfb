"""The activation behind an output of a model: what its values are, as far as the graph says it."""

from __future__ import annotations

from typing import Any

import keras

from dprp_tf.keras_internals.graphs import call_behind, history_of

__all__ = ["output_activation"]

# Layers that pass each channel on as it is.
_PASSING = ("Dropout", "Identity", "Reshape", "Flatten")


def output_activation(tensor: Any) -> str | None:
    """Return the name of the activation that gave a symbolic tensor.

    Layers that pass channels on, such as casts, dropout and nested models, are looked through.

    Args:
        tensor: A symbolic output of a Functional or Sequential model.

    Returns:
        The activation's name, such as `"softmax"`; None for a linear output, or one that another
        operation gave.

    Example:

    >>> inputs = keras.Input((4,))
    >>> output_activation(keras.layers.Softmax()(keras.layers.Dense(3)(inputs)))
    'softmax'
    """
    while True:
        history = history_of(tensor)
        operation = history.operation
        kind = type(operation).__name__
        if isinstance(operation, keras.Model):
            inner = getattr(operation, "outputs", None)
            if not inner:
                return None
            tensor = inner[history.tensor_index]
            continue
        if kind in ("Softmax", "Sigmoid", "Tanh"):
            return kind.lower()
        activation = getattr(getattr(operation, "activation", None), "__name__", None)
        if activation not in (None, "linear"):
            return str(activation)
        # Casts to float32 in a mixed-precision model are linear activations.
        passes = kind in _PASSING or (kind == "Activation" and activation == "linear")
        sources = call_behind(tensor).input_tensors if passes else []
        if len(sources) != 1 or sources[0].shape[-1] != tensor.shape[-1]:
            return None
        tensor = sources[0]
