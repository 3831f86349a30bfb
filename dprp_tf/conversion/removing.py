"""A model without some of its channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.channels import (
    ChannelGroup,
    ChannelGroups,
    Followed,
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

__all__ = ["Removal", "remove_channels"]


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
    return Removal(model, channels).smaller(model_class)


class Removal:
    """What is left of a model's layers and operations without some of its channels.

    Args:
        model: A built Functional or Sequential model.
        channels: As `remove_channels` takes them.

    Raises:
        ValueError: As `remove_channels`.

    Example:

    >>> inputs = keras.Input((4,))
    >>> x = keras.layers.Dense(3, name="a")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(2, name="b")(x))
    >>> Removal(model, {"a": [1]}).masks["b"][0].tolist()
    [True, False, True]
    """

    def __init__(self, model: keras.Model, channels: Mapping[str, Iterable[int]]) -> None:
        require_graph(model)
        self._model = model
        self._followed = follow(model)
        gone = _removed(model, self._followed, channels)
        self._gone = np.array(sorted(gone), dtype=np.int64)

    def smaller(self, model_class: Any = None) -> keras.Model:
        """Return the model without the channels, as `remove_channels` does.

        Args:
            model_class: As `remove_channels` takes it.
        """
        model = self._model
        lowrank = isinstance(model, DPRPModel)
        make = (lowrank_class if lowrank else plain_class)(model, model_class)
        arguments = {"settings": model.settings} if lowrank else {}
        smaller = rewrite(model, self._replace, make, input_shape=self._input_shape, **arguments)
        return compiled_like(smaller, model)

    def template(self) -> tuple[keras.Model, list[tuple[Any, Any]]]:
        """Return a plain model without the channels, and what its symbolic tensors stand for.

        Returns:
            The model, not compiled, of Keras' own class; pairs of a symbolic tensor of the whole
            model and that of this one.
        """
        pairs: list[tuple[Any, Any]] = []
        smaller = rewrite(
            self._model,
            self._replace,
            input_shape=self._input_shape,
            note=lambda old, new: pairs.append((old, new)),
        )
        return smaller, pairs

    @cached_property
    def masks(self) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
        """By layer key what it keeps of the channels that it takes and gives, a mask of each."""
        found = {}
        for key, layer in layer_keys(self._model).items():
            record = self._followed.layers.get(id(layer))
            if record is not None:
                found[key] = self._mask(record.reads), self._mask(record.makes)
        return found

    def kept(self) -> dict[str, NDArray[np.bool_]]:
        """Return which of the channels that they give layers with weights keep.

        Returns:
            By layer key a mask of shape (channels,), as `refit_in_sequence` takes it.
        """
        return {key: makes for key, (_, makes) in self.masks.items()}

    def _replace(self, operation: Any) -> Callable[..., Any] | None:
        record = self._followed.layers.get(id(operation))
        if record is not None:
            reads, makes = self._mask(record.reads), self._mask(record.makes)
            if reads.all() and makes.all():
                return None
            return SlicedLayer(operation, reads, makes)
        resized = self._followed.resized.get(id(operation))
        return None if resized is None else self._resized(resized)

    def _input_shape(self, tensor: Any) -> tuple[int | None, ...] | None:
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
        widths = [
            tuple(int(self._mask(side).sum()) for side in sides)
            if any(side.size for side in sides)
            else before
            for sides, before in zip(resized.added, resized.padding, strict=True)
        ]
        operation = resized.operation
        if not isinstance(operation, keras.layers.Layer):
            return lambda x, *args, **kwargs: keras.ops.pad(x, [(0, 0), *widths])
        config = operation.get_config()
        spatial = widths[1:] if config.get("data_format") == "channels_first" else widths[:-1]
        config["padding"] = spatial[0] if len(spatial) == 1 else tuple(spatial)
        return type(operation).from_config(config)


def _removed(
    model: keras.Model, followed: Followed, channels: Mapping[str, Iterable[int]]
) -> set[int]:
    """Check what is asked for, and return the labels that go."""
    groups = groups_of(model, followed)
    keys = layer_keys(model)
    gone: set[int] = set()
    together: dict[str, NDArray[np.int64]] = {}
    for name, asked in channels.items():
        for tied in _group(groups, name).layers:
            together[tied] = followed.labels.find(followed.layers[id(keys[tied])].makes)
        roots = together[name]
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
    for name, roots in together.items():
        if gone.issuperset(roots.tolist()):
            raise ValueError(
                "`channels` must leave at least one filter of each layer. Received: what takes all "
                f"{roots.size} of {name!r}"
            )
    return gone


def _group(groups: ChannelGroups, name: str) -> ChannelGroup:
    try:
        return groups.of_layer(name)
    except KeyError:
        known = sorted({layer for group in groups.values() for layer in group.layers})
        raise ValueError(
            f"`channels` must name layers whose filters can be told apart: {known}. Received: "
            f"{name!r}"
        ) from None
