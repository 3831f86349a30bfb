"""Follow every channel through a model's graph: who makes it, who reads it, what it is tied to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from dprp_tf.channels.attending import attended, contracted, repeated_along
from dprp_tf.channels.labels import LabelArray, Labels, along, collapsed, expanded
from dprp_tf.keras_internals.flat_graph import FlatGraph, Step
from dprp_tf.keras_internals.graphs import computes_as_keras
from dprp_tf.keras_internals.layer_kinds import (
    CONVOLUTIONS,
    DEPTHWISE,
    GLOBAL_POOLINGS,
    NOISES,
    POOLINGS,
    RECURRENT,
    SEPARABLE,
    TRANSPOSED,
)
from dprp_tf.layers import FactorizedLayer, SVDRecurrent

__all__ = ["Followed", "LayerChannels", "Resized", "follow", "is_channelwise_activation"]

_LAYERS = keras.layers
# Each entry by itself, or each channel by itself with the others' places unchanged.
_CHANNELWISE = (
    _LAYERS.ReLU,
    _LAYERS.LeakyReLU,
    _LAYERS.ELU,
    _LAYERS.Identity,
    _LAYERS.ActivityRegularization,
    *NOISES,
)
# The same, where nothing else varies along the axes of the window.
_SPATIAL = (
    _LAYERS.UpSampling1D,
    _LAYERS.UpSampling2D,
    _LAYERS.UpSampling3D,
    _LAYERS.Cropping1D,
    _LAYERS.Cropping2D,
    _LAYERS.Cropping3D,
    _LAYERS.Resizing,
    _LAYERS.CenterCrop,
    *POOLINGS,
)
_JOINS = (
    _LAYERS.Add,
    _LAYERS.Subtract,
    _LAYERS.Multiply,
    _LAYERS.Average,
    _LAYERS.Maximum,
    _LAYERS.Minimum,
)
_ACROSS = (
    _LAYERS.LayerNormalization,
    _LAYERS.GroupNormalization,
    _LAYERS.UnitNormalization,
)
# Functions of `keras.ops`, by the names of their classes.
_CHANNELWISE_OPERATIONS = frozenset(
    [
        "Relu",
        "Relu6",
        "Sigmoid",
        "Tanh",
        "Softplus",
        "Softsign",
        "Silu",
        "Gelu",
        "Elu",
        "Selu",
        "LeakyRelu",
        "HardSigmoid",
        "HardSilu",
        "HardTanh",
        "LogSigmoid",
        "Celu",
        "TanhShrink",
        "HardShrink",
        "SoftShrink",
        "Absolute",
        "Abs",
        "Negative",
        "Square",
        "Sqrt",
        "Rsqrt",
        "Exp",
        "Log",
        "Log1p",
        "Expm1",
        "Clip",
        "Cast",
        "Identity",
        "StopGradient",
        "Sign",
        "Floor",
        "Ceil",
        "Round",
        "Reciprocal",
        "Sin",
        "Cos",
        "Erf",
    ]
)
_JOINING_OPERATIONS = frozenset(
    ["Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum", "Power"]
)
_CHANNELWISE_ACTIVATIONS = frozenset(
    [
        "linear",
        "relu",
        "relu6",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "sigmoid",
        "hard_sigmoid",
        "hard_silu",
        "hard_swish",
        "silu",
        "swish",
        "tanh",
        "hard_tanh",
        "softplus",
        "softsign",
        "exponential",
        "mish",
        "log_sigmoid",
        "tanh_shrink",
        "hard_shrink",
        "soft_shrink",
        "squareplus",
        "threshold",
        "sparse_plus",
    ]
)


@dataclass
class LayerChannels:
    """What a layer with weights reads and makes.

    Attributes:
        layer: The layer.
        reads: Labels of the channels that it takes, of shape (channels in,).
        makes: Labels of the channels that it gives, of shape (channels out,).
        produces: Whether the channels that it gives are its own filters'; a layer that treats each
            channel by itself passes them on.
    """

    layer: Any
    reads: LabelArray
    makes: LabelArray
    produces: bool


@dataclass(frozen=True)
class Resized:
    """An operation whose arguments name sizes or places of channels.

    Attributes:
        operation: The layer or operation.
        before: Labels of the tensor that it takes, at full size.
        after: Labels of each tensor that it gives, at full size.
        axis: The axis of a split, 1 or more; None for others.
        padding: Of a padding, its widths before and behind each axis but the batch.
        added: Of a padding, the labels of the zeros there; none where these are no channels.
    """

    operation: Any
    before: LabelArray
    after: tuple[LabelArray, ...]
    axis: int | None = None
    padding: tuple[tuple[int, int], ...] = ()
    added: tuple[tuple[LabelArray, LabelArray], ...] = ()


@dataclass
class Followed:
    """Where every channel of a model goes.

    Attributes:
        graph: The model's graph, nested models inlined.
        labels: Which channels are tied and which must stay.
        layers: What each layer with weights reads and makes, in the order of the calls.
        resized: Operations whose arguments name sizes or places of channels.
        tensors: Labels of each tensor of the graph, by its number.
    """

    graph: FlatGraph
    labels: Labels = field(default_factory=Labels)
    layers: dict[int, LayerChannels] = field(default_factory=dict)
    resized: dict[int, Resized] = field(default_factory=dict)
    tensors: dict[int, LabelArray] = field(default_factory=dict)


def follow(model: keras.Model) -> Followed:
    """Follow every channel through a model.

    Args:
        model: A built Functional or Sequential model.

    Returns:
        Who makes, reads and ties them.

    Raises:
        ValueError: If the model has no graph.

    Example:

    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(4, 3)(inputs)
    >>> found = follow(keras.Model(inputs, keras.layers.Conv2D(2, 1)(x)))
    >>> [(record.reads.size, record.makes.size) for record in found.layers.values()]
    [(3, 4), (4, 2)]
    """
    followed = Followed(FlatGraph(model))
    graph, labels = followed.graph, followed.labels
    for number in graph.inputs:
        followed.tensors[number] = _one_label(labels, graph.symbols[number], "a model input")
    for step in graph.steps:
        _follow_step(followed, step)
    for number in graph.outputs:
        labels.pin(followed.tensors[number], "a model output")
    return followed


def is_channelwise_activation(activation: Any) -> bool:
    """Say whether an activation works on each channel by itself.

    Args:
        activation: A layer's `activation`.

    Returns:
        False for a softmax and for what is not known.
    """
    if activation is None:
        return True
    if isinstance(activation, _LAYERS.Layer):
        return isinstance(activation, _CHANNELWISE)
    name = getattr(activation, "__name__", "")
    return name in _CHANNELWISE_ACTIVATIONS and getattr(keras.activations, name, None) is activation


def _follow_step(followed: Followed, step: Step) -> None:
    before = [followed.tensors[number] for number in step.inputs]
    shapes = [tuple(followed.graph.symbols[number].shape[1:]) for number in step.inputs]
    rule = _rule(step.operation)
    after = None if rule is None else rule(followed, step, before, shapes)
    if after is None:
        for labels in before:
            followed.labels.pin(labels, f"{_named(step.operation)} may mix its channels")
        after = [
            _one_label(
                followed.labels, followed.graph.symbols[number], f"made by {_named(step.operation)}"
            )
            for number in step.outputs
        ]
    followed.tensors.update(zip(step.outputs, after, strict=True))


def _named(operation: Any) -> str:
    return f"{operation.name!r} ({type(operation).__name__})"


def _one_label(labels: Labels, tensor: Any, reason: str) -> LabelArray:
    label = labels.fresh(1)
    labels.pin(label, reason)
    return label.reshape((1,) * max(len(tensor.shape) - 1, 0))


_Shapes = list[tuple[int | None, ...]]
_Rule = Callable[[Followed, Step, list[LabelArray], _Shapes], "list[LabelArray] | None"]


def _rule(operation: Any) -> _Rule | None:
    if isinstance(operation, FactorizedLayer):
        return _recurrent if isinstance(operation, SVDRecurrent) else _through_filters
    if isinstance(operation, keras.layers.Layer):
        if not computes_as_keras(operation) or getattr(operation, "quantization_mode", None):
            return None
        if getattr(operation, "stateful", False):
            return None  # its state would have to follow
        if type(operation).__name__ == "CustomScaleLayer":
            return _joined  # of keras.applications: one input plus a share of the other
        return next((rule for kinds, rule in _LAYER_RULES if isinstance(operation, kinds)), None)
    name = type(operation).__name__
    if not type(operation).__module__.startswith("keras.src.ops"):
        return None
    return _OPERATION_RULES.get(name)


def _channelwise(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    return before if len(before) == 1 and len(step.outputs) == 1 else None


def _activation(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    known = is_channelwise_activation(step.operation.activation)
    return _channelwise(followed, step, before, shapes) if known else None


def _scaled(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    plain = np.ndim(step.operation.scale) == np.ndim(step.operation.offset) == 0
    return before if plain else None


def _channel_axis(layer: Any, rank: int) -> int:
    """The axis of the channels, the batch being axis 0, of a tensor of that many axes."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1


