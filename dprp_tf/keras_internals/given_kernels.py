"""Recurrent layers whose input kernel is given with each call instead of held as a variable."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

__all__ = ["copy_unnamed_settings", "kernel_given", "without_kernel"]


def without_kernel(layer: Any) -> Any:
    """Take the input kernel away from a recurrent layer of Keras that is not built yet.

    Its cell then makes every weight but the kernel; `kernel_given` says what the kernel is while
    the layer is called.

    Args:
        layer: A `SimpleRNN`, `GRU` or `LSTM`, not built.

    Returns:
        The layer itself.

    Example:

    >>> layer = without_kernel(keras.layers.GRU(4))
    >>> layer.build((None, 5, 3)); [weight.name for weight in layer.weights]
    ['recurrent_kernel', 'bias']
    """
    # Of the cell itself and not of a copy, whose settings might be functions without a name.
    layer.cell.__class__ = _CELLS[type(layer.cell)]
    return layer


def copy_unnamed_settings(layer: Any, into: Any) -> None:
    """Copy what a recurrent layer of Keras is told and leaves out of its configuration.

    Args:
        layer: The layer.
        into: Another of its kind.

    Example:

    >>> one, other = (keras.layers.LSTM(2, use_cudnn=use) for use in (False, "auto"))
    >>> copy_unnamed_settings(one, other); other.use_cudnn
    False
    """
    if hasattr(layer, "use_cudnn"):
        into.use_cudnn = layer.use_cudnn
    if hasattr(layer.cell, "implementation"):
        into.cell.implementation = layer.cell.implementation


@contextlib.contextmanager
def kernel_given(layer: Any, kernel: Any) -> Iterator[None]:
    """Within it a layer that `without_kernel` returned multiplies its inputs by this kernel.

    Args:
        layer: The layer, built.
        kernel: A tensor (D_in, gates * units) in the layer's compute dtype.

    Yields:
        Nothing.

    Example:

    >>> layer = without_kernel(keras.layers.SimpleRNN(2, activation=None, use_bias=False))
    >>> layer.build((None, 1, 2))
    >>> with kernel_given(layer, keras.ops.eye(2)):
    ...     keras.ops.convert_to_numpy(layer(keras.ops.ones((1, 1, 2)))).tolist()
    [[1.0, 1.0]]
    """
    layer.cell.kernel = kernel
    try:
        yield
    finally:
        # A tensor of a graph must not outlive it.
        layer.cell.kernel = None


def _without_kernel(cell_class: Any) -> Any:
    class WithoutKernel(cell_class):
        def add_weight(self, *args: Any, name: str | None = None, **kwargs: Any) -> Any:
            return None if name == "kernel" else super().add_weight(*args, name=name, **kwargs)

    WithoutKernel.__name__ = cell_class.__name__
    return WithoutKernel


_CELLS = {
    cell: _without_kernel(cell)
    for cell in (keras.layers.SimpleRNNCell, keras.layers.GRUCell, keras.layers.LSTMCell)
}
