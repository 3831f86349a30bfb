"""A model called with other values in place of some of its weights, which stay as they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

__all__ = ["call_with"]


def call_with(model: keras.Model, values: Iterable[tuple[Any, Any]], inputs: Any) -> Any:
    """Run a model as at inference with tensors in place of some of its variables.

    Gradients go through the tensors; no variable of the model changes.

    Args:
        model: A built model.
        values: Pairs of a variable and the tensor that stands for it, of the same shape.
        inputs: What the model takes.

    Returns:
        What it gives.

    Example:

    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> kernel = model.layers[0].kernel
    >>> outputs = call_with(model, [(kernel, keras.ops.ones((1, 1)))], keras.ops.full((1, 1), 3.0))
    >>> float(outputs[0, 0])
    3.0
    """
    with keras.StatelessScope(state_mapping=list(values)):
        return model(inputs, training=False)
