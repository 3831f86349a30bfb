"""A model without some of its channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.channels import (
    ChannelGroups,
    Followed,
    LayerChannels,
    Resized,
    SlicedLayer,
    follow,
    groups_of,
)
from dprp_tf.conversion.compilation import compiled_like
from dprp_tf.conversion.model_class import lowrank_class, plain_class
from dprp_tf.files.arguments import is_integer
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.keras_internals.rewriting import require_graph, rewrite
from dprp_tf.training.model import DPRPModel

__all__ = ["kept_channels", "remove_channels"]


def remove_channels(
    model: keras.Model, channels: Mapping[str, Iterable[int]], *, model_class: Any = None
) -> keras.Model:
    """Return a smaller model without some of its filters, and without the channels they make.

    It computes what the model computes with these channels set to zero behind the last layer that
    treats each channel by itself. Layers keep their names; normalization, depthwise kernels and the
    kernels of whatever reads the channels lose the same entries.

    Args:
        model: A built Functional or Sequential model, dense or factorized; it stays as it is.
        channels: Filters to remove by name of a layer: those tied to them in other layers go with
            them; see `channel_groups`.
        model_class: As `fold` takes it, or for a `DPRPModel` as `factorize` does.

    Returns:
        The smaller model, compiled as `fold` says.

    Raises:
        ValueError: If a layer is unknown or has no filters of its own, a filter does not exist, is
            named twice or must stay, or none would be left; if the model has no graph.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets"; through any join ours.

    Example:

    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(8, 3, padding="same", name="a")(inputs)
    >>> x = keras.layers.BatchNormalization()(x)
    >>> model = keras.Model(inputs, keras.layers.Conv2D(2, 1, name="b")(x))
    >>> smaller = remove_channels(model, {"a": [0, 5]})
    >>> tuple(smaller.get_layer("a").kernel.shape), tuple(smaller.get_layer("b").kernel.shape)
    ((3, 3, 3, 6), (1, 1, 6, 2))
    """
    require_graph(model)
    followed = follow(model)
    kept = _Kept(followed, _removed(model, followed, channels))
    lowrank = isinstance(model, DPRPModel)
    make = (lowrank_class if lowrank else plain_class)(model, model_class)
    arguments = {"settings": model.settings} if lowrank else {}
    smaller = rewrite(model, kept.replace, make, input_shape=kept.input_shape, **arguments)
    return compiled_like(smaller, model)


def kept_channels(
    model: keras.Model, channels: Mapping[str, Iterable[int]]
) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Return what layers with weights keep of the channels that they take and give.

    Args:
        model: A built Functional or Sequential model.
        channels: As `remove_channels` takes them.

    Returns:
        By layer key two masks, of shapes (channels in,) and (channels out,).

    Raises:
        ValueError: As `remove_channels`.

    Example:

    >>> inputs = keras.Input((4,))
    >>> x = keras.layers.Dense(3, name="a")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(2, name="b")(x))
    >>> kept_channels(model, {"a": [1]})["b"][0].tolist()
    [True, False, True]
    """
    followed = follow(model)
    kept = _Kept(followed, _removed(model, followed, channels))
    return {
        key: kept.masks(followed.layers[id(layer)])
        for key, layer in layer_keys(model).items()
        if id(layer) in followed.layers
    }


def _removed(
    model: keras.Model, followed: Followed, channels: Mapping[str, Iterable[int]]
) -> set[int]:
    """Check what is asked for, and return the labels that go."""
    groups = groups_of(model, followed)
    keys = layer_keys(model)
    gone: set[int] = set()
    for name, asked in channels.items():
        group = _group(groups, name)
        record = followed.layers[id(keys[name])]
        roots = followed.labels.find(record.makes)
        filters = list(asked)
        unusable = [x for x in filters if not is_integer(x, minimum=0) or x >= roots.size]
        if unusable or len(set(filters)) < len(filters):
            raise ValueError(
                f"`channels` must name filters of {name!r} by numbers from 0 to {roots.size - 1}, "
                f"each once. Received: {unusable or filters}"
            )
        for at in filters:
            reason = followed.labels.reason(roots[at])
            if reason is not None:
                raise ValueError(
                    f"`channels` must name filters that may go. Received: filter {at} of {name!r}, "
                    f"which stays: {reason}. See dprp_tf.channel_groups(model)."
                )
            gone.add(int(roots[at]))
        if all(int(root) in gone for root in roots):
            raise ValueError(
                "`channels` must leave at least one filter of each layer. Received: all "
                f"{roots.size} of {name!r}, group {group!r}"
            )
    for name in {name for asked in channels for name in groups.of_layer(asked).layers}:
        roots = followed.labels.find(followed.layers[id(keys[name])].makes)
        if all(int(root) in gone for root in roots):
            raise ValueError(
                "`channels` must leave at least one filter of each layer. Received: what takes all "
                f"{roots.size} of {name!r}"
            )
    return gone


