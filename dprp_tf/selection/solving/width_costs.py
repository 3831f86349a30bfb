"""What a model costs as a function of how many places its channel groups keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.channels import ChannelGroup, Followed, LayerChannels
from dprp_tf.costs.models import model_cost
from dprp_tf.keras_internals.graphs import layer_keys

__all__ = ["ChannelWeights", "WidthCosts", "channel_weights"]


@dataclass(frozen=True)
class ChannelWeights:
    """Weights of a layer, and whether they fall with the channels it takes and gives.

    Attributes:
        entries: How many there are.
        by_reads: Whether they fall with the channels that the layer takes.
        by_makes: Whether they fall with those that it gives.
        multiplies: Whether they multiply, and count for the layer's MACs.
    """

    entries: float
    by_reads: bool
    by_makes: bool
    multiplies: bool


@dataclass
class _Layer:
    """A layer: its weights, its MACs, and by group how many channels have gone with k places."""

    weights: list[ChannelWeights]
    macs: float
    reads: int
    makes: int
    gone_reads: dict[str, NDArray[np.intp]] = field(default_factory=dict)
    gone_makes: dict[str, NDArray[np.intp]] = field(default_factory=dict)


class WidthCosts:
    """Parameters and MACs of a model by the widths of its groups, without building it.

    A kernel falls with the share of channels that it keeps on each side, c_in' c_out' / (c_in
    c_out); what works on each channel by itself with one of them.

    Args:
        model: The whole model.
        followed: Where its channels go.
        orders: Groups with the order in which their places go.

    Example:

    >>> from dprp_tf.channels import channel_groups, follow
    >>> inputs = keras.Input((4,))
    >>> x = keras.layers.Dense(10, name="a", use_bias=False)(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(1, name="b", use_bias=False)(x))
    >>> group = channel_groups(model)["a"]
    >>> WidthCosts(model, follow(model), [(group, range(10))]).shares({"a": 5})
    {'parameters': 0.5, 'macs': 0.5}
    """

    def __init__(
        self,
        model: keras.Model,
        followed: Followed,
        orders: Sequence[tuple[ChannelGroup, Sequence[int]]],
    ) -> None:
        whole = model_cost(model)
        self.dense = {"parameters": float(whole.parameters)}
        if whole.macs is not None:
            self.dense["macs"] = float(whole.macs)
        keys = layer_keys(model)
        macs = {row.name: row.macs or 0 for row in whole.layers}
        self._sizes = {group.name: group.size for group, _ in orders}
        self._layers = []
        gone = {
            group.name: _rank_of_labels(followed, keys, group, order) for group, order in orders
        }
        for key, layer in keys.items():
            record = followed.layers.get(id(layer))
            if record is None:
                continue
            found = _Layer(
                channel_weights(record), macs.get(key, 0), record.reads.size, record.makes.size
            )
            for name, ranks in gone.items():
                for labels, into in (
                    (record.reads, found.gone_reads),
                    (record.makes, found.gone_makes),
                ):
                    places = [ranks[root] for root in followed.labels.find(labels) if root in ranks]
                    if places:
                        counts = np.bincount(places, minlength=len(ranks) + 1)
                        into[name] = np.concatenate([[0], np.cumsum(counts)])
            if found.gone_reads or found.gone_makes:
                self._layers.append(found)

    def shares(self, widths: Mapping[str, int]) -> dict[str, float]:
        """Return the costs at some widths as shares of the whole model's.

        Args:
            widths: How many places each group keeps.

        Returns:
            Shares by metric.
        """
        saved = dict.fromkeys(self.dense, 0.0)
        removed = {name: self._sizes[name] - width for name, width in widths.items()}
        for layer in self._layers:
            reads = 1 - sum(at[removed[g]] for g, at in layer.gone_reads.items()) / layer.reads
            makes = 1 - sum(at[removed[g]] for g, at in layer.gone_makes.items()) / layer.makes
            multiplied = left = 0.0
            for part in layer.weights:
                share = (reads if part.by_reads else 1.0) * (makes if part.by_makes else 1.0)
                saved["parameters"] += part.entries * (1 - share)
                multiplied += part.entries * part.multiplies
                left += part.entries * part.multiplies * share
            if multiplied and "macs" in saved:
                saved["macs"] += layer.macs * (1 - left / multiplied)
        return {name: float(1 - saved[name] / value) for name, value in self.dense.items()}


def _rank_of_labels(
    followed: Followed, keys: Mapping[str, Any], group: ChannelGroup, order: Sequence[int]
) -> dict[int, int]:
    """By label when it goes: 0 for what goes first."""
    found = {}
    for rank, place in enumerate(order):
        name, tied = group.filters_at(place)
        made = followed.layers[id(keys[name])].makes[list(tied)]
        found.update(dict.fromkeys(followed.labels.find(made).tolist(), rank))
    return found


def channel_weights(record: LayerChannels) -> list[ChannelWeights]:
    """Return what a layer's weights are to the channels that it takes and gives.

    Args:
        record: The layer, as `follow` found it.

    Returns:
        One for each trainable variable, in the layer's order.

    Example:

    >>> from dprp_tf.channels import follow
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, use_bias=False)])
    >>> channel_weights(next(iter(follow(model).layers.values())))
    [ChannelWeights(entries=12.0, by_reads=True, by_makes=True, multiplies=True)]
    """
    layer = record.layer
    found = []
    for weight in layer.trainable_weights:
        bias = weight.name.endswith("bias")
        depthwise = "depthwise" in weight.name and record.produces
        found.append(
            ChannelWeights(
                entries=float(np.prod(weight.shape)),
                by_reads=record.produces and not bias,
                by_makes=not depthwise,
                multiplies=not bias,
            )
        )
    return found
