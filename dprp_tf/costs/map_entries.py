"""How many entries the feature maps have that a model computes with its kernels."""

from __future__ import annotations

import math
from collections.abc import Iterable

from dprp_tf.keras_internals.layer_calls import LayerCall
from dprp_tf.keras_internals.layer_kinds import RECURRENT

__all__ = ["map_entries"]


def map_entries(calls: Iterable[LayerCall]) -> dict[int, int | None]:
    """Count the entries of the maps of each layer with a kernel, for one sample.

    Args:
        calls: The calls of a model's layers, as `layer_calls` yields them.

    Returns:
        Entries by the layer's `id`, over all its calls; None where a size is not defined.

    Source: BSR/LeSS thesis Appendix B.2, the activation volume.

    Example:

    >>> import keras
    >>> from dprp_tf.keras_internals.layer_calls import layer_calls
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    >>> list(map_entries(layer_calls(model)).values())
    [144]
    """
    found: dict[int, int | None] = {}
    for call in calls:
        if not hasattr(call.layer, "kernel") and not isinstance(call.layer, RECURRENT):
            continue
        sizes = [call.repeats, *call.output_shape[1:]]
        before = found.get(id(call.layer), 0)
        unknown = before is None or None in sizes
        entries = 0 if unknown else math.prod(int(size or 0) for size in sizes)
        found[id(call.layer)] = None if unknown else int(before or 0) + entries
    return found
