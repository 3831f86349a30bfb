"""Build a layer whose weights are assigned afterwards, without drawing random ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

__all__ = ["quick_build"]

_CONSTANT = (keras.initializers.Zeros, keras.initializers.Ones, keras.initializers.Constant)


def quick_build(layer: keras.layers.Layer) -> Callable[..., Any]:
    """Return a callable that calls a layer, and builds it without drawing its random weights.

    For a layer whose weights are assigned afterwards: initializing a large kernel takes longer
    than anything else about it. Only Keras' own layers are treated so.

    Args:
        layer: The layer; its initializers are put back when it is built.

    Returns:
        A callable with the layer's own arguments.

    Example:

    >>> layer = keras.layers.Dense(2)
    >>> _ = quick_build(layer)(keras.Input((3,)))
    >>> float(abs(layer.get_weights()[0]).max()), type(layer.kernel_initializer).__name__
    (0.0, 'GlorotUniform')
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        if layer.built or not type(layer).__module__.startswith("keras."):
            return layer(*args, **kwargs)
        drawn = {
            name: value
            for name, value in vars(layer).items()
            if isinstance(value, keras.initializers.Initializer)
            and not isinstance(value, _CONSTANT)
        }
        for name in drawn:
            setattr(layer, name, keras.initializers.Zeros())
        try:
            return layer(*args, **kwargs)
        finally:
            for name, value in drawn.items():
                setattr(layer, name, value)

    return call
