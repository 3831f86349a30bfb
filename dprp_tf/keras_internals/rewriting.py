"""Rewrite a Keras graph: replace layers by others, one by one or by several."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np
from keras import ops

from dprp_tf.keras_internals.graphs import (
    graph_of,
    history_of,
    input_structure,
    layers_inside,
    nodes,
    output_structure,
    walk_layers,
)

__all__ = ["CopiesCheaply", "quick_build", "rebuild_configured", "require_graph", "rewrite"]

_CONSTANT = (keras.initializers.Zeros, keras.initializers.Ones, keras.initializers.Constant)


@runtime_checkable
class CopiesCheaply(Protocol):
    """A layer whose initial state is costly, so that a copy should not compute one of its own."""

    def prepare_copy(self, copy: Any) -> None:
        """Prepare a copy of this layer, not built yet, whose state is about to be replaced.

        Args:
            copy: The copy, made from the layer's configuration.
        """


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
    replace: Callable[[keras.layers.Layer], Any],
    model_class: type[keras.Model] = keras.Model,
    **arguments: Any,
) -> keras.Model:
    """Return a copy of a model in which some layers are replaced; the original is untouched.

    Layers keep their names, order, trainable flags and all their state, adapted statistics,
    vocabularies and random seeds included; shared layers stay shared, and nested models are
    rewritten inside. A nested model of a class of its own in which nothing is replaced is copied
    through that class. No weight is shared with the original.

    Args:
        model: A built Functional or Sequential model.
        replace: Called once per layer; returns None to copy the layer, or a callable from the
            layer's inputs to its outputs, such as another Keras layer.
        model_class: Class of the model returned. Default `keras.Model`.
        **arguments: Passed to `model_class` beside inputs, outputs and name.

    Returns:
        The rewritten model, not compiled.

    Raises:
        ValueError: If `model` has no graph (see `require_graph`), a layer can't be copied, or two
            layers own the same weight.
    """
    require_graph(model)
    _require_own_weights(model)
    rewriter = _Rewriter(model, replace)
    result = rewriter.rebuild(model, model_class, arguments)
    for layer, new in rewriter.copied:
        _copy_state(layer, new)
    return result


def rebuild_configured(
    model: keras.Model, configure: Callable[[dict[str, Any]], dict[str, Any]]
) -> keras.Model:
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
    rewriter = _Rewriter(model, lambda layer: None, configure)
    result = rewriter.rebuild(model, keras.Model, {})
    for layer, new in rewriter.copied:
        _copy_state(layer, new)
    return result


class _Rewriter:
    """One rewriting: what has been copied so far, so that what is shared stays shared."""

    def __init__(
        self,
        model: keras.Model,
        replace: Callable[[keras.layers.Layer], Any],
        configure: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self._replace = replace
        # A nested model is copied as it is only where nothing is configured anew.
        self._copies_whole = configure is None
        self._configure = configure or (lambda config: config)
        self._answers: dict[int, Any] = {}
        self._copies: dict[int, Any] = {}
        self._owners = _owners(model)
        self.copied: list[tuple[keras.layers.Layer, keras.layers.Layer]] = []

    def rebuild(
        self, source: keras.Model, target: type[keras.Model], arguments: dict[str, Any]
    ) -> keras.Model:
        graph = graph_of(source)
        tensors = {id(tensor): _input_like(tensor, self._configure) for tensor in graph.inputs}
        for node in nodes(graph):
            # A node fed from outside of the graph is no part of it.
            if node.is_input or any(id(x) not in tensors for x in node.input_tensors):
                continue
            args, kwargs = node.arguments.fill_in(tensors)
            outputs = self._copy(node.operation)(*args, **kwargs)
            flat = keras.tree.flatten(outputs)
            tensors.update((id(old), new) for old, new in zip(node.outputs, flat, strict=True))
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
            self.copied.append((operation, whole))
            return whole
        if not isinstance(operation, keras.layers.Layer):
            return _clone_operation(operation, self._configure)
        new = self._answer(operation)
        if new is None:
            new = _clone(operation, self._configure)
            if isinstance(operation, CopiesCheaply):
                operation.prepare_copy(new)
            self.copied.append((operation, new))
            return quick_build(new)
        return new

    def _answer(self, layer: keras.layers.Layer) -> Any:
        if id(layer) not in self._answers:
            self._answers[id(layer)] = self._replace(layer)
        return self._answers[id(layer)]

    def _unchanged(self, nested: keras.Model) -> keras.Model | None:
        """A copy of a nested model through its own class; None if it must be rebuilt.

        Its class may make layers that can't be made from their own configurations, and has
        attributes and methods of its own.
        """
        if type(nested).__module__.startswith("keras."):
            return None
        inside = {id(container) for container in _containers(nested)}
        parts = list(walk_layers(nested))
        if any(self._owners[id(part)] - inside for part in parts):
            return None  # shared with what is around it
        if any(self._answer(part) is not None for part in parts):
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
        with keras.saving.custom_object_scope(_own_objects(model)):
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
    if not all(map(_same_settings, parts, new_parts)):
        return None
    for part, new_part in zip(parts, new_parts, strict=True):
        graph, new_graph = graph_of(part), graph_of(new_part)
        if graph is not None:
            for node, new_node in zip(nodes(graph), nodes(new_graph), strict=True):
                new_node.operation.name = node.operation.name
            new_graph.output_names = list(graph.output_names)
    return new


def _same_settings(part: Any, new_part: Any) -> bool:
    """Whether two layers of equal names compute the same of the same weights."""
    if _plain_attributes(part) != _plain_attributes(new_part):
        return False
    if graph_of(part) is not None:
        return _steps(graph_of(part)) == _steps(graph_of(new_part))
    if isinstance(part, keras.Model):
        return True  # by the layers inside
    try:
        return _settings(part.get_config()) == _settings(new_part.get_config())
    except Exception:
        return True  # it can't be described; its attributes are the same


def _plain_attributes(part: Any) -> dict[str, str]:
    """Numbers, texts and arrays that an object of a class outside of Keras keeps by name."""
    found: dict[str, str] = {}
    if type(part).__module__.startswith("keras."):
        return found
    plain = (str, int, float, bool, type(None), np.ndarray, np.generic)
    for name, value in vars(part).items():
        if name.startswith("_") or name in _attributes_of_keras():
            continue
        leaves = keras.tree.flatten(value) if isinstance(value, (list, tuple, dict)) else [value]
        if all(isinstance(leaf, plain) for leaf in leaves):
            found[name] = repr([_constant(leaf) for leaf in leaves])
    return found


@cache
def _attributes_of_keras() -> frozenset[str]:
    """What Keras itself keeps in every layer and model, such as whether it is compiled."""
    inputs = keras.Input((1,), name="inputs")
    model = keras.Model(inputs, keras.layers.Identity(name="outputs")(inputs), name="model")
    model.compile(keras.optimizers.SGD(name="optimizer"), loss="mse")
    return frozenset((*vars(model), *vars(model.layers[-1]), "seed", "stop_training"))


def _steps(graph: Any) -> list[str]:
    """The calls of a graph, with all that they take besides tensors."""
    found = []
    for node in nodes(graph):
        operation = node.operation
        given = (node.arguments.args, node.arguments.kwargs)
        # A layer's own settings are compared as those of a part of the model.
        own = {} if isinstance(operation, keras.layers.Layer) else operation.get_config()
        own.pop("name", None)
        found.append(repr((type(operation), own, keras.tree.map_structure(_constant, given))))
    return found


def _constant(value: Any) -> Any:
    if isinstance(value, keras.KerasTensor):
        return "tensor"
    # In full: long arrays are printed in part.
    return _array(value).tolist() if hasattr(value, "shape") else value


def _settings(config: Any) -> str:
    """A configuration without what is copied afterwards: seeds and whether a part trains."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            left_out = ("seed", "trainable")
            return {key: kept(each) for key, each in value.items() if key not in left_out}
        return [kept(each) for each in value] if isinstance(value, (list, tuple)) else value

    return repr(kept(config))


