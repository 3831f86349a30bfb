"""The kernel of a layer, whatever the layer calls it and in whatever order it holds its axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.keras_internals.layer_kinds import RECURRENT, TRANSPOSED

__all__ = ["Kernel", "dense_class", "kernel_of"]


@dataclass(frozen=True)
class Kernel:
    """A kernel as (*spatial, C, S) or (D_in, D_out), input channels before filters.

    Attributes:
        held: What the layer holds: a variable, or the tensor that a low-rank layer rebuilds.
        turned: Whether the layer holds its two last axes the other way round, as transposed
            convolutions do.
    """

    held: Any
    turned: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, input channels before filters."""
        *window, channels, filters = (int(size) for size in self.held.shape)
        return (*window, filters, channels) if self.turned else (*window, channels, filters)

    @property
    def tensor(self) -> Any:
        """Its values as a tensor of the backend, through which gradients flow."""
        return ops.swapaxes(self.held, -1, -2) if self.turned else self.held

    @property
    def array(self) -> NDArray[Any]:
        """Its values as a NumPy array."""
        return self.as_held(np.asarray(ops.convert_to_numpy(self.held)))

    def as_held(self, values: Any) -> Any:
        """Turn an array from the order here into that of the layer, or back.

        Args:
            values: A NumPy array.

        Returns:
            The array, a view where it can be.
        """
        return np.swapaxes(values, -1, -2) if self.turned else values

    def assign(self, values: Any) -> None:
        """Assign values to the layer's variable.

        Args:
            values: A NumPy array of the shape here.
        """
        self.held.assign(self.as_held(values))


def kernel_of(layer: keras.layers.Layer) -> Kernel:
    """Return the kernel of a layer that multiplies what it reads by one.

    Args:
        layer: A built dense layer, convolution (transposed too) or recurrent layer of one cell,
            whose input kernel it is, (D, gates * units); or a low-rank layer that stands for one.

    Returns:
        The kernel.

    Example:

    >>> layer = keras.layers.Conv2DTranspose(4, 3)
    >>> layer.build((None, 8, 8, 2))
    >>> tuple(layer.kernel.shape), kernel_of(layer).shape
    ((3, 3, 4, 2), (3, 3, 2, 4))
    """
    if isinstance(layer, RECURRENT):
        return Kernel(layer.cell.kernel, False)
    return Kernel(layer.kernel, issubclass(dense_class(layer), TRANSPOSED))


def dense_class(layer: keras.layers.Layer) -> type[keras.layers.Layer]:
    """Return the Keras layer that a low-rank layer stands for, or the class of another layer.

    Args:
        layer: Any layer.

    Returns:
        The class.

    Example:

    >>> dense_class(keras.layers.ReLU()).__name__
    'ReLU'
    """
    found: type[keras.layers.Layer] = getattr(type(layer), "stands_for", type(layer))
    return found
