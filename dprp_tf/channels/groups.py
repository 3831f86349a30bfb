"""Channels that must go together, and the layers that make and read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.channels.following import Followed, follow
from dprp_tf.files.tables import Tabular, lay_out
from dprp_tf.keras_internals.graphs import layer_keys

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["ChannelGroup", "ChannelGroups", "channel_groups", "groups_of", "place_labels"]


@dataclass(frozen=True)
class ChannelGroup:
    """Layers whose filters go together: removing one removes those tied to it in every layer.

    Attributes:
        name: The first of the layers that make the channels.
        layers: Filters of each such layer by place in the group: one tuple per place.
        readers: Layers that read the channels through weights.
        reasons: By place why it must stay, None where it may go.

    Example:

    >>> group = ChannelGroup("a", {"a": ((0,), (1,))}, ("b",), (None, None))
    >>> group.size, group.prunable, group.reason, group.filters_at(1)
    (2, 2, None, ('a', (1,)))
    """

    name: str
    layers: Mapping[str, tuple[tuple[int, ...], ...]]
    readers: tuple[str, ...]
    reasons: tuple[str | None, ...]

    @property
    def size(self) -> int:
        """The number of places, each one filter or several that are tied to each other."""
        return len(self.reasons)

    def filters_at(self, place: int) -> tuple[str, tuple[int, ...]]:
        """Return the first layer with filters at a place, and those filters.

        Args:
            place: 0 to the size less 1.

        Returns:
            The layer's name and its filters; those of other layers there are tied to them.
        """
        return next((name, at[place]) for name, at in self.layers.items() if at[place])

    @property
    def prunable(self) -> int:
        """How many of them may go; at least one must stay."""
        return sum(reason is None for reason in self.reasons)

    def widths(self, multiple: int = 1) -> list[int]:
        """Return how many places may stay, the largest number first.

        Args:
            multiple: Multiples in which places stay; a group of no more than that many stays whole.
                Default 1.

        Returns:
            The numbers, the size first, which need not be a multiple.

        Example:

        >>> group = ChannelGroup("a", {}, (), (None,) * 20)
        >>> group.widths(8), group.widths(32)
        ([20, 16, 8], [20])
        """
        least = max(self.size - self.prunable, 1)
        first = (self.size - 1) // multiple * multiple
        return [self.size, *(width for width in range(first, 0, -multiple) if width >= least)]

    @property
    def reason(self) -> str | None:
        """Why none may go; None if some may."""
        return None if self.prunable else next(r for r in self.reasons if r is not None)


@dataclass(frozen=True)
class ChannelGroups(Tabular, Mapping[str, ChannelGroup]):
    """The channel groups of a model by name, in model order; prints as a table.

    Attributes:
        groups: The groups.
    """

    groups: tuple[ChannelGroup, ...]

    @cached_property
    def _by_name(self) -> dict[str, ChannelGroup]:
        return {group.name: group for group in self.groups}

    def __getitem__(self, name: str) -> ChannelGroup:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self.groups)

    def of_layer(self, layer: str) -> ChannelGroup:
        """Return the group that a layer's filters are in.

        Args:
            layer: The layer's name, or its path where several have that name.

        Returns:
            The group.

        Raises:
            KeyError: If no group has filters of such a layer.
        """
        for group in self.groups:
            if layer in group.layers:
                return group
        raise KeyError(layer)

    def able(self, names: Iterable[str] | None = None) -> list[ChannelGroup]:
        """Return the groups that may lose channels.

        Args:
            names: Which of them; default all.

        Returns:
            The groups, in model order or in that of the names.

        Raises:
            ValueError: If a name is none of them, with what keeps its channels, or there is none.
        """
        able = {group.name: group for group in self.groups if group.prunable}
        if names is None:
            wanted = list(able)
        else:
            wanted = [names] if isinstance(names, str) else list(names)
            unable = [name for name in wanted if name not in able]
            if unable:
                reasons = {name: self[name].reason for name in unable if name in self}
                raise ValueError(
                    f"`groups` must name groups of which channels may go: {list(able)}. Received: "
                    f"{unable}{f'; what keeps them: {reasons}' if reasons else ''}"
                )
        if not wanted:
            raise ValueError(
                "`model` must have channels that may go. Received: one in which all must stay; "
                "print(dprp_tf.channel_groups(model)) says why."
            )
        return [able[name] for name in wanted]

    @property
    def prunable_share(self) -> float:
        """The share of all filters that may go, counting one of each group as staying."""
        filters = sum(len(places) for g in self.groups for p in g.layers.values() for places in p)
        free = 0
        for group in self.groups:
            kept = 1 if group.prunable == group.size else 0
            for places in group.layers.values():
                loose = [len(p) for p, r in zip(places, group.reasons, strict=True) if r is None]
                free += sum(loose[: len(loose) - kept])
        return free / filters if filters else 0.0

    def table(self) -> Table:
        """Lay the groups out for `rich`."""
        rows = (
            (
                group.name,
                str(group.size),
                str(group.prunable),
                ", ".join(name for name in group.layers if name != group.name),
                ", ".join(group.readers),
                group.reason or "",
            )
            for group in self.groups
        )
        headers = {
            "group": "fold",
            "channels": "right",
            "may go": "right",
            "together with": "fold",
            "read by": "fold",
            "what keeps them": "fold",
        }
        return lay_out(headers, rows)


def channel_groups(model: keras.Model) -> ChannelGroups:
    """Return which filters of a model must go together, and which can't go, with the reason.

    A filter's channel lives on through normalization, activations, pooling and depthwise
    convolutions. `Add` and other joins tie their inputs; `Concatenate` and splits shift places;
    `Flatten` makes a channel several columns of the dense layer behind it; grouped convolutions tie
    the same place of every group. Attention, once `write_out` wrote it out, ties all that queries,
    keys and values have of a head. Recurrent layers read channels; their units feed each other, and
    stay. What a layer does that is not known to treat each channel by
    itself keeps the channels it reads, as do the model's inputs and outputs.

    Args:
        model: A built Functional or Sequential model, dense or factorized.

    Returns:
        The groups.

    Raises:
        ValueError: If the model has no graph.

    Source: filter pruning as in `dprp_tf.conversion.remove_channels`, which takes these names.

    Example:

    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(8, 3, padding="same", name="a")(inputs)
    >>> y = keras.layers.Conv2D(8, 3, padding="same", name="b")(x)
    >>> x = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([x, y]))
    >>> groups = channel_groups(keras.Model(inputs, keras.layers.Dense(2, name="head")(x)))
    >>> {name: (list(group.layers), group.prunable) for name, group in groups.items()}
    {'a': (['a', 'b'], 8), 'head': (['head'], 0)}
    >>> groups["head"].reason
    'a model output'
    """
    return groups_of(model, follow(model))


def place_labels(
    followed: Followed, layers: Mapping[str, Any], group: ChannelGroup
) -> NDArray[np.intp]:
    """Return the label that the channels of each place of a group bear, wherever they are read.

    Args:
        followed: What `follow` found.
        layers: The model's layers by name.
        group: One of its groups.

    Returns:
        Labels as `Labels.find` gives them, of shape (places,).
    """
    found = []
    for place in range(group.size):
        name, tied = group.filters_at(place)
        made = followed.layers[id(layers[name])].makes[list(tied[:1])]
        found.append(int(followed.labels.find(made)[0]))
    return np.array(found, dtype=np.intp)


def groups_of(model: keras.Model, followed: Followed) -> ChannelGroups:
    """Return the groups of a model whose channels were followed.

    Args:
        model: The model.
        followed: What `follow` found.

    Returns:
        The groups.
    """
    labels = followed.labels
    keys = {id(layer): key for key, layer in layer_keys(model).items()}
    records = [record for record in followed.layers.values() if id(record.layer) in keys]
    makers = {
        keys[id(record.layer)]: labels.find(record.makes) for record in records if record.produces
    }
    # Makers that share a label are of one group.
    owner: dict[int, str] = {}
    leaders = {name: name for name in makers}

    def leader(name: str) -> str:
        while leaders[name] != name:
            name = leaders[name]
        return name

    order = {name: place for place, name in enumerate(makers)}
    for name, roots in makers.items():
        for root in np.unique(roots).tolist():
            first, second = leader(owner.setdefault(root, name)), leader(name)
            if first != second:
                first, second = sorted((first, second), key=order.__getitem__)
                leaders[second] = first
    members: dict[str, list[str]] = {}
    for name in makers:
        members.setdefault(leader(name), []).append(name)
    readers = {
        keys[id(record.layer)]: set(labels.find(record.reads).tolist())
        for record in records
        if record.produces
    }
    found = []
    for name, together in members.items():
        places = list(dict.fromkeys(root for one in together for root in makers[one].tolist()))
        filters = {}
        for one in together:
            held: dict[int, list[int]] = {root: [] for root in places}
            for at, root in enumerate(makers[one].tolist()):
                held[root].append(at)
            filters[one] = tuple(map(tuple, held.values()))
        reading = tuple(one for one, read in readers.items() if read & set(places))
        reasons: list[str | None] = list(map(labels.reason, places))
        for one, by_place in filters.items():
            own = [place for place, tied in enumerate(by_place) if tied]
            # The others of the group could stay and leave this layer without a filter.
            if len(own) < len(places) and all(reasons[place] is None for place in own):
                reasons[own[0]] = f"one filter of {one!r} must stay"
        found.append(ChannelGroup(name, filters, reading, tuple(reasons)))
    return ChannelGroups(tuple(found))
