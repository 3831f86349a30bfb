"""How many channels a model's layers have, as a width table counts them."""

from __future__ import annotations

import keras

from dprp_tf.channels import follow
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.keras_internals.graphs import layer_keys

__all__ = ["measured_channels"]


def measured_channels(model: keras.Model, widths: WidthTable) -> dict[str, tuple[int, int]]:
    """Return how many channels each layer of a table reads and makes in a model.

    Args:
        model: A built Functional or Sequential model.
        widths: A width table of it, or of a wider model.

    Returns:
        The two numbers by layer name; layers that the model has not are left out.

    Example:

    >>> from dprp_tf.costs.width_latency import CostGrid, WidthLatency
    >>> row = WidthLatency("a", (), CostGrid((4,), (8,), ((1.0,),)))
    >>> table = WidthTable((row,), 5.0, 1.0, "local", "litert", "int8", 1, "ms", "some", "2.3")
    >>> layer = keras.layers.Dense(6, name="a")
    >>> measured_channels(keras.Sequential([keras.Input((4,)), layer]), table)
    {'a': (4, 6)}
    """
    followed, layers = follow(model), layer_keys(model)
    found = {}
    for name in widths.by_name:
        record = followed.layers.get(id(layers.get(name)))
        if record is not None:
            found[name] = record.reads.size, record.makes.size
    return found
