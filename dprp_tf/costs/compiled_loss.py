"""What a model was compiled to do: classify, label, or come near to values."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence, Set
from typing import Any

import keras
import numpy as np

from dprp_tf.keras_internals.graphs import graph_of, output_structure

__all__ = [
    "Loss",
    "are_classes",
    "compiled_loss",
    "described",
    "is_binary",
    "is_categorical",
    "is_of_values",
    "loss_weights_by_output",
    "losses_by_output",
    "names_of_outputs",
    "takes_probabilities",
]

Loss = Any
"""What `compile` takes as `loss`: an object, a function, a name, or a list or dict of them."""

_CATEGORICAL = frozenset(
    {
        "categorical_crossentropy",
        "categorical_focal_crossentropy",
        "categorical_hinge",
        "sparse_categorical_crossentropy",
    }
)
_BINARY = frozenset({"binary_crossentropy", "binary_focal_crossentropy"})
_OF_VALUES = frozenset(
    {
        "cosine_similarity",
        "huber",
        "log_cosh",
        "mae",
        "mape",
        "mean_absolute_error",
        "mean_absolute_percentage_error",
        "mean_squared_error",
        "mean_squared_logarithmic_error",
        "mse",
        "msle",
        "poisson",
    }
)


def compiled_loss(model: keras.Model) -> Loss:
    """Return the loss that a model was compiled with.

    Args:
        model: A Keras model.

    Returns:
        The loss as `compile` was given it; None for a model that was not compiled, or without one.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    >>> model.compile("sgd", "mse")
    >>> compiled_loss(model)
    'mse'
    """
    return getattr(model, "loss", None)


def is_categorical(loss: Loss) -> bool:
    """Return whether a loss takes a model's channels for scores of classes that exclude each other.

    Args:
        loss: A Keras loss, its name or its class's name, or anything else.

    Returns:
        True for the (sparse) categorical cross-entropies and the categorical hinge.

    Example:

    >>> is_categorical("sparse_categorical_crossentropy"), is_categorical("mse")
    (True, False)
    """
    return _is_named(loss, _CATEGORICAL)


def is_binary(loss: Loss) -> bool:
    """Return whether a loss takes each channel for a yes or no of its own.

    Args:
        loss: A Keras loss, its name or its class's name, or anything else.

    Returns:
        True for the binary cross-entropies.

    Example:

    >>> is_binary(keras.losses.BinaryCrossentropy(from_logits=True))
    True
    """
    return _is_named(loss, _BINARY)


def is_of_values(loss: Loss) -> bool:
    """Return whether a loss takes a model's outputs for values that are to be met.

    Args:
        loss: A Keras loss, its name or its class's name, or anything else.

    Returns:
        True for the squared and absolute errors and their like; False for a loss of the user's.

    Example:

    >>> is_of_values("mse"), is_of_values(keras.losses.Huber()), is_of_values("hinge")
    (True, True, False)
    """
    return _is_named(loss, _OF_VALUES)


def takes_probabilities(loss: Loss) -> bool:
    """Return whether a cross-entropy takes what a model gives for probabilities.

    Args:
        loss: A Keras loss, its name or its class's name, or anything else.

    Returns:
        True for a cross-entropy that is not told `from_logits`; False for other losses.

    Example:

    >>> takes_probabilities("binary_crossentropy"), takes_probabilities("categorical_hinge")
    (True, False)
    """
    if not (is_categorical(loss) or is_binary(loss)) or _is_named(loss, {"categorical_hinge"}):
        return False
    config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
    return not config.get("from_logits")


def names_of_outputs(model: keras.Model) -> list[str]:
    """Return what `compile` and labels call a model's outputs.

    Args:
        model: A Keras model.

    Returns:
        The keys of a dict of outputs, in its order; else the names of the layers that give them.
        One name for a model without a graph.

    Example:

    >>> names_of_outputs(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="y")]))
    ['output']
    """
    structure = output_structure(graph_of(model))
    if isinstance(structure, dict):
        return list(structure)
    return list(getattr(model, "output_names", None) or ["output"])


def loss_weights_by_output(model: keras.Model) -> dict[str, float]:
    """Return the weights with which a model's losses were compiled.

    Args:
        model: A compiled Keras model.

    Returns:
        Output name to its loss's weight; without those that have none.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    >>> model.compile("sgd", ["mse"], loss_weights=[0.5])
    >>> loss_weights_by_output(model)
    {'output': 0.5}
    """
    with warnings.catch_warnings():
        # A loss of the user's may be a lambda, of which Keras warns where it is to be saved.
        warnings.simplefilter("ignore")
        config = model.get_compile_config() or {}
    weights = config.get("loss_weights")
    if isinstance(weights, (list, tuple)):
        return dict(zip(names_of_outputs(model), map(float, weights), strict=False))
    return {k: float(v) for k, v in weights.items()} if isinstance(weights, dict) else {}


def losses_by_output(loss: Loss, names: Sequence[str]) -> dict[str, Any]:
    """Return the loss of each output.

    Args:
        loss: What `compile` takes as `loss`.
        names: The outputs' names, in the model's order.

    Returns:
        Output name to its loss, None for an output without; a single loss is that of all.

    Example:

    >>> losses_by_output({"box": "mse"}, ["box", "kind"])
    {'box': 'mse', 'kind': None}
    """
    if isinstance(loss, Mapping):
        return {name: loss.get(name) for name in names}
    if isinstance(loss, (list, tuple)):
        return dict(zip(names, loss, strict=False))
    return dict.fromkeys(names, loss)


def are_classes(y: Any, channels: int | None) -> bool:
    """Return whether labels can only be classes: whole numbers, or rows with a single 1.

    Fractions are values, and rows of several ones are labels that do not exclude each other, even
    where their shape is that of one-hot rows.

    Args:
        y: Labels of one output.
        channels: Size of the output's last axis.

    Returns:
        True for integers where there are two channels or more, and for one-hot rows.

    Example:

    >>> are_classes([2, 0], 3), are_classes(np.eye(3), 3), are_classes([[0.1, 0.2, 0.7]], 3)
    (True, True, False)
    """
    labels = np.asarray(y)
    if channels is None or channels < 2 or labels.dtype.kind not in "iufb" or not labels.size:
        return False
    rows = labels.ndim > 1 and labels.shape[-1] == channels
    if rows:
        return bool(np.isin(labels, (0, 1)).all() and (labels.sum(axis=-1) == 1).all())
    return labels.dtype.kind in "iu"


def described(value: Any) -> Any:
    """Return a loss or metric, or a structure of them, as text that is the same in every process.

    Args:
        value: A Keras loss or metric, a function, a name, or a list or dict of them.

    Returns:
        Names and settings, in the structure given.

    Example:

    >>> described({"box": "mse", "kind": keras.losses.Huber(delta=2.0)})["box"]
    'mse'
    """
    if isinstance(value, (list, tuple)):
        return [described(entry) for entry in value]
    if isinstance(value, dict):
        return {key: described(entry) for key, entry in value.items()}
    if isinstance(value, (keras.losses.Loss, keras.metrics.Metric)):
        config = value.get_config()
        return f"{type(value).__name__} {config if 'fn' not in config else config['name']}"
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return value


def _is_named(loss: Loss, names: Set[str]) -> bool:
    # A loss may be an object with a name of its own, a function, or the name of either.
    told = (loss, type(loss).__name__, getattr(loss, "__name__", None))
    return any(_snake_case(name) in names for name in told if isinstance(name, str))


def _snake_case(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).removeprefix("_")
