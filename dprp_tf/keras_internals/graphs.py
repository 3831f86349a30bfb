"""What a Keras model's graph holds: its layers in order, and a name of its own for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras

__all__ = [
    "call_behind",
    "computes_as_keras",
    "graph_of",
    "history_of",
    "input_structure",
    "layer_keys",
    "layer_paths",
    "layers_inside",
    "mask_of",
    "nodes",
    "output_structure",
    "walk_layers",
]


def graph_of(model: Any) -> Any:
    """Return the functional graph that a model computes, None if it has none.

    A Sequential model has the one it keeps inside once it is built. A subclass that overrides
    `call()` has none, even if it was made from inputs and outputs: its code says what it computes.

    Args:
        model: A Keras model, or anything else.

    Returns:
        The functional model whose nodes are the computation, or None.

    Example:

    >>> inputs = keras.Input((3,))
    >>> model = keras.Model(inputs, keras.layers.ReLU()(inputs))
    >>> graph_of(model) is model, graph_of(keras.layers.ReLU())
    (True, None)
    """
    graph = getattr(model, "_functional", None) or model
    if not isinstance(model, keras.Model) or not hasattr(graph, "_nodes_by_depth"):
        return None
    return graph if computes_as_keras(model) else None


def computes_as_keras(layer: Any) -> bool:
    """Say whether Keras' own code is what a layer computes, its class being a user's or not.

    Args:
        layer: A Keras layer or model.

    Returns:
        False if its class, or one that it descends from, has a `call()` of its own.

    Example:

    >>> class Named(keras.layers.Dense):
    ...     pass
    >>> class Doubled(keras.layers.Dense):
    ...     def call(self, inputs):
    ...         return 2 * super().call(inputs)
    >>> computes_as_keras(Named(3)), computes_as_keras(Doubled(3))
    (True, False)
    """
    calling = next(entry for entry in type(layer).__mro__ if "call" in vars(entry))
    return calling.__module__.startswith("keras.")


def nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph from its inputs to its outputs, each call of an operation once.

    Args:
        graph: What `graph_of` returned.

    Yields:
        Keras' nodes, with `operation`, `input_tensors`, `outputs` and `arguments`.

    Example:

    >>> inputs = keras.Input((3,), name="x")
    >>> model = keras.Model(inputs, keras.layers.ReLU(name="it")(inputs))
    >>> [node.operation.name for node in nodes(graph_of(model))]
    ['x', 'it']
    """
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from graph._nodes_by_depth[depth]


def input_structure(graph: Any) -> Any:
    """Return the symbolic inputs of a graph, in the lists and dicts in which the model takes them.

    Args:
        graph: What `graph_of` returned.

    Returns:
        The structure; None for a model that has none.
    """
    return getattr(graph, "_inputs_struct", None)


def output_structure(graph: Any) -> Any:
    """Return the symbolic outputs of a graph, in the lists and dicts in which the model gives them.

    Args:
        graph: What `graph_of` returned.

    Returns:
        The structure; None for a model that has none.
    """
    return getattr(graph, "_outputs_struct", None)


def history_of(tensor: Any) -> Any:
    """Return the operation, and the place among its calls and outputs, that made a symbolic tensor.

    Args:
        tensor: A symbolic tensor of a graph, or anything else.

    Returns:
        Keras' record with `operation`, `node_index` and `tensor_index`; None for anything else.
    """
    return getattr(tensor, "_keras_history", None)


def call_behind(tensor: Any) -> Any:
    """Return the node that made a symbolic tensor.

    Args:
        tensor: A symbolic tensor of a graph.

    Returns:
        The node of the very call; an operation that is called several times has several.

    Example:

    >>> inputs = keras.Input((3,))
    >>> call_behind(keras.layers.ReLU(name="it")(inputs)).operation.name
    'it'
    """
    history = history_of(tensor)
    return history.operation._inbound_nodes[history.node_index]


def mask_of(tensor: Any) -> Any:
    """Return the mask that a tensor carries as an attribute, None if it carries none.

    Args:
        tensor: A tensor, symbolic or not.

    Returns:
        The mask, a tensor of truth values.
    """
    return getattr(tensor, "_keras_mask", None)


def layers_inside(layer: keras.layers.Layer, include_self: bool = True) -> list[Any]:
    """Return a layer and every layer that it tracks, at any depth, whether or not in a graph.

    Args:
        layer: A layer or a model.
        include_self: Whether the layer itself is among them. Default True.

    Returns:
        The layers, the outer before the inner.

    Example:

    >>> [layer.name for layer in layers_inside(keras.Sequential([keras.layers.ReLU(name="a")]))][1:]
    ['a']
    """
    return list(layer._flatten_layers(include_self=include_self))


def layer_paths(model: keras.Model) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yield every layer of a model once with its path, entering nested models, in model order.

    A nested model without a graph of its own is taken for one layer.

    Args:
        model: A Keras model.

    Yields:
        Pairs of path and layer: "conv", or "backbone/conv" for a layer of the nested model
        "backbone". Within one model a path is unique.

    Example:

    >>> it = keras.layers.ReLU(name="it")
    >>> inner = keras.Sequential([keras.Input((3,), name="x"), it], name="inner")
    >>> outer = keras.Sequential([keras.Input((3,), name="x"), inner, keras.layers.ReLU(name="it")])
    >>> [path for path, _ in layer_paths(outer)]
    ['x', 'inner/x', 'inner/it', 'it']
    """
    seen: set[int] = set()

    def walk(container: Any, prefix: str) -> Iterator[tuple[str, keras.layers.Layer]]:
        # A Sequential model itself leaves its input layer out.
        for layer in (graph_of(container) or container).layers:
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            if graph_of(layer) is not None:
                yield from walk(layer, f"{prefix}{layer.name}/")
            else:
                yield f"{prefix}{layer.name}", layer

    yield from walk(model, "")


def walk_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yield every layer of a model once, entering nested models, in model order.

    Args:
        model: A Keras model.

    Yields:
        The layers; a nested model's layers come in its place.
    """
    for _, layer in layer_paths(model):
        yield layer


def layer_keys(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Return every layer of a model by a name that no other has, in model order.

    Args:
        model: A Keras model.

    Returns:
        Layers by their names; by their paths, such as "backbone/conv", where layers of several
        nested models have the same name.

    Example:

    >>> it = keras.layers.ReLU(name="it")
    >>> inner = keras.Sequential([keras.Input((3,), name="y"), it], name="inner")
    >>> list(layer_keys(keras.Sequential([keras.Input((3,), name="x"), inner])))
    ['x', 'y', 'it']
    """
    paths = list(layer_paths(model))
    count = Counter(layer.name for _, layer in paths)
    return {path if count[layer.name] > 1 else layer.name: layer for path, layer in paths}
