"""What a model costs as a function of how many places its channel groups keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.channels import ChannelGroup, Followed, LayerChannels, place_labels
from dprp_tf.costs.map_entries import map_entries
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.keras_internals.layer_calls import layer_calls

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
    """A layer: its weights, MACs, entries of its maps; by group how many channels k places take."""

    key: str
    weights: list[ChannelWeights]
    macs: float
    maps: float
    reads: int
    makes: int
    gone_reads: dict[str, NDArray[np.intp]] = field(default_factory=dict)
    gone_makes: dict[str, NDArray[np.intp]] = field(default_factory=dict)


class WidthCosts:
    """What a model costs by the widths of its groups, without building it.

    A kernel falls with the share of channels that it keeps on each side, c_in' c_out' / (c_in
    c_out); what works on each channel by itself with one of them. Times are a width table's.

    Args:
        model: The whole model.
        followed: Where its channels go.
        orders: Groups with the order in which their places go.
        latency: The table of the model's times; None to know none.

    Attributes:
        dense: Costs of the whole model by metric.

    Raises:
        ValueError: If the table has a layer that the model has not, or of other widths.

    Example:

    >>> from dprp_tf.channels import channel_groups, follow
    >>> inputs = keras.Input((4,))
    >>> x = keras.layers.Dense(10, name="a", use_bias=False)(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(1, name="b", use_bias=False)(x))
    >>> group = channel_groups(model)["a"]
    >>> WidthCosts(model, follow(model), [(group, range(10))]).shares({"a": 5})
    {'parameters': 0.5, 'macs': 0.5, 'activations': 0.5454545454545454}
    """

    def __init__(
        self,
        model: keras.Model,
        followed: Followed,
        orders: Sequence[tuple[ChannelGroup, Sequence[int]]],
        latency: WidthTable | None = None,
    ) -> None:
        whole = model_cost(model)
        self.dense = {"parameters": float(whole.parameters)}
        if whole.macs is not None:
            self.dense["macs"] = float(whole.macs)
        keys = layer_keys(model)
        maps = map_entries(layer_calls(model))
        if None not in maps.values():
            self.dense["activations"] = float(sum(entries or 0 for entries in maps.values()))
        self._latency = latency
        if latency is not None:
            self.dense["milliseconds"] = latency.dense
            _require_fitting(latency, keys, followed)
        macs = {row.name: row.macs or 0 for row in whole.layers}
        self._sizes = {group.name: group.size for group, _ in orders}
        self._layers = []
        gone = {
            group.name: dict(
                zip(
                    place_labels(followed, keys, group)[list(order)].tolist(), count(), strict=False
                )
            )
            for group, order in orders
        }
        for key, layer in keys.items():
            record = followed.layers.get(id(layer))
            if record is None:
                continue
            found = _Layer(
                key,
                channel_weights(record),
                macs.get(key, 0),
                maps.get(id(layer)) or 0.0,
                record.reads.size,
                record.makes.size,
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
            widths: How many places each group keeps; groups left out are whole.

        Returns:
            Shares by metric.
        """
        saved = dict.fromkeys(self.dense, 0.0)
        channels: dict[str, tuple[float, float]] = {}
        for layer, reads, makes in self._left(widths):
            channels[layer.key] = reads, makes
            multiplied = left = 0.0
            for part in layer.weights:
                share = reads / layer.reads if part.by_reads else 1.0
                share *= makes / layer.makes if part.by_makes else 1.0
                saved["parameters"] += part.entries * (1 - share)
                multiplied += part.entries * part.multiplies
                left += part.entries * part.multiplies * share
            if multiplied and "macs" in saved:
                saved["macs"] += layer.macs * (1 - left / multiplied)
            if "activations" in saved:
                saved["activations"] += layer.maps * (1 - makes / layer.makes)
        found = {name: float(1 - saved[name] / value) for name, value in self.dense.items()}
        if self._latency is not None:
            rows = self._latency.by_name
            known = {name: at for name, at in channels.items() if name in rows}
            time = self._latency.model_cost(known, maps=found.get("activations", 1.0))
            found["milliseconds"] = time / self._latency.dense
        return found

    def channels(self, widths: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Return how many channels each layer reads and makes at some widths.

        Args:
            widths: How many places each group keeps; groups left out are whole.

        Returns:
            The two numbers by layer name; layers of no group are left out.
        """
        return {layer.key: (reads, makes) for layer, reads, makes in self._left(widths)}

    def _left(self, widths: Mapping[str, int]) -> Iterator[tuple[_Layer, int, int]]:
        removed = {name: size - widths.get(name, size) for name, size in self._sizes.items()}
        for layer in self._layers:
            reads = layer.reads - sum(int(at[removed[g]]) for g, at in layer.gone_reads.items())
            makes = layer.makes - sum(int(at[removed[g]]) for g, at in layer.gone_makes.items())
            yield layer, reads, makes


def _require_fitting(latency: WidthTable, keys: Mapping[str, Any], followed: Followed) -> None:
    for row in latency.layers:
        record = followed.layers.get(id(keys.get(row.name)))
        measured = row.dense.reads[-1], row.dense.makes[-1]
        found = None if record is None else (record.reads.size, record.makes.size)
        if found != measured:
            raise ValueError(
                f"`latency` must be a table of this model's widths. Received: one in which layer "
                f"{row.name!r} reads and makes {measured} channels, and not {found}; measure it "
                "anew with deploy.measure_widths(model)."
            )


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
        recurrent = weight.name == "recurrent_kernel"
        depthwise = "depthwise" in weight.name and record.produces
        found.append(
            ChannelWeights(
                entries=float(np.prod(weight.shape)),
                by_reads=record.produces and not bias and not recurrent,
                by_makes=not depthwise,
                multiplies=not bias,
            )
        )
    return found
