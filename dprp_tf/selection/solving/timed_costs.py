"""What a model takes on a target at counts of channels and ranks that need not be whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.channels import Places
from dprp_tf.costs.width_latency import CostGrid
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.selection.solving.soft_costs import SoftCosts, SoftCounts

__all__ = ["TimedCosts"]

_TIME = "milliseconds"


class TimedCosts(SoftCosts):
    """Costs as `SoftCosts` has them, and the time of a width table, differentiable.

    With c and s the channels that a layer takes and gives and r its rank,

        B = (fixed + m rest + sum over layers of min(T(c, s), T_1(c, r) + T_2(r, s))) / dense

    where the T are the table's costs between whose points straight lines are followed, T_1 and T_2
    those of the two stages, and m the share of the maps' entries that is left. Derivatives by a
    rank are those of the stages also where the layer is dense, as in `SoftCosts`.

    Args:
        model: The whole model.
        places: Where its channels are.
        factorized: Keys of the layers that have a rank, in order; the table knows their stages.
        metrics: The costs that are wanted; `"milliseconds"` is the table's.
        latency: The table.

    Source: BSR/LeSS thesis 4.2 has budgets that can be derived; the time as one is ours.

    Example:

    >>> from dprp_tf.channels import channel_groups, follow, places_of
    >>> from dprp_tf.costs.width_latency import WidthLatency
    >>> inputs = keras.Input((8,))
    >>> x = keras.layers.Dense(16, name="a", use_bias=False)(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(8, name="b", use_bias=False)(x))
    >>> places = places_of(model, follow(model), [channel_groups(model)["a"]])
    >>> row = WidthLatency("b", (), CostGrid((8, 16), (8,), ((1.0,), (3.0,))))
    >>> table = WidthTable((row,), 4.0, 1.0, "local", "litert", "int8", 1, "ms", "some", "2.3")
    >>> costs = TimedCosts(model, places, [], ["milliseconds"], table)
    >>> float(costs.shares(ops.convert_to_tensor([1.0] * 12 + [0.0] * 4))["milliseconds"])
    0.75
    """

    def __init__(
        self,
        model: keras.Model,
        places: Places,
        factorized: Sequence[str],
        metrics: Sequence[str],
        latency: WidthTable,
    ) -> None:
        others = [metric for metric in metrics if metric != _TIME]
        super().__init__(model, places, factorized, others)
        if _TIME in metrics:
            self.dense[_TIME] = latency.dense
        self._latency = latency
        self._timed = [
            (at, layer, latency.by_name[layer.key])
            for at, layer in enumerate(places.layers)
            if layer.key in latency.by_name
        ]
        self._ranked = {key: at for at, key in enumerate(factorized)}

    def layer_costs(self, counts: SoftCounts) -> dict[str, Any]:
        """Return the costs at counts by layer, as shares of the whole model's.

        Args:
            counts: What is left of the channels, and ranks.

        Returns:
            Scalars by metric.
        """
        found = super().layer_costs(counts)
        if _TIME not in self.dense:
            return found
        saved = 0.0
        for at, layer, row in self._timed:
            reads = counts.reads[at] * float(layer.reads.size)
            makes = counts.makes[at] * float(layer.makes.size)
            time = _between(row.dense, reads, makes)
            ranked = self._ranked.get(layer.key)
            if ranked is not None and counts.ranks is not None and row.first and row.second:
                rank = ops.cast(counts.ranks, "float32")[ranked]
                stages = _between(row.first, reads, rank) + _between(row.second, rank, makes)
                lean = stages - ops.stop_gradient(stages)
                # Where dense is quicker the value is its own, and steps still lead to lower ranks.
                time = ops.where(stages < time, stages, time + lean)
            saved = saved + (row.whole - time)
        maps = 1.0
        if self._volumes is not None:
            maps = ops.sum(self._volumes * counts.makes) / float(np.sum(self._volumes))
        rest = (1.0 - maps) * self._latency.rest
        found[_TIME] = 1.0 - (saved + rest) / self._latency.dense
        return found


def _between(grid: CostGrid, reads: Any, makes: Any) -> Any:
    """The grid's cost at two counts that are tensors; see `CostGrid.cost`."""
    costs = np.array([[grid.cost(r, m) for m in grid.makes] for r in grid.reads], dtype=np.float32)
    rows = ops.matmul(_shares(grid.reads, reads)[None], ops.convert_to_tensor(costs))
    return ops.sum(rows[0] * _shares(grid.makes, makes))


def _shares(axis: Sequence[int], count: Any) -> Any:
    """How much each point of an axis counts at a place on it: hats of height 1, of shape (n,)."""
    if len(axis) == 1:
        return ops.ones((1,), "float32")
    points: NDArray[np.float32] = np.array(axis, dtype=np.float32)
    gaps = np.diff(points)
    at = ops.clip(ops.cast(count, "float32"), points[0], points[-1])
    # One beyond each end, so that every point has a slope on both sides.
    rising = (at - points) / np.concatenate([gaps[:1], gaps]) + 1
    falling = (points - at) / np.concatenate([gaps, gaps[-1:]]) + 1
    return ops.clip(ops.minimum(rising, falling), 0.0, 1.0)
