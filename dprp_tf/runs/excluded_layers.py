"""Layers that a user leaves dense, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras

from dprp_tf.keras_internals.graphs import walk_layers

__all__ = ["all_but"]


def all_but(
    model: keras.Model, exclude: Sequence[str]
) -> Callable[[keras.layers.Layer], bool] | None:
    """Return what `factorize(layers=...)` takes to leave some layers dense.

    Args:
        model: The model.
        exclude: Names of layers that stay dense.

    Returns:
        A test of layers; None if none is left out.

    Raises:
        ValueError: If the model has no layer of a name.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> all_but(model, ["head"])(model.get_layer("head"))
    False
    """
    unknown = sorted(set(exclude) - {layer.name for layer in walk_layers(model)})
    if unknown:
        raise ValueError(
            f"`exclude` must name layers of the model. Received: {unknown}; "
            "`dprp inspect` lists them."
        )
    return (lambda layer: layer.name not in exclude) if exclude else None