def quick_build(layer: keras.layers.Layer) -> Callable[..., Any]:
    """Return a callable that calls a layer, and builds it without drawing its random weights.

    For a layer whose weights are assigned afterwards: initializing a large kernel takes longer
    than anything else about it. Only Keras' own layers are treated so.

    Args:
        layer: The layer; its initializers are put back when it is built.

    Returns:
        A callable with the layer's own arguments.

    Example:

    >>> layer = keras.layers.Dense(2)
    >>> _ = quick_build(layer)(keras.Input((3,)))
    >>> float(abs(layer.get_weights()[0]).max()), type(layer.kernel_initializer).__name__
    (0.0, 'GlorotUniform')
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        if layer.built or not type(layer).__module__.startswith("keras."):
            return layer(*args, **kwargs)
        drawn = {
            name: value
            for name, value in vars(layer).items()
            if isinstance(value, keras.initializers.Initializer)
            and not isinstance(value, _CONSTANT)
        }
        for name in drawn:
            setattr(layer, name, keras.initializers.Zeros())
        try:
            return layer(*args, **kwargs)
        finally:
            for name, value in drawn.items():
                setattr(layer, name, value)

    return call


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


def _input_like(tensor: Any, configure: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    source = history_of(tensor).operation
    layer = type(source).from_config(configure(source.get_config()))
    layer._trainable = source.trainable
    # Keras looks inputs up by the tensor's name, which need not be the layer's.
    layer.output.name = tensor.name
    return layer.output


def _clone_operation(operation: Any, configure: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Copy a `keras.ops` operation: it holds no weights, but it records what it is called on."""
    return type(operation).from_config(configure(operation.get_config()))


