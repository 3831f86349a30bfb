"""Which layer of a model it is that the converter crashes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dprp_tf.deploy.exporters.source import Source

__all__ = ["DyingLayer", "first_dying_layer"]

Calibration = dict[str, np.ndarray]


@dataclass(frozen=True)
class DyingLayer:
    """A layer whose conversion ends the converter's process.

    Args:
        name: Its name; its path, such as "backbone/gru", within a nested model.
        kind: Its class.

    Example:

    >>> DyingLayer("backbone/gru", "GRU").kind
    'GRU'
    """

    name: str
    kind: str


@dataclass(frozen=True)
class _Call:
    """A call of a layer in a model's graph, with its symbolic tensors."""

    layer: Any
    inputs: list[Any]
    outputs: list[Any]


def first_dying_layer(
    source: Source,
    calibration: Calibration | None,
    dies: Callable[[Source, Calibration | None], bool],
) -> DyingLayer | None:
    """Find the first layer with which a conversion crashes, by bisecting over the model's layers.

    The parts tried are the model's first layers, with an output wherever the graph is cut.

    Args:
        source: The model.
        calibration: Input name to a few samples; None where there are none.
        dies: Converts a part, and returns whether the converter crashed.

    Returns:
        The layer; None if the whole model does not crash.

    Example:

    >>> import keras
    >>> layers = [keras.layers.Dense(3, name="first"), keras.layers.ReLU(name="second")]
    >>> source = Source.of(keras.Sequential([keras.Input((4,)), *layers]))
    >>> first_dying_layer(source, None, lambda part, data: len(part.model.layers) > 1)
    DyingLayer(name='first', kind='Dense')
    """
    if not dies(source, calibration):
        return None
    calls = _calls(source.model)
    lives, dead = 0, len(calls)
    while dead - lives > 1:
        middle = (lives + dead) // 2
        if dies(_part(source, _open_ends(calls[:middle])), calibration):
            dead = middle
        else:
            lives = middle
    call = calls[dead - 1]
    name, kind = call.layer.name, type(call.layer).__name__
    inner = _first_inside(source, call, calibration, dies)
    return DyingLayer(name, kind) if inner is None else replace(inner, name=f"{name}/{inner.name}")


def _calls(model: Any) -> list[_Call]:
    """The calls of a model's layers from its inputs to its outputs."""
    import keras

    from dprp_tf.keras_internals.graphs import graph_of, nodes

    if isinstance(model, keras.Model):
        calls = [
            _Call(node.operation, list(node.input_tensors), list(node.outputs))
            for node in nodes(graph_of(model))
        ]
    else:  # trained in Keras 2, its layers wrapped in quantizers
        calls = [
            _Call(
                getattr(layer, "layer", layer),
                keras.tree.flatten(layer.input),
                keras.tree.flatten(layer.output),
            )
            for layer in model.layers
        ]
    return [call for call in calls if call.inputs and type(call.layer).__name__ != "InputLayer"]


def _open_ends(calls: Sequence[_Call]) -> list[Any]:
    """What some calls give and none of them takes."""
    taken = {id(tensor) for call in calls for tensor in call.inputs}
    given = [tensor for call in calls for tensor in call.outputs]
    return [tensor for tensor in given if id(tensor) not in taken]


def _part(source: Source, outputs: Sequence[Any]) -> Source:
    """The model up to some of its symbolic tensors."""
    import keras

    own = isinstance(source.model, keras.Model)
    kind = keras.Model if own else type(source.model)
    part = kind(source.model.inputs, list(outputs))
    return replace(source, model=part, outputs=tuple(f"part_{n}" for n in range(len(outputs))))


def _first_inside(
    source: Source,
    call: _Call,
    calibration: Calibration | None,
    dies: Callable[[Source, Calibration | None], bool],
) -> DyingLayer | None:
    """Look into a nested model, on what the model around it gives it."""
    from dprp_tf.keras_internals.graphs import graph_of

    graph = graph_of(call.layer)
    if graph is None:
        return None
    names = [f"given_{n}" for n in range(len(call.inputs))]
    inner = replace(
        source,
        model=graph,
        inputs={
            name: ((source.batch, *tensor.shape[1:]), str(tensor.dtype))
            for name, tensor in zip(names, call.inputs, strict=True)
        },
        outputs=tuple(f"part_{n}" for n in range(len(graph.outputs))),
    )
    if calibration is not None:
        given = _part(source, call.inputs).predict(calibration)
        calibration = dict(zip(names, given.values(), strict=True))
    return first_dying_layer(inner, calibration, dies)
