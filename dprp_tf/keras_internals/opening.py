"""Layers that hold layers, opened: the graph of what they compute with what they hold."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
from keras import ops

from dprp_tf.keras_internals.graphs import mask_of, nodes
from dprp_tf.keras_internals.layer_copies import copy_when_called
from dprp_tf.keras_internals.rewriting import rewrite

__all__ = ["opened", "symbolic_inputs"]

# What stands for an axis of unknown length where a layer is compared with its graph.
_SOME = 3
# How far they may differ, as a share of the largest output.
_TOLERANCE = 1e-4


def symbolic_inputs(structure: Any) -> list[Any]:
    """Return the symbolic tensors among the arguments of a call, in their order.

    Args:
        structure: Arguments, nested.

    Returns:
        The tensors.

    Example:

    >>> len(symbolic_inputs(((keras.Input((3,)), None), {"flag": True})))
    1
    """
    return [leaf for leaf in keras.tree.flatten(structure) if keras.backend.is_keras_tensor(leaf)]


def opened(
    layer: keras.layers.Layer, args: Any, kwargs: Any, *, take_over: bool = False
) -> keras.Model:
    """Return the graph that a layer's `call` builds out of the layers that it holds.

    The layer is copied and its `call` is run on symbolic tensors, so that each layer inside leaves
    its place in a graph. That holds where `call` is made of layers and `keras.ops` alone, whatever
    the batch and the training flag are; the graph is compared with the layer on random inputs.

    Args:
        layer: A layer outside of Keras, or a subclassed model, called already; it stays as it is.
        args: Arguments of a call, with symbolic tensors.
        kwargs: Likewise, by name.
        take_over: Whether the layer itself is opened instead of a copy, if nobody else has it.
            Default False.

    Returns:
        A Functional model named as the layer, from the symbolic tensors among the arguments to the
        outputs, with weights of its own that are equal to the layer's.

    Raises:
        ValueError: If the layer can't be copied or its `call` not be traced, it takes another way
            in training, has weights beside those of the layers it holds, or the graph computes
            something else.

    Example:

    >>> class Twice(keras.layers.Layer):
    ...     def __init__(self, **kwargs):
    ...         super().__init__(**kwargs)
    ...         self.inner = keras.layers.Dense(3, name="inner")
    ...     def call(self, x):
    ...         return self.inner(self.inner(x))
    >>> x, layer = keras.Input((3,)), Twice(name="twice")
    >>> _ = layer(x)
    >>> [part.name for part in opened(layer, (x,), {}).layers][1:]
    ['inner']
    """
    tensors = symbolic_inputs((args, kwargs))
    if any(mask_of(tensor) is not None for tensor in tensors):
        raise ValueError("its inputs carry masks")
    copy = layer
    if not take_over:
        _, own_args, own_kwargs = _renewed(tensors, args, kwargs, None)
        copy, _ = copy_when_called(layer, lambda config: config, *own_args, **own_kwargs)
    samples = None
    try:
        graph = _traced(copy, tensors, args, kwargs, samples)
    except ValueError:
        # What is computed from the number of samples may as well be computed from one.
        samples = 1
        graph = rewrite(
            _traced(copy, tensors, args, kwargs, samples),
            lambda operation: None,
            input_shape=lambda tensor: (None, *tensor.shape[1:]),
            take_over=True,
        )
    if "training" in inspect.signature(copy.call).parameters and "training" not in kwargs:
        # The flag goes to the layers inside when the graph runs; a branch of call() would not.
        trained = _traced(copy, tensors, args, {**kwargs, "training": True}, samples)
        if _operations(trained) != _operations(graph):
            raise ValueError("its call() takes another way in training")
    inside = {id(weight) for weight in graph.weights}
    own = [weight for weight in copy.weights if id(weight) not in inside]
    if own:
        raise ValueError(f"it has weights beside those of its layers ({own[0].path})")
    _require_same(copy, graph, args, kwargs)
    return graph


def _renewed(
    tensors: list[Any], args: Any, kwargs: Any, samples: int | None
) -> tuple[list[Any], Any, Any]:
    """New inputs in place of symbolic tensors, and the arguments with these."""
    fresh = {
        id(tensor): keras.Input(
            batch_shape=(tensor.shape[0] or samples, *tensor.shape[1:]), dtype=tensor.dtype
        )
        for tensor in tensors
    }
    own = keras.tree.map_structure(lambda leaf: fresh.get(id(leaf), leaf), (args, kwargs))
    return [fresh[id(tensor)] for tensor in tensors], *own


def _operations(graph: keras.Model) -> list[Any]:
    """What stands in a graph, in its order: layers themselves, operations by what they are."""
    found = (node.operation for node in nodes(graph) if not node.is_input)
    return [id(one) if isinstance(one, keras.layers.Layer) else type(one) for one in found]


def _traced(
    layer: Any, tensors: list[Any], args: Any, kwargs: Any, samples: int | None
) -> keras.Model:
    inputs, own_args, own_kwargs = _renewed(tensors, args, kwargs, samples)
    try:
        return keras.Model(inputs, layer.call(*own_args, **own_kwargs), name=layer.name)
    # The class's own code, which may do anything with a tensor that has no values.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"its call() can't be traced ({reason[0][:120]})") from error


def _require_same(copy: Any, graph: keras.Model, args: Any, kwargs: Any) -> None:
    rng = np.random.default_rng(0)
    values: dict[int, Any] = {}
    for tensor in symbolic_inputs((args, kwargs)):
        shape = [_SOME if size is None else size for size in tensor.shape]
        kind = keras.backend.standardize_dtype(tensor.dtype)
        drawn = rng.normal(size=shape) if "float" in kind else rng.integers(0, 2, size=shape)
        values[id(tensor)] = ops.convert_to_tensor(drawn, dtype=kind)

    def filled(structure: Any) -> Any:
        return keras.tree.map_structure(lambda leaf: values.get(id(leaf), leaf), structure)

    given = [values[id(tensor)] for tensor in symbolic_inputs((args, kwargs))]
    expected = keras.tree.flatten(copy(*filled(args), **filled(kwargs)))
    try:
        found = keras.tree.flatten(graph(given if len(given) > 1 else given[0]))
    # The backend's, as where a number of samples was told by a shape.
    except Exception as error:
        raise ValueError("traced, its call() works for one sample alone") from error
    for one, other in zip(expected, found, strict=True):
        one, other = (ops.convert_to_numpy(ops.cast(each, "float32")) for each in (one, other))
        if one.shape != other.shape or not np.allclose(
            one, other, atol=_TOLERANCE * max(float(np.abs(one).max(initial=0.0)), 1e-6)
        ):
            raise ValueError("traced, its call() computes something else than the layer")
