"""The multiply-accumulates of one call of a layer, by what the layer is; None if not known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import keras

from dprp_tf.keras_internals.graphs import computes_as_keras, graph_of, layers_inside
from dprp_tf.keras_internals.inner_calls import inner_calls
from dprp_tf.keras_internals.layer_calls import LayerCall, call_on, layer_calls
from dprp_tf.keras_internals.layer_kinds import RECURRENT, TRANSPOSED
from dprp_tf.layers.factorized import FactorizedLayer

__all__ = ["call_macs", "sum_of_known"]

_Pair = tuple[int | None, int | None]
_UNKNOWN: _Pair = (None, None)


def call_macs(call: LayerCall) -> _Pair:
    """Return the MACs of one call of a layer: as it is, and of the dense layer it stands for.

    Only products with a kernel count. A layer that holds others is run on symbolic tensors, and
    the calls that it makes of them are counted. What holds a weight of two axes or more that
    none of those calls accounts for is not known, whatever the weight's name.

    Args:
        call: The call.

    Returns:
        Both for one sample; None where they are not known.

    Example:

    >>> layer = keras.layers.Conv2D(4, 3)
    >>> layer.build((None, 8, 8, 3))
    >>> call_macs(LayerCall(layer, (1, 8, 8, 3), (1, 6, 6, 4)))
    (3888, 3888)
    """
    layer = call.layer
    if isinstance(layer, FactorizedLayer):
        dense = _of_factorized(call)
        return (None if dense is None else dense + layer.rebuild_macs), dense
    if graph_of(layer) is not None:
        return _inside_graph(call)
    if computes_as_keras(layer):
        for kinds, container in _CONTAINERS:
            if isinstance(layer, kinds):
                return container(call)
        for kinds, count in _COUNTS:
            if isinstance(layer, kinds):
                return (count(call),) * 2
        if isinstance(layer, _OPAQUE):
            return _UNKNOWN
    if len(layers_inside(layer)) > 1:
        return _inside(call)
    return _UNKNOWN if _matrices(layer) else (0, 0)


def sum_of_known(values: Iterable[int | None]) -> int | None:
    """Return a sum, None if one of the values is.

    Args:
        values: Numbers, None for one that is not known.

    Returns:
        Their sum.

    Example:

    >>> sum_of_known([1, 2]), sum_of_known([1, None])
    (3, None)
    """
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _total(calls: Iterable[LayerCall]) -> _Pair:
    pairs = [call_macs(call) for call in calls]
    return sum_of_known(pair[0] for pair in pairs), sum_of_known(pair[1] for pair in pairs)


def _inside_graph(call: LayerCall) -> _Pair:
    """A nested model that another layer calls: its graph at the sizes it is called with."""
    options = {name: value for name, value in call.kwargs.items() if name != "mask"}
    given = [
        x for x in keras.tree.flatten((call.args, options)) if isinstance(x, keras.KerasTensor)
    ]
    if len(given) != len(graph_of(call.layer).inputs):
        return _UNKNOWN
    return _total(layer_calls(call.layer, given, call.batch))


def _inside(call: LayerCall) -> _Pair:
    """A layer that holds others: what it calls of them, if that is where its weights are used."""
    if not _matrices(call.layer):
        return 0, 0
    calls = inner_calls(call)
    if calls is None:
        return _UNKNOWN
    used = {id(weight) for inner in calls for weight in inner.layer.weights}
    if any(id(weight) not in used for weight in _matrices(call.layer)):
        return _UNKNOWN
    return _total(calls)


def _matrices(layer: Any) -> list[Any]:
    """Weights that may be multiplied with what passes; those of one axis scale or shift it."""
    return [weight for weight in layer.weights if len(weight.shape) > 1]


def _spatial(layer: Any, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """The sizes of all axes but the first and the channels."""
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return shape[2:] if first else shape[1:-1]


def _times(*sizes: int | None) -> int | None:
    return None if None in sizes else math.prod(int(size or 0) for size in sizes)


def _entries(layer: Any) -> int:
    names = ("kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel")
    return sum(math.prod(weight.shape) for weight in layer.weights if weight.name in names)


def _by_output(call: LayerCall, entries: int) -> int | None:
    return _times(call.repeats, *_spatial(call.layer, call.output_shape), entries)


def _of_factorized(call: LayerCall) -> int | None:
    """Those of the dense layer that a low-rank one stands for."""
    entries = math.prod(call.layer.kernel_shape)
    kind = call.layer.stands_for
    if issubclass(kind, RECURRENT):
        return _times(call.repeats, call.input_shape[1], entries + _entries(call.layer))
    if issubclass(kind, TRANSPOSED):
        return _times(call.repeats, *_spatial(call.layer, call.input_shape), entries)
    return _by_output(call, entries)


def _convolution(call: LayerCall) -> int | None:
    return _by_output(call, _entries(call.layer))


def _transposed(call: LayerCall) -> int | None:
    """Each input position meets each kernel entry once."""
    return _times(call.repeats, *_spatial(call.layer, call.input_shape), _entries(call.layer))


def _dense(call: LayerCall) -> int | None:
    # By its units: a kernel quantized to 4 bits is packed.
    return _times(call.repeats, *call.input_shape[1:], call.layer.units)


def _einsum(call: LayerCall) -> int | None:
    """One per combination of the axes of input and kernel, whether kept or summed over."""
    operands = call.layer.equation.replace(" ", "").split("->")[0]
    given, kernel = operands.split(",")
    own = [n for axis, n in zip(kernel, call.layer.kernel.shape, strict=True) if axis not in given]
    return _times(call.repeats, *call.input_shape[1:], *own)


def _embedding(call: LayerCall) -> int | None:
    """A table is looked up; one that is called in reverse is a dense layer."""
    if not call.kwargs.get("reverse") and True not in call.args[1:]:
        return 0
    return _times(call.repeats, *call.input_shape[1:], call.layer.input_dim)


def _recurrent(call: LayerCall) -> int | None:
    """Each step spends the kernels of the cells once."""
    cell = call.layer.cell
    cells = cell.cells if isinstance(cell, keras.layers.StackedRNNCells) else [cell]
    entries = 0
    for part in cells:
        if isinstance(part, _CELLS) and computes_as_keras(part):
            entries += _entries(part)
        elif not isinstance(part, keras.layers.Layer) or _matrices(part):
            return None
    return _times(call.repeats, call.input_shape[1], entries)


def _recurrent_convolution(call: LayerCall) -> int | None:
    """Each step spends both kernels of the cell at each position of its state."""
    layer = call.layer
    shape = call.output_shape
    state = (shape[0], *shape[2:]) if layer.return_sequences else shape
    steps = call.input_shape[1]
    return _times(call.repeats, steps, *_spatial(layer, state), _entries(layer.cell))


def _both_ways(call: LayerCall) -> _Pair:
    layer = call.layer
    given = call.args[0] if call.args else keras.KerasTensor(call.input_shape)
    pairs = [_held(part, given, call.batch) for part in (layer.forward_layer, layer.backward_layer)]
    return sum_of_known(pair[0] for pair in pairs), sum_of_known(pair[1] for pair in pairs)


def _each_step(call: LayerCall) -> _Pair:
    """The layer inside sees each step as a row of the batch."""
    rows, steps, *rest = call.input_shape
    if rows is None or steps is None:
        return _UNKNOWN if _matrices(call.layer) else (0, 0)
    dtype = call.args[0].dtype if call.args else "float32"
    inside = keras.KerasTensor((rows * steps, *rest), dtype=dtype)
    return _held(call.layer.layer, inside, call.batch)


def _normalized_kernel(call: LayerCall) -> _Pair:
    # Its vector is used while training alone.
    given = call.args[0] if call.args else keras.KerasTensor(call.input_shape)
    return _held(call.layer.layer, given, call.batch)


def _held(layer: Any, given: Any, batch: int) -> _Pair:
    """What a wrapper calls of the layer it holds."""
    try:
        call = call_on(layer, [given], {}, batch)
    # A layer's own code, which may fail in any way on a tensor that holds no values.
    except Exception:
        return _UNKNOWN
    return call_macs(call)


_CELLS = (keras.layers.SimpleRNNCell, keras.layers.LSTMCell, keras.layers.GRUCell)
_CONTAINERS: tuple[tuple[Any, Callable[[LayerCall], _Pair]], ...] = (
    (keras.layers.TimeDistributed, _each_step),
    (keras.layers.Bidirectional, _both_ways),
    (keras.layers.SpectralNormalization, _normalized_kernel),
)
_COUNTS: tuple[tuple[Any, Callable[[LayerCall], int | None]], ...] = (
    (
        (
            keras.layers.Conv1D,
            keras.layers.Conv2D,
            keras.layers.Conv3D,
            keras.layers.DepthwiseConv1D,
            keras.layers.DepthwiseConv2D,
            keras.layers.SeparableConv1D,
            keras.layers.SeparableConv2D,
        ),
        _convolution,
    ),
    (
        TRANSPOSED,
        _transposed,
    ),
    (keras.layers.Dense, _dense),
    (keras.layers.EinsumDense, _einsum),
    (keras.layers.Embedding, _embedding),
    (
        (keras.layers.ConvLSTM1D, keras.layers.ConvLSTM2D, keras.layers.ConvLSTM3D),
        _recurrent_convolution,
    ),
    (keras.layers.RNN, _recurrent),
    # Their weights scale and shift entry by entry, however many axes they have.
    (
        (
            keras.layers.BatchNormalization,
            keras.layers.LayerNormalization,
            keras.layers.GroupNormalization,
            keras.layers.RMSNormalization,
            keras.layers.Normalization,
            keras.layers.PReLU,
        ),
        lambda call: 0,
    ),
)
# They run what another framework made; Keras does not know what that multiplies.
_OPAQUE = (
    keras.layers.TFSMLayer,
    keras.layers.JaxLayer,
    keras.layers.FlaxLayer,
    keras.layers.TorchModuleWrapper,
)
