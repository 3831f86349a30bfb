"""What a model's class does beyond Keras' own, and whether a new model can be of that class."""

from __future__ import annotations

from typing import Any

import keras

__all__ = ["obstacle_to_class", "own_behaviour"]

# How an object is made, saved and shown says nothing about what it does to data.
_MAKING_AND_SAVING = {
    "build",
    "build_from_config",
    "compile_from_config",
    "compute_output_shape",
    "compute_output_spec",
    "from_config",
    "get_build_config",
    "get_compile_config",
    "get_config",
    "summary",
}
# What compiling, training and predicting leave in an object, and `ChannelPruning` after training.
_LEFT_BY_USE = {
    "history",
    "load_weights",
    "optimizer",
    "save_weights",
    "set_weights",
    "stop_evaluating",
    "stop_predicting",
    "stop_training",
}


def own_behaviour(model: keras.Model, base: type | None = None) -> list[str]:
    """Return the methods and properties of Keras that a model's class has in a version of its own.

    Those that make, save or show the object are left out, as is what Keras does not know.

    Args:
        model: A Keras model.
        base: A class whose versions are no behaviour of the model's own. Default: Keras' classes
            alone.

    Returns:
        Their names, sorted; empty for Functional and Sequential models and plain subclasses.

    Example:

    >>> class Scaled(keras.Model):
    ...     def predict_step(self, *args):
    ...         return 2.0 * super().predict_step(*args)
    >>> inputs = keras.Input((3,))
    >>> own_behaviour(Scaled(inputs, keras.layers.Dense(2)(inputs)))
    ['predict_step']
    """
    own, rest = _own_classes(model, base)
    return sorted(
        {
            name
            for entry in own
            for name, value in vars(entry).items()
            if _is_behaviour(name, value) and any(name in vars(known) for known in rest)
        }
    )


def obstacle_to_class(model: keras.Model, plain: keras.Model | None = None) -> str | None:
    """Return why a model of the same class can't be made from inputs and outputs alone.

    Args:
        model: A Keras model.
        plain: A model of a class that it is derived from, whose constructor and attributes are no
            obstacle. Default: a `keras.Model`.

    Returns:
        The reason, as part of a sentence about the class; None if it can.

    Example:

    >>> obstacle_to_class(keras.Sequential([keras.Input((3,))]))
    'it is a Sequential model'
    """
    if isinstance(model, keras.Sequential):
        return "it is a Sequential model"
    own, _ = _own_classes(model, None if plain is None else type(plain))
    if any(name in vars(entry) for entry in own for name in ("__init__", "__new__")):
        return "its constructor is its own"
    if plain is None:
        inputs = keras.Input((1,))
        plain = keras.Model(inputs, keras.layers.Identity()(inputs))
    names = vars(model).keys() - vars(plain).keys() - _LEFT_BY_USE
    # Those that begin with an underscore are Keras' own, of which every backend has others.
    added = sorted(name for name in names if not name.startswith("_"))
    return f"the model has attributes of its own, {added}" if added else None


def _own_classes(model: keras.Model, base: type | None) -> tuple[list[type], list[type]]:
    """The classes whose methods come before those of Keras (and of a base), and the others."""
    order = type(model).__mro__
    first = next(
        i for i, entry in enumerate(order) if entry is base or entry.__module__.startswith("keras.")
    )
    return list(order[:first]), list(order[first:-1])


def _is_behaviour(name: str, value: Any) -> bool:
    if name in _MAKING_AND_SAVING or (name.startswith("__") and name != "__call__"):
        return False
    return callable(value) or isinstance(value, (property, classmethod, staticmethod))
