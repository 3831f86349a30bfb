"""The sizes of the maps that a layer takes and gives, which its multiply-accumulates go by."""

from __future__ import annotations

from typing import NamedTuple

from dprp_tf.keras_internals.layer_calls import LayerCall
from dprp_tf.keras_internals.layer_kinds import RECURRENT, TRANSPOSED
from dprp_tf.layers.kernels import dense_class

__all__ = ["MapSizes", "map_sizes"]


class MapSizes(NamedTuple):
    """Sizes of all axes but batch and channels; what `Form.macs` takes.

    Attributes:
        before: Of the map that a layer takes.
        after: Of the one that it gives; of a recurrent layer the steps, each of which it computes.
        transposed: Whether the window is applied at each place of the map that it takes, as in a
            transposed convolution, and not of the one that it gives.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    transposed: bool = False


def map_sizes(call: LayerCall) -> MapSizes | None:
    """Return the sizes at a call of a layer with a kernel, or of a low-rank one.

    Args:
        call: The call.

    Returns:
        The sizes; None if one is undefined.

    Example:

    >>> import keras
    >>> layer = keras.layers.Conv2DTranspose(4, 2, strides=2)
    >>> map_sizes(LayerCall(layer, (1, 8, 8, 3), (1, 16, 16, 4)))
    MapSizes(before=(8, 8), after=(16, 16), transposed=True)
    """
    kind = dense_class(call.layer)
    if issubclass(kind, RECURRENT):
        steps = call.input_shape[1]
        return None if steps is None else MapSizes((int(steps),), (int(steps),))
    positions = call.positions
    return None if positions is None else MapSizes(*positions, issubclass(kind, TRANSPOSED))
