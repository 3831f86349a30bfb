"""Write out layers that keep their kernels to themselves, so that all else can reach these."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import keras

from dprp_tf.conversion.compilation import compiled_like
from dprp_tf.conversion.einsum_forms import EinsumForm, WrittenEinsum, einsum_form
from dprp_tf.conversion.written_attention import WrittenAttention
from dprp_tf.conversion.written_bidirectional import (
    WrittenBidirectional,
    unwritten_bidirectional,
)
from dprp_tf.conversion.written_over_time import WrittenOverTime, unwritten_over_time
from dprp_tf.conversion.written_separable import WrittenSeparable
from dprp_tf.keras_internals.attention_parts import AttentionParts, attention_parts
from dprp_tf.keras_internals.graphs import (
    graph_of,
    layer_keys,
    layers_inside,
    mask_of,
    nodes,
    walk_layers,
)
from dprp_tf.keras_internals.layer_kinds import SEPARABLE
from dprp_tf.keras_internals.opening import opened, symbolic_inputs
from dprp_tf.keras_internals.rewriting import require_graph, rewrite
from dprp_tf.keras_internals.same_settings import is_of_keras
from dprp_tf.layers import FactorizedLayer

__all__ = ["reachable", "unwritten", "write_out"]

_Answer = Callable[..., Any] | str | None


def write_out(model: keras.Model) -> keras.Model:
    """Return a model of plain layers that computes the same, with attention and einsum written out.

    `EinsumDense` becomes a `Dense` layer between changes of shape, and `MultiHeadAttention` and
    `GroupQueryAttention` become the dense layers of their projections, named after the layer and
    the part (`"attention_query"`), and the operations between them. A `Bidirectional` layer becomes
    one recurrent layer each way and how they are joined, a separable convolution its two parts, and
    what `TimeDistributed` applies to each step is applied to all steps at once. Layers of one's own
    that hold layers, such as the blocks of a transformer, become nested models of what they hold,
    where their `call` is made of layers and `keras.ops`. Every function of this package then
    reaches their kernels: ranks, quantization, export. The model trains as before, but that a batch
    normalization inside `TimeDistributed` sees all steps of a batch together; regularizers, dropout
    and what is frozen stay.

    Args:
        model: A built Functional or Sequential model; it stays as it is.

    Returns:
        The model, compiled with the loss and metrics of the one given if they are Keras' own; of a
        model with nothing to write out a copy.

    Raises:
        ValueError: If the model has no graph, or a layer can't be copied.

    Source: ours; what attention computes is Vaswani et al. 2017 (arXiv 1706.03762).

    Example:

    >>> x = keras.Input((5, 8))
    >>> attention = keras.layers.MultiHeadAttention(2, key_dim=4, name="attention")
    >>> plain = write_out(keras.Model(x, attention(x, x)))
    >>> [layer.name for layer in plain.layers if isinstance(layer, keras.layers.Dense)]
    ['attention_query', 'attention_key', 'attention_value', 'attention_output']
    """
    require_graph(model)
    return compiled_like(_written(model, _answers(model)), model)


def _written(
    model: keras.Model, answers: dict[int, _Answer], *, take_over: bool = False
) -> keras.Model:
    def replace(operation: Any) -> Any:
        answer = answers.get(id(operation))
        return None if isinstance(answer, str) else answer

    return rewrite(model, replace, take_over=take_over)


def reachable(model: keras.Model) -> keras.Model:
    """Return a model with attention and einsum written out; itself where there is nothing to write.

    Args:
        model: Any Keras model.

    Returns:
        What `write_out` returns, or the model.

    Example:

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> reachable(model) is model
    True
    """
    # Blocks are opened once, to see whether they can be and to be written.
    answers = {} if graph_of(model) is None else _answers(model)
    if not any(map(callable, answers.values())):
        return model
    return compiled_like(_written(model, answers), model)


def unwritten(model: keras.Model) -> dict[str, str]:
    """Return the layers that `write_out` leaves, though they are of kinds that it writes out.

    Args:
        model: A built Functional or Sequential model.

    Returns:
        Why, by the layer's name or path.

    Raises:
        ValueError: If the model has no graph.

    Example:

    >>> x = keras.Input((5, 8))
    >>> own = keras.layers.EinsumDense("abc,bcd->abd", output_shape=(5, 4), name="own")
    >>> unwritten(keras.Model(x, own(x)))
    {'own': "its kernel has a matrix for each place of an axis that stays ('b')"}
    """
    require_graph(model)
    answers = _answers(model)
    return {
        key: answer
        for key, layer in layer_keys(model).items()
        if isinstance(answer := answers.get(id(layer)), str)
    }


def _answers(model: keras.Model, *, take_over: bool = False) -> dict[int, _Answer]:
    """By layer what stands for it, or why nothing does."""
    found: dict[int, _Answer] = {}
    taken = {layer.name for layer in walk_layers(model)}
    containers = [model]
    while containers:
        container = containers.pop()
        for node in nodes(graph_of(container)):
            layer = node.operation
            if node.is_input:
                continue
            if graph_of(layer) is not None:
                containers.append(layer)
            elif isinstance(layer, keras.layers.Layer) and not isinstance(
                found.get(id(layer)), str
            ):
                # One call that can't be written out keeps the layer for all its calls.
                known = found.get(id(layer))
                if isinstance(known, _Opened):
                    if not known.fits(node):
                        found[id(layer)] = "it is called in different ways"
                    continue
                answer = _answer(layer, node, taken, take_over)
                if isinstance(answer, str) or known is None:
                    found[id(layer)] = answer
    return found


def _answer(
    layer: keras.layers.Layer, node: Any, taken: Collection[str], take_over: bool
) -> _Answer:
    if _holds_kernels(layer):
        try:
            told = node.arguments
            return _Opened(opened(layer, told.args, told.kwargs, take_over=take_over), node)
        except ValueError as error:
            return str(error)
    if type(layer) is keras.layers.EinsumDense:
        form = _form(layer, tuple(node.input_tensors[0].shape))
        return form if isinstance(form, str) else WrittenEinsum(layer, form)
    if type(layer) is keras.layers.TimeDistributed:
        return unwritten_over_time(layer, node) or WrittenOverTime(layer)
    if type(layer) is keras.layers.Bidirectional:
        return unwritten_bidirectional(layer, node) or WrittenBidirectional(layer, taken)
    if type(layer) in SEPARABLE:
        return WrittenSeparable(layer, taken)
    parts = attention_parts(layer)
    return None if parts is None else _attention(layer, parts, node)


def _form(layer: keras.layers.EinsumDense, shape: tuple[int | None, ...]) -> EinsumForm | str:
    if getattr(layer, "lora_enabled", False):
        return "LoRA is enabled on it"
    if getattr(layer, "quantization_mode", None) is not None:
        return f"quantized ({layer.quantization_mode})"
    if layer.kernel_constraint is not None or layer.bias_constraint is not None:
        return "a constraint holds its weights as they are shaped"
    if layer.activity_regularizer is not None:
        return "its outputs are regularized as they are shaped"
    if isinstance(layer.activation, keras.layers.Layer):
        return f"its activation is a {type(layer.activation).__name__} layer"
    return einsum_form(layer, shape)


def _attention(layer: keras.layers.Layer, parts: AttentionParts, node: Any) -> _Answer:
    if any(mask_of(tensor) is not None for tensor in node.input_tensors):
        return "its inputs carry masks, as behind a Masking layer or an embedding with mask_zero"
    arguments = node.arguments
    given = dict(zip(("query", "value", "key"), arguments.args, strict=False)) | arguments.kwargs
    query, value = given["query"], given["value"]
    key = given.get("key")
    key = value if key is None else key
    if any(len(tensor.shape) != 3 for tensor in (query, value, key)):
        return "its sequences have more than one axis"
    unknown = query.shape[1] is None or value.shape[1] is None
    if unknown and (parts.window is not None or given.get("use_causal_mask")):
        return "a causal mask or window over sequences of unknown length"
    heads = parts.query.kernel.shape[1]
    attended = (*query.shape[:2], heads, parts.value.kernel.shape[-1])
    shapes = {
        "query": query.shape,
        "key": key.shape,
        "value": value.shape,
        "output": attended,
        **({} if parts.gate is None else {"gate": query.shape}),
    }
    forms: dict[str, EinsumForm] = {}
    for part, shape in shapes.items():
        form = _form(getattr(parts, part), tuple(shape))
        if isinstance(form, str):
            return f"{part}: {form}"
        forms[part] = form
    return WrittenAttention(layer, parts, forms)


def _holds_kernels(layer: keras.layers.Layer) -> bool:
    """Whether it is a layer of someone's own whose kernels are those of layers inside it."""
    if is_of_keras(layer) or isinstance(layer, FactorizedLayer):
        return False
    parts = layers_inside(layer, include_self=False)
    return any(len(weight.shape) > 1 for part in parts for weight in part.trainable_weights)


class _Opened:
    """A layer as a nested model of what it holds, in which all is written out in turn."""

    def __init__(self, graph: keras.Model, node: Any) -> None:
        self._graph = graph
        self._made: keras.Model | None = None
        self._told = _beside_tensors(node.arguments.args, node.arguments.kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._made is None:
            answers = _answers(self._graph, take_over=True)
            self._made = _written(self._graph, answers, take_over=True)
        tensors = symbolic_inputs((args, kwargs))
        return self._made(tensors if len(tensors) > 1 else tensors[0])

    def fits(self, node: Any) -> bool:
        """Whether another call is given the same but for the tensors."""
        return self._told == _beside_tensors(node.arguments.args, node.arguments.kwargs)


def _beside_tensors(args: Any, kwargs: Any) -> str:
    tensors = {id(tensor) for tensor in symbolic_inputs((args, kwargs))}
    return repr(
        keras.tree.map_structure(
            lambda leaf: "tensor" if id(leaf) in tensors else leaf, (args, kwargs)
        )
    )
