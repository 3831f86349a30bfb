"""What a selection looks at: inputs, with labels as Keras takes them or without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from dprp_tf.data import StreamedImages
from dprp_tf.data.gathering import gather, is_stream
from dprp_tf.keras_internals.graphs import graph_of, input_structure, output_structure
from dprp_tf.training.fine_tuning import input_arrays

__all__ = ["label_lengths", "picked", "samples_of"]

_LIMIT = 4096


def samples_of(data: Any, model: keras.Model) -> tuple[Any, Any]:
    """Return inputs and labels as arrays, in the lists and dicts in which they are given.

    Args:
        data: `(x, y)`, `(x,)`, or x alone; or what gives such ones batch by batch, as a
            `tf.data.Dataset` does, of which the first 4,096 samples are taken. x is an array, or a
            list, tuple or dict of arrays for several inputs; a tuple is always a pair, as in Keras.
            y is an array, or for several outputs a list or tuple of arrays in the model's order, or
            a dict by output name; None for inputs alone.
        model: The model that they are for.

    Returns:
        `(x, y)` of NumPy arrays; y is None where there are no labels, and an array where the
        model has one output.

    Raises:
        ValueError: If labels are for other outputs than the model's, or inputs and labels differ
            in number.

    Example:

    >>> inputs = keras.Input((3,))
    >>> heads = {"a": keras.layers.Dense(2)(inputs), "b": keras.layers.Dense(1)(inputs)}
    >>> model = keras.Model(inputs, heads)
    >>> x, y = samples_of((np.ones((4, 3)), {"a": [0, 1, 1, 0], "b": np.ones(4)}), model)
    >>> x.shape, y["a"].shape
    ((4, 3), (4,))
    >>> samples_of(np.ones((4, 3)), model)[1] is None
    True
    """
    if is_stream(data):
        # Enough to choose by: a stream may be endless.
        data = gather(data, ranks=_ranks(model), limit=_LIMIT)
    x, y = _pair(data, model)
    x = _inputs(x, model)
    if not all(array.ndim and len(array) for array in keras.tree.flatten(x)):
        raise ValueError(
            "`data` must be arrays of samples, (x, y) or x alone. Received: "
            f"{type(data).__name__}, which holds none; take a few hundred samples out of it."
        )
    if y is None:
        return x, None
    y = _labels(y, model)
    counts = {len(array) for array in keras.tree.flatten(x)}
    lengths = label_lengths(y)
    if counts != set(lengths):
        raise ValueError(
            "`data` must hold as many labels, for each output, as samples, for each input. "
            f"Received: {sorted(counts)} samples and {lengths} labels; give (x, y) with y an "
            "array, or for several outputs a list or dict of arrays, or x alone without labels."
        )
    return x, y


def label_lengths(y: Any) -> list[int]:
    """Return how many labels there are, for each output.

    Args:
        y: Labels as `samples_of` returns them, or anything that a score understands.

    Returns:
        One number per array; none for what has no length.

    Example:

    >>> label_lengths({"a": np.zeros(4), "b": np.zeros((4, 2))}), label_lengths([0, 1, 1])
    ([4, 4], [3])
    """
    if isinstance(y, Mapping):
        return [length for each in y.values() for length in label_lengths(each)]
    if isinstance(y, (list, tuple)) and y and all(_is_array(part) for part in y):
        return [len(part) for part in y]
    return [len(y)] if hasattr(y, "__len__") and np.ndim(y) else []


def picked(values: Any, rows: Any) -> Any:
    """Return some rows of every array of a structure.

    Args:
        values: An array, or a list, tuple or dict of arrays; or images on disk, which are read.
        rows: Numbers of the rows.

    Returns:
        The same structure.

    Example:

    >>> picked({"a": np.arange(5)}, [1, 3])["a"].tolist()
    [1, 3]
    """
    if isinstance(values, Mapping):
        return {name: picked(each, rows) for name, each in values.items()}
    if isinstance(values, (list, tuple)) and values and all(_is_array(part) for part in values):
        return type(values)([np.asarray(part)[rows] for part in values])
    return values[rows] if isinstance(values, StreamedImages) else np.asarray(values)[rows]


def _ranks(model: keras.Model) -> dict[str, int] | None:
    graph = graph_of(model)
    return None if graph is None else {t.name: len(t.shape) for t in graph.inputs}


def _pair(data: Any, model: keras.Model) -> tuple[Any, Any]:
    if isinstance(data, list) and len(data) == 2:
        graph = graph_of(model)
        # For a model of one input it can't be its inputs.
        if graph is not None and len(graph.inputs) == 1:
            return data[0], data[1]
    if not isinstance(data, tuple):
        return data, None
    if len(data) not in (1, 2):
        raise ValueError(
            "`data` must be (x, y), or x alone where the method needs no labels. Received: a "
            f"tuple of {len(data)}; give several inputs as a list or dict."
        )
    return data[0], data[1] if len(data) == 2 else None


def _inputs(x: Any, model: keras.Model) -> Any:
    graph = graph_of(model)
    if graph is not None and isinstance(x, Mapping):
        names = [tensor.name for tensor in graph.inputs]
        if not isinstance(input_structure(graph), Mapping) and set(names) <= set(x):
            # By name, as Keras does: as values they would come in the order of the alphabet.
            x = [x[name] for name in names]
            x = x[0] if len(x) == 1 else x
    return input_arrays(x)


def _labels(y: Any, model: keras.Model) -> Any:
    graph = graph_of(model)
    structure = output_structure(graph)
    names = [] if graph is None else list(graph.output_names)
    if isinstance(structure, Mapping):
        names = [*dict.fromkeys([*structure, *names])]
    count = 1 if graph is None else len(graph.outputs)
    if isinstance(y, Mapping):
        unknown = [name for name in y if name not in names]
        if unknown or not y:
            raise ValueError(
                f"`data` must name outputs of the model in its labels: {names}. Received: {list(y)}"
            )
        made = {name: _labels_of_one(each) for name, each in y.items()}
        return next(iter(made.values())) if count == 1 else made
    several = isinstance(y, (list, tuple)) and bool(y) and all(_is_array(part) for part in y)
    if several and count > 1:
        if len(y) != count:
            raise ValueError(
                f"`data` must hold one array of labels for each of the {count} outputs {names}. "
                f"Received: {len(y)}"
            )
        return type(y)([np.asarray(part) for part in y])
    if several and len(y) == 1:
        return np.asarray(y[0])
    return np.asarray(y)


def _labels_of_one(y: Any) -> Any:
    several = isinstance(y, (list, tuple)) and bool(y) and all(_is_array(part) for part in y)
    return type(y)([np.asarray(part) for part in y]) if several else np.asarray(y)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and bool(np.ndim(value))
