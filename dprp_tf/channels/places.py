"""Which places of channel groups each layer's weights read and make: masks by place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.channels.following import Followed, LayerChannels
from dprp_tf.channels.groups import ChannelGroup, place_labels
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.keras_internals.layer_kinds import CONVOLUTIONS, RECURRENT, SEPARABLE, TRANSPOSED

__all__ = ["LayerPlaces", "Places", "places_of"]


@dataclass(frozen=True)
class LayerPlaces:
    """What a layer reads and makes, as places of a mask.

    Attributes:
        key: The layer's key in the model.
        record: What it reads and makes as labels.
        reads: By channel that it takes the entry of the mask, of shape (channels in,).
        makes: By channel that it gives the same, of shape (channels out,).
    """

    key: str
    record: LayerChannels
    reads: NDArray[np.intp]
    makes: NDArray[np.intp]

    def kernels(self) -> Iterator[tuple[Any, int | None, int | None]]:
        """Yield what it multiplies by: a variable, its axis of channels in, and that of filters.

        Yields:
            Variables of a layer whose filters are its own; an axis of None is not the layer's.
            Along the axis of channels in a grouped convolution has the places of one group.
        """
        layer = self.record.layer
        if not self.record.produces:
            return
        if isinstance(layer, SEPARABLE):
            yield layer.depthwise_kernel, -2, None
            yield layer.pointwise_kernel, None, -1
        elif isinstance(layer, TRANSPOSED):
            yield layer.kernel, -1, -2
        elif isinstance(layer, RECURRENT):
            yield layer.cell.kernel, -2, None
        elif isinstance(layer, (keras.layers.Dense, *CONVOLUTIONS)):
            yield layer.kernel, -2, -1


@dataclass(frozen=True)
class Places:
    """The places of some channel groups one after the other, and the layers that know them.

    Attributes:
        groups: The groups, in order.
        starts: Where the places of each group begin.
        count: How many places there are; the entry of that number stands for all other channels.
        loose: Which of them may go, of shape (count,).
        layers: All layers with weights that the channels were followed through, in model order.
    """

    groups: tuple[ChannelGroup, ...]
    starts: tuple[int, ...]
    count: int
    loose: NDArray[np.bool_]
    layers: tuple[LayerPlaces, ...]

    def of(self, values: NDArray[Any], group: int) -> NDArray[Any]:
        """Return the entries of one group.

        Args:
            values: One value per place.
            group: The number of the group.

        Returns:
            Its entries, of shape (places of the group,).
        """
        start = self.starts[group]
        return values[start : start + self.groups[group].size]


def places_of(model: keras.Model, followed: Followed, groups: Iterable[ChannelGroup]) -> Places:
    """Number the places of channel groups, and find them in the layers of the model.

    Args:
        model: The model.
        followed: What `follow` found.
        groups: Groups of it.

    Returns:
        The places.

    Example:

    >>> from dprp_tf.channels.following import follow
    >>> from dprp_tf.channels.groups import groups_of
    >>> inputs = keras.Input((4,))
    >>> x = keras.layers.Dense(3, name="a")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(2, name="b")(x))
    >>> followed = follow(model)
    >>> places = places_of(model, followed, [groups_of(model, followed)["a"]])
    >>> [(layer.key, layer.reads.tolist(), layer.makes.tolist()) for layer in places.layers]
    [('a', [3, 3, 3, 3], [0, 1, 2]), ('b', [0, 1, 2], [3, 3])]
    """
    keys = layer_keys(model)
    numbers: dict[int, int] = {}
    starts = []
    taken = tuple(groups)
    count = 0
    for group in taken:
        starts.append(count)
        labels = place_labels(followed, keys, group).tolist()
        numbers.update(zip(labels, range(count, count + group.size), strict=True))
        count += group.size

    def numbered(labels: NDArray[np.int64]) -> NDArray[np.intp]:
        roots = followed.labels.find(labels).tolist()
        return np.array([numbers.get(root, count) for root in roots], dtype=np.intp)

    layers = tuple(
        LayerPlaces(key, record, numbered(record.reads), numbered(record.makes))
        for key, layer in keys.items()
        if (record := followed.layers.get(id(layer))) is not None
    )
    reasons = [reason is None for group in taken for reason in group.reasons]
    return Places(taken, tuple(starts), count, np.array(reasons, dtype=bool), layers)
