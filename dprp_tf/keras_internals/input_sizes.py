"""A model's inputs at sizes that a user names, for models that declare open ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from dprp_tf.files.arguments import is_integer
from dprp_tf.keras_internals.graphs import graph_of
from dprp_tf.keras_internals.rewriting import require_graph

__all__ = ["sized_inputs"]


def sized_inputs(model: Any, input_shape: Any) -> list[keras.KerasTensor]:
    """Return symbolic inputs of one sample at the sizes given.

    Args:
        model: A built Functional or Sequential model.
        input_shape: Sizes of one sample, without the batch axis: whole numbers of 1 or more that
            agree with those declared; for several inputs a list of shapes in the model's order,
            or a dict by input name.

    Returns:
        One tensor per input of the model, in its own order.

    Raises:
        ValueError: If the model has no graph, or the shapes do not fit its inputs.

    Example:

    >>> inputs = keras.Input((None, None, 3))
    >>> model = keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))
    >>> sized_inputs(model, (32, 24, 3))[0].shape
    (1, 32, 24, 3)
    """
    require_graph(model)
    inputs = graph_of(model).inputs
    shapes = _listed(input_shape, [tensor.name for tensor in inputs])
    fits = len(shapes) == len(inputs) and all(
        _fits(shape, tensor.shape[1:]) for shape, tensor in zip(shapes, inputs, strict=True)
    )
    if not fits:
        declared = {tensor.name: tuple(tensor.shape[1:]) for tensor in inputs}
        raise ValueError(
            "`input_shape` must hold the sizes of one sample, without the batch axis, as whole "
            f"numbers that agree with the model's inputs {declared}. Received: "
            f"input_shape={input_shape!r}; give a tuple for one input, for several a list of "
            "tuples or a dict by name."
        )
    return [
        keras.KerasTensor((tensor.shape[0] or 1, *map(int, shape)), dtype=tensor.dtype)
        for tensor, shape in zip(inputs, shapes, strict=True)
    ]


def _listed(input_shape: Any, names: Sequence[str]) -> list[Any]:
    if isinstance(input_shape, Mapping):
        return [input_shape[name] for name in names] if set(input_shape) == set(names) else []
    if not isinstance(input_shape, Sequence):
        return []
    whole = all(isinstance(size, Sequence) for size in input_shape) and len(input_shape) > 0
    return list(input_shape) if whole else [input_shape]


def _fits(shape: Any, declared: Sequence[int | None]) -> bool:
    return (
        isinstance(shape, Sequence)
        and len(shape) == len(declared)
        and all(map(is_integer, shape))
        and all(own in (None, size) for size, own in zip(shape, declared, strict=True))
    )
