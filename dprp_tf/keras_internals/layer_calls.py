"""Each call of a layer in the graph of a model, with its shapes and what takes its output."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import keras

from dprp_tf.keras_internals.graphs import graph_of, nodes

__all__ = ["LayerCall", "call_on", "layer_calls", "run_on_symbols"]


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer in a model's graph, on one sample.

    Attributes:
        layer: The layer.
        input_shape: Shape of its first input, with the batch axis.
        output_shape: Shape of its first output.
        consumers: What takes that output, within the same model.
        batch: How many samples the shapes are of: 1, or what the model's inputs declare.
        args: What it is called with, symbolic tensors of those shapes.
        kwargs: What it is called with by name.
    """

    layer: Any
    input_shape: tuple[int | None, ...]
    output_shape: tuple[int | None, ...]
    consumers: tuple[Any, ...] = ()
    batch: int = 1
    args: tuple[Any, ...] = field(default=(), repr=False)
    kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)

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

    @property
    def repeats(self) -> int | None:
        """How many rows of the batch axis one sample fills: more than 1 behind a reshape into it.

        None where that is not known, or no whole number.
        """
        rows = self.input_shape[0] if self.input_shape else 1
        return None if rows is None or rows % self.batch else rows // self.batch


def layer_calls(
    model: Any, inputs: Sequence[Any] | None = None, batch: int | None = None
) -> Iterator[LayerCall]:
    """Yield each call of a layer in the graph of a model, nested models included.

    The shapes are those of the call: a nested model that declares open sizes is followed at the
    sizes that it is called with, and a sample's own parts that a reshape moves into the batch
    axis show there. A layer that holds others is one call.

    Args:
        model: A built Functional or Sequential model.
        inputs: Symbolic tensors to follow through the graph, one per input of the model in its
            own order. Default: its declared inputs, with a batch of 1 where that is open.
        batch: How many samples `inputs` are of. Default: the size of their first axis.

    Yields:
        One `LayerCall` per call, from inputs to outputs; a nested model's come in its place.

    Raises:
        ValueError: If the model has no graph, or the number of inputs is not the model's.

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
    given = [_of_one_sample(tensor) for tensor in graph.inputs] if inputs is None else list(inputs)
    if len(given) != len(graph.inputs):
        raise ValueError(
            f"`inputs` must hold {len(graph.inputs)} tensors, one per input of the model. "
            f"Received: {len(given)}"
        )
    if batch is None:
        batch = next((int(x.shape[0]) for x in given if x.shape and x.shape[0]), 1)
    yield from _followed(graph, given, batch)


def call_on(layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any], batch: int) -> LayerCall:
    """Return what a call of a built layer on symbolic tensors would be; nothing is recorded.

    Args:
        layer: The layer.
        args: What it is called with.
        kwargs: What it is called with by name.
        batch: How many samples the tensors are of.

    Returns:
        The call.

    Raises:
        ValueError: If the layer does not say what it makes of them.

    Example:

    >>> layer = keras.layers.Conv2D(4, 3)
    >>> layer.build((None, 8, 8, 3))
    >>> call_on(layer, [keras.KerasTensor((6, 8, 8, 3))], {}, 1).output_shape
    (6, 6, 6, 4)
    """
    outputs = _outputs(layer, args, kwargs)
    entering = _tensors((args, kwargs)) or outputs
    return LayerCall(
        layer,
        tuple(entering[0].shape),
        tuple(outputs[0].shape),
        batch=batch,
        args=tuple(args),
        kwargs=dict(kwargs),
    )


def run_on_symbols(layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a layer on symbolic tensors, with all that Keras does around its own code.

    That is, with tensors and weights in the layer's precision. No node is recorded.

    Args:
        layer: A built layer.
        args: What it is called with.
        kwargs: What it is called with by name.

    Returns:
        Its symbolic outputs.

    Example:

    >>> layer = keras.layers.Dense(4, dtype="mixed_bfloat16")
    >>> layer.build((None, 3))
    >>> run_on_symbols(layer, [keras.KerasTensor((2, 3))], {}).dtype
    'bfloat16'
    """
    # What Keras runs to learn a shape is the `call` of what it is given: here all of the layer.
    around = SimpleNamespace(call=layer, name=layer.name)
    return keras.Operation.compute_output_spec(around, *args, **kwargs)


