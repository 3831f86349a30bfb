"""Rewrite a Keras graph: replace layers by others, one by one or by several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import keras

from dprp_tf.keras_internals.graphs import (
    graph_of,
    history_of,
    input_structure,
    layers_inside,
    nodes,
    output_structure,
    walk_layers,
)
from dprp_tf.keras_internals.layer_copies import (
    Configure,
    copy_state,
    copy_when_called,
    own_objects,
)
from dprp_tf.keras_internals.same_settings import is_of_keras, same_settings

__all__ = ["rebuild_configured", "require_graph", "rewrite"]


def require_graph(model: Any, argument: str = "model") -> None:
    """Refuse what has no graph to rewrite.

    Args:
        model: What a caller passed.
        argument: The argument's name, for the message.

    Raises:
        ValueError: If `model` is not a built Functional or Sequential model.
    """
    if graph_of(model) is not None:
        return
    if isinstance(model, keras.Sequential):
        remedy = "Give it a keras.Input as its first entry, or call it on data once."
    elif isinstance(model, keras.Model):
        remedy = (
            "A subclassed model's call() can't be rewritten: build the same network as "
            "keras.Model(inputs, outputs) and copy the weights over with set_weights."
        )
    else:
        remedy = "Pass the model itself, such as keras.Model(inputs, outputs)."
    raise ValueError(
        f"`{argument}` must be a built Functional or Sequential Keras model. "
        f"Received: {argument}={type(model).__name__}. {remedy}"
    )


def rewrite(
    model: keras.Model,
    replace: Callable[[Any], Any],
    model_class: type[keras.Model] = keras.Model,
    *,
    input_shape: Callable[[Any], Any] | None = None,
    note: Callable[[Any, Any], None] | None = None,
    take_over: bool = False,
    **arguments: Any,
) -> keras.Model:
    """Return a copy of a model in which some layers are replaced; the original is untouched.

    Layers keep their names, order, trainable flags and all their state, adapted statistics,
    vocabularies and random seeds included; shared layers stay shared, and nested models are
    rewritten inside. A nested model of a class of its own in which nothing is replaced is copied
    through that class. No weight is shared with the original.

    Args:
        model: A built Functional or Sequential model.
        replace: Called once per layer and per operation of `keras.ops`; returns None to copy it,
            or a callable with its arguments, from its inputs to its outputs, such as another Keras
            layer.
        model_class: Class of the model returned. Default `keras.Model`.
        input_shape: Called with each input of the model and of nested models; returns the shape,
            batch included, that the copy has, or None to keep it. Default: all keep theirs.
        note: Called with each symbolic tensor and the one that stands for it in the copy; those
            inside of a nested model that is copied as it is are left out. Default: nothing.
        take_over: Whether layers that are not replaced are the model's own instead of copies, for
            a model that nobody else has. Default False.
        **arguments: Passed to `model_class` beside inputs, outputs and name.

    Returns:
        The rewritten model, not compiled.

    Raises:
        ValueError: If `model` has no graph (see `require_graph`), a layer can't be copied, or two
            layers own the same weight.
    """
    require_graph(model)
    _require_own_weights(model)
    rewriter = _Rewriter(model, replace, input_shape=input_shape, note=note, take_over=take_over)
    return rewriter.rebuild(model, model_class, arguments)


def rebuild_configured(model: keras.Model, configure: Configure) -> keras.Model:
    """Return a copy of a model whose parts are made from changed configurations; for inference.

    All state is copied as in `rewrite`. Two layers may own the same weight: each copy gets one of
    its own, equal to the other.

    Args:
        model: A built Functional or Sequential model.
        configure: Called with the configuration of each input, layer and operation; returns the
            one to make the copy from.

    Returns:
        The copy, not compiled.

    Raises:
        ValueError: If `model` has no graph (see `require_graph`) or a layer can't be copied.

    Example:

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="relu")])
    >>> copy = rebuild_configured(model, lambda config: {**config, "activation": "tanh"}
    ...                           if "activation" in config else config)
    >>> copy.layers[-1].activation.__name__
    'tanh'
    """
    require_graph(model)
    return _Rewriter(model, lambda layer: None, configure).rebuild(model, keras.Model, {})


class _Rewriter:
    """One rewriting: what has been copied so far, so that what is shared stays shared."""

    def __init__(
        self,
        model: keras.Model,
        replace: Callable[[Any], Any],
        configure: Configure | None = None,
        input_shape: Callable[[Any], Any] | None = None,
        note: Callable[[Any, Any], None] | None = None,
        take_over: bool = False,
    ) -> None:
        self._replace, self._take_over = replace, take_over
        self._note = note or (lambda old, new: None)
        self._input_shape = input_shape or (lambda tensor: None)
        # A nested model is copied as it is only where nothing is configured anew.
        self._copies_whole = configure is None and not take_over
        self._configure = configure or (lambda config: config)
        self._answers: dict[int, Any] = {}
        self._copies: dict[int, Any] = {}
        self._owners = _owners(model)

    def rebuild(
        self, source: keras.Model, target: type[keras.Model], arguments: dict[str, Any]
    ) -> keras.Model:
        graph = graph_of(source)
        tensors = {
            id(tensor): _input_like(tensor, self._configure, self._input_shape(tensor))
            for tensor in graph.inputs
        }
        for tensor in graph.inputs:
            self._note(tensor, tensors[id(tensor)])
        for node in nodes(graph):
            # A node fed from outside of the graph is no part of it.
            if node.is_input or any(id(x) not in tensors for x in node.input_tensors):
                continue
            args, kwargs = node.arguments.fill_in(tensors)
            outputs = self._copy(node.operation)(*args, **kwargs)
            for old, new in zip(node.outputs, keras.tree.flatten(outputs), strict=True):
                tensors[id(old)] = new
                self._note(old, new)
        inputs, outputs = (
            keras.tree.map_structure(lambda tensor: tensors[id(tensor)], structure)
            for structure in (input_structure(graph), output_structure(graph))
        )
        result = target(inputs=inputs, outputs=outputs, name=source.name, **arguments)
        # Not through the setter, which would set the flags of the layers inside as well: they
        # have their own.
        result._trainable = source.trainable
        return result

    def _copy(self, operation: Any) -> Any:
        if id(operation) not in self._copies:
            self._copies[id(operation)] = self._made(operation)
        return self._copies[id(operation)]

    def _made(self, operation: Any) -> Any:
        if graph_of(operation) is not None:
            whole = self._unchanged(operation) if self._copies_whole else None
            if whole is None:
                return self.rebuild(operation, keras.Model, {})
            copy_state(operation, whole)
            return whole
        new = self._answer(operation)
        if not isinstance(operation, keras.layers.Layer):
            return _clone_operation(operation, self._configure) if new is None else new
        if new is None and self._take_over:
            return operation
        return partial(self._copy_of_layer, operation) if new is None else new

    def _copy_of_layer(self, layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        """Copy a layer at its first call; the copy takes the calls after it."""
        new, outputs = copy_when_called(layer, self._configure, *args, **kwargs)
        self._copies[id(layer)] = new
        return outputs

    def _answer(self, operation: Any) -> Any:
        if id(operation) not in self._answers:
            self._answers[id(operation)] = self._replace(operation)
        return self._answers[id(operation)]

    def _unchanged(self, nested: keras.Model) -> keras.Model | None:
        """A copy of a nested model through its own class; None if it must be rebuilt.

        Its class may make layers that can't be made from their own configurations, and has
        attributes and methods of its own.
        """
        if is_of_keras(nested):
            return None
        inside = {id(container) for container in _containers(nested)}
        parts = list(walk_layers(nested))
        if any(self._owners[id(part)] - inside for part in parts):
            return None  # shared with what is around it
        graphs = [graph_of(container) for container in _containers(nested)]
        operations = [
            node.operation
            for graph in graphs
            for node in nodes(graph)
            if not isinstance(node.operation, keras.layers.Layer)
        ]
        if any(self._answer(part) is not None for part in (*parts, *operations)):
            return None
        if any(self._input_shape(tensor) for graph in graphs for tensor in graph.inputs):
            return None
        return _whole_copy(nested)


def _containers(model: keras.Model) -> Iterator[keras.Model]:
    """Yield a model and the nested models in its graph, at any depth."""
    yield model
    for layer in (graph_of(model) or model).layers:
        if graph_of(layer) is not None:
            yield from _containers(layer)


def _owners(model: keras.Model) -> dict[int, set[int]]:
    """By layer the models in whose graphs it is."""
    found: dict[int, set[int]] = {}
    for container in _containers(model):
        for layer in graph_of(container).layers:
            found.setdefault(id(layer), set()).add(id(container))
    return found


def _whole_copy(model: keras.Model) -> keras.Model | None:
    """Copy a model through its class; None if that doesn't give the same layers again."""
    try:
        with keras.saving.custom_object_scope(own_objects(model)):
            new = type(model).from_config(model.get_config())
    # The class's own code, which may fail in any way; the model is rebuilt then.
    except Exception:
        return None
    parts, new_parts = layers_inside(model), layers_inside(new)
    if new is model or len(parts) != len(new_parts):
        return None
    for part, new_part in zip(parts, new_parts, strict=True):
        if (
            type(part) is not type(new_part)
            or part.dtype_policy != new_part.dtype_policy
            or [tuple(w.shape) for w in part.weights] != [tuple(w.shape) for w in new_part.weights]
        ):
            return None
    for part, new_part in zip(parts, new_parts, strict=True):
        new_part.name = part.name
        if part.activity_regularizer is not None and new_part.activity_regularizer is None:
            new_part.activity_regularizer = part.activity_regularizer
    for tensor, new_tensor in zip(graph_of(model).inputs, graph_of(new).inputs, strict=True):
        # Keras looks inputs up by the tensor's name.
        new_tensor.name = tensor.name
    # A configuration may leave out what the model was made with.
    if not all(map(same_settings, parts, new_parts)):
        return None
    for part, new_part in zip(parts, new_parts, strict=True):
        graph, new_graph = graph_of(part), graph_of(new_part)
        if graph is not None:
            for node, new_node in zip(nodes(graph), nodes(new_graph), strict=True):
                new_node.operation.name = node.operation.name
            new_graph.output_names = list(graph.output_names)
    return new


def _require_own_weights(model: keras.Model) -> None:
    """Refuse weights held by two layers: each copy would get its own, and they would part."""
    owner: dict[int, keras.layers.Layer] = {}
    for layer in walk_layers(model):
        for weight in layer.weights:
            first = owner.setdefault(id(weight), layer)
            if first is not layer:
                raise ValueError(
                    "`model` must not have a weight that belongs to two layers, since copies of "
                    f"them would no longer share it. Received: {weight.path!r} in {first.name!r} "
                    f"and {layer.name!r}. Call one layer twice instead."
                )


def _input_like(tensor: Any, configure: Configure, shape: Any = None) -> Any:
    source = history_of(tensor).operation
    config = configure(source.get_config())
    if shape is not None:
        config = {**config, "batch_shape": tuple(shape)}
    layer = type(source).from_config(config)
    layer._trainable = source.trainable
    # Keras looks inputs up by the tensor's name, which need not be the layer's.
    layer.output.name = tensor.name
    return layer.output


def _clone_operation(operation: Any, configure: Configure) -> Any:
    """Copy a `keras.ops` operation: it holds no weights, but it records what it is called on."""
    return type(operation).from_config(configure(operation.get_config()))
