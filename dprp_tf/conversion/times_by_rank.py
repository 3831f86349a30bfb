"""What a model takes by rank at the channels that it has, of a table by width of the whole one."""

from __future__ import annotations

import keras

from dprp_tf.conversion.measured_channels import measured_channels
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.width_table import WidthTable

__all__ = ["times_by_rank"]


def times_by_rank(model: keras.Model, latency: WidthTable, *, maps: float = 1.0) -> LatencyTable:
    """Return the costs by rank of a model that a table by width was measured for, or of a part.

    Args:
        model: The whole model, or one of which channels have gone; its layers have the same names.
        latency: The table of the whole model.
        maps: Share of the entries of feature maps that is left, 0 to 1. Default 1.

    Returns:
        The table, as `select_ranks` takes it for this model.

    Example:

    >>> from dprp_tf.costs.width_latency import CostGrid, WidthLatency
    >>> row = WidthLatency("a", (), CostGrid((8, 16), (4,), ((1.0,), (2.0,))))
    >>> table = WidthTable((row,), 5.0, 1.0, "local", "litert", "int8", 1, "ms", "some", "2.3")
    >>> small = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a")])
    >>> times_by_rank(small, table).dense
    4.0
    """
    return latency.by_rank(measured_channels(model, latency), maps=maps)