def _spatial(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    channel = _channel_axis(step.operation, before[0].ndim + 1) - 1
    varies = any(size > 1 for at, size in enumerate(before[0].shape) if at != channel)
    return None if varies else before


def _global(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    after = _spatial(followed, step, before, shapes)
    if after is None or step.operation.keepdims:
        return after
    return [after[0].reshape(-1)]


def _across(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    followed.labels.pin(before[0], f"{_named(step.operation)} works across channels")
    return before


def _softmax(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    """Along an axis of no channels, as the keys of attention, each channel is by itself."""
    axes = step.operation.axis
    axes = [axes] if isinstance(axes, int) else list(axes)
    if any(before[0].shape[axis if axis < 0 else axis - 1] > 1 for axis in axes):
        return _across(followed, step, before[:1], shapes)
    # A mask that differs along an axis of channels would have to lose as many.
    varying = [at for at, size in enumerate(before[0].shape) if size > 1]
    if any(_differs(shape, before[0].ndim, varying) for shape in shapes[1:]):
        return None
    if any(_differs(np.shape(x), before[0].ndim, varying) for x in step.constants):
        return None
    return before[:1]


def _differs(shape: tuple[int | None, ...], ndim: int, axes: list[int]) -> bool:
    """Whether a tensor that is broadcast to one of `ndim` axes has sizes along some of them."""
    own = [at - ndim + len(shape) for at in axes]
    return any(at >= 0 and shape[at] != 1 for at in own)


def _attended(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    # A mask that is no tensor of the graph may differ by head.
    if any(np.ndim(x) >= 3 and np.shape(x)[-3] > 1 for x in step.constants):
        return None
    return attended(followed.labels, before, shapes)


def _contracted(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    return contracted(followed.labels, step.operation.subscripts, before, shapes)


def _repeated_along(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    return repeated_along(step.operation, before)


def _recorded(
    followed: Followed, layer: Any, reads: LabelArray, makes: Callable[[], LabelArray], own: bool
) -> LabelArray:
    """Note a call of a layer with weights; a layer called again makes what it made before."""
    record = followed.layers.get(id(layer))
    if record is None:
        record = LayerChannels(layer, reads, makes(), own)
        followed.layers[id(layer)] = record
    else:
        followed.labels.tie(record.reads, reads)
    return record.makes


def _read(
    followed: Followed, step: Step, labels: LabelArray, shape: tuple[int | None, ...], axis: int
) -> LabelArray | None:
    size = shape[axis - 1]
    found = None if size is None else along(labels, axis, int(size))
    if found is None:
        followed.labels.pin(labels, f"{_named(step.operation)} reads it as more than channels")
    return found


def _placed(labels: LabelArray, ndim: int, axis: int) -> LabelArray:
    """Labels (channels,) as those of a tensor of that many axes beside the batch."""
    shape = [1] * ndim
    shape[axis - 1] = labels.size
    return labels.reshape(shape)


def _through_filters(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    layer = step.operation
    rank = before[0].ndim + 1
    axis = _channel_axis(layer, rank)
    reads = _read(followed, step, before[0], shapes[0], axis)
    if reads is None or getattr(layer, "lora_enabled", False):
        return None
    labels = followed.labels
    filters = followed.graph.symbols[step.outputs[0]].shape[axis]
    groups = getattr(layer, "groups", 1) or 1
    # With one group for each channel it passes them on, each several times.
    passes = isinstance(layer, DEPTHWISE) or 1 < groups == reads.size

    def make() -> LabelArray:
        if passes:
            return np.repeat(reads, filters // reads.size)
        made = labels.fresh(filters)
        _tie_groups(labels, made, groups)
        return made

    if not passes:
        _tie_groups(labels, reads, groups)
    made = _recorded(followed, layer, reads, make, own=not passes)
    if not is_channelwise_activation(layer.activation):
        labels.pin(made, f"the activation of {_named(layer)} may mix its channels")
    return [_placed(made, rank - 1, axis)]


def _recurrent(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    """It reads channels; its own units feed each other from step to step, and stay."""
    layer = step.operation
    reads = _read(followed, step, before[0], shapes[0], before[0].ndim)
    if reads is None:
        return None
    for states in before[1:]:
        followed.labels.pin(states, f"{_named(layer)} takes it as a state")

    def make() -> LabelArray:
        made = followed.labels.fresh(layer.units)
        followed.labels.pin(made, f"the units of {_named(layer)} feed each other")
        return made

    made = _recorded(followed, layer, reads, make, own=True)
    sizes = (len(followed.graph.symbols[number].shape) - 1 for number in step.outputs)
    return [made.reshape((1,) * (ndim - 1) + (-1,)) for ndim in sizes]


def _tie_groups(labels: Labels, channels: LabelArray, groups: int) -> None:
    """What goes must leave every group alike, so the same place goes in each."""
    if groups > 1:
        by_group = channels.reshape(groups, -1)
        labels.tie(by_group, by_group[:1])


def _by_channel(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes, axis: int
) -> list[LabelArray] | None:
    """A layer with weights for each channel along an axis, 1 or more, which it passes on."""
    reads = _read(followed, step, before[0], shapes[0], axis)
    if reads is None:
        return None
    _recorded(followed, step.operation, reads, lambda: reads, own=False)
    return before


def _normalized(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    axis = step.operation.axis
    axis = axis if axis > 0 else before[0].ndim + 1 + axis
    return _by_channel(followed, step, before, shapes, axis)


def _parametric(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    """PReLU, whose slopes may be shared along axes, the channels' among them."""
    last = before[0].ndim
    shared = {axis if axis > 0 else last + 1 + axis for axis in step.operation.shared_axes or ()}
    return before if last in shared else _by_channel(followed, step, before, shapes, last)


def _joined(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    # An argument that is no tensor of the graph, such as an array, may differ by channel.
    if len({labels.ndim for labels in before}) != 1 or any(np.ndim(x) for x in step.constants):
        return None
    whole = []
    for labels, shape in zip(before, shapes, strict=True):
        repeated = any(
            size == 1
            and any(other[at] != 1 for other in shapes)
            and any(other.shape[at] > 1 for other in before)
            for at, size in enumerate(shape)
        )
        if repeated:
            followed.labels.pin(labels, f"{_named(step.operation)} repeats it for other channels")
        else:
            whole.append(labels)
    if not whole:
        return None
    for labels in whole[1:]:
        followed.labels.tie(whole[0], labels)
    return [np.array(np.broadcast_arrays(*whole)[0])]


def _concatenated(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    axis = step.operation.axis
    axis = axis - 1 if axis > 0 else before[0].ndim + axis
    if axis < 0 or axis >= before[0].ndim:
        return None
    if all(labels.shape[axis] == 1 for labels in before):
        # Side by side along another axis than that of the channels.
        for labels in before[1:]:
            followed.labels.tie(before[0], labels)
        return [np.array(np.broadcast_arrays(*before)[0])]
    others = [max(labels.shape[at] for labels in before) for at in range(before[0].ndim)]
    parts = []
    for labels, shape in zip(before, shapes, strict=True):
        if shape[axis] is None:
            return None
        sizes = [*others[:axis], int(shape[axis] or 0), *others[axis + 1 :]]
        parts.append(np.broadcast_to(labels, sizes))
    return [np.concatenate(parts, axis=axis)]


def _reshaped(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    after = tuple(followed.graph.symbols[step.outputs[0]].shape[1:])
    labels = before[0]
    if all(size == 1 for size in labels.shape):
        return [labels.reshape((1,) * len(after))]
    unknown = any(size is None for size in after)
    stays = None if unknown else _beside_places(labels, shapes[0], after)
    if stays is not None:
        # Places among each other, or into the batch and out of it, beside what has channels.
        placed = np.broadcast_to(stays, after)
        followed.resized[id(step.operation)] = Resized(step.operation, labels, (placed,))
        return [stays]
    full = expanded(labels, shapes[0])
    if full is None or unknown or full.size != np.prod(after):
        return None
    if isinstance(step.operation, _LAYERS.Flatten) and (
        step.operation.data_format == "channels_first" and full.ndim > 1
    ):
        full = np.moveaxis(full, 0, -1)
    placed = full.reshape(after)
    followed.resized[id(step.operation)] = Resized(step.operation, full, (placed,))
    return [collapsed(placed)]


def _beside_places(
    labels: LabelArray, before: tuple[int | None, ...], after: tuple[int | None, ...]
) -> LabelArray | None:
    """Labels behind a reshape that leaves the last axes, all that have channels, as they are."""
    varying = [at for at, size in enumerate(labels.shape) if size > 1]
    kept = labels.ndim - min(varying, default=labels.ndim - 1)
    if not 0 < kept <= len(after) or before[-kept:] != after[-kept:]:
        return None
    own = labels.reshape(labels.shape[-kept:])
    return own.reshape((1,) * (len(after) - kept) + own.shape)


def _permuted(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    operation = step.operation
    if isinstance(operation, _LAYERS.Permute):
        order = [axis - 1 for axis in operation.dims]
    else:
        axes = operation.axes
        if axes is None or axes[0] != 0:
            return None
        order = [(axis if axis >= 0 else len(axes) + axis) - 1 for axis in axes[1:]]
    return [before[0].transpose(order)]


def _repeated(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    return [before[0][None]]


def _padded(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    """Zeros beside channels are channels too: a shortcut that is widened by them has such."""
    labels, widths = before[0], _widths(step.operation, before[0].ndim)
    if widths is None:
        return None
    added = []
    for axis, width in enumerate(widths):
        if labels.shape[axis] == 1:
            added.append((labels[:0], labels[:0]))
            continue
        if any(size > 1 for at, size in enumerate(labels.shape) if at != axis):
            return None
        before_it, behind_it = (followed.labels.fresh(count) for count in width)
        added.append((before_it, behind_it))
        sides = (_placed(zeros, labels.ndim, axis + 1) for zeros in added[-1])
        labels = np.concatenate([next(sides), labels, next(sides)], axis=axis)
    if labels is not before[0]:
        operation = step.operation
        followed.resized[id(operation)] = Resized(
            operation, before[0], (labels,), padding=tuple(widths), added=tuple(added)
        )
    return [labels]


def _widths(operation: Any, ndim: int) -> list[tuple[int, int]] | None:
    """The widths of a padding with zeros, before and behind each axis but the batch."""
    if isinstance(operation, _LAYERS.Layer):
        given = operation.padding
        pairs = [given] if isinstance(given[0], int) else [tuple(pair) for pair in given]
        first = getattr(operation, "data_format", None) == "channels_first"
        return [(0, 0), *pairs] if first else [*pairs, (0, 0)]
    widths = [tuple(pair) for pair in operation.pad_width]
    if operation.mode != "constant" or len(widths) != ndim + 1 or widths[0] != (0, 0):
        return None
    return widths[1:]


def _reduced(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    operation, ndim = step.operation, before[0].ndim
    axes = operation.axis
    if axes is None:
        return None
    axes = [axes] if isinstance(axes, int) else list(axes)
    places = {(axis if axis >= 0 else ndim + 1 + axis) - 1 for axis in axes}
    if -1 in places or any(before[0].shape[at] > 1 for at in places):
        return None
    if operation.keepdims:
        return before
    return [np.squeeze(before[0], axis=tuple(places))]


def _split(
    followed: Followed, step: Step, before: list[LabelArray], shapes: _Shapes
) -> list[LabelArray] | None:
    labels, axis = before[0], step.operation.axis
    axis = axis - 1 if axis > 0 else labels.ndim + axis
    if not 0 <= axis < labels.ndim:
        return None
    if labels.shape[axis] == 1:
        return [labels] * len(step.outputs)
    sizes = [int(followed.graph.symbols[number].shape[axis + 1]) for number in step.outputs]
    parts = tuple(np.split(labels, np.cumsum(sizes)[:-1], axis=axis))
    followed.resized[id(step.operation)] = Resized(step.operation, labels, parts, axis + 1)
    return list(parts)


_LAYER_RULES: list[tuple[tuple[type, ...], _Rule]] = [
    (_CHANNELWISE, _channelwise),
    ((_LAYERS.Activation,), _activation),
    ((_LAYERS.Rescaling,), _scaled),
    (_SPATIAL, _spatial),
    (GLOBAL_POOLINGS, _global),
    ((_LAYERS.ZeroPadding1D, _LAYERS.ZeroPadding2D, _LAYERS.ZeroPadding3D), _padded),
    (_ACROSS, _across),
    ((_LAYERS.Softmax,), _softmax),
    (
        (*CONVOLUTIONS, *TRANSPOSED, *DEPTHWISE, *SEPARABLE, _LAYERS.Dense),
        _through_filters,
    ),
    (RECURRENT, _recurrent),
    ((_LAYERS.BatchNormalization,), _normalized),
    ((_LAYERS.PReLU,), _parametric),
    (_JOINS, _joined),
    ((_LAYERS.Concatenate,), _concatenated),
    ((_LAYERS.Flatten, _LAYERS.Reshape), _reshaped),
    ((_LAYERS.Permute,), _permuted),
    ((_LAYERS.RepeatVector,), _repeated),
]
_OPERATION_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_CHANNELWISE_OPERATIONS, _channelwise),
    **dict.fromkeys(_JOINING_OPERATIONS, _joined),
    **dict.fromkeys(("Mean", "Max", "Min", "Sum"), _reduced),
    "Concatenate": _concatenated,
    "Pad": _padded,
    "Reshape": _reshaped,
    "Transpose": _permuted,
    "Split": _split,
    "DotProductAttention": _attended,
    "Einsum": _contracted,
    "Repeat": _repeated_along,
}
