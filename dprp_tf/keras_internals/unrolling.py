"""Recurrent layers whose steps stand one after another in the graph instead of in a loop."""

from __future__ import annotations

from typing import Any

import keras

from dprp_tf.keras_internals.graphs import layers_inside
from dprp_tf.keras_internals.rewriting import rebuild_configured

__all__ = ["has_loops", "unrolled"]


def has_loops(model: keras.Model) -> bool:
    """Return whether a model holds a recurrent layer that loops over its steps.

    Args:
        model: A Keras model.

    Returns:
        True if a layer, at any depth, could be unrolled and is not.

    Example:

    >>> has_loops(keras.Sequential([keras.Input((5, 3)), keras.layers.GRU(4)]))
    True
    """
    return any(getattr(layer, "unroll", True) is False for layer in layers_inside(model))


def unrolled(model: keras.Model) -> keras.Model:
    """Return a copy of a model whose recurrent layers compute step after step without a loop.

    Args:
        model: A built Functional or Sequential model with a fixed number of steps.

    Returns:
        The copy, with the same weights, not compiled.

    Raises:
        ValueError: If a layer can't be copied.

    Example:

    >>> model = keras.Sequential([keras.Input((5, 3)), keras.layers.GRU(4)])
    >>> has_loops(unrolled(model))
    False
    """
    return rebuild_configured(model, _without_loops)


def _without_loops(config: Any) -> Any:
    """A configuration in which every `unroll`, of layers within layers too, is true."""
    if isinstance(config, dict):
        return {
            key: True if key == "unroll" else _without_loops(value) for key, value in config.items()
        }
    if type(config) in (list, tuple):
        return type(config)(_without_loops(value) for value in config)
    return config
