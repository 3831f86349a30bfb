"""Whether two layers of one class compute the same of the same weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import keras
import numpy as np
from keras import ops

from dprp_tf.keras_internals.graphs import graph_of, layers_inside, nodes

__all__ = ["constructor_arguments", "different_setting", "is_of_keras", "same_settings"]

# What is copied afterwards, what Keras counts on by itself, and layers, which are parts themselves.
_LEFT_OUT = frozenset(
    {
        "build_config",
        "dtype",
        "input_layers",
        "layers",
        "name",
        "output_layers",
        "seed",
        "shared_object_id",
        "trainable",
    }
)
_PLAIN = (str, int, float, bool, type(None), np.ndarray, np.generic)
_SHOWN = 60


def is_of_keras(layer: Any) -> bool:
    """Say whether a layer's class is one of Keras' own.

    Args:
        layer: A layer, a model or an operation.

    Returns:
        False for a class that someone else wrote, derived from one of Keras or not.

    Example:

    >>> is_of_keras(keras.layers.ReLU())
    True
    """
    return type(layer).__module__.startswith("keras.")


def constructor_arguments(layer: keras.layers.Layer) -> set[str]:
    """Return the names of what a layer can be made with.

    Args:
        layer: The layer.

    Returns:
        The arguments of the constructors of its class and of those it is derived from.

    Example:

    >>> sorted(constructor_arguments(keras.layers.Flatten()) - {"self", "kwargs"})
    ['data_format', 'dtype', 'name', 'trainable']
    """
    taken = {"name", "trainable", "dtype"}
    for entry in type(layer).__mro__[: type(layer).__mro__.index(keras.layers.Layer)]:
        if "__init__" in vars(entry):
            taken |= set(inspect.signature(vars(entry)["__init__"]).parameters)
    return taken


def different_setting(
    layer: keras.layers.Layer,
    copy: keras.layers.Layer,
    configure: Callable[[dict[str, Any]], dict[str, Any]],
) -> str | None:
    """Say what a copy of a layer was made with that the layer was not.

    A configuration may leave out what a layer was made with, or say it wrong; nothing fails then,
    and the copy computes something else.

    Args:
        layer: The layer, called already.
        copy: Its copy, of as many layers inside, called already.
        configure: What has been done to its configuration.

    Returns:
        The first difference, to follow "whose copy "; None if there is none.

    Example:

    >>> one, other = keras.layers.LeakyReLU(0.1), keras.layers.LeakyReLU(0.2)
    >>> different_setting(one, other, lambda config: config)
    'has negative_slope=0.2 where it was 0.1'
    """
    parts = layers_inside(layer)
    for part, new_part in zip(parts, layers_inside(copy), strict=True):
        inside = "" if part is layer else f" in {type(part).__name__} inside"
        if type(part) is not type(new_part):
            return f"has a {type(new_part).__name__} inside where it was a {type(part).__name__}"
        if isinstance(part, keras.Model):
            continue  # by the layers inside
        for old, new in (
            (_told(part), _told(new_part)),
            (_config(part, configure), _config(new_part, configure)),
        ):
            for name in sorted(old.keys() & new.keys()):
                if old[name] != new[name]:
                    shown, was = (str(each[name])[:_SHOWN] for each in (new, old))
                    return f"has {name}={shown}{inside} where it was {was}"
    return None


def same_settings(part: Any, new_part: Any) -> bool:
    """Say whether two layers or models of equal class and names compute the same.

    Args:
        part: A layer or a model.
        new_part: Another one, of weights of the same shapes.

    Returns:
        False if an attribute, a setting or a step of the graph differs.

    Example:

    >>> same_settings(keras.layers.LeakyReLU(0.1), keras.layers.LeakyReLU(0.2))
    False
    """
    if _plain_attributes(part) != _plain_attributes(new_part):
        return False
    if graph_of(part) is not None:
        return _steps(graph_of(part)) == _steps(graph_of(new_part))
    if isinstance(part, keras.Model):
        return True  # by the layers inside
    return _config(part) == _config(new_part)


def _told(part: Any) -> dict[str, str]:
    """The attributes that bear the name of an argument of the constructor."""
    if is_of_keras(part):
        return {}
    arguments = constructor_arguments(part)
    return {k: value for k, value in _plain_attributes(part).items() if k in arguments}


def _config(
    part: Any, configure: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config
) -> dict[str, str]:
    """A layer's configuration, entry by entry; empty if it can't be described."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(each) for key, each in value.items() if key not in _LEFT_OUT}
        if isinstance(value, (list, tuple)):
            return [kept(each) for each in value]
        # An object is described by where it is in memory.
        return _constant(value) if isinstance(value, _PLAIN) else type(value).__name__

    try:
        return {key: repr(value) for key, value in kept(configure(part.get_config())).items()}
    # The class's own code, which may fail in any way; its attributes are compared all the same.
    except Exception:
        return {}


def _plain_attributes(part: Any) -> dict[str, str]:
    """Numbers, texts and arrays that an object of a class outside of Keras keeps by name."""
    found: dict[str, str] = {}
    if is_of_keras(part):
        return found
    for name, value in vars(part).items():
        if name.startswith("_") or name in _attributes_of_keras():
            continue
        leaves = keras.tree.flatten(value) if isinstance(value, (list, tuple, dict)) else [value]
        if all(isinstance(leaf, _PLAIN) for leaf in leaves):
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
    return np.asarray(ops.convert_to_numpy(value)).tolist() if hasattr(value, "shape") else value