def _clone(
    layer: keras.layers.Layer, configure: Callable[[dict[str, Any]], dict[str, Any]]
) -> keras.layers.Layer:
    if type(layer) is keras.layers.Lambda:
        # By its function itself: a function is serialized by name or as unsafe bytes.
        return keras.layers.Lambda(
            layer.function,
            output_shape=layer._output_shape,
            mask=layer.mask,
            arguments=layer.arguments,
            name=layer.name,
            **configure({"dtype": layer.dtype_policy}),
            trainable=layer.trainable,
        )
    with keras.saving.custom_object_scope(_own_objects(layer)):
        try:
            new = type(layer).from_config(configure(layer.get_config()))
        except Exception as error:
            new = _made_of_arguments(layer)
            if new is None:
                problem = "could not be made from its configuration"
                raise _cannot_copy(layer, problem, error) from error
    if layer.activity_regularizer is not None and new.activity_regularizer is None:
        new.activity_regularizer = layer.activity_regularizer
    return new


def _made_of_arguments(layer: keras.layers.Layer) -> keras.layers.Layer | None:
    """Make a layer from what its constructor takes of a configuration that says more.

    None if that fails too, or what is made does not describe itself as the layer does.
    """
    taken = {"name", "trainable", "dtype"}
    for entry in type(layer).__mro__[: type(layer).__mro__.index(keras.layers.Layer)]:
        if "__init__" in vars(entry):
            taken |= set(inspect.signature(vars(entry)["__init__"]).parameters)
    try:
        config = layer.get_config()
        known = {key: value for key, value in config.items() if key in taken}
        new: keras.layers.Layer = type(layer).from_config(known)
        if layer.built and not new.built:
            new.build_from_config(layer.get_build_config())
        return new if _settings(new.get_config()) == _settings(config) else None
    # The layer's own code, which may fail in any way; the first failure is told.
    except Exception:
        return None


def _own_objects(layer: keras.layers.Layer) -> dict[str, Any]:
    """Return the classes and functions that the configuration of a layer may name."""
    found: dict[str, Any] = {}
    for part in layers_inside(layer):
        found[type(part).__name__] = type(part)
        for value in vars(part).values():
            if inspect.isfunction(value):
                found[value.__name__] = value
    return {
        name: value for name, value in found.items() if not value.__module__.startswith("keras.")
    }


def _copy_state(layer: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Give a copied layer the state and the flags of the original, parts of it included."""
    parts, new_parts = layers_inside(layer), layers_inside(new)
    if len(parts) != len(new_parts):
        raise _cannot_copy(
            layer, f"has {len(new_parts) - 1} layers inside where there were {len(parts) - 1}"
        )
    for old_part, new_part in zip(parts, new_parts, strict=True):
        try:
            _copy_own_state(old_part, new_part)
        except Exception as error:
            raise _cannot_copy(layer, "did not take the weights", error) from error


def _copy_own_state(layer: Any, new: Any) -> None:
    if layer.built and not new.built:
        new.build_from_config(layer.get_build_config())
    state: dict[str, Any] = {}
    layer.save_own_variables(state)
    if state:
        new.load_own_variables({name: _array(value) for name, value in state.items()})
    if hasattr(layer, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            new.load_assets(folder)
    for old_seed, new_seed in zip(layer._seed_generators, new._seed_generators, strict=True):
        new_seed.state.assign(_array(old_seed.state))
    new._trainable = layer.trainable
    for old_variable, new_variable in zip(_variables(layer), _variables(new), strict=True):
        new_variable.trainable = old_variable.trainable


def _variables(layer: Any) -> Iterator[Any]:
    yield from layer._trainable_variables
    yield from layer._non_trainable_variables


def _array(value: Any) -> Any:
    # A copy: sharing the buffer would let JAX donate it from under the other model.
    return np.array(ops.convert_to_numpy(value))


def _cannot_copy(
    layer: keras.layers.Layer, problem: str, error: Exception | None = None
) -> ValueError:
    detail = "" if error is None else f" ({_first_line(error)})"
    return ValueError(
        "`model` must consist of layers that serialize, so that they can be copied. Received: "
        f"{type(layer).__name__} {layer.name!r}, whose copy {problem}{detail}. Give its class a "
        "get_config() that returns every argument of __init__ and a build() that makes all its "
        "weights, or write it as a Functional model."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
