"""Copies of layers: made as the originals were made, with their weights, state and flags."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np
from keras import ops

from dprp_tf.keras_internals.graphs import layers_inside
from dprp_tf.keras_internals.quick_building import quick_build
from dprp_tf.keras_internals.same_settings import (
    constructor_arguments,
    different_setting,
    is_of_keras,
)

__all__ = ["Configure", "CopiesCheaply", "copy_state", "copy_when_called", "own_objects"]

Configure = Callable[[dict[str, Any]], dict[str, Any]]
"""From a layer's configuration to the one that its copy is made from."""


@runtime_checkable
class CopiesCheaply(Protocol):
    """A layer whose initial state is costly, so that a copy should not compute one of its own."""

    def prepare_copy(self, copy: Any) -> None:
        """Prepare a copy of this layer, not built yet, whose state is about to be replaced.

        Args:
            copy: The copy, made from the layer's configuration.
        """


def copy_when_called(
    layer: keras.layers.Layer, configure: Configure, *args: Any, **kwargs: Any
) -> tuple[keras.layers.Layer, Any]:
    """Copy a layer and call the copy; the layer is untouched and shares no weight with it.

    A class outside of Keras may describe itself wrongly. Where its configuration fails, or makes a
    layer with other settings, the arguments that the layer was made with are taken, which Keras
    records where they are numbers and texts; then what its constructor takes of the configuration.

    Args:
        layer: The layer, called already.
        configure: What to do to its configuration.
        *args: What the copy is called on.
        **kwargs: Likewise.

    Returns:
        The copy, with the layer's state, and its outputs.

    Raises:
        ValueError: If no way leads to a copy with the layer's settings and weights; the message
            tells what was wrong with the first.

    Example:

    >>> layer = keras.layers.Dense(2, name="it")
    >>> inputs = keras.Input((3,))
    >>> _ = layer(inputs)
    >>> copy, outputs = copy_when_called(layer, lambda config: config, inputs)
    >>> copy is layer, copy.name, outputs.shape
    (False, 'it', (None, 2))
    """
    failure: ValueError | None = None
    for make in _ways(layer):
        try:
            new = _made(layer, make, configure)
            outputs = _called(layer, new, args, kwargs)
            copy_state(layer, new)
            # Keras' own describe themselves; those that make layers when they are built would give
            # these the initializers of a quick build.
            difference = None if is_of_keras(layer) else different_setting(layer, new, configure)
            if difference is not None:
                raise _cannot_copy(layer, difference)
            return new, outputs
        except ValueError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _ways(layer: keras.layers.Layer) -> Iterator[Callable[[Configure], Any]]:
    """Yield what may make a copy, in the order in which they are tried."""
    kind = type(layer)
    if kind is keras.layers.Lambda:
        # By its function itself: a function is serialized by name or as unsafe bytes.
        yield lambda configure: keras.layers.Lambda(
            layer.function,
            output_shape=layer._output_shape,
            mask=layer.mask,
            arguments=layer.arguments,
            name=layer.name,
            **configure({"dtype": layer.dtype_policy}),
            trainable=layer.trainable,
        )
        return
    yield lambda configure: kind.from_config(configure(layer.get_config()))
    if is_of_keras(layer):
        return
    recorded = getattr(layer, "_auto_config", None)
    if recorded is not None:
        yield lambda configure: kind(**configure(dict(recorded.config)))
    taken = constructor_arguments(layer)
    yield lambda configure: kind.from_config(
        configure({key: value for key, value in layer.get_config().items() if key in taken})
    )


def _made(layer: keras.layers.Layer, make: Callable[[Configure], Any], configure: Configure) -> Any:
    with keras.saving.custom_object_scope(own_objects(layer)):
        try:
            new = make(configure)
        # The class's own code, which may fail in any way; the next way is tried.
        except Exception as error:
            problem = "could not be made from its configuration"
            raise _cannot_copy(layer, problem, error) from error
    # Not every configuration says the name.
    new.name = layer.name
    if layer.activity_regularizer is not None and new.activity_regularizer is None:
        new.activity_regularizer = layer.activity_regularizer
    if isinstance(layer, CopiesCheaply):
        layer.prepare_copy(new)
    return new


def _called(layer: keras.layers.Layer, new: Any, args: Any, kwargs: Any) -> Any:
    try:
        return quick_build(new)(*args, **kwargs)
    except Exception as error:
        if is_of_keras(layer):
            raise
        raise _cannot_copy(layer, "could not be called", error) from error


def own_objects(layer: keras.layers.Layer) -> dict[str, Any]:
    """Return the classes and functions that the configuration of a layer may name.

    Args:
        layer: The layer.

    Returns:
        Those of its own and of the layers inside, by name; none of Keras.

    Example:

    >>> own_objects(keras.layers.ReLU())
    {}
    """
    found: dict[str, Any] = {}
    for part in layers_inside(layer):
        found[type(part).__name__] = type(part)
        for value in vars(part).values():
            if inspect.isfunction(value):
                found[value.__name__] = value
    return {
        name: value for name, value in found.items() if not value.__module__.startswith("keras.")
    }


def copy_state(layer: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Give a copied layer the state and the flags of the original, parts of it included.

    Args:
        layer: The original.
        new: Its copy.

    Raises:
        ValueError: If the copy has other layers inside, or does not take the weights.

    Example:

    >>> one, other = keras.layers.Dense(2), keras.layers.Dense(2)
    >>> one.build((None, 3)), copy_state(one, other)
    (None, None)
    >>> bool((one.get_weights()[0] == other.get_weights()[0]).all())
    True
    """
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