def _group(groups: ChannelGroups, name: str) -> str:
    try:
        return groups.of_layer(name).name
    except KeyError:
        known = sorted({layer for group in groups.values() for layer in group.layers})
        raise ValueError(
            f"`channels` must name layers whose filters can be told apart: {known}. Received: "
            f"{name!r}"
        ) from None


class _Kept:
    """What is left of each layer and operation."""

    def __init__(self, followed: Followed, gone: set[int]) -> None:
        self._followed = followed
        self._gone = np.array(sorted(gone), dtype=np.int64)

    def replace(self, operation: Any) -> Callable[..., Any] | None:
        record = self._followed.layers.get(id(operation))
        if record is not None:
            reads, makes = self.masks(record)
            if reads.all() and makes.all():
                return None
            return SlicedLayer(operation, reads, makes)
        resized = self._followed.resized.get(id(operation))
        return None if resized is None else self._resized(resized)

    def masks(self, record: LayerChannels) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which channels that a layer takes, and which that it gives, are kept."""
        return self._mask(record.reads), self._mask(record.makes)

    def input_shape(self, tensor: Any) -> tuple[int | None, ...] | None:
        """The shape of an input of a nested model; None where nothing changes."""
        number = self._followed.graph.numbers.get(id(tensor))
        if number is None:
            return None
        labels = self._followed.tensors[number]
        sizes = self._sizes(self._mask(labels))
        if sizes == labels.shape:
            return None
        batch, *shape = tensor.shape
        return (
            batch,
            *(size if labels.shape[at] == 1 else sizes[at] for at, size in enumerate(shape)),
        )

    def _mask(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        return ~np.isin(self._followed.labels.find(labels), self._gone)

    def _sizes(self, mask: NDArray[np.bool_]) -> tuple[int, ...]:
        """The sizes of what a mask keeps, which must be whole rows along every axis."""
        kept = [
            mask.any(axis=tuple(other for other in range(mask.ndim) if other != at))
            for at in range(mask.ndim)
        ]
        sizes = tuple(int(along.sum()) for along in kept)
        if int(mask.sum()) != int(np.prod(sizes)):
            raise ValueError(
                "`channels` must leave a tensor that is reshaped in rows of one length. Received "
                "filters whose removal would not; remove the same places of every group"
            )
        return sizes

    def _resized(self, resized: Resized) -> Callable[..., Any] | None:
        masks = [self._mask(labels) for labels in resized.after]
        if all(mask.all() for mask in masks):
            return None
        if resized.added:
            return self._padding(resized)
        if resized.axis is None:
            self._sizes(self._mask(resized.before))
            shape = self._sizes(masks[0])
            if isinstance(resized.operation, keras.layers.Flatten):
                return None
            if isinstance(resized.operation, keras.layers.Reshape):
                config = {**resized.operation.get_config(), "target_shape": shape}
                return keras.layers.Reshape.from_config(config)
            return lambda x, *args, **kwargs: keras.ops.reshape(x, (-1, *shape))
        lengths = [self._sizes(mask)[resized.axis - 1] for mask in masks]
        places = np.cumsum(lengths)[:-1].tolist()
        return lambda x, *args, **kwargs: keras.ops.split(x, places, axis=resized.axis)

    def _padding(self, resized: Resized) -> Callable[..., Any]:
        operation = resized.operation
        kept = [tuple(int(self._mask(side).sum()) for side in pair) for pair in resized.added]
        if not isinstance(operation, keras.layers.Layer):
            widths = [
                new if any(side.size for side in sides) else tuple(old)
                for new, sides, old in zip(
                    kept, resized.added, operation.pad_width[1:], strict=True
                )
            ]
            return lambda x, *args, **kwargs: keras.ops.pad(x, [(0, 0), *widths])
        config = operation.get_config()
        first = config.get("data_format") == "channels_first"
        sides = resized.added[1:] if first else resized.added[:-1]
        kept = kept[1:] if first else kept[:-1]
        old = config["padding"]
        pairs = [tuple(old)] if isinstance(old[0], int) else [tuple(pair) for pair in old]
        padding = [
            new if any(side.size for side in both) else pair
            for new, both, pair in zip(kept, sides, pairs, strict=True)
        ]
        config["padding"] = padding[0] if len(padding) == 1 else tuple(padding)
        return type(operation).from_config(config)
