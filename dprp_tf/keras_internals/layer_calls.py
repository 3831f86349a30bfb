"""Each call of a layer in the graph of a model, with its shapes and what takes its output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dprp_tf.keras_internals.graphs import graph_of, nodes

__all__ = ["LayerCall", "layer_calls"]


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer in a model's graph.

    Attributes:
        layer: The layer.
        input_shape: Shape of its first input, with the batch axis.
        output_shape: Shape of its first output.
        consumers: What takes that output, within the same model.
    """

    layer: Any
    input_shape: tuple[int | None, ...]
    output_shape: tuple[int | None, ...]
    consumers: tuple[Any, ...]

    @property
    def positions(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Sizes of all axes but batch and channels, before and after; None if one is undefined."""
        first = getattr(self.layer, "data_format", "channels_last") == "channels_first"
        cut = slice(2, None) if first else slice(1, -1)
        sizes = (self.input_shape[cut], self.output_shape[cut])
        if any(size is None for shape in sizes for size in shape):
            return None
        before, after = (tuple(int(size or 0) for size in shape) for shape in sizes)
        return before, after


def layer_calls(model: Any) -> Iterator[LayerCall]:
    """Yield each call of a layer in the graph of a model, nested models included.

    Args:
        model: A built Functional or Sequential model.

    Yields:
        One `LayerCall` per call, from inputs to outputs; a nested model's come in its place.

    Raises:
        ValueError: If the model has no graph.

    Example:

    >>> import keras
    >>> inputs = keras.Input((8, 8, 3))
    >>> convolved = keras.layers.Conv2D(4, 3, name="it")(inputs)
    >>> model = keras.Model(inputs, keras.layers.ReLU(name="next")(convolved))
    >>> [call.consumers[0].name for call in layer_calls(model) if call.layer.name == "it"]
    ['next']
    """
    graph = graph_of(model)
    if graph is None:
        raise ValueError(
            "`model` must be a built Functional or Sequential model, whose graph is known. "
            f"Received: {type(model).__name__} {getattr(model, 'name', '')!r}. Rebuild it with "
            "keras.Model(inputs, outputs)."
        )
    ordered = list(nodes(graph))
    consumers: dict[int, list[Any]] = {}
    for node in ordered:
        for tensor in node.input_tensors:
            consumers.setdefault(id(tensor), []).append(node.operation)
    for node in ordered:
        layer = node.operation
        if graph_of(layer) is not None:
            yield from layer_calls(layer)
        elif hasattr(layer, "weights"):
            output = node.output_tensors[0]
            # An input layer's node has no inputs.
            entering = node.input_tensors[0] if node.input_tensors else output
            yield LayerCall(
                layer,
                tuple(entering.shape),
                tuple(output.shape),
                tuple(consumers.get(id(output), ())),
            )
