"""Which decomposition a layer's kernel is really given, when one is asked for all of a model."""

from __future__ import annotations

import keras

from dprp_tf.decomposition import resolve_decomposition
from dprp_tf.keras_internals.layer_kinds import TRANSPOSED
from dprp_tf.layers.kernels import kernel_of

__all__ = ["layer_decomposition", "suited_decomposition"]

# Keras has depthwise convolutions of one and two axes alone, and none that are transposed.
_WITHOUT_DEPTHWISE = (*TRANSPOSED, keras.layers.Conv3D)


def suited_decomposition(layer: keras.layers.Layer, decomposition: str) -> str:
    """Return the decomposition a layer is asked for where one is asked for of the whole model.

    Layers that no depthwise convolution can stand for would fold from `spatial` factors into
    nothing but themselves: they take `"channel"`.

    Args:
        layer: A layer that `factorize` could replace.
        decomposition: One of `decomposition.DECOMPOSITIONS`.

    Returns:
        The decomposition.

    Example:

    >>> layer = keras.layers.Conv2DTranspose(4, 3)
    >>> suited_decomposition(layer, "spatial"), suited_decomposition(layer, "separable")
    ('channel', 'separable')
    """
    without = decomposition == "spatial" and isinstance(layer, _WITHOUT_DEPTHWISE)
    return "channel" if without else decomposition


def layer_decomposition(layer: keras.layers.Layer, decomposition: str) -> str:
    """Return the decomposition that a layer's kernel is really given; see `suited_decomposition`.

    Args:
        layer: A built layer that `factorize` could replace.
        decomposition: One of `decomposition.DECOMPOSITIONS`.

    Returns:
        The decomposition: that of kernels of one position, which are matrices, is `"channel"`.

    Raises:
        ValueError: If `decomposition` is unknown.

    Example:

    >>> layer = keras.layers.Dense(4)
    >>> layer.build((None, 2))
    >>> layer_decomposition(layer, "spatial")
    'channel'
    """
    suited = suited_decomposition(layer, decomposition)
    return resolve_decomposition(kernel_of(layer).shape, suited)
