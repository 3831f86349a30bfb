"""What a model costs at counts of channels and ranks that need not be whole: differentiable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.channels import Places
from dprp_tf.costs.budget import METRICS
from dprp_tf.costs.map_entries import map_entries
from dprp_tf.costs.models import model_cost
from dprp_tf.keras_internals.layer_calls import LayerCall, layer_calls
from dprp_tf.selection.solving.stage_costs import StageCosts
from dprp_tf.selection.solving.width_costs import channel_weights

__all__ = ["SoftCosts", "SoftCounts"]


@dataclass(frozen=True)
class SoftCounts:
    """Counts that a cost is asked for, as tensors; layers are in the order of `Places.layers`.

    Attributes:
        reads: Share of its channels that each layer still takes, of shape (layers,).
        makes: Share of them that each layer still gives, of shape (layers,).
        ranks: Ranks of the factorized layers, of shape (ranks,), for Tucker-2 that of the channels
            and then that of the filters; None where all are dense.
    """

    reads: Any
    makes: Any
    ranks: Any


class SoftCosts:
    """Costs of a model by masks of its channels and ranks of its kernels, as shares of the whole.

    A layer with a kernel of L positions, C channels and S filters, of which c and s are left, costs
    what its stages do at its ranks, as `StageCosts` has them, or L c s weights dense: the smaller
    counts. MACs go with the weights. The activation volume is A s, A positions of the output, and
    what is between the stages more where the kernel is factorized. Of Tucker-2 with strides, which
    may have fewer weights and more MACs than the dense layer, the weights say which of the two
    counts if they are asked for, else the MACs. Whatever else has weights falls with the channels
    that it reads and makes. Derivatives by a rank are those of the factorized form also where the
    layer is dense, so that steps lead on.

    A cost of another kind, such as one read between the points of a table of times, is a subclass
    with a `layer_costs` of its own.

    Args:
        model: The whole model.
        places: Where its channels are.
        factorized: Keys of the layers that have a rank, in the order of the places' layers.
        metrics: The costs that are wanted, among parameters, MACs and activations.
        decomposition: `"channel"`, or `"tucker"`, which pointwise and dense kernels have none of:
            those stay in `channel` form. Default `"channel"`.

    Attributes:
        dense: The whole model's costs by metric.
        stages: What the factorized layers cost by rank, and how their ranks are ordered.

    Raises:
        ValueError: If a cost is not known for the model.

    Source: BSR/LeSS thesis Eq. 4.10 with the `channel` form's cost as in its Appendix B.1, B.2;
    4.7.4 for two ranks of a kernel.

    Example:

    >>> from dprp_tf.channels import channel_groups, follow, places_of
    >>> inputs = keras.Input((8,))
    >>> x = keras.layers.Dense(8, name="a", use_bias=False)(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(8, name="b", use_bias=False)(x))
    >>> places = places_of(model, follow(model), [channel_groups(model)["a"]])
    >>> costs = SoftCosts(model, places, ["b"], ["parameters"])
    >>> kept = ops.convert_to_tensor([1.0] * 4 + [0.0] * 4)
    >>> [round(float(costs.shares(kept, ops.convert_to_tensor([r]))["parameters"]), 4)
    ...  for r in (1.0, 8.0)]
    [0.3438, 0.5]
    """

    def __init__(
        self,
        model: keras.Model,
        places: Places,
        factorized: Sequence[str],
        metrics: Sequence[str],
        *,
        decomposition: str = "channel",
    ) -> None:
        whole = model_cost(model)
        calls = list(layer_calls(model))
        numbers = {layer.key: at for at, layer in enumerate(places.layers)}
        volumes = _volumes(calls, places)
        known: dict[str, float | None] = {
            "parameters": float(whole.parameters),
            "macs": None if whole.macs is None else float(whole.macs),
            "activations": None if volumes is None else float(np.sum(volumes)),
        }
        self.dense: dict[str, float] = {}
        for metric in metrics:
            value = known.get(metric)
            if value is None:
                raise ValueError(
                    f"`budget` must bound costs that are known for the model: {METRICS[:3]}. "
                    f"Received: {metric!r}, which is not; give the model's inputs fixed sizes."
                )
            self.dense[metric] = value
        count = places.count + 1
        # (layers, places + 1) each: what is left of each side is the mean of the mask there.
        self._reads = np.stack([_mean(layer.reads, count) for layer in places.layers])
        self._makes = np.stack([_mean(layer.makes, count) for layer in places.layers])
        self._factorized = np.array([numbers[key] for key in factorized], dtype=np.int32)
        self.stages = StageCosts(
            {key: places.layers[numbers[key]].record.layer for key in factorized},
            decomposition,
            calls,
        )
        # What `RankSpace.settled` goes by: a form of fewer MACs has fewer weights, too.
        by_macs = "macs" in metrics and "parameters" not in metrics
        self._decisive = "macs" if by_macs else "parameters"
        self._volumes = volumes
        # Weights as rows: their layer, how they fall, and what of each cost they are.
        macs = {row.name: float(row.macs or 0) for row in whole.layers}
        rows: list[tuple[int, float, float, float, float]] = []
        kernels = []
        held = set(self._factorized.tolist())
        for at, layer in enumerate(places.layers):
            weights = channel_weights(layer.record)
            multiplied = sum(part.entries for part in weights if part.multiplies)
            for part in weights:
                share = part.entries / multiplied if part.multiplies else 0.0
                if at in held and part.by_reads and part.by_makes:
                    kernels.append(len(rows))
                cost = (part.entries, macs.get(layer.key, 0.0) * share)
                rows.append((at, part.by_reads, part.by_makes, *cost))
        self._rows = np.array(rows, dtype=np.float32).reshape(-1, 5)
        self._layers = self._rows[:, 0].astype(np.int32)
        self._kernels = np.array(kernels, dtype=np.int32)

    def shares(self, kept: Any, ranks: Any = None) -> dict[str, Any]:
        """Return the costs as shares of the whole model's.

        Args:
            kept: How much of each place is left, 0 to 1, of shape (places,).
            ranks: Ranks of the factorized layers, of shape (ranks,), for Tucker-2 that of the
                channels and then that of the filters. Default: all are dense.

        Returns:
            Scalars by metric.
        """
        whole = ops.concatenate([ops.cast(kept, "float32"), ops.ones((1,), "float32")])
        reads, makes = ops.matmul(self._reads, whole), ops.matmul(self._makes, whole)
        return self.layer_costs(SoftCounts(reads, makes, ranks))

    def layer_costs(self, counts: SoftCounts) -> dict[str, Any]:
        """Return the costs at counts by layer, as shares of the whole model's.

        Args:
            counts: What is left of the channels, and ranks.

        Returns:
            Scalars by metric.
        """
        reads = ops.take(counts.reads, self._layers)
        makes = ops.take(counts.makes, self._layers)
        by_reads, by_makes = self._rows[:, 1], self._rows[:, 2]
        whole = (1 - by_reads + by_reads * reads) * (1 - by_makes + by_makes * makes)
        factorized = counts.ranks is not None and bool(self._factorized.size)
        dense = chosen = None
        if factorized:
            dense = ops.take(whole, self._kernels)
            chosen = self._factored(counts, self._decisive) < dense
        found = {}
        for metric, column in (("parameters", 3), ("macs", 4)):
            if metric not in self.dense:
                continue
            share = whole
            if factorized:
                less = ops.where(chosen, self._factored(counts, metric) - dense, 0.0)
                less = less + self._lean(counts, metric, chosen)
                share = share + ops.matmul(self._spread(), less)
            saved = ops.sum(self._rows[:, column] * (1 - share))
            found[metric] = 1 - saved / self.dense[metric]
        if "activations" in self.dense:
            assert self._volumes is not None
            maps = ops.sum(self._volumes * counts.makes)
            if factorized:
                between = self.stages.maps(counts.ranks)
                maps = maps + ops.sum(ops.cast(chosen, "float32") * between)
            found["activations"] = maps / self.dense["activations"]
        return found

    def _factored(self, counts: SoftCounts, metric: str, *, by_ranks_alone: bool = False) -> Any:
        """What the factorized forms cost as shares of the whole kernels, (factorized,)."""
        reads = ops.take(counts.reads, self._factorized)
        makes = ops.take(counts.makes, self._factorized)
        if by_ranks_alone:
            reads, makes = ops.stop_gradient(reads), ops.stop_gradient(makes)
        return self.stages.shares(metric, counts.ranks, reads, makes)

    def _lean(self, counts: SoftCounts, metric: str, chosen: Any) -> Any:
        """Zero, but with the factorized kernels' derivatives by rank where they are dense.

        Without them no step would ever lead to ranks that pay, for they begin where none does.
        """
        costs = self._factored(counts, metric, by_ranks_alone=True)
        return ops.where(chosen, 0.0, costs - ops.stop_gradient(costs))

    def _spread(self) -> NDArray[np.float32]:
        """From kernels to rows, (rows, kernels)."""
        found: NDArray[np.float32] = np.zeros(
            (len(self._rows), len(self._kernels)), dtype=np.float32
        )
        found[self._kernels, np.arange(len(self._kernels))] = 1
        return found


def _mean(places: NDArray[np.intp], count: int) -> NDArray[np.float32]:
    counts = np.bincount(places, minlength=count) / max(len(places), 1)
    return counts.astype(np.float32)


def _volumes(calls: Sequence[LayerCall], places: Places) -> NDArray[np.float32] | None:
    """Entries of the maps that layers with kernels compute for a sample."""
    entries = map_entries(calls)
    found = [entries.get(id(layer.record.layer), 0) for layer in places.layers]
    return None if None in found else np.array(found, dtype=np.float32)
