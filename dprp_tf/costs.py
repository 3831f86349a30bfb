"""What a layer and a model cost: parameters, MACs, and the rank at which factors pay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dprp_tf import factorization
from dprp_tf.graphs import graph_of, layer_keys

__all__ = [
    "LayerCall",
    "LayerCost",
    "ModelCost",
    "break_even_rank",
    "factor_parameters",
    "layer_calls",
    "model_cost",
    "two_stage_effort",
    "two_stage_kernels",
    "two_stage_parameters",
]


def factor_parameters(kernel_shape: Sequence[int], matricization: str, rank: int) -> int:
    """Return r (h + w + 1), the weights of the factors U (h, r), s (r,), V (w, r) in training.

    Args:
        kernel_shape: Keras kernel shape.
        matricization: `"spatial"`, `"channel"` or `"separable"`.
        rank: Number of singular values r.

    Returns:
        The number of weights, without bias.

    Source: DPRP (arXiv 2401.08014) Eq. 4 and 7.

    Example:

    >>> factor_parameters((3, 3, 16, 16), "spatial", 9)
    2394
    """
    height, width = factorization.matrix_shape(kernel_shape, matricization)
    return rank * (height + width + 1)


def break_even_rank(kernel_shape: Sequence[int], matricization: str) -> int:
    """Return the largest rank whose factors weigh no more than the kernel; 0 if none does.

    r <= h w / (h + w + 1).

    Args:
        kernel_shape: Keras kernel shape.
        matricization: `"spatial"`, `"channel"` or `"separable"`.

    Returns:
        The rank.

    Source: DPRP (arXiv 2401.08014) Eq. 3 and 6.

    Example:

    >>> break_even_rank((3, 3, 16, 16), "spatial")
    8
    """
    height, width = factorization.matrix_shape(kernel_shape, matricization)
    return (height * width) // (height + width + 1)


def two_stage_kernels(
    kernel_shape: Sequence[int], matricization: str, rank: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the kernel shapes of the two plain convolutions a layer of this rank folds into.

    With C channels and S filters: `spatial` gives r depthwise filters shared by all channels,
    stored once per channel, (*kernel_size, C, r), then a pointwise (C*r, S); `channel` gives
    (*kernel_size, C, r) then (r, S); `separable` gives (*leading axes, 1, C, r) then
    (1, ..., last axis, r, S). Dense and pointwise kernels give (D_in, r) then (r, D_out).

    Args:
        kernel_shape: Keras kernel shape.
        matricization: `"spatial"`, `"channel"` or `"separable"`.
        rank: Number of singular values r.

    Returns:
        The two shapes.

    Example:

    >>> two_stage_kernels((3, 3, 16, 32), "separable", 8)
    ((3, 1, 16, 8), (1, 3, 8, 32))
    """
    kind = factorization.resolve(kernel_shape, matricization)
    *spatial, channels, filters = (int(size) for size in kernel_shape)
    ones = (1,) * len(spatial)
    if kind == "spatial":
        return (*spatial, channels, rank), (*ones, channels * rank, filters)
    if kind == "channel":
        return (*spatial, channels, rank), (*ones, rank, filters)
    first = (*spatial[:-1], 1, channels, rank)
    return first, (*ones[:-1], spatial[-1], rank, filters)


def two_stage_parameters(kernel_shape: Sequence[int], matricization: str, rank: int) -> int:
    """Return the weights of the two-stage fold, as stored, without bias.

    Args:
        kernel_shape: Keras kernel shape.
        matricization: `"spatial"`, `"channel"` or `"separable"`.
        rank: Number of singular values r.

    Returns:
        The number of weights of both kernels of `two_stage_kernels`.

    Example:

    >>> two_stage_parameters((3, 3, 16, 32), "separable", 8)
    1152
    """
    return sum(math.prod(shape) for shape in two_stage_kernels(kernel_shape, matricization, rank))


