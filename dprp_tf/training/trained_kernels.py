"""The kernels that a training callback works on: those that train, and their values."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.layers.factorizable import factorizable
from dprp_tf.layers.kernels import kernel_of

__all__ = ["kernel_values", "trained_kernels"]


def trained_kernels(
    model: keras.Model,
    layers: Iterable[str] | Callable[[keras.layers.Layer], bool] | None = None,
) -> dict[str, keras.layers.Layer]:
    """Return the layers that `factorize` could replace and whose kernels train.

    Args:
        model: A built Functional or Sequential model.
        layers: As `factorize` takes them.

    Returns:
        Layers by their keys, in model order.

    Raises:
        ValueError: If none trains, or `layers` names one that can't be factorized.

    Example:

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="a")])
    >>> list(trained_kernels(model))
    ['a']
    """
    found, _ = factorizable(model, layers)
    training = {
        key: at for key, at in found.items() if at.trainable and kernel_of(at).held.trainable
    }
    if not training:
        raise ValueError(
            f"`layers` must hold a layer that trains. Received: only frozen ones, {list(found)}"
        )
    return training


def kernel_values(name: str, layer: keras.layers.Layer) -> NDArray[np.floating]:
    """Return a layer's kernel as it is now, in float32, to be decomposed.

    Args:
        name: What to call the layer.
        layer: A layer with a kernel.

    Returns:
        An array of its own.

    Raises:
        ValueError: If it is not finite.

    Example:

    >>> layer = keras.layers.Dense(2)
    >>> layer.build((None, 3))
    >>> kernel_values("a", layer).shape
    (3, 2)
    """
    kernel = np.array(ops.convert_to_numpy(ops.cast(kernel_of(layer).tensor, "float32")))
    if not np.all(np.isfinite(kernel)):
        raise ValueError(
            f"The kernel of layer {name!r} must be finite to be decomposed. Received NaN or "
            "infinite entries: the training has diverged; lower the learning rate or what is "
            "added to its loss."
        )
    return kernel
