"""The sizes that a model tells of itself, taken over from a copy of other sizes or put back.

Variables get their payloads elsewhere; here is what says how large they and what they compute are:
symbolic tensors, the settings and specifications of layers, the arguments of operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras

from dprp_tf.keras_internals.graphs import graph_of, history_of, layers_inside, nodes

__all__ = ["Sizes", "take_over_sizes"]

# Attributes of layers and operations that follow the channels.
_ATTRIBUTES = (
    "filters",
    "units",
    "groups",
    "target_shape",
    "padding",
    "newshape",
    "indices_or_sections",
    "pad_width",
    "_input_spec",
    "_build_shapes_dict",
    "_batch_shape",
    # What an operation is saved by: the arguments that it was made with.
    "_auto_config",
)


class Sizes:
    """What a model tells of its sizes at one time, to be put back later.

    Args:
        model: A built Functional or Sequential model.

    Example:

    >>> inputs = keras.Input((4,))
    >>> hidden = keras.layers.Dense(3)(inputs)
    >>> model = keras.Model(inputs, hidden)
    >>> before = Sizes(model)
    >>> smaller = keras.layers.Dense(2)(keras.Input((4,)))
    >>> take_over_sizes([(hidden, smaller)])
    >>> model.output.shape, model.layers[-1].units
    ((None, 2), 2)
    >>> before.restore()
    >>> model.output.shape, model.layers[-1].units
    ((None, 3), 3)
    """

    def __init__(self, model: keras.Model) -> None:
        self._held: list[tuple[Any, str, Any]] = []
        seen: set[int] = set()
        for part in layers_inside(model):
            self._note(part, seen)
            graph = graph_of(part)
            for node in nodes(graph) if graph is not None else ():
                self._note(node.operation, seen)

    def _note(self, operation: Any, seen: set[int]) -> None:
        if id(operation) in seen:
            return
        seen.add(id(operation))
        own = vars(operation)
        self._held += [(operation, name, own[name]) for name in _ATTRIBUTES if name in own]
        self._held += [(tensor, "_shape", tensor.shape) for tensor in _made_by(operation)]

    def restore(self) -> None:
        """Let the model tell these sizes again."""
        for holder, name, value in self._held:
            _set(holder, name, value)


def take_over_sizes(pairs: Iterable[tuple[Any, Any]]) -> None:
    """Let symbolic tensors, and what makes them, tell the sizes of others.

    Args:
        pairs: Each symbolic tensor of a model with the one that stands for it in a copy, as
            `rewrite` notes them.

    Example:

    >>> tensor, other = keras.layers.Dense(3)(keras.Input((4,))), keras.KerasTensor((None, 2))
    >>> take_over_sizes([(tensor, other)])
    >>> tensor.shape
    (None, 2)
    """
    paired: set[int] = set()
    sizes: dict[int, dict[Any, set[Any]]] = {}
    operations: dict[int, Any] = {}
    for tensor, other in pairs:
        paired.add(id(tensor))
        histories = history_of(tensor), history_of(other)
        if None not in histories:
            operation, source = (history.operation for history in histories)
            operations[id(operation)] = operation
            known = sizes.setdefault(id(operation), {})
            known.setdefault(tuple(tensor.shape), set()).add(tuple(other.shape))
            _take_over_settings(operation, source)
        _set(tensor, "_shape", tuple(other.shape))
    # Calls outside of the graph, such as those that a Sequential model made while it grew.
    for key, operation in operations.items():
        for tensor in _made_by(operation):
            new = sizes[key].get(tuple(tensor.shape), set())
            if id(tensor) not in paired and len(new) == 1:
                _set(tensor, "_shape", next(iter(new)))


def _made_by(operation: Any) -> Iterator[Any]:
    """The symbolic tensors that calls of a layer or operation made."""
    for node in operation._inbound_nodes:
        yield from node.outputs


def _take_over_settings(operation: Any, source: Any) -> None:
    if graph_of(operation) is not None:
        # A nested model has none of these settings, but tells what it was built on.
        _follow_inputs(operation)
        return
    own, others = vars(operation), vars(source)
    for name in _ATTRIBUTES:
        if name in own and name in others:
            _set(operation, name, others[name])


def _follow_inputs(nested: keras.Model) -> None:
    """Let what a nested model was built on be what its graph takes."""
    shapes = vars(nested).get("_build_shapes_dict")
    inputs = graph_of(nested).inputs
    if shapes and len(shapes) == 1 and len(inputs) == 1:
        _set(nested, "_build_shapes_dict", {next(iter(shapes)): tuple(inputs[0].shape)})


def _set(holder: Any, name: str, value: Any) -> None:
    # Not through setters: a layer would track what it is given, a tensor refuses it.
    vars(holder)[name] = value
