"""Which of a model's losses its layers added when they were called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from dprp_tf.keras_internals.graphs import layers_inside

__all__ = ["added_in_calls"]


def added_in_calls(model: keras.Model, losses: Sequence[Any]) -> list[bool]:
    """Say for each entry of `model.losses` whether `add_loss` made it, or a weight's regularizer.

    Activity regularizers are added in calls as well.

    Args:
        model: A model that was called, inside a step or outside.
        losses: What its `losses` gave after that call.

    Returns:
        As many truth values.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.ActivityRegularization(0.1)])
    >>> model.add(keras.layers.Dense(1, kernel_regularizer="l2"))
    >>> _ = model(keras.ops.ones((1, 2)))
    >>> added_in_calls(model, model.losses)
    [True, False]
    """
    layers = layers_inside(model)
    # On JAX the losses of a call leave its scope, and layers keep their identities alone.
    added = {known for layer in layers for known in layer._loss_ids}
    added |= {id(loss) for layer in layers for loss in layer._losses}
    return [id(loss) in added for loss in losses]