def _outputs(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    try:
        return keras.tree.flatten(operation.compute_output_spec(*args, **kwargs))
    except Exception:
        # Keras runs the layer's own code alone for it, whose tensors and weights may then be of
        # precisions that don't go together.
        if not isinstance(operation, keras.layers.Layer):
            raise
        return keras.tree.flatten(run_on_symbols(operation, args, kwargs))


def _followed(
    graph: Any, given: Sequence[Any], batch: int
) -> Generator[LayerCall, None, list[Any]]:
    """Yield the calls of a graph on symbolic tensors; return its outputs."""
    ordered = list(nodes(graph))
    consumers: dict[int, list[Any]] = {}
    for node in ordered:
        for tensor in node.input_tensors:
            consumers.setdefault(id(tensor), []).append(node.operation)
    tensors = {id(own): _fitted(x, own) for own, x in zip(graph.inputs, given, strict=True)}
    for node in ordered:
        operation = node.operation
        if not node.is_input and any(id(x) not in tensors for x in node.input_tensors):
            continue  # fed from outside of the graph
        args, kwargs = ((), {}) if node.is_input else node.arguments.fill_in(tensors)
        nested = graph_of(operation)
        entering = [tensors[id(x)] for x in node.input_tensors]
        if nested is not None and len(entering) == len(nested.inputs):
            outputs = yield from _followed(nested, entering, batch)
        elif node.is_input:
            outputs = [tensors.get(id(x), x) for x in node.outputs]
        else:
            outputs = _made(operation, args, kwargs, node.outputs)
        tensors.update((id(own), new) for own, new in zip(node.outputs, outputs, strict=True))
        if nested is None and hasattr(operation, "weights"):
            # An input layer's node has no inputs.
            first = entering[0] if entering else outputs[0]
            yield LayerCall(
                operation,
                tuple(first.shape),
                tuple(outputs[0].shape),
                tuple(consumers.get(id(node.outputs[0]), ())),
                batch,
                tuple(args),
                kwargs,
            )
    return [tensors[id(x)] for x in graph.outputs]


def _made(operation: Any, args: Any, kwargs: Any, declared: Sequence[Any]) -> list[Any]:
    """What a call makes of symbolic tensors; what the graph declares where that doesn't fit."""
    try:
        found = _outputs(operation, args, kwargs)
    # A layer's own code, which may fail in any way where a size is another than it was written for.
    except Exception:
        return list(declared)
    fits = len(found) == len(declared) and all(
        hasattr(new, "shape") and _agree(new.shape, own.shape)
        for new, own in zip(found, declared, strict=True)
    )
    return found if fits else list(declared)


def _agree(shape: Sequence[int | None], declared: Sequence[int | None]) -> bool:
    return len(shape) == len(declared) and all(
        None in (size, own) or size == own
        for size, own in zip(shape[1:], declared[1:], strict=True)
    )


def _of_one_sample(tensor: Any) -> Any:
    shape = tuple(tensor.shape)
    # One sample, not two: what a model computes of its weights alone is computed once.
    return _like(tensor, (1, *shape[1:]) if shape and shape[0] is None else shape)


def _fitted(given: Any, own: Any) -> Any:
    """A tensor as the model that takes it sees it: Keras adds or drops a last axis of 1."""
    shape = tuple(given.shape)
    if len(shape) == len(own.shape) - 1 and own.shape[-1] == 1:
        shape = (*shape, 1)
    elif len(shape) == len(own.shape) + 1 and shape[-1] == 1:
        shape = shape[:-1]
    return _like(own, shape)


def _like(tensor: Any, shape: tuple[int | None, ...]) -> Any:
    return keras.KerasTensor(shape, dtype=tensor.dtype, sparse=getattr(tensor, "sparse", False))


def _tensors(structure: Any) -> list[Any]:
    return [x for x in keras.tree.flatten(structure) if isinstance(x, keras.KerasTensor)]