def two_stage_effort(kernel_shape: Sequence[int], matricization: str, rank: int) -> float:
    """Estimate the time of the two-stage fold relative to the dense convolution.

    A rule of thumb, MACs over MACs with a depthwise MAC counted four times: on x86-64 with LiteRT
    a depthwise branch took 2.3 to 4.4 times as long per MAC as a convolution, for 64 to 16
    channels. Below about 0.75 two stages were faster in every case measured but the smallest.

    Args:
        kernel_shape: Keras kernel shape.
        matricization: `"spatial"`, `"channel"` or `"separable"`.
        rank: Number of singular values r.

    Returns:
        The estimated ratio, above 0.

    Example:

    >>> two_stage_effort((3, 3, 32, 32), "spatial", 3) < 0.75
    True
    """
    first, second = two_stage_kernels(kernel_shape, matricization, rank)
    depthwise = factorization.resolve(kernel_shape, matricization) == "spatial"
    effort = (4 if depthwise else 1) * math.prod(first) + math.prod(second)
    return effort / math.prod(kernel_shape)


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs.

    Attributes:
        name: The layer's name; its path where nested models have layers of the same name.
        parameters: Trainable and other weights, as they are.
        trainable_parameters: Those that train.
        macs: Multiply-accumulates for one sample; None where a size is undefined. For an SVD
            layer the convolution plus the h*w*r of rebuilding its kernel, likewise for Tucker.
        dense_parameters: Weights of the dense layer this one stands for.
        dense_macs: MACs of the dense layer this one stands for.
    """

    name: str
    parameters: int
    trainable_parameters: int
    macs: int | None
    dense_parameters: int
    dense_macs: int | None


@dataclass(frozen=True)
class ModelCost:
    """What a model costs: sums over its layers.

    Attributes:
        parameters: Trainable weights, as the papers count.
        non_trainable_parameters: The others, such as moving statistics.
        macs: Multiply-accumulates for one sample; None where a size is undefined.
        dense_parameters: Trainable weights with every low-rank layer counted as its dense one.
        dense_macs: MACs with every low-rank layer counted as its dense one.
        layers: The layers' own costs.
    """

    parameters: int
    non_trainable_parameters: int
    macs: int | None
    dense_parameters: int
    dense_macs: int | None
    layers: tuple[LayerCost, ...]

    @property
    def compression(self) -> float:
        """1 - parameters / dense parameters; negative when the factors are the larger."""
        return 1.0 - self.parameters / self.dense_parameters if self.dense_parameters else 0.0


def model_cost(model: Any) -> ModelCost:
    """Count the parameters and MACs of a Functional or Sequential model, nested ones included.

    A convolution costs (output positions) x (kernel entries per group); a dense layer one MAC
    per kernel entry and position. Shared layers count their MACs at each call, their weights
    once. Normalization, activations, pooling and additions count no MACs, as in the papers.

    Args:
        model: A built Keras model, factorized or not.

    Returns:
        The `ModelCost`.

    Example:

    >>> import keras
    >>> inputs = keras.Input((8, 8, 3))
    >>> outputs = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs)
    >>> cost = model_cost(keras.Model(inputs, outputs))
    >>> cost.parameters, cost.macs
    (108, 6912)
    """
    calls: dict[int, tuple[Any, list[tuple[int | None, int | None]]]] = {}
    for call in layer_calls(model):
        # A transposed convolution spends its kernel once per input position, a recurrent layer
        # once per step.
        recurrent = hasattr(call.layer, "cell") or hasattr(call.layer, "forward_layer")
        by_input = recurrent or "Transpose" in type(call.layer).__name__
        visited = call.input_shape if by_input else call.output_shape
        calls.setdefault(id(call.layer), (call.layer, []))[1].append(_macs(call.layer, visited))
    names = {id(layer): key for key, layer in layer_keys(model).items()}
    rows = []
    for layer, macs in calls.values():
        parameters = sum(math.prod(w.shape) for w in layer.weights)
        trainable = sum(math.prod(w.shape) for w in layer.trainable_weights)
        saved = 0
        if _is_low_rank(layer):
            factors = sum(math.prod(value.shape) for value in layer.factor_variables)
            saved = math.prod(layer.kernel_shape) - factors
        rows.append(
            LayerCost(
                names.get(id(layer), layer.name),
                parameters,
                trainable,
                _sum(pair[0] for pair in macs),
                parameters + saved,
                _sum(pair[1] for pair in macs),
            )
        )
    trainable = sum(math.prod(w.shape) for w in model.trainable_weights)
    total = sum(row.parameters for row in rows)
    return ModelCost(
        parameters=trainable,
        non_trainable_parameters=total - trainable,
        macs=_sum(row.macs for row in rows),
        dense_parameters=trainable
        + sum(row.dense_parameters - row.parameters for row in rows if row.trainable_parameters),
        dense_macs=_sum(row.dense_macs for row in rows),
        layers=tuple(rows),
    )


def _is_low_rank(layer: Any) -> bool:
    return hasattr(layer, "factor_variables")


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
    by_depth = graph._nodes_by_depth
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    consumers: dict[int, list[Any]] = {}
    for node in nodes:
        for tensor in node.input_tensors:
            consumers.setdefault(id(tensor), []).append(node.operation)
    for node in nodes:
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


_KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel")


def _macs(layer: Any, shape: Sequence[int | None]) -> tuple[int | None, int | None]:
    """Return (MACs as it is, MACs of the dense layer it stands for) of one call."""
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    sizes = shape[2:] if first else shape[1:-1]
    if type(layer).__name__ == "EinsumDense":
        return (_einsum_macs(layer, shape),) * 2
    if _is_low_rank(layer):
        entries, rebuild = math.prod(layer.kernel_shape), layer.rebuild_macs
    else:
        kernels = [w for w in layer.weights if w.name in _KERNELS]
        entries, rebuild = sum(math.prod(w.shape) for w in kernels), 0
    if not entries:
        return 0, 0
    if any(size is None for size in sizes):
        return None, None
    dense = math.prod(int(size) for size in sizes if size is not None) * entries
    return dense + rebuild, dense


def _einsum_macs(layer: Any, shape: Sequence[int | None]) -> int | None:
    """MACs of an EinsumDense: for each entry of the output one per entry that is summed over."""
    operands, output = layer.equation.replace(" ", "").split("->")
    kernel = operands.split(",")[1]
    summed = [n for axis, n in zip(kernel, layer.kernel.shape, strict=True) if axis not in output]
    sizes = [*shape[1:], *summed]
    if any(size is None for size in sizes):
        return None
    return math.prod(int(size) for size in sizes if size is not None)


def _sum(values: Any) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
